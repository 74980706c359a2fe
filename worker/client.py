"""The client: one file, to be copied wherever it is needed. It needs Python 3.11 and `requests`, nothing else.

    with Client("http://127.0.0.1:8000") as client:
        for event in client.run(prompt="Once upon a time", max_tokens=64):
            if isinstance(event, Token):
                print(event.text, end="", flush=True)

`run` goes on behind a connection that was lost, `stream` lives as long as its one connection, `generate` returns the
whole answer, and `submit` with `events` is for a job that outlives its caller. docs/client.md says when to use which.

Its first law: a stream that ended badly never looks like one that ended well. An `End` event is the only success; an
`error` event raises `GenerationError`, and a stream that stops without either raises `IncompleteStream`, whether
the connection was cut, closed politely, or closed after a `[DONE]`. Only behind a job's last event nothing comes.

Its second law: nothing is sent again that could be done twice. What may have arrived is repeated only with an
Idempotency-Key, by which the server gives the job that the first one made.

Leaving stops the work: closing the generator of `stream` closes its connection, closing that of `run` cancels its job.
A `for` loop that is left closes it when nobody else holds the generator; `contextlib.closing` always does.

Thread: `requests` does not promise that a session may be shared; use one Client per thread.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlsplit

import requests

__all__ = [
    "Answer",
    "Call",
    "Client",
    "ConnectionFailed",
    "End",
    "EndstopError",
    "Event",
    "FieldError",
    "GenerateFields",
    "GenerationError",
    "IdleTimeout",
    "IncompleteStream",
    "InvalidRequest",
    "JobStatus",
    "Metrics",
    "Narration",
    "NotReady",
    "Overloaded",
    "Part",
    "ProtocolError",
    "Readiness",
    "RequestRefused",
    "SSEParser",
    "ServerSentEvent",
    "Started",
    "Token",
    "TokenLogprob",
    "TooLarge",
    "Unauthorized",
    "Unknown",
    "UnknownJob",
    "Usage",
]

CONNECT_TIMEOUT_S = 10.0
# Three keep-alives of the server, 10 s each, may be lost before the stream counts as dead.
IDLE_TIMEOUT_S = 30.0
# As the clients of OpenAI and Anthropic: enough for a hiccup, and a server that is not there is soon said to be.
MAX_RETRIES = 2
# In a row, without a new event: with the pauses below a minute of trying, for which the server keeps a job that nobody
# reads (ENDSTOP_ORPHAN_TTL_S).
MAX_RESUMES = 10
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
# Who is told to come back later than this is told so at once, as by OpenAI's client.
LONGEST_RETRY_AFTER_S = 60.0
# For the cancel of a job that was left: it must not hold up whoever leaves.
LEAVE_TIMEOUT_S = 2.0
# An event is a token, or a slow reader's backlog of them; nothing that the server says is near this.
MAX_EVENT_BYTES = 16 * 1024 * 1024
# A refusal or a job's status. Larger is not from our server.
MAX_BODY_BYTES = 1024 * 1024
READ_BYTES = 64 * 1024
DONE = "[DONE]"
KEY_HEADER = "Idempotency-Key"
RESULT = TypeVar("RESULT")


# --- Errors ---
#
# EndstopError
# ├── ConnectionFailed        no connection, or it was lost before the answer began
# ├── RequestRefused          an HTTP status instead of a stream; nothing was generated
# │   ├── InvalidRequest      400, every bad field at once
# │   ├── Unauthorized        401
# │   ├── UnknownJob          404 on a job's path: never existed, or expired
# │   ├── TooLarge            413
# │   ├── Overloaded          429, with retry_after_s
# │   └── NotReady            503, with retry_after_s and state
# ├── GenerationError         the stream's terminal event is an `error`: it ended, and says why
# ├── IncompleteStream        the stream stopped without a terminal event: nobody knows why
# │   └── IdleTimeout         ... because not one byte, not even a keep-alive, came for idle_timeout_s
# └── ProtocolError           the server said something that the contract forbids


class EndstopError(Exception):
    """Everything that this client raises.

    Attributes:
        request_id: The answer's `X-Request-Id`, by which the server's log has it; None when there was no answer.
    """

    request_id: str | None = None


class ConnectionFailed(EndstopError):
    """The server could not be reached, or the connection was lost before its answer was there.

    Attributes:
        is_unsent: There was no connection at all, so the server has not seen the request.
    """

    def __init__(self, message: str, *, is_unsent: bool = False) -> None:
        super().__init__(message)
        self.is_unsent = is_unsent


@dataclass(frozen=True)
class FieldError:
    """One bad field of a refused request."""

    field: str
    constraint: str
    message: str


class RequestRefused(EndstopError):
    """The server answered with an HTTP status instead of a stream.

    Attributes:
        status: The HTTP status.
        retry_after_s: When to come back, if the server said so.
        body: Its JSON object; empty if it sent something else.
    """

    def __init__(
        self, status: int, message: str, *, retry_after_s: float | None = None, body: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = body or {}


class InvalidRequest(RequestRefused):
    """400: the request can never be accepted as it is. `errors` names every bad field."""

    @property
    def errors(self) -> list[FieldError]:
        listed = self.body.get("errors")
        return [
            FieldError(*(str(entry.get(name, "")) for name in ("field", "constraint", "message")))
            for entry in (listed if isinstance(listed, list) else [])
            if isinstance(entry, dict)
        ]


class Unauthorized(RequestRefused):
    """401: the API key is missing or wrong."""


class UnknownJob(RequestRefused):
    """404 on a job's path: there never was such a job, or its events have expired."""


