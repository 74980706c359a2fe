"""What holds for every request: a limit on reads, a limit on writes, and refusals that close what cannot be kept."""

import io
import json
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from tests.support.apps import app_in_process
from worker.web.patience import limit_reads, unlimit_reads

PROMPT = {"prompt": "hello", "max_tokens": 3, "temperature": 0}
BODY_S = 7.0
WRITE_S = 2 * 11.0


@pytest.fixture(scope="module")
def app() -> Iterator[Flask]:
    with app_in_process(body_timeout_s=BODY_S, slow_consumer_s=WRITE_S / 2, max_body_bytes=1000) as app:
        app.extensions["runner"].open()
        yield app


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    ours, peer = socket.socketpair()
    yield ours
    ours.close()
    peer.close()


class Unreader:
    """The bottom of gunicorn's reader: asks the socket for the next piece."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.timeouts: list[float | None] = []

    def chunk(self, size_hint: int | None = None) -> bytes:
        self.timeouts.append(self._sock.gettimeout())
        return b""


class Input:
    """A body as gunicorn gives it: each read goes down to the socket."""

    def __init__(self, body: bytes, sock: socket.socket) -> None:
        self._body = io.BytesIO(body)
        self.reader = SimpleNamespace(unreader=Unreader(sock))

    def read(self, size: int) -> bytes:
        self.reader.unreader.chunk()
        return self._body.read(size)


def test_every_write_is_limited(app: Flask, sock: socket.socket) -> None:
    assert app.test_client().get("/health", environ_overrides={"gunicorn.socket": sock}).status_code == 200
    assert sock.gettimeout() == WRITE_S


def test_the_reads_of_a_body_are_limited_and_the_writes_behind_it(app: Flask, sock: socket.socket) -> None:
    body = json.dumps(PROMPT).encode()
    given = Input(body, sock)
    answer = app.test_client().post(
        "/v1/jobs",
        data=body,
        content_type="application/json",
        environ_overrides={"gunicorn.socket": sock, "wsgi.input": given},
    )
    assert answer.status_code == 202
    unreader = given.reader.unreader
    assert unreader.timeouts
    assert all(timeout is not None and timeout <= BODY_S for timeout in unreader.timeouts)
    assert sock.gettimeout() == WRITE_S
    assert "chunk" not in vars(unreader), "the next request on this connection has no time left"


def test_a_limit_is_for_all_reads_together(sock: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 102.0, 104.0, 105.0])
    monkeypatch.setattr("worker.web.patience.time", SimpleNamespace(monotonic=lambda: next(clock)))
    unreader = Unreader(sock)
    limit_reads(unreader, sock, 5.0)
    for _ in range(3):
        unreader.chunk()
    assert unreader.timeouts == [5.0, 3.0, 1.0]
    with pytest.raises(TimeoutError):
        unreader.chunk()
    unlimit_reads(unreader)
    unreader.chunk()


@pytest.mark.parametrize("length", [2000, 10])
def test_a_body_that_was_not_read_costs_its_connection(app: Flask, length: int) -> None:
    """What comes next on it would be the rest of the body."""
    answer = app.test_client().post("/execute", data=b"x" * length, content_type="application/json")
    is_too_large = length > 1000
    assert answer.status_code == (413 if is_too_large else 400)
    assert (answer.headers.get("Connection") == "close") == is_too_large


def test_a_refusal_says_when_to_come_back(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = app.extensions["endstop"].engine
    monkeypatch.setattr(engine._admission, "is_accepting", False)
    answer = app.test_client().post("/execute", json=PROMPT)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


def test_a_bug_is_told_as_one(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(app.extensions["endstop"].jobs, "start", fail)
    answer = app.test_client().post("/execute", json=PROMPT)
    assert answer.status_code == 500
    assert answer.get_json()["error"]["code"] == "INTERNAL"
    assert "secret" not in answer.get_data(as_text=True)
