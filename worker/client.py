"""The client: one file, to be copied wherever it is needed. It needs Python 3.11 and `requests`, nothing else.

    client = Client("http://127.0.0.1:8000")
    for event in client.stream(prompt="Once upon a time", max_tokens=64):
        if isinstance(event, Token):
            print(event.text, end="", flush=True)

Its law: a stream that ended badly never looks like one that ended well. An `End` event is the only success; an
`error` event raises `GenerationError`, and a stream that stops without either raises `IncompleteStream`, whether
the connection was cut, closed politely, or closed after a `[DONE]`.

Closing the generator (leaving a `for` loop does it, when nobody else holds the generator) closes the connection,
and that is how the server learns that it may stop: there is no other message.

A stream that was lost can be taken up where it broke, if it belongs to a job:

    job_id, last_event_id = client.submit(prompt="..."), None
    while True:
        try:
            for event in client.events(job_id, last_event_id):
                ...
            break
        except IncompleteStream as cut:
            last_event_id = cut.last_event_id

Thread: `requests` does not promise that a session may be shared; use one Client per thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Self, TypedDict, Unpack
from urllib.parse import quote, urlsplit

import requests

__all__ = [
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
    "Metrics",
    "Narration",
    "NotReady",
    "Overloaded",
    "ProtocolError",
    "Readiness",
    "RequestRefused",
    "SSEParser",
    "ServerSentEvent",
    "Started",
    "Token",
    "TooLarge",
    "Unauthorized",
    "Unknown",
    "UnknownJob",
]

CONNECT_TIMEOUT_S = 10.0
# Three keep-alives of the server, 10 s each, may be lost before the stream counts as dead.
IDLE_TIMEOUT_S = 30.0
# An event is a token, or a slow reader's backlog of them; nothing that the server says is near this.
MAX_EVENT_BYTES = 16 * 1024 * 1024
# A refusal or a job's status. Larger is not from our server.
MAX_BODY_BYTES = 1024 * 1024
READ_BYTES = 64 * 1024
DONE = "[DONE]"


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
    """Everything that this client raises."""


class ConnectionFailed(EndstopError):
    """The server could not be reached, or the connection was lost before its answer began."""


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
        usage: Tokens that were spent all the same.
    """

    def __init__(self, code: str, message: str, usage: dict[str, Any]) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.usage = usage


class IncompleteStream(EndstopError):
    """The stream stopped without a terminal event; what was read is a prefix of the answer.

    Attributes:
        last_event_id: Id of the last event that the caller was given; `Client.events` resumes behind it.
    """

    def __init__(self, message: str, last_event_id: str | None = None) -> None:
        super().__init__(message)
        self.last_event_id = last_event_id


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
        self.retry_ms: int | None = None
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
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)
            case _:
                pass  # a comment (its name is empty), or a field that the standard tells us to ignore
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, event, own_id = self._data, self._event, self._id
        self._data, self._event, self._id, self._num_data_bytes = [], "", None, 0
        if not data:
            return None
        return ServerSentEvent("\n".join(data), event or "message", own_id, self.last_event_id)


# --- Native events ---


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
class Token(Event):
    """Text of one token, or of several that waited for us and were merged."""

    text: str
    index: int  # of its first token
    num_tokens: int = 1
    logprobs: Any = None


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
    usage: dict[str, Any]


@dataclass(frozen=True)
class Unknown(Event):
    """An event of a type that this version of the client does not know: newer servers may send them."""

    type: str
    payload: dict[str, Any]


_NUMBER = (int, float)
_OPTIONAL_NUMBER = (int, float, type(None))
_OPTIONAL_TEXT = (str, type(None))