class TooLarge(RequestRefused):
    """413: the body is larger than the server takes."""


class Overloaded(RequestRefused):
    """429: no room now. Come back after `retry_after_s`."""


class NotReady(RequestRefused):
    """503: the model is loading, draining or dead; `state` says which."""

    @property
    def state(self) -> str:
        return str(self.body.get("state", ""))


class GenerationError(EndstopError):
    """The stream ended with an `error` event.

    Attributes:
        code: One of the contract's codes, such as STALLED or VRAM_OOM.
        message: The server's sentence about it.
        usage: Tokens that were spent all the same; None if it did not say.
    """

    def __init__(self, code: str, message: str, usage: Usage | None = None) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.usage = usage


class IncompleteStream(EndstopError):
    """The stream stopped without a terminal event; what was read is a prefix of the answer.

    Attributes:
        job_id: The job that it is about, which may still go on; None when not even that was heard.
        last_event_id: Id of the last event that the caller was given; `Client.events` resumes behind it.
        is_done: Whether the server said `[DONE]` all the same.
    """

    def __init__(
        self, message: str, last_event_id: str | None = None, job_id: str | None = None, *, is_done: bool = False
    ) -> None:
        super().__init__(message)
        self.last_event_id = last_event_id
        self.job_id = job_id
        self.is_done = is_done


class IdleTimeout(IncompleteStream):
    """Not one byte arrived for idle_timeout_s, so the server or the way to it is gone."""


class ProtocolError(EndstopError):
    """The server broke the stream contract; this is a bug of the server, or it is another kind of server."""


_REFUSALS: dict[int, type[RequestRefused]] = {
    400: InvalidRequest,
    401: Unauthorized,
    413: TooLarge,
    429: Overloaded,
    503: NotReady,
}


# --- Server-Sent Events ---


@dataclass(frozen=True)
class ServerSentEvent:
    """One dispatched event.

    Attributes:
        data: The data lines, joined by newlines.
        event: Its type; "message" when no `event:` line named one.
        id: The `id:` line of this very event, None without one.
        last_event_id: The stream's last id so far, which an event without an id inherits.
    """

    data: str
    event: str = "message"
    id: str | None = None
    last_event_id: str = ""


class SSEParser:
    """Turns bytes, however they were cut, into events; keeps what is unfinished until the rest comes.

    An event is returned by the push that brings its blank line, never later. What has no blank line when the
    stream ends is no event: the standard discards it.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    _LINE_END = re.compile(rb"\r\n|\r|\n")
    _BOM = b"\xef\xbb\xbf"

    def __init__(self, last_event_id: str = "", *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.last_event_id = last_event_id
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()  # the line that has no end yet
        self._is_first_line = True
        self._is_after_cr = False  # a line feed that comes first in the next chunk belongs to this carriage return
        self._num_data_bytes = 0
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    def push(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take the next bytes; return the events that they complete.

        Raises:
            ProtocolError: An event grew beyond max_event_bytes.
        """
        if not chunk:
            return []
        if self._is_after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._is_after_cr = chunk.endswith(b"\r")
        events = []
        # Lines are cut as bytes and decoded whole. This equals incremental decoding: neither CR nor LF can be part
        # of a longer UTF-8 sequence.
        *ends, rest = self._LINE_END.split(chunk)
        for end in ends:
            self._line += end
            line = bytes(self._line)
            self._line.clear()
            if (event := self._take_line(line)) is not None:
                events.append(event)
        self._line += rest
        self._check_size(len(self._line))
        return events

    def _check_size(self, num_pending_bytes: int) -> None:
        if self._num_data_bytes + num_pending_bytes > self._max_event_bytes:
            raise ProtocolError(f"an event is larger than {self._max_event_bytes} bytes; is this an event stream?")

    def _take_line(self, line: bytes) -> ServerSentEvent | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(self._BOM)
        if not line:
            return self._dispatch()
        self._check_size(len(line))
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
                self._num_data_bytes += len(line)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = self.last_event_id = value
            case _:
                pass  # a comment (its name is empty), `retry`, or a field that the standard tells us to ignore
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, event, own_id = self._data, self._event, self._id
        self._data, self._event, self._id, self._num_data_bytes = [], "", None, 0
        if not data:
            return None
        return ServerSentEvent("\n".join(data), event or "message", own_id, self.last_event_id)


# --- Native events ---


@dataclass(frozen=True)
class Usage:
    """What a request has cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0  # of the prompt's, those that had been computed for another request


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, by the model's own distribution."""

    token: str  # its text, decoded alone
    logprob: float  # natural logarithm
    data: bytes  # what it stands for; a character may be cut across tokens
    top: tuple[TokenLogprob, ...] = ()  # the likeliest in its place, the likeliest first


