"""Real gunicorn servers in their own processes, and a raw HTTP client that sees every byte and when it came."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import requests

from worker.settings import ROOT

START_S = 90.0  # bounds for a busy machine, not measures
ANSWER_S = 30.0

WORKER_CLASSES = ("gevent", "gthread")


class Server:
    """One running server."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path, key: str = "") -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._log = log

    def log(self) -> str:
        """What it has printed so far."""
        return self._log.read_text()

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=self.headers, timeout=ANSWER_S)

    def post(self, path: str, body: Any = None) -> requests.Response:
        return requests.post(self.url + path, json=body, headers=self.headers, timeout=ANSWER_S)

    def stats(self) -> dict[str, Any]:
        """Counters of the gated app."""
        stats: dict[str, Any] = self.get("/gate").json()
        return stats

    def allow(self, steps: int | str) -> None:
        """Let the gated model compute."""
        assert self.post(f"/gate/{steps}").ok

    def wait_for(self, condition: Callable[[], bool], what: str = "condition") -> None:
        """Poll until it is true."""
        deadline = time.monotonic() + START_S  # it may have to start first
        while not condition():
            assert time.monotonic() < deadline, f"{what} never came true; log:\n{self.log()}"
            select.select([], [], [], 0.01)

    def wait_ready(self, path: str = "/ready") -> None:
        """Wait until it accepts requests."""
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, f"the server exited; log:\n{self.log()}"
            assert time.monotonic() < deadline, f"not ready in time; log:\n{self.log()}"
            try:
                if self.get(path).status_code == 200:
                    return
            except (requests.ConnectionError, requests.Timeout):
                pass  # a worker that imports has not begun to answer, and on a busy machine imports for long
            select.select([], [], [], 0.05)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the arbiter, as a platform does."""
        self.process.send_signal(number)

    def wait_exit(self) -> int:
        """The exit code."""
        return self.process.wait(START_S)


_reserved: list[socket.socket] = []  # bound, and never listening


def free_port() -> int:
    """A port for a server, which nobody else is given while these tests run.

    Between asking for one and listening there are seconds, in which the tests beside these ask too. A server sets
    SO_REUSEADDR, with which Linux lets it have what is bound and does not listen.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    _reserved.append(kept)
    port: int = kept.getsockname()[1]
    return port


@contextmanager
def running_server(
    folder: Path,
    worker_class: str = "gevent",
    app: str = "tests.support.gated_wsgi:app",
    wait: bool = True,
    env: Mapping[str, str] = MappingProxyType({}),
    key: str = "",
    root: Path = ROOT,
) -> Iterator[Server]:
    """A gunicorn with the project's own configuration; killed at the end on every path.

    Args:
        key: What the test itself sends, if `env` has API keys.
        root: Where the server's sources are.
    """
    port = free_port()
    log = folder / f"server-{port}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENDSTOP_")}
    environment |= {"PORT": str(port), "ENDSTOP_HOST": "127.0.0.1", "ENDSTOP_WORKER_CLASS": worker_class}
    environment |= {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    # A shut gate is no stall, and a test that counts the steps of a prompt counts all of them.
    environment |= {"ENDSTOP_STEP_LIMIT_S": "600", "ENDSTOP_PREFIX_CACHE": "off", **env}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", app],
            cwd=root,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, port, log, key)
    try:
        if wait:
            server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(10)


class RawStream:
    """One HTTP exchange over a plain socket.

    Attributes:
        read_bytes: At most so many are read at once.
        room_bytes: For what has come and was not read, in the client's kernel; None: what it likes.
    """

    read_bytes = 65536
    room_bytes: int | None = None

    def __init__(self, server: Server, method: str, path: str, body: Any = None, **headers: str) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(ANSWER_S)
        if self.room_bytes is not None:  # before it connects: the window is agreed on then
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.room_bytes)
        self.socket.connect(("127.0.0.1", server.port))
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers.setdefault("Content_Length", str(len(data)))
        lines = [f"{method} {path} HTTP/1.1", "Host: test"]
        headers = {name: value for name, value in headers.items() if value}
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        self._deadline = time.monotonic() + ANSWER_S
        self._head: tuple[int, str] | None = None
        self._received = b""
        self._body = b""
        self.is_eof = False
        self.is_complete = False  # the chunked body ended with its last chunk

    def __enter__(self) -> "RawStream":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave, as a client that has lost interest."""
        self.socket.close()

    def _receive(self) -> None:
        assert time.monotonic() < self._deadline, f"nothing but pings, perhaps; got {self._body[:2000]!r}"
        try:
            data = self.socket.recv(self.read_bytes)
        except ConnectionResetError:
            data = b""
        self.is_eof = not data
        self._received += data

    def head(self) -> tuple[int, str]:
        """Status and headers."""
        if self._head is not None:
            return self._head
        while b"\r\n\r\n" not in self._received and not self.is_eof:
            self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        self._head = int(head.split()[1]), head.decode()
        return self._head

    def read_until(self, text: bytes) -> bytes:
        """Body bytes received so far, at least up to `text`."""
        _, head = self.head()
        if "chunked" not in head.lower():  # a refusal: it is short, and comes as it is
            while text not in self._received and not self.is_eof:
                self._receive()
            return self._received
        self._decode()
        while text not in self._body and not self.is_eof and not self.is_complete:
            self._receive()
            self._decode()
        assert text in self._body, f"{text!r} did not come; got {self._body!r}, eof {self.is_eof}"
        return self._body

    def read_all(self) -> bytes:
        """The whole body, to its last chunk or the end of the connection."""
        self.head()
        self._decode()
        while not (self.is_complete or self.is_eof):
            self._receive()
            self._decode()
        return self._body

    def _decode(self) -> None:
        """Move whole chunks from the wire to the body."""
        while not self.is_complete:
            size_text, separator, rest = self._received.partition(b"\r\n")
            if not separator:
                return
            size = int(size_text, 16)
            if len(rest) < size + 2:
                return
            self._body += rest[:size]
            self._received = rest[size + 2 :]
            self.is_complete = size == 0


def events_of(body: bytes) -> list[Any]:
    """The `data:` payloads of a body, parsed, `[DONE]` as text. Fails on anything else but ids and pings."""
    payloads: list[Any] = []
    for line in body.decode("ascii").split("\n"):
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            payloads.append(data if data == "[DONE]" else json.loads(data))
        else:
            assert line == "" or line.startswith("id: ") or line == ": ping", line
    return payloads


def assert_ended_once(body: bytes) -> dict[str, Any]:
    """One terminal event, `[DONE]`, nothing behind. Returns the terminal."""
    payloads = events_of(body)
    assert payloads[-1] == "[DONE]"
    assert payloads.count("[DONE]") == 1
    terminals = [p for p in payloads[:-1] if p["type"] in ("end", "error")]
    assert len(terminals) == 1, payloads
    assert terminals[0] is payloads[-2]
    assert body.endswith(b"data: [DONE]\n\n")
    terminal: dict[str, Any] = terminals[0]
    return terminal