def _field(payload: dict[str, Any], name: str, *kinds: type) -> Any:
    value = payload.get(name)
    # A bool is an int to isinstance, but `"i": true` is nobody's token index.
    if name not in payload or isinstance(value, bool) or not isinstance(value, kinds):
        shown = repr(value)[:80] if name in payload else "missing"
        raise ProtocolError(f"field {name!r} of a {payload.get('type')!r} event is {shown}")
    return value


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
            num_tokens = _field(payload, "n", int) if "n" in payload else 1
            return Token(
                place, _field(payload, "t", str), _field(payload, "i", int), num_tokens, payload.get("logprobs")
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
                usage=_field(payload, "usage", dict),
            )
        case "error":
            usage = payload.get("usage")
            raise GenerationError(
                str(payload.get("code", "UNKNOWN")),
                str(payload.get("message", "")),
                usage if isinstance(usage, dict) else {},
            )
        case name:
            return Unknown(place, name, payload)


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
    stop: list[str]  # up to 4
    stop_token_ids: list[int]  # up to 64
    ignore_eos: bool
    min_tokens: int  # up to max_tokens
    logprobs: int  # 0..20: how many of the likeliest tokens are told with each
    response_format: Mapping[str, Any]  # of the whole answer, as in OpenAI's API; or one of the next three
    regex: str
    choice: list[str]
    grammar: str
    narrate: bool
    on_disconnect: Literal["cancel", "continue"]
    deadline_s: float


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
        connect_timeout_s: For the TCP connection.
        idle_timeout_s: For each single read, so it bounds silence, not the length of an answer. Longer than the
            server's keep-alive, which is 10 s.
        api_key: Sent as a bearer token.
        headers: Sent with every request.

    Attributes:
        session: The `requests.Session`; proxies and certificates are set there.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.base_url = (base_url if "://" in base_url else f"http://{base_url}").rstrip("/")
        self.connect_timeout_s = connect_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.session = requests.Session()
        # A proxy named in the environment has no way to our own loopback, and requests does not exempt it.
        self.session.trust_env = urlsplit(self.base_url).hostname not in ("127.0.0.1", "localhost", "::1")
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

    def stream(self, **fields: Unpack[GenerateFields]) -> Generator[Event, None, None]:
        """Generate, and yield the events as they arrive, up to and with `End`.

        Nothing is sent before the first event is asked for: a generator that was never started runs none of its
        body, so a connection opened earlier would have nobody to close it.

        Raises:
            RequestRefused: No stream: a status that says why. See its subclasses.
            GenerationError: The stream ended with an error.
            IncompleteStream: It stopped without an ending.
            ProtocolError: It went on after its ending, or broke the contract in another way.
            ConnectionFailed: There was no answer at all.
        """
        return self._events("POST", "/execute", fields=dict(fields))

    def text(self, **fields: Unpack[GenerateFields]) -> str:
        """Generate, and return the whole text. Raises what `stream` raises, so a text is always a whole one."""
        return "".join(event.text for event in self.stream(**fields) if isinstance(event, Token))

    def submit(self, **fields: Unpack[GenerateFields]) -> str:
        """Start a job that does not depend on this connection; return its id."""
        job_id = self._call("POST", "/v1/jobs", fields=dict(fields)).get("job_id")
        if not isinstance(job_id, str) or not job_id:
            raise ProtocolError("the answer to POST /v1/jobs has no job_id")
        return job_id

    def events(self, job_id: str, last_event_id: str | int | None = None) -> Generator[Event, None, None]:
        """A job's events: from its beginning, or those behind `last_event_id`. Raises what `stream` raises."""
        place = None if last_event_id is None else str(last_event_id)
        return self._events("GET", f"{_job_path(job_id)}/stream", last_event_id=place)

    def status(self, job_id: str) -> dict[str, Any]:
        """State, usage and outcome of a job.

        Raises:
            UnknownJob: There is none.
        """
        return self._call("GET", _job_path(job_id))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop a job, waiting or running. Doing it twice, or after the end, changes nothing.

        Raises:
            UnknownJob: There is none.
        """
        return self._call("DELETE", _job_path(job_id))

    def ready(self) -> Readiness:
        """Whether the server would accept a request now; it may still be loading its model."""
        try:
            self._open("GET", "/ready").close()
        except NotReady as refusal:
            return Readiness(False, refusal.state, refusal.retry_after_s)
        return Readiness(True, "READY")

    def health(self) -> bool:
        """Whether the server lives; false when its generation thread is dead or stalled."""
        try:
            self._open("GET", "/health").close()
        except NotReady:
            return False
        return True

    def _events(
        self, method: str, path: str, *, fields: dict[str, Any] | None = None, last_event_id: str | None = None
    ) -> Generator[Event, None, None]:
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        parser = SSEParser(last_event_id or "")
        has_ended = is_done = False
        with self._open(method, path, fields, headers) as response:
            content_type = response.headers.get("Content-Type", "")
            if not content_type.startswith("text/event-stream"):
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
                    event = parse_event(sse)
                    last_event_id = event.id
                    has_ended = isinstance(event, End)
                    yield event
        if not has_ended:
            said = "said [DONE]" if is_done else "was closed"
            raise IncompleteStream(f"the stream {said} without an end or an error", last_event_id)

    def _call(self, method: str, path: str, *, fields: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._open(method, path, fields, {"Accept": "application/json"}) as response:
            body = _read_body(response)
        answer = json_object(body)
        if answer is None:
            raise ProtocolError(f"the answer to {method} {path} is not a JSON object: {body[:80]!r}")
        return answer

    def _open(
        self,
        method: str,
        path: str,
        fields: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request, read the head of its answer, turn a refusal into its exception."""
        try:
            response = self.session.request(
                method,
                self.base_url + path,
                json=fields,
                headers=headers,
                stream=True,
                timeout=(self.connect_timeout_s, self.idle_timeout_s),
                allow_redirects=False,  # a redirected POST becomes a GET, and its body is lost
            )
        except requests.exceptions.RequestException as error:
            why = why_unanswered(error, self.connect_timeout_s, self.idle_timeout_s)
            raise ConnectionFailed(f"{self.base_url}: {why}") from error
        if response.status_code in (200, 202):
            return response
        with response:
            raise _refusal(response, path)


def why_unanswered(error: requests.exceptions.RequestException, connect_timeout_s: float, read_timeout_s: float) -> str:
    """The one line that matters of an error that nests three others."""
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


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _read_body(response: requests.Response) -> bytes:
    try:
        body: bytes = response.raw.read(MAX_BODY_BYTES, decode_content=True)
    except Exception as error:  # as in receive
        raise ConnectionFailed("the connection was lost in the middle of an answer") from error
    return body


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
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
