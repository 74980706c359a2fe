"""The life of the process under both worker classes: loading, signals, a dead engine, a model that is not there."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from tests.support.processes import workers_of
from tests.support.servers import (
    WORKER_CLASSES,
    RawStream,
    Server,
    assert_ended_once,
    events_of,
    free_port,
    running_server,
)
from worker.settings import ROOT

pytestmark = pytest.mark.slow

LONG = {"prompt": "hello", "max_tokens": 200, "temperature": 0}
BOTH = pytest.mark.parametrize("worker_class", WORKER_CLASSES)


@BOTH
def test_a_drain_lets_streams_finish_and_accepts_no_other(tmp_path: Path, worker_class: str) -> None:
    with running_server(tmp_path, worker_class) as server, requests.Session() as connection:
        with RawStream(server, "POST", "/execute", LONG | {"max_tokens": 60}) as stream:
            server.allow("pace/50")
            stream.read_until(b'"type":"token"')
            assert connection.get(server.url + "/ready", timeout=10).status_code == 200
            server.signal(signal.SIGTERM)
            server.wait_for(lambda: "draining" in server.log(), "the drain")
            refused = connection.post(server.url + "/execute", json=LONG, timeout=10)  # over the open connection
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "DRAINING"
            assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        assert server.wait_exit() == 0


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_the_server_drains_a_new_client_is_told_so(
    tmp_path: Path, worker_class: str, number: signal.Signals
) -> None:
    """Not refused: a probe that cannot connect cannot tell a drain from a crash."""
    with running_server(tmp_path, worker_class) as server, RawStream(server, "POST", "/execute", LONG) as stream:
        server.allow("pace/20")
        stream.read_until(b'"type":"token"')
        server.signal(number)
        server.wait_for(lambda: "draining" in server.log(), "the drain")
        ready, health, refused = server.get("/ready"), server.get("/health"), server.post("/execute", LONG)
        assert (ready.status_code, ready.json()["state"]) == (503, "DRAINING")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "DRAINING")
        assert {"Retry-After"} <= ready.headers.keys() & refused.headers.keys()
        assert health.status_code == 200
        assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        assert server.wait_exit() == 0


@BOTH
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_ends_the_drain(
    tmp_path: Path, worker_class: str, numbers: tuple[signal.Signals, signal.Signals]
) -> None:
    with running_server(tmp_path, worker_class, env={"ENDSTOP_DRAIN_S": "300"}) as server:
        with RawStream(server, "POST", "/execute", LONG) as stream:
            server.allow("pace/1000")
            stream.read_until(b'"type":"token"')
            server.signal(numbers[0])
            server.wait_for(lambda: "draining" in server.log(), "the drain")
            server.signal(numbers[1])
            assert assert_ended_once(stream.read_all())["code"] == "SHUTTING_DOWN"
        assert server.wait_exit() == 0


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("when", ["importing", "loading"])
def test_a_signal_while_it_starts_ends_it_at_once(
    tmp_path: Path, worker_class: str, number: signal.Signals, when: str
) -> None:
    env = {"GATED_LOAD_S": "300"}
    with running_server(tmp_path, worker_class, wait=False, env=env) as server:
        if when == "importing":
            server.wait_for(lambda: "importing torch" in server.log(), "the start of the worker")
        else:
            _wait_for_first_answer(server)
        began = time.monotonic()
        server.signal(number)
        assert server.wait_exit() == 0
        assert time.monotonic() - began < 20, "gunicorn had to kill it"


def test_a_worker_that_is_told_alone_closes_its_door(tmp_path: Path) -> None:
    """Another one takes its place: new clients are that one's."""
    with running_server(tmp_path, "gthread") as server, RawStream(server, "POST", "/execute", LONG) as stream:
        server.allow("pace/20")
        stream.read_until(b'"type":"token"')
        for worker in workers_of(server):
            os.kill(worker, signal.SIGTERM)
        server.wait_for(lambda: _is_ready(server), "a new worker is ready")
        assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"


def test_a_graceful_timeout_that_would_cut_streams_is_refused() -> None:
    result = _start_with("--graceful-timeout", "10")
    assert result.returncode != 0
    assert "graceful_timeout=10" in result.stderr
    assert "make it at least 27" in result.stderr