@dataclass(frozen=True)
class Event:
    """What every event has: `id`, its place in the job's stream, None on a server that numbers none."""

    id: str | None


@dataclass(frozen=True)
class Started(Event):
    """The first event: the request is accepted."""

    job_id: str
    model: str
    started_at: str  # RFC 3339


@dataclass(frozen=True)
class Narration(Event):
    """Progress in words; only when the request asks with `narrate`."""

    actor: str
    action: str
    target: str | None
    human: str
    job_id: str


@dataclass(frozen=True)
class Part:
    """A piece of what an answer is made of.

    Attributes:
        kind: text, reasoning, call (one begins: `call_id`, `name`), arguments (their JSON goes on) or call_end.
        text: Of text, reasoning and arguments.
        index: Of the call in the answer, from 0.
    """

    kind: str
    text: str = ""
    index: int | None = None
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Token(Event):
    """Text of one token, or of several that waited for us and were merged.

    `text` is the model's own: calls of tools and reasoning stand in it as the model marks them, and `parts` says what
    is what. A mark takes several tokens, so there may be none yet.
    """

    text: str
    index: int  # of its first token
    num_tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()  # of each token whose text begins here, if the request asks
    parts: tuple[Part, ...] | None = None  # what of the answer has become known with it; None: its text


@dataclass(frozen=True)
class Metrics(Event):
    """How fast it went; once before the terminal event."""

    tokens_per_sec: float | None
    vram_bytes: int | None
    queue_ms: float | None
    ttft_ms: float | None


@dataclass(frozen=True)
class End(Event):
    """The terminal event of a stream that ended well."""

    tokens_out: int
    decode_time_ms: float
    stop_reason: str  # EOS, MAX_TOKENS, STOP_SEQUENCE, CANCELLED
    stop_sequence_matched: str | None
    usage: Usage
    parts: tuple[Part, ...] = ()  # what has become known by the end only


@dataclass(frozen=True)
class Unknown(Event):
    """An event of a type that this version of the client does not know: newer servers may send them."""

    type: str
    payload: dict[str, Any]


_NUMBER = (int, float)
_OPTIONAL_NUMBER = (int, float, type(None))
_OPTIONAL_TEXT = (str, type(None))


def _field(payload: dict[str, Any], name: str, *kinds: type, of: str = "") -> Any:
    value = payload.get(name)
    # A bool is an int to isinstance, but `"i": true` is nobody's token index.
    if name not in payload or isinstance(value, bool) or not isinstance(value, kinds):
        shown = repr(value)[:80] if name in payload else "missing"
        whose = of or f"a {payload.get('type')!r} event"
        raise ProtocolError(f"field {name!r} of {whose} is {shown}")
    return value


def _usage(payload: dict[str, Any], *, of: str = "") -> Usage:
    counts = _field(payload, "usage", dict, of=of)
    details = counts.get("prompt_tokens_details")
    cached = _field(details, "cached_tokens", int, of="a usage") if isinstance(details, dict) else 0
    return Usage(
        _field(counts, "prompt_tokens", int, of="a usage"),
        _field(counts, "completion_tokens", int, of="a usage"),
        _field(counts, "total_tokens", int, of="a usage"),
        cached,
    )


def _logprobs(listed: object) -> tuple[TokenLogprob, ...]:
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ProtocolError(f"log-probabilities are {repr(listed)[:80]}, not a list of objects")
    return tuple(
        TokenLogprob(
            _field(entry, "token", str, of="a log-probability"),
            _field(entry, "logprob", *_NUMBER, of="a log-probability"),
            _bytes(_field(entry, "bytes", list, of="a log-probability")),
            _logprobs(entry.get("top_logprobs", [])),
        )
        for entry in listed
    )


def _parts(payload: dict[str, Any]) -> tuple[Part, ...] | None:
    if "parts" not in payload:
        return None
    return tuple(_part(entry) for entry in _field(payload, "parts", list))


def _part(entry: object) -> Part:
    if not isinstance(entry, dict):
        raise ProtocolError(f"a part of an answer is {repr(entry)[:80]}")
    kind = _field(entry, "type", str, of="a part")
    return Part(
        kind,
        _field(entry, "text", str, of="a part") if kind in ("text", "reasoning", "arguments") else "",
        _field(entry, "index", int, of="a part") if kind in ("call", "arguments", "call_end") else None,
        _field(entry, "id", str, of="a part") if kind == "call" else "",
        _field(entry, "name", str, of="a part") if kind == "call" else "",
    )


def _bytes(numbers: list[Any]) -> bytes:
    try:
        return bytes(numbers)
    except (TypeError, ValueError):
        raise ProtocolError(f"the bytes of a log-probability are {repr(numbers)[:80]}") from None


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object that a text is; None when it is anything else."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):  # the latter for a thousand brackets, which a short text may have
        return None
    return parsed if isinstance(parsed, dict) else None


