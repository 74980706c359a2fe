"""What a server sent in answer to one request: every byte with the time of its arrival, and its reading as events.

Owned here: the request itself, the limits in time and size, and the ways to look at what came.

Its law: nothing here judges. What came is written down as it came, also when it breaks the contract, and the record
is complete to the end or says how it ended. The events are the raw ones: a client that reports its own opinion of a
stream would hide what it forgives.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import requests

from worker.client import (
    DONE,
    IncompleteStream,
    ServerSentEvent,
    SSEParser,
    json_object,
    receive,
    why_unanswered,
)

MAX_RECORDED_BYTES = 64 * 1024 * 1024
JOIN_S = 2.0


@dataclass(frozen=True)
class Recording:
    """All that a server sent in answer to one request.

    Attributes:
        status: The HTTP status; None when there was no answer.
        headers: With names in lower case.
        reads: (seconds since the request was sent, bytes), as the reads of the socket brought them.
        ending: "eof", "cut", "left" when the checker had seen enough, or "stopped" when it had to give up.
        ended_at_s: When, in the seconds of `reads`.
        detail: Why it was cut or stopped, or why there was no answer.
    """

    status: int | None
    headers: Mapping[str, str]
    reads: Sequence[tuple[float, bytes]]
    ending: str
    ended_at_s: float
    detail: str = ""


def record(
    session: requests.Session,
    method: str,
    url: str,
    fields: Mapping[str, Any] | None = None,
    *,
    limit_s: float,
    show: Callable[[ServerSentEvent], None] = lambda event: None,
    leave_at: Callable[[ServerSentEvent], bool] = lambda event: False,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Recording:
    """Send one request and write down what comes, for at most `limit_s`, or until `leave_at` is true of an event.

    The body is `fields` as JSON, or `body` as it is: a request that is no JSON has to be sent too.

    A thread reads, so that the limit holds wherever the server stops talking, in the middle of a header too, and so
    that a slow terminal is not taken for a slow server. `show` and `leave_at` are called in the caller's thread.
    """
    sent_at = time.monotonic()
    # (seconds, bytes), and last (seconds, (ending, detail)).
    inbox: queue.SimpleQueue[tuple[float, bytes | tuple[str, str]]] = queue.SimpleQueue()
    answers: list[requests.Response] = []  # none or one, set by the reader before it reads the body

    def put(item: bytes | tuple[str, str]) -> None:
        inbox.put((time.monotonic() - sent_at, item))

    def read() -> None:
        num_bytes = 0
        try:
            response = session.request(
                method,
                url,
                json=fields,
                data=body,
                headers=headers,
                stream=True,
                timeout=(limit_s, limit_s),
                allow_redirects=False,
            )
        except requests.exceptions.RequestException as error:
            put(("cut", why_unanswered(error, limit_s, limit_s)))
            return
        answers.append(response)
        try:
            with response:
                while data := receive(response):
                    num_bytes += len(data)
                    if num_bytes > MAX_RECORDED_BYTES:
                        put(("stopped", f"it is longer than {MAX_RECORDED_BYTES} bytes"))
                        return
                    put(data)
            put(("eof", ""))
        except IncompleteStream as cut:
            put(("cut", str(cut)))

    reader = threading.Thread(target=read, name="endstop-check-reader", daemon=True)
    parser = SSEParser(max_event_bytes=MAX_RECORDED_BYTES)
    reads: list[tuple[float, bytes]] = []
    ending, detail, ended_at_s = "stopped", f"it had not ended within {limit_s:.3g} s", limit_s
    reader.start()
    try:
        while True:
            at_s, item = inbox.get(timeout=max(0.0, limit_s - (time.monotonic() - sent_at)))
            if at_s > limit_s:
                break  # by the time of its arrival: ours may be later, when the terminal is slow
            if isinstance(item, tuple):
                (ending, detail), ended_at_s = item, at_s
                break
            reads.append((at_s, item))
            is_enough = False
            for event in parser.push(item):
                show(event)
                is_enough = is_enough or leave_at(event)
            if is_enough:
                ending, detail, ended_at_s = "left", "the checker left it", at_s
                break
    except queue.Empty:
        pass  # the limit, in silence
    finally:
        for response in answers:
            # Wakes a reader that is still blocked; it then closes the connection. Closing it from here would not.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                response.raw.shutdown()
        reader.join(JOIN_S)
    status = answers[0].status_code if answers else None
    headers = {name.lower(): value for name, value in answers[0].headers.items()} if answers else {}
    return Recording(status, headers, reads, ending, ended_at_s, detail)


# --- What a recording says ---


@dataclass(frozen=True)
class Frame:
    """One event of a recording, with the time at which its last byte came."""

    at_s: float
    sse: ServerSentEvent

    @property
    def is_done(self) -> bool:
        return self.sse.data == DONE

    @cached_property
    def payload(self) -> dict[str, Any]:
        """Its JSON object; empty when it carries none."""
        return json_object(self.sse.data) or {}

    @property
    def type(self) -> str:
        """The `type` of a native event."""
        value = self.payload.get("type")
        return value if isinstance(value, str) else ""

    @property
    def choice(self) -> dict[str, Any]:
        """The first choice of an OpenAI chunk; empty when there is none."""
        choices = self.payload.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        return choice if isinstance(choice, dict) else {}

    @property
    def delta(self) -> dict[str, Any]:
        value = self.choice.get("delta")
        return value if isinstance(value, dict) else {}

    @property
    def text(self) -> str:
        """The text that it brings, in either format."""
        if self.type == "token":
            value = self.payload.get("t")
        else:
            # Some servers put a model's thinking beside its answer; it is output all the same.
            value = self.delta.get("content") or self.delta.get("reasoning_content")
        return value if isinstance(value, str) else ""

    @property
    def num_tokens(self) -> int:
        """How many tokens of a native stream it brings."""
        value = self.payload.get("n", 1)
        return value if isinstance(value, int) else 1

    @property
    def is_finish(self) -> bool:
        return self.choice.get("finish_reason") is not None

    @property
    def is_usage(self) -> bool:
        """OpenAI's chunk that has no choices and carries the usage."""
        return self.payload.get("choices") == [] and isinstance(self.payload.get("usage"), dict)

    def __str__(self) -> str:
        shown = self.sse.data if len(self.sse.data) <= 60 else f"{self.sse.data[:57]}..."
        return f"{shown!r}"