@BOTH
def test_the_server_answers_while_it_loads(tmp_path: Path, worker_class: str) -> None:
    with running_server(tmp_path, worker_class, wait=False, env={"GATED_LOAD_S": "3"}) as server:
        _wait_for_first_answer(server)
        ready = server.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["state"] == "LOADING"
        assert "Retry-After" in ready.headers
        assert server.get("/health").status_code == 200
        refused = server.post("/execute", LONG)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "LOADING"
        with RawStream(server, "GET", "/v1/loading/progress") as progress:
            events = events_of(progress.read_all())
        assert events[0]["state"] == "LOADING"
        assert events[-2]["state"] == "READY"
        assert events[-1] == "[DONE]"
        server.wait_ready()


def _wait_for_first_answer(server: Server) -> None:
    def answers() -> bool:
        try:
            return server.get("/health").status_code == 200
        except requests.ConnectionError:
            return False

    server.wait_for(answers, "the first answer")


@BOTH
def test_a_model_that_is_not_there(tmp_path: Path, worker_class: str) -> None:
    """The reason in one line, served for a short time, then a non-zero exit of the whole server."""
    missing = str(tmp_path / "no-such-model")
    env = {"ENDSTOP_MODEL": missing, "ENDSTOP_DEAD_LINGER_S": "3"}
    with running_server(tmp_path, worker_class, "wsgi:app", wait=False, env=env) as server:
        server.wait_for(lambda: "does not exist" in server.log(), "the reason in the log")
        ready = server.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["state"] == "DEAD"
        assert "does not exist" in ready.json()["reason"]
        assert server.get("/health").status_code == 503
        assert server.wait_exit() == 3


@BOTH
def test_a_load_that_hangs_is_given_up(tmp_path: Path, worker_class: str) -> None:
    env = {"GATED_LOAD_S": "300", "ENDSTOP_LOAD_TIMEOUT_S": "2", "ENDSTOP_DEAD_LINGER_S": "2"}
    with running_server(tmp_path, worker_class, wait=False, env=env) as server:
        server.wait_for(lambda: "still loading after 2 s" in server.log(), "the reason in the log")
        assert server.get("/health").status_code == 503
        assert server.wait_exit() == 3


def _is_ready(server: Server) -> bool:
    try:
        return server.get("/ready").status_code == 200 and server.stats()["steps"] == 0
    except requests.RequestException:
        return False


def test_more_than_one_process_is_refused_with_a_reason() -> None:
    result = _start_with(WEB_CONCURRENCY="2")
    assert result.returncode != 0
    assert "WEB_CONCURRENCY" in result.stderr
    assert "must be 1" in result.stderr


def test_a_misspelt_setting_is_refused_with_the_nearest_name() -> None:
    result = _start_with(ENDSTOP_MAX_SLOT="2")
    assert result.returncode != 0
    assert "ENDSTOP_MAX_SLOTS" in result.stderr


def _start_with(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", *arguments, "wsgi:app"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PORT": str(free_port()), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_clients_that_keep_their_sockets_do_not_hold_up_the_threaded_worker(tmp_path: Path) -> None:
    """gunicorn 27.0.1 lingers up to 2 s per closing connection on the loop that accepts. Ours does it in the pool."""
    with running_server(tmp_path, "gthread") as server:
        held = []
        began = time.monotonic()
        for _ in range(8):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            client.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            held.append(client)
        for client in held:
            assert client.recv(65536)  # answered, and now the server waits for us to close
        assert server.get("/health").status_code == 200
        elapsed_s = time.monotonic() - began
        for client in held:
            client.close()
    assert elapsed_s < 8, "each lingering connection stood for 2 s in front of the next one"


def test_the_first_line_says_where_and_how(tmp_path: Path) -> None:
    with running_server(tmp_path, "gevent", "wsgi:app") as server:
        line = next(line for line in server.log().splitlines() if line.startswith("Endstop serves"))
        assert server.url in line
        command = line.partition("try: ")[2]
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        assert_ended_once(result.stdout.encode())
        assert events_of(result.stdout.encode())[0]["type"] == "started"
