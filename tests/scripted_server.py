"""An HTTP server that says what a test tells it, byte for byte and chunk for chunk, and notices when it is left.

    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(b"data: 1\\n\\n")
        assert seen.wait(WAIT_S)    # the test has it; only now comes the rest
        peer.chunk(b"data: 2\\n\\n")
        peer.last_chunk()

    with ScriptedServer({"POST /execute": script}) as server: ...

One connection, one exchange, one thread. What goes wrong in a script goes wrong in the test: it is raised when the
server is left. Every wait is bounded.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

WAIT_S = 10.0  # nobody waits this long unless something is broken


@dataclass(frozen=True)
class Request:
    """What the client sent."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


@dataclass
class Peer:
    """The script's side of one connection."""

    request: Request
    _socket: socket.socket

    def send(self, data: bytes) -> None:
        """Bytes, as they are."""
        self._socket.sendall(data)

    def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        """Status line and headers of a chunked answer. `Retry_After` is sent as Retry-After."""
        lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Refused'}", f"Content-Type: {content_type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "Transfer-Encoding: chunked", "Connection: close", "", ""]).encode())

    def chunk(self, data: bytes) -> None:
        """One chunk of the body, in one write."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def last_chunk(self) -> None:
        """The body has ended as it should."""
        self.send(b"0\r\n\r\n")

    def answer(self, body: bytes, status: int = 200, content_type: str = "application/json", **headers: str) -> None:
        """A whole answer."""
        self.head(status, content_type, **headers)
        if body:
            self.chunk(body)
        self.last_chunk()

    def json(self, body: object, status: int = 200, **headers: str) -> None:
        self.answer(json.dumps(body).encode(), status, **headers)

    def reset(self) -> None:
        """Cut the connection with a RST, as a crash or a cable does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def wait_until_left(self) -> bool:
        """Whether the client closes the connection, within WAIT_S."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


Script = Callable[[Peer], None]


class ScriptedServer:
    """Serves scripts by method and path, `otherwise` for anything else. `scripts` may be changed while it runs."""

    def __init__(self, scripts: Mapping[str, Script], otherwise: Script | None = None) -> None:
        self.scripts = dict(scripts)
        self.otherwise = otherwise or _not_found
        self.requests: list[Request] = []
        self._failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, name="scripted-server")

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() alone does not
        for thread in (self._acceptor, *self._threads):
            thread.join(2 * WAIT_S)
            assert not thread.is_alive(), "a script did not end"
        self._listener.close()
        if self._failures:
            raise self._failures[0]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._converse, args=(connection,), name="script")
            self._threads.append(thread)
            thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(WAIT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                request = _read_request(connection)
                if request is None:
                    return  # connected and left
                self.requests.append(request)
                script = self.scripts.get(f"{request.method} {request.path}", self.otherwise)
                script(Peer(request, connection))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client left in the middle; a test that cares about it waits for it
            except BaseException as failure:
                self._failures.append(failure)


def _not_found(peer: Peer) -> None:
    peer.json({"error": "not found"}, 404)


def _read_request(connection: socket.socket) -> Request | None:
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(65536)
        if not data:
            return None
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return Request(method, path, headers, body)


def sse(payload: object, event_id: int | None = None) -> bytes:
    """One event on the wire; a str is sent as it is, anything else as JSON."""
    data = payload if isinstance(payload, str) else json.dumps(payload)
    return (b"" if event_id is None else b"id: %d\n" % event_id) + f"data: {data}\n\n".encode()


def numbered(payloads: Iterable[object]) -> list[bytes]:
    """A native stream: events with ids from 0, then [DONE]."""
    return [*(sse(payload, n) for n, payload in enumerate(payloads)), sse("[DONE]")]


STARTED: dict[str, Any] = {
    "type": "started",
    "job_id": "job-1",
    "model": "tiny",
    "started_at": "2031-01-01T00:00:00Z",
}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
METRICS: dict[str, Any] = {
    "type": "metrics",
    "tokens_per_sec": 50.0,
    "vram_bytes": 0,
    "queue_ms": 1,
    "ttft_ms": 20,
}
END: dict[str, Any] = {
    "type": "end",
    "tokens_out": 2,
    "decode_time_ms": 40,
    "stop_reason": "EOS",
    "stop_sequence_matched": None,
    "usage": USAGE,
}
ERROR: dict[str, Any] = {"type": "error", "code": "STALLED", "message": "no token for 60 s", "usage": USAGE}


def token(text: str, index: int, **more: Any) -> dict[str, Any]:
    return {"type": "token", "t": text, "i": index, **more}


HELLO = numbered([STARTED, token("Hel", 0), token("lo", 1), METRICS, END])


def says(frames: Iterable[bytes]) -> Script:
    """A script that sends these frames, a chunk each, and ends as it should."""

    def script(peer: Peer) -> None:
        peer.head()
        for frame in frames:
            peer.chunk(frame)
        peer.last_chunk()

    return script
