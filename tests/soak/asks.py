"""What a client asks for, and the answer that is due. Pure: all chance comes from the generator that is given."""

import json
import random
from dataclasses import dataclass
from typing import Any

from tests.soak.oracle import Answer, answer, key_of, spoken

_WORDS = ("stop", "the", "stream", "at", "its", "end", "axis", "Größe", "語", "😀", "once", "upon", "a", "\n", "x" * 24)
_NATIVE = ("/execute", "/v1/jobs", "/v1/inference")


@dataclass(frozen=True)
class Ask:
    """One request for tokens.

    Attributes:
        key: What the oracle's answer depends on.
        stops: The stop strings among the fields.
    """

    path: str
    fields: dict[str, Any]
    key: int
    max_tokens: int
    stops: tuple[str, ...]

    @property
    def is_native(self) -> bool:
        """Whether its events are numbered ones of ours, and not OpenAI's chunks."""
        return self.path in _NATIVE

    @property
    def is_stream(self) -> bool:
        """Whether events are asked for, by this request or by one that follows it."""
        return self.is_native or bool(self.fields.get("stream"))

    @property
    def includes_usage(self) -> bool:
        """Whether the last chunk of OpenAI's shape carries usage."""
        return self.fields.get("stream_options", {}).get("include_usage", False) is True

    def due(self) -> Answer:
        """What it has to get if nothing happens to it."""
        return answer(self.key, self.max_tokens, self.stops)

    def request(self, **headers: str) -> bytes:
        """The bytes to send."""
        return request("POST", self.path, json.dumps(self.fields).encode(), **headers)


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as bytes. `Last_Event_ID` is sent as Last-Event-ID."""
    lines = [f"{method} {path} HTTP/1.1", "Host: soak"]
    if body or method == "POST":
        headers = {"Content_Type": "application/json", "Content_Length": str(len(body))} | headers
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def new_ask(rng: random.Random, path: str, number: int, *, max_tokens: int | None = None) -> Ask:
    """A request for this route; the number makes its prompt, and so its answer, different from all others."""
    prompt = f"{number}: " + " ".join(
        rng.choices(_WORDS, k=rng.choice((1, 3, 8, 20) if max_tokens is None else (1, 3)))
    )
    is_chat = path == "/v1/chat/completions" or (path in _NATIVE and rng.random() < 0.3)
    fields: dict[str, Any] = {}
    if is_chat:
        turns = [("system", "be brief"), ("user", "hello"), ("assistant", "yes?"), ("user", prompt)]
        turns = turns[rng.choice((0, 1, 3, 3)) :]
        fields["messages"] = [{"role": role, "content": content} for role, content in turns]
        # The template's special tokens have no text, and so no part in the key.
        key = key_of(("".join(f"{role}\n{content}\n" for role, content in turns) + "assistant\n").encode())
    else:
        fields["prompt"] = prompt
        key = key_of(prompt.encode())
    max_tokens = max_tokens or rng.choice((1, 2, 5, 10, 20, 20, 40, 40, 80))
    name = "max_completion_tokens" if path == "/v1/chat/completions" and rng.random() < 0.5 else "max_tokens"
    fields[name] = max_tokens
    stops = _stops(rng, key, max_tokens)
    if stops:
        fields["stop"] = stops[0] if len(stops) == 1 and rng.random() < 0.5 else list(stops)
    # The right token leads by so much that no way of drawing misses it.
    fields |= rng.choice(
        ({"temperature": 0}, {"temperature": 0.7, "seed": number}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}, {})
    )
    if path in _NATIVE:
        if rng.random() < 0.4:
            fields["narrate"] = True
        if rng.random() < 0.2:
            fields["deadline_s"] = rng.choice((2.5, 9))
    elif rng.random() < 0.7:
        fields["stream"] = True
        if rng.random() < 0.5:
            fields["stream_options"] = {"include_usage": True}
    return Ask(path, fields, key, max_tokens, stops)


def _stops(rng: random.Random, key: int, max_tokens: int) -> tuple[str, ...]:
    """Perhaps some stop strings: parts of the answer, and such as begin like one and never come."""
    if rng.random() < 0.65:
        return ()
    text = spoken(key, max_tokens + 4)
    stops = []
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text)) if text else 0
        part = text[at : at + rng.randint(1, 5)]
        stops.append(part if part and rng.random() < 0.6 else part + "ZZ")
    return tuple(dict.fromkeys(stops))