def parse_payload(sse: ServerSentEvent) -> dict[str, Any]:
    """The JSON object that an event carries.

    Raises:
        ProtocolError: The data is no JSON object, or has no `type`.
    """
    payload = json_object(sse.data)
    if payload is None or not isinstance(payload.get("type"), str):
        raise ProtocolError(f"an event is not a JSON object with a type: {sse.data[:80]!r}")
    return payload


def parse_event(sse: ServerSentEvent) -> Event:
    """One native event, with its fields checked.

    Raises:
        GenerationError: It is an `error` event, however incomplete: a failure must not turn into a complaint.
        ProtocolError: It is not what the contract describes.
    """
    payload = parse_payload(sse)
    place = sse.last_event_id or None
    match payload["type"]:
        case "started":
            return Started(place, *(_field(payload, name, str) for name in ("job_id", "model", "started_at")))
        case "narration":
            return Narration(
                place,
                actor=_field(payload, "actor", str),
                action=_field(payload, "action", str),
                target=_field(payload, "target", *_OPTIONAL_TEXT),
                human=_field(payload, "human", str),
                job_id=_field(payload, "job_id", str),
            )
        case "token":
            return Token(
                place,
                _field(payload, "t", str),
                _field(payload, "i", int),
                _field(payload, "n", int) if "n" in payload else 1,
                _logprobs(payload.get("logprobs", [])),
                _parts(payload),
            )
        case "metrics":
            names = ("tokens_per_sec", "vram_bytes", "queue_ms", "ttft_ms")
            return Metrics(place, *(_field(payload, name, *_OPTIONAL_NUMBER) for name in names))
        case "end":
            return End(
                place,
                tokens_out=_field(payload, "tokens_out", int),
                decode_time_ms=_field(payload, "decode_time_ms", *_NUMBER),
                stop_reason=_field(payload, "stop_reason", str),
                stop_sequence_matched=_field(payload, "stop_sequence_matched", *_OPTIONAL_TEXT),
                usage=_usage(payload),
                parts=_parts(payload) or (),
            )
        case "error":
            raise _generation_error(payload)
        case name:
            return Unknown(place, name, payload)


def _generation_error(payload: dict[str, Any]) -> GenerationError:
    try:
        usage = _usage(payload)
    except ProtocolError:
        usage = None
    return GenerationError(str(payload.get("code", "UNKNOWN")), str(payload.get("message", "")), usage)


def _calls(parts: Sequence[Part]) -> tuple[Call, ...]:
    return tuple(
        Call(
            begun.call_id,
            begun.name,
            "".join(part.text for part in parts if part.kind == "arguments" and part.index == begun.index),
            any(part.kind == "call_end" and part.index == begun.index for part in parts),
        )
        for begun in parts
        if begun.kind == "call"
    )


# --- The client ---


class GenerateFields(TypedDict, total=False):
    """What a request may say; the server checks it and reports every bad field at once.

    One of `prompt` and `messages` is needed; a chat model wants `messages`.
    """

    prompt: str | list[int]  # text, or token ids
    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    temperature: float  # 0..2, default 1
    top_p: float  # (0, 1], default 1
    top_k: int  # 0 is off
    min_p: float  # [0, 1]
    repetition_penalty: float  # (0, 2]
    presence_penalty: float  # [-2, 2]
    frequency_penalty: float  # [-2, 2]
    seed: int
    logit_bias: Mapping[str, float]  # token ids, and what is added to their logits: [-100, 100]
    stop: str | list[str]  # up to 4
    stop_token_ids: list[int]  # up to 64
    ignore_eos: bool
    min_tokens: int  # up to max_tokens
    logprobs: int  # 0..20: how many of the likeliest tokens are told with each
    tools: Sequence[Mapping[str, Any]]  # functions that the model may call, as in OpenAI's API; with messages only
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    response_format: Mapping[str, Any]  # of the whole answer, as in OpenAI's API; or one of the next three
    regex: str
    choice: list[str]
    grammar: str
    narrate: bool
    on_disconnect: Literal["cancel", "continue"]  # "cancel": of a stream that is lost, nothing is left to resume
    deadline_s: float