class Transcript:
    """A recording, read as events.

    Attributes:
        frames: All events.
        events: Those before the first [DONE].
        after_done: Those behind it.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        parser = SSEParser(max_event_bytes=MAX_RECORDED_BYTES)
        self.frames = [Frame(at_s, sse) for at_s, data in recording.reads for sse in parser.push(data)]
        dones = [n for n, frame in enumerate(self.frames) if frame.is_done]
        self.has_done = bool(dones)
        self.events = self.frames[: dones[0]] if dones else self.frames
        self.after_done = self.frames[dones[0] + 1 :] if dones else []
        self.body = b"".join(data for _, data in recording.reads).replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    @cached_property
    def numbered(self) -> list[tuple[str | None, str]]:
        """(id, data) of each event before [DONE]: two readers of one job have to see the same."""
        return [(frame.sse.id, frame.sse.data) for frame in self.events]

    def of_type(self, *types: str) -> list[Frame]:
        return [frame for frame in self.events if frame.type in types]

    @property
    def finishes(self) -> list[Frame]:
        """The endings of an OpenAI stream: finish reasons and errors."""
        return [frame for frame in self.events if frame.is_finish or "error" in frame.payload]

    @property
    def texts(self) -> list[Frame]:
        return [frame for frame in self.events if frame.text]


def longest_silence_s(recording: Recording) -> float:
    """The longest time without a single byte, from the request to the end."""
    instants = [0.0, *(at_s for at_s, _ in recording.reads), recording.ended_at_s]
    return max(b - a for a, b in pairwise(instants))
