"""The one client that drives every server: many chat streams at once, from one thread, each token's time noted.

It speaks OpenAI's wire format and knows nothing of who answers.
"""

import json
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_RECV_BYTES = 65536


class LoadFailed(Exception):
    """A server did not answer as it has to; says what came."""


@dataclass(slots=True)
class Stream:
    """One answer as it came. Times are monotonic, in seconds."""

    socket: socket.socket
    sent_at: float
    received: bytearray = field(default_factory=bytearray)  # what is not parsed yet
    is_headed: bool = False
    is_over: bool = False
    ended_at: float = 0.0
    text_at: list[float] = field(default_factory=list)
    num_tokens: int | None = None  # as the server counted them
    finish_reason: str | None = None

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes off the wire. Lines are enough: JSON has none inside, and no chunk's size begins with `data:`."""
        self.received += data
        if not self.is_headed:
            head, separator, rest = bytes(self.received).partition(b"\r\n\r\n")
            if not separator:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                raise LoadFailed(bytes(self.received).decode(errors="replace")[:500])
            self.received, self.is_headed = bytearray(rest), True
        *lines, self.received = self.received.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(bytes(line[5:]).strip(), now)

    def _take(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise LoadFailed(str(event["error"]))
        if event.get("usage"):
            self.num_tokens = event["usage"]["completion_tokens"]
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
    address = urlsplit(url)
    began = time.perf_counter()
    streams: list[Stream] = []
    with selectors.DefaultSelector() as selector:
        try:
            for body in bodies:
                stream = _open(address.hostname or "", address.port or 80, body)
                streams.append(stream)
                selector.register(stream.socket, selectors.EVENT_READ, stream)
            num_open = len(streams)
            while num_open:
                ready = selector.select(timeout=limit_s - (time.perf_counter() - began))
                if not ready:
                    raise LoadFailed(f"{num_open} of {len(streams)} answers have not ended after {limit_s:g} s")
                for key, _ in ready:
                    stream = key.data
                    data = stream.socket.recv(_RECV_BYTES)
                    now = time.perf_counter()
                    if data:
                        stream.feed(data, now)
                    if stream.ended_at and (not data or stream.num_tokens is not None):
                        selector.unregister(stream.socket)
                        num_open -= 1
                    elif not data:
                        raise LoadFailed("a stream ended without a finish_reason")
        finally:
            for stream in streams:
                stream.socket.close()
    return _judge(streams, num_tokens)


def _open(host: str, port: int, body: dict[str, Any]) -> Stream:
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection((host, port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent_at = time.perf_counter()
    connection.sendall(head.encode() + data)
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