@dataclass(frozen=True)
class Call:
    """A call of a tool. `arguments` is the text of a JSON object; that of a call that was cut off is not whole."""

    id: str
    name: str
    arguments: str
    is_whole: bool


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        text: All that the model wrote; calls of tools and reasoning stand in it as it marks them.
        content: What of it is said to the user.
        reasoning: What of it the model says to itself.
        calls: Of tools, in their order.
        stop_reason: EOS, MAX_TOKENS or STOP_SEQUENCE.
        logprobs: Of every token, if the request asks.
    """

    text: str
    content: str
    reasoning: str
    calls: tuple[Call, ...]
    stop_reason: str
    stop_sequence_matched: str | None
    usage: Usage
    logprobs: tuple[TokenLogprob, ...]
    job_id: str


@dataclass(frozen=True)
class JobStatus:
    """Where a job is.

    Attributes:
        state: QUEUED, RUNNING, ENDED, FAILED or CANCELLED.
        outcome: Its `End`, or the error that reading it raises; None while it goes on.
    """

    job_id: str
    state: str
    usage: Usage
    outcome: End | GenerationError | None

    @property
    def is_over(self) -> bool:
        return self.outcome is not None


@dataclass(frozen=True)
class Readiness:
    """Whether the server would accept a request now; true or false in a condition."""

    is_ready: bool
    state: str
    retry_after_s: float | None = None

    def __bool__(self) -> bool:
        return self.is_ready


class Client:
    """Talks to one server.

    Args:
        base_url: Where it is, with or without `http://`.
        api_key: Sent as a bearer token.
        headers: Sent with every request.
        connect_timeout_s: For the TCP connection.
        idle_timeout_s: For each single read, so it bounds silence, not the length of an answer. Longer than the
            server's keep-alive, which is 10 s.
        max_retries: How often a request is sent again that was refused for now or got no answer. 0: never.
        max_resumes: How often in a row a job's lost stream is taken up without a new event. 0: never.
        sleep: How to wait in between.

    Attributes:
        session: The `requests.Session`; proxies and certificates are set there.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        max_retries: int = MAX_RETRIES,
        max_resumes: int = MAX_RESUMES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base_url = (base_url if "://" in base_url else f"http://{base_url}").rstrip("/")
        self.connect_timeout_s = connect_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.max_retries = max_retries
        self.max_resumes = max_resumes
        self._sleep = sleep
        self.session = requests.Session()
        # A proxy named in the environment has no way to our own loopback, and requests does not exempt it.
        self.session.trust_env = not _is_loopback(self.base_url)
        # A proxy that may compress gathers tokens until it has a block worth compressing.
        self.session.headers["Accept-Encoding"] = "identity"
        if api_key is not None:
            self.session.headers["Authorization"] = f"Bearer {api_key}"
        self.session.headers.update(headers or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections. A stream closes its own, when its generator ends or is closed."""
        self.session.close()

    # --- Answers ---

    def run(self, **fields: Unpack[GenerateFields]) -> Generator[Event, None, None]:
        """Generate, and yield the events as they arrive, up to and with `End`, over as many connections as it takes.

        A lost connection, or one that is silent for idle_timeout_s, is replaced by one that goes on behind the last
        event: none is lost and none comes twice. Closing the generator cancels the job, with one request of at most
        LEAVE_TIMEOUT_S to connect and as much for the answer; if that is lost too, or the whole process, the server
        cancels it when nobody has read it for ENDSTOP_ORPHAN_TTL_S.

        Nothing is sent before the first event is asked for.

        Raises:
            RequestRefused: No stream: a status that says why. See its subclasses.
            UnknownJob: The server knows the job no longer: it was replaced, or it took too long to come back to it.
            GenerationError: The stream ended with an error.
            IncompleteStream: It stopped without an ending and could not be taken up again. The job may go on: with
                the error's job_id and last_event_id `events` can try later.
            ProtocolError: It went on after its ending, or broke the contract in another way.
            ConnectionFailed: There was no answer at all. There may be a job all the same, until nobody has read it for
                too long.
        """
        return self._resumed(fields=dict(fields))

    def generate(self, **fields: Unpack[GenerateFields]) -> Answer:
        """Generate, and return the answer when it is whole; raises what `run` raises.

        That a job was cancelled by somebody else is a GenerationError here: half an answer is none.
        """
        pieces: list[str] = []
        parts: list[Part] = []
        logprobs: list[TokenLogprob] = []
        job_id, end = "", None
        # closing: a generator that an exception leaves behind would live as long as its traceback does.
        with closing(self.run(**fields)) as events:
            for event in events:
                match event:
                    case Started():
                        job_id = event.job_id
                    case Token():
                        pieces.append(event.text)
                        parts += (Part("text", event.text),) if event.parts is None else event.parts
                        logprobs += event.logprobs
                    case End():
                        end = event
                        parts += event.parts
        assert end is not None  # or `run` would have raised
        if end.stop_reason == "CANCELLED":
            raise GenerationError("CANCELLED", "the job was cancelled before the answer was complete", end.usage)
        return Answer(
            "".join(pieces),
            "".join(part.text for part in parts if part.kind == "text"),
            "".join(part.text for part in parts if part.kind == "reasoning"),
            _calls(parts),
            end.stop_reason,
            end.stop_sequence_matched,
            end.usage,
            tuple(logprobs),
            job_id,
        )

    def stream(self, **fields: Unpack[GenerateFields]) -> Generator[Event, None, None]:
        """Generate, and yield the events as they arrive, up to and with `End`, over one connection.

        The connection is all that holds the request: closing the generator closes it, and so does the end of the
        process, however it ends; the server then stops within a step. Nothing can be resumed. Only what the server has
        certainly not begun is sent again.

        Nothing is sent before the first event is asked for: a generator that was never started runs none of its
        body, so a connection opened earlier would have nobody to close it.

        Raises:
            IncompleteStream: It stopped without an ending.
            RequestRefused, GenerationError, ProtocolError, ConnectionFailed: As `run`.
        """
        return self._events("POST", "/execute", fields=dict(fields), max_retries=self.max_retries)

    # --- Jobs ---

    def submit(self, *, idempotency_key: str | None = None, **fields: Unpack[GenerateFields]) -> str:
        """Start a job that does not depend on this connection; return its id.

        Args:
            idempotency_key: Names the request: the same key with the same fields gives the same job for as long as the
                server keeps it, also to another process. Default: one of its own, for retries.

        Raises:
            RequestRefused: See its subclasses; with status 422 the key belongs to another request.
            ConnectionFailed: There was no answer. There may be a job all the same.
        """
        headers = {KEY_HEADER: idempotency_key or uuid.uuid4().hex}
        answer = self._call("POST", "/v1/jobs", fields=dict(fields), headers=headers)
        job_id: str = _field(answer, "job_id", str, of="the answer to POST /v1/jobs")
        return job_id

    def events(self, job_id: str, last_event_id: str | int | None = None) -> Generator[Event, None, None]:
        """A job's events: from its beginning, or those behind `last_event_id`; resumed as `run` does.

        Behind its last event there are none: the one stream that ends without an `End`. Of a job that has failed, the
        `GenerationError` is raised again.

        Closing the generator leaves the job alone: it goes on, for ENDSTOP_ORPHAN_TTL_S without a reader.

        Raises:
            UnknownJob: There is none, or not any longer.
            InvalidRequest: The job has no such event yet.
            RequestRefused, GenerationError, IncompleteStream, ProtocolError, ConnectionFailed: As `run`.
        """
        return self._resumed(job_id, None if last_event_id is None else str(last_event_id))

    def status(self, job_id: str) -> JobStatus:
        """State, usage and outcome of a job.

        Raises:
            UnknownJob: There is none.
        """
        return _job_status(self._call("GET", _job_path(job_id)))

    def cancel(self, job_id: str) -> JobStatus:
        """Stop a job, waiting or running. Doing it twice, or after the end, changes nothing.

        Raises:
            UnknownJob: There is none.
        """
        return _job_status(self._call("DELETE", _job_path(job_id)))

    # --- The server ---

    def ready(self) -> Readiness:
        """Whether the server would accept a request now; it may still be loading its model. Asked once."""
        try:
            self._open("GET", "/ready").close()
        except NotReady as refusal:
            return Readiness(False, refusal.state, refusal.retry_after_s)
        return Readiness(True, "READY")

    def health(self) -> bool:
        """Whether the server lives; false when its generation thread is dead or stalled. Asked once."""
        try:
            self._open("GET", "/health").close()
        except NotReady:
            return False
        return True

    # --- Connections ---

    def _resumed(
        self, job_id: str | None = None, last_event_id: str | None = None, *, fields: dict[str, Any] | None = None
    ) -> Generator[Event, None, None]:
        """The events of a job, over as many connections as it takes.

        Args:
            job_id: None: it has yet to be made, of `fields`, and is cancelled if the generator is closed.
        """
        key = {KEY_HEADER: uuid.uuid4().hex}
        is_ours, has_begun, is_over, num_failures = job_id is None, False, False, 0
        try:
            while True:
                if job_id is None:
                    events = self._events("POST", "/execute", fields=fields, headers=key)
                else:
                    events = self._events("GET", f"{_job_path(job_id)}/stream", last_event_id=last_event_id)
                try:
                    with closing(events):
                        for event in events:
                            has_begun, num_failures, last_event_id = True, 0, event.id
                            if isinstance(event, Started):
                                job_id = event.job_id
                            is_over = isinstance(event, End)
                            yield event
                    return
                except (ConnectionFailed, IncompleteStream, RequestRefused) as failure:
                    if isinstance(failure, IncompleteStream):
                        failure.job_id = job_id
                        # Perhaps the caller has had the last event. That is the job's word, not that of `[DONE]`.
                        is_behind = failure.is_done and not has_begun and bool(last_event_id)
                        if is_behind and job_id is not None and self._has_ended(job_id):
                            return
                    limit = self.max_retries if job_id is None else self.max_resumes
                    # There are servers that number nothing, or do not name the job: what came would come again.
                    has_place = not has_begun or (job_id is not None and last_event_id is not None)
                    if num_failures >= limit or not has_place or not _may_help(failure, is_harmless=True):
                        if not has_begun or isinstance(failure, IncompleteStream | UnknownJob):
                            raise
                        message = f"the stream was lost and could not be taken up again: {failure}"
                        raise IncompleteStream(message, last_event_id, job_id) from failure
                    self._sleep(_pause_s(failure, num_failures))
                    num_failures += 1
        except BaseException as left:
            # An error of ours has ended the job, or leaves it to be taken up later; anything else is a caller who goes.
            if is_ours and job_id is not None and not is_over and not isinstance(left, EndstopError):
                self._cancel_left(job_id)
            raise

    def _has_ended(self, job_id: str) -> bool:
        """Whether the job is over, as far as can be heard; raises what it has failed with."""
        try:
            outcome = self.status(job_id).outcome
        except (ConnectionFailed, RequestRefused):
            return False
        if isinstance(outcome, GenerationError):
            raise outcome
        return outcome is not None

    def _cancel_left(self, job_id: str) -> None:
        try:
            self._open("DELETE", _job_path(job_id), timeout_s=LEAVE_TIMEOUT_S).close()
        # Whoever leaves is not told that this failed, and is on the way out of something worse, perhaps of the
        # interpreter, where anything may be gone. The server finds out by itself that nobody reads.
        except Exception:
            pass

    def _events(
        self,
        method: str,
        path: str,
        *,
        fields: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        last_event_id: str | None = None,
        max_retries: int = 0,
    ) -> Generator[Event, None, None]:
        """The events of one connection."""
        sent: dict[str, str | bytes] = {"Accept": "text/event-stream", **(headers or {})}
        if last_event_id is not None:
            sent["Last-Event-ID"] = last_event_id.encode("utf-8", "replace")  # as browsers do
        parser = SSEParser(last_event_id or "")
        has_ended = is_done = False
        response = self._retried(lambda: self._open(method, path, fields, sent), max_retries, is_harmless=False)
        with response, _named(response):
            content_type = response.headers.get("Content-Type", "")
            if not content_type.lower().startswith("text/event-stream"):
                _read_body(response)
                raise ProtocolError(f"{method} {path} answered with {content_type!r}, not with an event stream")
            while not is_done:
                try:
                    chunk = receive(response)
                except IncompleteStream as cut:
                    if has_ended:
                        return  # the outcome is known; that its `[DONE]` got lost is no reason to doubt it
                    cut.last_event_id = last_event_id
                    raise
                if not chunk:
                    break
                for sse in parser.push(chunk):
                    if is_done or (has_ended and sse.data != DONE):
                        raise ProtocolError(f"the stream went on after its ending: {sse.data[:80]!r}")
                    if sse.data == DONE:
                        is_done = True
                        continue
                    _check_follows(last_event_id, sse.id)
                    event = parse_event(sse)
                    last_event_id = event.id
                    has_ended = isinstance(event, End)
                    yield event
            if not has_ended:
                said = "said [DONE]" if is_done else "was closed"
                message = f"the stream {said} without an end or an error"
                raise IncompleteStream(message, last_event_id, is_done=is_done)

    def _call(
        self,
        method: str,
        path: str,
        *,
        fields: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        def call() -> bytes:
            with self._open(method, path, fields, {"Accept": "application/json", **(headers or {})}) as response:
                return _read_body(response)

        body = self._retried(call, self.max_retries, is_harmless=True)  # POST has a key here
        answer = json_object(body)
        if answer is None:
            raise ProtocolError(f"the answer to {method} {path} is not a JSON object: {body[:80]!r}")
        return answer

    def _retried(self, attempt: Callable[[], RESULT], max_retries: int, *, is_harmless: bool) -> RESULT:
        for num_failures in itertools.count():
            try:
                return attempt()
            except EndstopError as failure:
                if num_failures >= max_retries or not _may_help(failure, is_harmless=is_harmless):
                    raise
                self._sleep(_pause_s(failure, num_failures))
        raise AssertionError

    def _open(
        self,
        method: str,
        path: str,
        fields: dict[str, Any] | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        timeout_s: float | None = None,
    ) -> requests.Response:
        """Send a request once, read the head of its answer, turn a refusal into its exception."""
        try:
            response = self.session.request(
                method,
                self.base_url + path,
                json=fields,
                headers=headers,
                stream=True,
                timeout=(timeout_s or self.connect_timeout_s, timeout_s or self.idle_timeout_s),
                allow_redirects=False,  # a redirected POST becomes a GET, and its body is lost
            )
        except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: it cannot be written down
            why = why_unanswered(error, self.connect_timeout_s, self.idle_timeout_s)
            raise ConnectionFailed(f"{self.base_url}: {why}", is_unsent=_is_unsent(error)) from error
        if response.status_code in (200, 202):
            return response
        with response, _named(response):
            raise _refusal(response, path)


def _is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    except ValueError:  # it is no URL, as the first request will say
        return False


def _is_unsent(error: Exception) -> bool:
    """Whether there was no connection on which a request could have left.

    By the names of urllib3's classes: what is imported from there would be more than `requests`.
    """
    cause: BaseException | None = error
    while cause is not None:
        names = {kind.__name__ for kind in type(cause).__mro__}
        if names & {"ConnectTimeout", "ConnectTimeoutError", "NewConnectionError"}:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def why_unanswered(error: Exception, connect_timeout_s: float, read_timeout_s: float) -> str:
    """The one line that matters of an error that nests three others."""
    is_ours = isinstance(error, requests.exceptions.InvalidHeader) and error.request is None
    if is_ours or isinstance(error, UnicodeError):  # without the header: it may be a key
        return "the URL or a header (an API key, perhaps) has characters that cannot be sent"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"no connection within {connect_timeout_s:g} s"
    if isinstance(error, requests.exceptions.ReadTimeout):
        return f"no answer within {read_timeout_s:g} s"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error)


def receive(response: requests.Response) -> bytes:
    """The bytes that are there, after waiting for the first; b"" when the body has ended as it should.

    `iter_content` would not do: it waits for a whole chunk of a chunked body, and for the end of any other.

    Raises:
        IdleTimeout: Nothing came within the response's read timeout.
        IncompleteStream: The connection was cut: a chunked body without its last chunk, or too few bytes.
    """
    try:
        data: bytes = response.raw.read1(READ_BYTES, decode_content=True)
    # Whatever the transport raises here, the stream is cut. The alternative is a list of urllib3's, ssl's and
    # http.client's classes, and a connection that another thread closes raises AttributeError besides.
    except Exception as error:
        if isinstance(error.__cause__, TimeoutError):
            raise IdleTimeout("not one byte, not even a keep-alive, came within the idle timeout") from error
        raise IncompleteStream("the connection was cut in the middle of the stream") from error
    return data


@contextmanager
def _named(response: requests.Response) -> Iterator[None]:
    """Errors about an answer carry its id."""
    try:
        yield
    except EndstopError as error:
        error.request_id = response.headers.get("X-Request-Id")
        raise


def _check_follows(last_event_id: str | None, event_id: str | None) -> None:
    """Native events are numbered from 0 without gaps; servers that number none may be read all the same.

    A proxy that loses the header `Last-Event-ID` would otherwise double what came before.
    """
    due = str(int(last_event_id) + 1) if last_event_id is not None and last_event_id.isdecimal() else "0"
    if event_id is not None and event_id.isdecimal() and event_id != due:
        raise ProtocolError(f"event {event_id} came where {due} was due: some were lost, or sent again")


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='', errors='surrogatepass')}"  # JSON can carry half a surrogate pair


def _read_body(response: requests.Response) -> bytes:
    try:
        body: bytes = response.raw.read(MAX_BODY_BYTES, decode_content=True)
    except Exception as error:  # as in receive
        raise ConnectionFailed("the connection was lost in the middle of an answer") from error
    if not body:
        # Python takes a head that was cut, anywhere behind the status, for a whole one without a body. No answer of
        # ours is empty.
        raise ConnectionFailed("the connection was lost before an answer, or the answer is empty")
    return body


def _may_help(failure: EndstopError, *, is_harmless: bool) -> bool:
    """Whether to ask again: the failure passes, and asking twice does not do twice what is asked.

    Args:
        is_harmless: Asking twice never does: it reads, or it carries an Idempotency-Key.
    """
    match failure:
        case ConnectionFailed(__cause__=ValueError()):
            return False  # what is no URL or no header will be none
        case ConnectionFailed():
            return is_harmless or failure.is_unsent
        case IncompleteStream():
            return is_harmless
        case RequestRefused(retry_after_s=float() as pause_s) if pause_s > LONGEST_RETRY_AFTER_S:
            return False
        case RequestRefused(status=429):
            return True
        case RequestRefused(status=503):
            # One that does not say when to come back may be of a proxy that was tired of waiting.
            return is_harmless or failure.retry_after_s is not None
        case RequestRefused(status=502 | 504):
            return is_harmless
        case _:
            return False


def _pause_s(failure: EndstopError, num_failures: int) -> float:
    """How long to wait, behind so many failures before this one: not all at once, and not before we are told to."""
    longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(num_failures, 10))
    told_s = failure.retry_after_s if isinstance(failure, RequestRefused) else None
    return max(random.uniform(0.5, 1) * longest_s, told_s or 0)


def _job_status(payload: dict[str, Any]) -> JobStatus:
    job_id, state = (_field(payload, name, str, of="a job") for name in ("job_id", "state"))
    told = _field(payload, "outcome", dict, type(None), of="a job")
    outcome: Event | GenerationError | None
    try:
        outcome = None if told is None else parse_event(ServerSentEvent(json.dumps(told)))
    except GenerationError as error:
        outcome = error
    if not isinstance(outcome, End | GenerationError | None):
        raise ProtocolError(f"the outcome of a job is {repr(told)[:80]}")
    return JobStatus(job_id, state, _usage(payload, of="a job"), outcome)


def _refusal(response: requests.Response, path: str) -> RequestRefused:
    status = response.status_code
    try:
        body = json_object(_read_body(response)) or {}  # a proxy's HTML page: the status alone has to do
    except ConnectionFailed:
        body = {}
    kind = _REFUSALS.get(status, RequestRefused)
    if status == 404 and path.startswith("/v1/jobs/"):
        kind = UnknownJob
    retry_after_s = _retry_after_s(response.headers.get("Retry-After"))
    message = _said(body) or str(response.reason)
    return kind(status, f"{status}: {message}", retry_after_s=retry_after_s, body=body)


def _said(body: dict[str, Any]) -> str:
    """The sentence in a refusal, whichever shape it has."""
    listed = body.get("errors")
    if isinstance(listed, list):
        return "; ".join(f"{e.get('field')}: {e.get('message')}" for e in listed if isinstance(e, dict))
    error = body.get("error")
    said = error.get("message") if isinstance(error, dict) else body.get("message") or error or body.get("state")
    return said if isinstance(said, str) else ""


def _retry_after_s(value: str | None) -> float | None:
    """Seconds, from either form of the header: a number, or a date.

    Source: RFC 9110, section 10.2.3.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
