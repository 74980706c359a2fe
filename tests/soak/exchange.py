"""One HTTP exchange over a socket that never blocks: what was sent, what came back, and how it ended.

It keeps the bytes as they came and reads no meaning into them; `judge.py` does. Every wait is bounded: a server that
says nothing for too long, or that goes on for too long, is a hang and is called so.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from enum import StrEnum

# Bounds for a busy machine. Keep-alives are due every second (server.py), so this is a hang and not a delay.
SILENCE_LIMIT_S = 10.0
# Until the first byte: a connection may wait in the backlog while a new process imports its libraries.
ANSWER_LIMIT_S = 45.0
# A whole stream, from its first byte. The server's own limit is 10 s and ours are the pauses.
TOTAL_LIMIT_S = 30.0
SMALL_BUFFER_BYTES = 2048


class Ending(StrEnum):
    """How an exchange ended."""

    OPEN = "open"
    COMPLETE = "complete"  # the last chunk, or the announced length
    CUT = "cut"  # by the other side, in the middle
    UNANSWERED = "unanswered"  # by the other side, before the first byte of an answer
    LEFT = "left"  # by us
    HUNG = "hung"  # nobody did anything for too long


class Exchange:
    """One request and its answer."""

    def __init__(self, port: int, *, is_head: bool = False, has_small_buffer: bool = False) -> None:
        self._port = port
        self._is_head = is_head
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if has_small_buffer:  # before connecting: the window is agreed upon then
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        self._wire = bytearray()
        self._expected: int | None = None  # bytes of body, where they are announced; None: chunked, or until the end
        self._is_chunked = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.ending = Ending.OPEN
        self.num_received = 0
        self.is_half_closed = False
        self.opened_at = self.last_byte_at = time.monotonic()
        self.first_byte_at: float | None = None
        self.closed_at: float | None = None
        self.left_at: float | None = None  # when we said that we want no more, with the answer not over
        self.longest_silence_s = 0.0
        self.longest_idle_s = 0.0

    # ---- what a client does

    async def send(self, data: bytes) -> None:
        """Connect if need be, and send. An error ends the exchange."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                if self._socket.fileno() >= 0 and not self._is_connected():
                    await loop.sock_connect(self._socket, ("127.0.0.1", self._port))
                await loop.sock_sendall(self._socket, data)
        except TimeoutError:
            self._end(Ending.HUNG)
        except OSError:
            # It may have answered before it closed, as with a body that is too large: the answer is still to be read.
            if not self._is_connected():
                self._end(Ending.UNANSWERED)

    async def read(
        self,
        until: Callable[[], bool] = lambda: False,
        *,
        stop_at_byte: int | None = None,
        piece_bytes: int = 65536,
        pause_s: float = 0.0,
    ) -> None:
        """Read on until the answer is over or `until` says so.

        Args:
            until: Looked at after every piece.
            stop_at_byte: Leave off exactly there, counted from the first byte of the answer.
            piece_bytes: As much at once at most.
            pause_s: Between two pieces.
        """
        while self.ending is Ending.OPEN and not until():
            size = piece_bytes
            if stop_at_byte is not None:
                size = min(size, stop_at_byte - self.num_received)
                if size <= 0:
                    return
            await self._read_piece(size)
            if pause_s:
                await self.idle(pause_s)

    async def idle(self, seconds: float) -> None:
        """Read nothing for a while, or longer if this process is busy. It does not count as the server's silence."""
        began_at = time.monotonic()
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - began_at
        self.last_byte_at += took_s
        self.longest_idle_s = max(self.longest_idle_s, took_s)

    def half_close(self) -> None:
        """Say that nothing more will be sent. The server takes it for a leave."""
        self.is_half_closed = True
        if self.ending is Ending.OPEN:
            self.left_at = time.monotonic()
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # gone already

    def leave(self, *, with_reset: bool = False) -> None:
        """Close the connection, if the exchange is not over, as a client that has lost interest or its network."""
        if with_reset and self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end(Ending.LEFT)
        self._socket.close()

    def follow(self) -> "Exchange":
        """The next exchange on the same connection. This one has to be complete."""
        following = Exchange(self._port)
        following._socket.close()
        following._socket, self._socket = self._socket, following._socket
        following._wire = self._wire
        following._decode()
        return following

    # ---- what is known

    @property
    def num_events(self) -> int:
        """Events so far, roughly: for a client that leaves after some."""
        return self.body.count(b"data: ")

    @property
    def is_event_stream(self) -> bool:
        """Whether the answer is a stream."""
        return self.status == 200 and self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def ended_at(self) -> float:
        """When it was over; now, if it is not."""
        return self.closed_at if self.closed_at is not None else time.monotonic()

    # ---- the wire

    def _is_connected(self) -> bool:
        try:
            self._socket.getpeername()
        except OSError:
            return False
        return True

    async def _read_piece(self, size: int) -> None:
        while True:
            try:
                data = self._socket.recv(size)
                break
            except BlockingIOError:
                if not await self._readable():
                    return
            except OSError:
                data = b""
                break
        now = time.monotonic()
        if self.first_byte_at is not None:
            self.longest_silence_s = max(self.longest_silence_s, now - self.last_byte_at)
            if now - self.first_byte_at > TOTAL_LIMIT_S:
                self._end(Ending.HUNG)
        if data:
            self.last_byte_at = now
            self.first_byte_at = self.first_byte_at or now
            self.num_received += len(data)
            self._wire += data
            self._decode()
        else:
            self._end_of_wire()

    async def _readable(self) -> bool:
        """Wait for bytes. The reader of the loop is ours, so that no byte is lost to a timeout that comes together."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[bool] = loop.create_future()

        def come(is_ready: bool) -> None:
            if not ready.done():
                ready.set_result(is_ready)

        limit_s = ANSWER_LIMIT_S if self.first_byte_at is None else SILENCE_LIMIT_S
        fd = self._socket.fileno()
        timer = loop.call_later(max(0.0, self.last_byte_at + limit_s - time.monotonic()), come, False)
        loop.add_reader(fd, come, True)
        try:
            if await ready:
                return True
        finally:
            loop.remove_reader(fd)
            timer.cancel()
        try:  # our own process may have been away for that long
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            self._end(Ending.HUNG)
            return False
        except OSError:
            pass
        return True

    def _decode(self) -> None:
        if not self.status and not self._take_head():
            return
        if self._is_head or self.status in (204, 304):
            self._end(Ending.COMPLETE)
        elif self._is_chunked:
            self._take_chunks()
        elif self._expected is not None:
            left = self._expected - len(self.body)
            self.body += self._wire[:left]
            del self._wire[:left]
            if len(self.body) == self._expected:
                self._end(Ending.COMPLETE)
        else:
            self.body += self._wire
            self._wire.clear()

    def _take_head(self) -> bool:
        head, separator, rest = self._wire.partition(b"\r\n\r\n")
        if not separator:
            return False
        self._wire = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._is_chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        length = self.headers.get("content-length")
        self._expected = int(length) if length is not None else None
        return True

    def _take_chunks(self) -> None:
        while self.ending is Ending.OPEN:
            at = self._wire.find(b"\r\n")
            if at < 0:
                return
            size = int(self._wire[:at], 16)
            end = at + 2 + size
            if len(self._wire) < end + 2:
                return
            self.body += self._wire[at + 2 : end]
            del self._wire[: end + 2]
            if size == 0:
                self._end(Ending.COMPLETE)

    def _end_of_wire(self) -> None:
        if not self.status:
            self._end(Ending.UNANSWERED)
        elif self._is_chunked or self._expected is not None:
            self._end(Ending.CUT)
        else:
            self._end(Ending.COMPLETE)

    def _end(self, ending: Ending) -> None:
        if self.ending is Ending.OPEN:
            self.ending = ending
            self.closed_at = time.monotonic()
            if ending is Ending.LEFT:
                self.left_at = self.left_at or self.closed_at
