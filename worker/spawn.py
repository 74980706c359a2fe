"""A server of our own, in a process of its own, while a block lasts.

Owned here: the command that starts it, the wait until it is ready, its log, and its end.

Its law: the server does not outlive the block, however the block ends: by an exception, by Ctrl-C, by SIGTERM or
SIGHUP. A server that cannot start is reported at once, with the end of its log, and not when the patience ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from worker.client import Client, ConnectionFailed, EndstopError

ROOT = Path(__file__).resolve().parent.parent
SERVE_COMMAND = (sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app")

# A hub model may have to be downloaded first. A server that cannot start is noticed at once all the same.
READY_LIMIT_S = 600.0
READY_POLL_S = 0.1
# The server drains for 20 s by default, and gunicorn gives it 7 more.
STOP_LIMIT_S = 30.0
LOG_TAIL_BYTES = 3000


class SpawnFailed(Exception):
    """The server that we started did not become ready; carries the end of its log."""


@dataclass(frozen=True)
class SpawnedServer:
    """A server in a process of its own."""

    url: str
    log: IO[bytes]

    def log_tail(self) -> str:
        """The end of what it has written so far."""
        # pread, because the server writes through the same file description: a seek would move its position.
        size = os.fstat(self.log.fileno()).st_size
        start = max(0, size - LOG_TAIL_BYTES)
        return os.pread(self.log.fileno(), LOG_TAIL_BYTES, start).decode("utf-8", "replace").strip()


@contextlib.contextmanager
def spawned_server(
    worker_class: str | None = None,
    *,
    command: Sequence[str] = SERVE_COMMAND,
    ready_limit_s: float = READY_LIMIT_S,
    stop_limit_s: float = STOP_LIMIT_S,
) -> Iterator[SpawnedServer]:
    """Run a real server in a process of its own while the block lasts.

    Raises:
        SpawnFailed: It exited, died while loading, or was not ready within `ready_limit_s`.
    """
    port = _free_port()
    environment = os.environ | {"PORT": str(port), "ENDSTOP_HOST": "127.0.0.1"}
    if worker_class is not None:
        environment["ENDSTOP_WORKER_CLASS"] = worker_class
    with tempfile.TemporaryFile() as log, _ending_by_signal_unwinds():
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # else Ctrl-C, which in `chat` stops an answer, would stop the server
        )
        try:
            server = SpawnedServer(f"http://127.0.0.1:{port}", log)
            _wait_until_ready(server, process, ready_limit_s)
            yield server
        finally:
            _stop(process, stop_limit_s)


@contextlib.contextmanager
def announced_server(console: Console, worker_class: str | None = None) -> Iterator[SpawnedServer]:
    """`spawned_server` for people: says what they wait for, at both ends."""
    with console.status("starting a server") as status, spawned_server(worker_class) as server:
        status.stop()
        try:
            yield server
        finally:
            status.update("stopping the server")
            status.start()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _ending_by_signal_unwinds() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does: by default they would leave the server behind."""

    def unwind(signum: int, _: object) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted by them
        return
    before = {signum: signal.signal(signum, unwind) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _wait_until_ready(server: SpawnedServer, process: subprocess.Popen[bytes], limit_s: float) -> None:
    def failure(what: str) -> SpawnFailed:
        return SpawnFailed(f"the server {what}; its log ends with\n{server.log_tail()}")

    give_up_at = time.monotonic() + limit_s
    with Client(server.url, connect_timeout_s=1.0, idle_timeout_s=5.0) as client:
        while True:
            try:
                readiness = client.ready()
            except ConnectionFailed:
                state = "it does not answer"
            except EndstopError as error:
                raise failure(f"answers GET /ready with {error}") from error
            else:
                if readiness:
                    return
                if readiness.state == "DEAD":
                    raise failure("could not load its model")
                state = readiness.state
            if time.monotonic() > give_up_at:
                raise failure(f"is not ready after {limit_s:g} s ({state})")
            try:
                status = process.wait(READY_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            raise failure(f"exited with status {status} before it was ready")


def _stop(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """SIGTERM, and SIGKILL to its whole group when that takes too long or the user is tired of waiting."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(limit_s)
    except BaseException as interruption:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(interruption, subprocess.TimeoutExpired):
            raise
