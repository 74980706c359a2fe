"""The one client that drives every server: many chat streams at once, from one thread, each token's time noted.

It speaks OpenAI's wire format and knows nothing of who answers.
"""

from __future__ import annotations

import json
import operator
import re
import selectors
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_RECV_BYTES = 65536
# As worker.client has it for an event: a server that never ends a line fills no memory.
MAX_LINE_BYTES = 16 * 1024 * 1024
CONNECT_S = 60.0


class LoadFailed(Exception):
    """A server did not answer as it has to; says what came."""


@dataclass(slots=True)
class Stream:
    """One answer as it came. Times are monotonic, in seconds."""

    socket: socket.socket
    sent_at: float
    received: bytearray = field(default_factory=bytearray)  # off the wire and not parsed yet
    line: bytearray = field(default_factory=bytearray)  # of the body, not whole yet
    status: int = 0  # of HTTP; 0 until the head is there
    is_chunked: bool = False
    num_left: int = 0  # bytes of the chunk that is coming
    is_over: bool = False  # the last chunk has come
    ended_at: float = 0.0
    text_at: list[float] = field(default_factory=list)
    num_prompt_tokens: int | None = None  # as the server counted them
    num_tokens: int | None = None  # the same, of the answer
    finish_reason: str | None = None
    failure: str = ""

    @property
    def is_whole(self) -> bool:
        """It ended, and with the server's count."""
        return bool(self.ended_at) and self.num_tokens is not None

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes off the wire. Lines are enough: JSON has none inside.

        Raises:
            LoadFailed: It is a refusal, an error or not of OpenAI's form.
        """
        if len(self.received) + len(self.line) > MAX_LINE_BYTES:
            raise LoadFailed(f"a line is longer than {MAX_LINE_BYTES} bytes")
        self.received += data
        if not self.status:
            head, separator, rest = bytes(self.received).partition(b"\r\n\r\n")
            if not separator:
                return
            words = head.split(None, 2)
            self.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else -1
            if self.status != 200:
                raise LoadFailed(bytes(self.received).decode(errors="replace")[:500])
            self.received = bytearray(rest)
            self.is_chunked = re.search(rb"\r\ntransfer-encoding:[ \t]*chunked", head, re.IGNORECASE) is not None
        *lines, self.line = (self.line + self._next_of_body()).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(bytes(line[5:]).strip(), now)

    def _next_of_body(self) -> bytearray:
        """What has come of the body. A chunk may begin and end anywhere in a line.

        Source: RFC 9112, section 7.1.
        """
        if not self.is_chunked:
            body, self.received = self.received, bytearray()
            return body
        body = bytearray()
        while self.received and not self.is_over:
            if self.num_left:
                piece = self.received[: self.num_left]
                body += piece
                self.num_left -= len(piece)
                del self.received[: len(piece)]
                continue
            head, separator, rest = self.received.partition(b"\n")
            if not separator:
                break
            self.received = rest
            if size := bytes(head).partition(b";")[0].strip():  # else it is the line's end behind a chunk
                if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", size):
                    raise LoadFailed(f"no chunk begins so: {size[:100]!r}")
                self.num_left = int(size, 16)
                self.is_over = not self.num_left
        return body

    def _take(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            return
        try:
            self._note(json.loads(data), now)
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
            raise LoadFailed(f"an event is not of OpenAI's form: {data[:100]!r}") from error

    def _note(self, event: Any, now: float) -> None:
        if "error" in event:
            raise LoadFailed(str(event["error"]))
        if usage := event.get("usage"):
            self.num_tokens = operator.index(usage["completion_tokens"])
            self.num_prompt_tokens = operator.index(usage.get("prompt_tokens", 0))
        for choice in event.get("choices", ()):
            if choice.get("delta", {}).get("content"):
                self.text_at.append(now)
            if choice.get("finish_reason"):
                self.finish_reason = choice["finish_reason"]
                self.ended_at = now


@dataclass(frozen=True, slots=True)
class Load:
    """So many streams at once, measured."""

    num_tokens: int
    elapsed_s: float
    ttft_s: list[float]
    gaps_s: list[float]


def drive(url: str, bodies: list[dict[str, Any]], num_tokens: int, limit_s: float = 600.0) -> Load:
    """Send all requests together and read until the last answer has ended.

    Args:
        url: Of the server.
        bodies: Of `POST /v1/chat/completions`, one for each stream.
        num_tokens: That each answer must have.
        limit_s: For all together.

    Raises:
        LoadFailed: An answer is an error, incomplete, of another length or late.
    """
    streams = run(url, bodies, concurrency=len(bodies), limit_s=limit_s, is_strict=True)
    return _judge(streams, num_tokens)


def run(
    url: str,
    bodies: list[dict[str, Any]],
    *,
    concurrency: int,
    limit_s: float,
    api_key: str | None = None,
    is_strict: bool = False,
) -> list[Stream]:
    """Send requests, so many of them open at any time, and read each until it has ended.

    Args:
        url: Of the server, http or https.
        bodies: Of `POST /v1/chat/completions`, in this order.
        concurrency: How many are open at once.
        limit_s: For all together.
        api_key: Sent as a bearer token.
        is_strict: Whether a failure ends it all; else it is written down with its stream.

    Returns:
        A stream for each body; those that had not ended in time have a failure too.

    Raises:
        LoadFailed: `is_strict`, and an answer is an error, incomplete or late.
        OSError: No connection.
    """
    began = time.perf_counter()
    streams: list[Stream] = []
    waiting = iter(bodies)
    num_open = 0
    with selectors.DefaultSelector() as selector:

        def send_next() -> None:
            nonlocal num_open
            if (body := next(waiting, None)) is not None:
                streams.append(_open(url, body, api_key))
                selector.register(streams[-1].socket, selectors.EVENT_READ, streams[-1])
                num_open += 1

        def end(stream: Stream, failure: str) -> None:
            nonlocal num_open
            stream.failure = failure
            selector.unregister(stream.socket)
            stream.socket.close()
            num_open -= 1
            if failure and is_strict:
                raise LoadFailed(failure)
            send_next()

        try:
            for _ in range(concurrency):
                send_next()
            while num_open:
                left_s = limit_s - (time.perf_counter() - began)
                ready = selector.select(timeout=max(0.0, left_s))
                if left_s <= 0 or not ready:  # what comes and comes is late too
                    late = f"{num_open} of {len(bodies)} answers have not ended after {limit_s:g} s"
                    if is_strict:
                        raise LoadFailed(late)
                    for stream in streams:
                        if not (stream.failure or stream.is_whole):
                            stream.failure = f"not ended after {limit_s:g} s"
                    break
                for key, _ in ready:
                    if (failure := _read(key.data)) is not None:
                        end(key.data, failure)
        finally:
            for stream in streams:
                stream.socket.close()
    return streams


def _read(stream: Stream) -> str | None:
    """Read what is there. Returns None while it goes on, else why it failed, empty if it did not."""
    try:
        data = stream.socket.recv(_RECV_BYTES)
        while isinstance(stream.socket, ssl.SSLSocket) and stream.socket.pending():
            data += stream.socket.recv(_RECV_BYTES)  # decrypted already: no selector would wake for it
    except (BlockingIOError, ssl.SSLWantReadError):
        return None
    except OSError as error:
        return f"the connection was lost: {error.strerror or error}"
    try:
        if data:
            stream.feed(data, time.perf_counter())
    except LoadFailed as error:
        return str(error)
    is_over = not data or stream.is_over
    if stream.ended_at and (is_over or stream.is_whole):
        return ""
    return None if not is_over else "a stream ended without a finish_reason"


def _open(url: str, body: dict[str, Any], api_key: str | None) -> Stream:
    address = urlsplit(url)
    host = address.hostname or ""
    port = address.port or (443 if address.scheme == "https" else 80)
    data = json.dumps(body).encode()
    key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    head = (
        f"POST {address.path.rstrip('/')}/v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\n{key}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection((host, port), timeout=CONNECT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if address.scheme == "https":
        connection = ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    sent_at = time.perf_counter()
    connection.sendall(head.encode() + data)
    connection.setblocking(False)  # TLS has bytes of its own: to wait behind these would hold up all others
    return Stream(connection, sent_at)


def _judge(streams: list[Stream], num_tokens: int) -> Load:
    for stream in streams:
        if stream.num_tokens != num_tokens or stream.finish_reason != "length" or not stream.text_at:
            raise LoadFailed(
                f"an answer has {stream.num_tokens} tokens and ended with {stream.finish_reason!r}; "
                f"{num_tokens} and 'length' were to come"
            )
    return Load(
        num_tokens=num_tokens * len(streams),
        elapsed_s=max(stream.ended_at for stream in streams) - min(stream.sent_at for stream in streams),
        ttft_s=[stream.text_at[0] - stream.sent_at for stream in streams],
        gaps_s=[b - a for stream in streams for a, b in zip(stream.text_at, stream.text_at[1:], strict=False)],
    )
