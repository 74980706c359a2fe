"""The life of the process under both worker classes: loading, signals, a dead engine, a model that is not there."""

import errno
import fcntl
import os
import queue
import resource
import runpy
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from gunicorn.workers.base import Worker

from tests.support.engines import wait_until
from tests.support.processes import has_open_door, workers_of
from tests.support.servers import (
    WORKER_CLASSES,
    RawStream,
    Server,
    assert_ended_once,
    events_of,
    free_port,
    running_server,
)
from worker import process
from worker.settings import ROOT, Settings
from worker.web.draining import DrainingWorker
from worker.web.gthread_worker import MAX_LOADING_WATCHERS, EndstopThreadWorker

pytestmark = pytest.mark.slow

LONG = {"prompt": "hello", "max_tokens": 200, "temperature": 0}
ENDLESS = LONG | {"max_tokens": 2000}  # at any pace: for whoever lets it run to its end when he has seen enough
BOTH = pytest.mark.parametrize("worker_class", WORKER_CLASSES)


@BOTH
def test_a_drain_lets_streams_finish_and_accepts_no_other(tmp_path: Path, worker_class: str) -> None:
    with running_server(tmp_path, worker_class) as server, requests.Session() as connection:
        with RawStream(server, "POST", "/execute", LONG | {"max_tokens": 60}) as stream:
            server.allow("pace/500")  # there is more to come than may come in a drain
            stream.read_until(b'"type":"token"')
            assert connection.get(server.url + "/ready", timeout=30).status_code == 200
            server.signal(signal.SIGTERM)
            server.wait_for(lambda: "draining" in server.log(), "the drain")
            refused = connection.post(server.url + "/execute", json=LONG, timeout=30)  # over the open connection
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "DRAINING"
            server.allow("pace/0")
            assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        assert server.wait_exit() == 0


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_the_server_drains_a_new_client_is_told_so(
    tmp_path: Path, worker_class: str, number: signal.Signals
) -> None:
    """Not refused: a probe that cannot connect cannot tell a drain from a crash."""
    with running_server(tmp_path, worker_class) as server, RawStream(server, "POST", "/execute", LONG) as stream:
        server.allow("pace/500")
        stream.read_until(b'"type":"token"')
        server.signal(number)
        server.wait_for(lambda: "draining" in server.log(), "the drain")
        ready, health, refused = server.get("/ready"), server.get("/health"), server.post("/execute", LONG)
        assert (ready.status_code, ready.json()["state"]) == (503, "DRAINING")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "DRAINING")
        assert {"Retry-After"} <= ready.headers.keys() & refused.headers.keys()
        assert health.status_code == 200
        server.allow("pace/0")
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
    # Whoever has to be killed by gunicorn is so after the drain.
    env = {"GATED_LOAD_S": "300", "ENDSTOP_DRAIN_S": "300"}
    with running_server(tmp_path, worker_class, wait=False, env=env) as server:
        if when == "importing":
            server.wait_for(lambda: "importing torch" in server.log(), "the start of the worker")
        else:
            _wait_for_first_answer(server)
        server.signal(number)
        assert server.wait_exit() == 0


def wait_for_steps(server: Server, number: int) -> None:
    last = server.stats()["steps"] + number
    server.wait_for(lambda: server.stats()["steps"] >= last, f"{number} steps")


@BOTH
def test_every_process_is_told_to_stop_at_once(tmp_path: Path, worker_class: str) -> None:
    """As systemd and Heroku do. Whether the worker or the arbiter sees it first is a race: several tries."""
    for _ in range(4):
        with running_server(tmp_path, worker_class) as server, RawStream(server, "POST", "/execute", ENDLESS) as stream:
            server.allow("pace/20")
            stream.read_until(b'"type":"token"')
            os.killpg(server.process.pid, signal.SIGTERM)
            server.wait_for(lambda: "draining" in server.log(), "the drain")
            wait_for_steps(server, 80)  # of 20 ms; a worker that closes its door does so within a second
            ready = server.get("/ready")
            assert (ready.status_code, ready.json()["state"]) == (503, "DRAINING")
            server.allow("pace/0")
            assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
            assert server.wait_exit() == 0


@BOTH
def test_a_hangup_of_every_process_cuts_no_stream(tmp_path: Path, worker_class: str) -> None:
    with running_server(tmp_path, worker_class) as server, RawStream(server, "POST", "/execute", LONG) as stream:
        server.allow("pace/20")
        stream.read_until(b'"type":"token"')
        (worker,) = workers_of(server)
        os.killpg(server.process.pid, signal.SIGHUP)
        assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        server.wait_for(lambda: worker not in workers_of(server), "the arbiter has reloaded")
        server.wait_ready()


@BOTH
@pytest.mark.parametrize("is_immune", [False, True])
def test_a_terminal_that_closes(tmp_path: Path, worker_class: str, is_immune: bool) -> None:
    """It hangs up on the group, and nothing can be written to it any more. nohup's server is to outlive it."""
    with running_server_in_terminal(worker_class, is_immune) as (server, terminal):
        # Long enough for a drain to begin that should not.
        with RawStream(server, "POST", "/execute", LONG if is_immune else ENDLESS) as stream:
            server.allow("pace/20")
            stream.read_until(b'"type":"token"')
            (worker,) = workers_of(server)
            os.close(terminal)
            if not is_immune:
                server.wait_for(lambda: server.get("/ready").status_code == 503, "the drain")
                server.allow("pace/0")
            assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        if is_immune:
            assert server.get("/ready").status_code == 200
            assert workers_of(server) == [worker]
            server.signal(signal.SIGTERM)
        assert server.wait_exit() in (0, 120)  # 120: Python could not flush to where nobody is


@contextmanager
def running_server_in_terminal(worker_class: str, is_immune: bool) -> Iterator[tuple[Server, int]]:
    """A server in the foreground of a terminal of its own, and the other end of that, which the block closes."""
    terminal, tty = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # Whatever the tests themselves were started by.
        signal.signal(signal.SIGHUP, signal.SIG_IGN if is_immune else signal.SIG_DFL)

    port = free_port()
    env = {"PORT": str(port), "ENDSTOP_HOST": "127.0.0.1", "ENDSTOP_WORKER_CLASS": worker_class, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "tests.support.gated_wsgi:app"],
        cwd=ROOT,
        env=os.environ | env | {"ENDSTOP_STEP_LIMIT_S": "600"},
        stdin=tty,
        stdout=tty,
        stderr=tty,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(tty)
    try:
        server = Server(process, port, Path(os.devnull))
        server.wait_ready()
        yield server, terminal
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_a_worker_that_another_one_follows_closes_its_door(tmp_path: Path) -> None:
    """New clients are the new one's, and wait for it in the arbiter's backlog."""
    with running_server(tmp_path, "gthread") as server, RawStream(server, "POST", "/execute", LONG) as stream:
        server.allow("pace/50")
        stream.read_until(b'"type":"token"')
        (worker,) = workers_of(server)
        assert has_open_door(worker, server.port)
        server.signal(signal.SIGHUP)
        server.wait_for(lambda: not has_open_door(worker, server.port), "the door is closed")
        stream._receive()
        stream._decode()
        assert b'"type":"end"' not in stream._body, "the door was open until the stream had ended"
        assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        server.wait_for(lambda: _is_ready(server), "a new worker is ready")


@BOTH
def test_a_worker_that_is_told_alone_says_so(tmp_path: Path, worker_class: str) -> None:
    """gunicorn tells an excess worker on every loop: a second time means nothing."""
    with running_server(tmp_path, worker_class) as server, RawStream(server, "POST", "/execute", ENDLESS) as stream:
        server.allow("pace/20")
        stream.read_until(b'"type":"token"')
        (worker,) = workers_of(server)
        for _ in range(2):
            os.kill(worker, signal.SIGTERM)
            server.wait_for(lambda: server.get("/ready").status_code == 503, "the drain")
        assert server.get("/ready").json()["state"] == "DRAINING"
        server.allow("pace/0")
        assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        server.wait_for(lambda: worker not in workers_of(server), "it has left")
        server.wait_for(lambda: _is_ready(server), "a new worker is ready")


@BOTH
def test_ctrl_c_reaches_every_process_and_the_arbiter_decides(tmp_path: Path, worker_class: str) -> None:
    with running_server(tmp_path, worker_class) as server, RawStream(server, "POST", "/execute", LONG) as stream:
        server.allow("pace/20")
        stream.read_until(b'"type":"token"')
        (worker,) = workers_of(server)
        os.kill(worker, signal.SIGINT)
        assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        assert workers_of(server) == [worker]


@BOTH
def test_a_signal_while_it_loads_ends_those_who_watch(tmp_path: Path, worker_class: str) -> None:
    env = {"GATED_LOAD_S": "300", "ENDSTOP_DRAIN_S": "300"}  # gunicorn would kill it after the drain
    with running_server(tmp_path, worker_class, wait=False, env=env) as server:
        _wait_for_first_answer(server)
        with RawStream(server, "GET", "/v1/loading/progress") as progress:
            progress.read_until(b"LOADING")
            server.signal(signal.SIGTERM)
            events = events_of(progress.read_all())
            assert progress.is_complete
            assert (events[-2]["state"], events[-1]) == ("DRAINING", "[DONE]")
            assert server.wait_exit() == 0


def test_watching_the_model_load_keeps_nobody_out(tmp_path: Path) -> None:
    """Under gthread each watcher holds a thread."""
    env = {"GATED_LOAD_S": "300", "ENDSTOP_MAX_SLOTS": "1", "ENDSTOP_MAX_QUEUE": "0", "ENDSTOP_KEEP_ALIVE_S": "0.2"}
    with running_server(tmp_path, "gthread", wait=False, env=env) as server, ExitStack() as stack:
        _wait_for_first_answer(server)
        watchers = [stack.enter_context(RawStream(server, "GET", "/v1/loading/progress")) for _ in range(20)]
        assert [watcher.head()[0] for watcher in watchers] == [200] * MAX_LOADING_WATCHERS + [429] * 16
        assert server.post("/execute", LONG).json()["error"]["code"] == "LOADING"
        watchers[0].close()
        server.wait_for(lambda: _can_watch(server), "its place is free again")


def _can_watch(server: Server) -> bool:
    with RawStream(server, "GET", "/v1/loading/progress") as watcher:
        return watcher.head()[0] == 200


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("-w", "2"), "workers=2: every worker process would load the model again"),
        (("--threads", "4"), "threads=4: 144 streams may be open"),
        (("--preload",), "preload_app: the engine's threads would not survive"),
        (("-k", "sync"), "worker_class=gthread: streams would not end"),  # gunicorn's own idea of sync with threads
    ],
)
def test_an_option_that_breaks_the_promise_is_refused(options: tuple[str, ...], named: str) -> None:
    result = _start_with(*options)
    assert result.returncode != 0
    assert named in result.stderr
    assert "leave the option out" in result.stderr


def test_too_few_files_are_no_reason_to_die_later() -> None:
    result = _start_with(limit_files=90)
    assert result.returncode != 0
    assert "there is no room for a connection: raise the limit" in result.stderr


@pytest.mark.parametrize(
    ("limits", "num_connections", "raised"),
    [
        ((4096, 4096), 1000, None),
        ((256, 4096), 1000, (4096, 4096)),
        ((256, 10**9), 1000, (65536, 10**9)),
        ((256, resource.RLIM_INFINITY), 1000, (65536, resource.RLIM_INFINITY)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 1000, None),
        ((256, 512), 412, (512, 512)),
    ],
)
def test_as_many_files_may_be_open_as_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], num_connections: int, raised: tuple[int, int] | None
) -> None:
    said: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, to: said.append(to))
    assert process.connections_within_limit(1000) == num_connections
    assert said == ([] if raised is None else [raised])


@pytest.mark.parametrize(("host", "bind"), [("::1", "[::1]:8000"), ("::", "[::]:8000"), ("10.0.0.1", "10.0.0.1:8000")])
def test_an_address_is_bound_as_it_is_written(monkeypatch: pytest.MonkeyPatch, host: str, bind: str) -> None:
    monkeypatch.setenv("ENDSTOP_HOST", host)
    monkeypatch.delenv("PORT", raising=False)
    monkeypatch.setattr(process, "settings", None)
    assert runpy.run_path(str(ROOT / "gunicorn.conf.py"))["bind"] == bind


def test_a_graceful_timeout_that_would_cut_streams_is_refused() -> None:
    result = _start_with("--graceful-timeout", "10")
    assert result.returncode != 0
    assert "graceful_timeout=10" in result.stderr
    assert "make it at least 27" in result.stderr


@BOTH
def test_the_server_answers_while_it_loads(tmp_path: Path, worker_class: str) -> None:
    with running_server(tmp_path, worker_class, wait=False, env={"GATED_LOAD_S": "300"}) as server:
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
            progress.read_until(b"LOADING")
            server.allow("loaded")
            events = events_of(progress.read_all())
        assert events[0]["state"] == "LOADING"
        assert events[-2]["state"] == "READY"
        assert events[-1] == "[DONE]"
        server.wait_ready()


def _wait_for_first_answer(server: Server) -> None:
    def answers() -> bool:
        try:
            return server.get("/health").status_code == 200
        except requests.RequestException:
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


def _start_with(*arguments: str, limit_files: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
    def limit() -> None:
        if limit_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit_files, limit_files))

    return subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", *arguments, "wsgi:app"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PORT": str(free_port()), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limit,
    )


def test_clients_that_keep_their_sockets_do_not_hold_up_the_threaded_worker(tmp_path: Path) -> None:
    """gunicorn 27.0.1 lingers up to 2 s per closing connection on the loop that accepts. Ours does it in the pool."""
    with running_server(tmp_path, "gthread") as server:
        held = []
        began = time.monotonic()
        for _ in range(16):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            client.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            held.append(client)
        for client in held:
            assert client.recv(65536)  # answered, and now the server waits for us to close
        assert server.get("/health").status_code == 200
        elapsed_s = time.monotonic() - began
        for client in held:
            client.close()
    assert elapsed_s < 25, "each lingering connection stood for 2 s in front of the next one"


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_the_first_line_says_where_and_how(tmp_path: Path, prefix: str) -> None:
    env = {"SCRIPT_NAME": prefix}  # by which gunicorn mounts an app below a path
    with running_server(tmp_path, "gevent", "wsgi:app", wait=False, env=env) as server:
        server.wait_ready(f"{prefix}/ready")
        line = next(line for line in server.log().splitlines() if line.startswith("Endstop serves"))
        assert f"{server.url}{prefix} " in line
        command = line.partition("try: ")[2]
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        assert_ended_once(result.stdout.encode())
        assert events_of(result.stdout.encode())[0]["type"] == "started"


# ---- the hooks alone, in this process


class Exit(BaseException):
    """Stands in for `os._exit`, whose code it carries."""


class FakeEngine:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.num_open = 0
        self.state = "READY"
        self.has_loaded = False

    def drain(self, limit_s: float) -> None:
        self.said.append(f"drain {limit_s:g}")

    def end_now(self) -> None:
        self.said.append("end now")

    def stop(self, timeout_s: float) -> bool:
        self.said.append("stop")
        return True


class Clock:
    """Time that passes by sleeping. Nobody may sleep for ever."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1100, "it waits for ever"


def fake_app(engine: FakeEngine, streams: Any) -> Any:
    housekeeper = SimpleNamespace(join=lambda timeout_s: engine.said.append("last words"))
    telemetry = SimpleNamespace(close=lambda limit_s: engine.said.append("telemetry"))
    shared = SimpleNamespace(
        engine=engine, streams=streams, settings=Settings(), housekeeper=housekeeper, telemetry=telemetry
    )
    return SimpleNamespace(extensions={"endstop": shared})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(process, "time", clock)
    return clock


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`os._exit` raises, and nothing that pytest needs is shut down."""

    def leave(code: int) -> None:
        raise Exit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr("logging.shutdown", lambda: None)


def test_a_drain_is_over_when_the_last_stream_is() -> None:
    engine, streams = FakeEngine(), SimpleNamespace(num_open=0)
    app, late_s = fake_app(engine, streams), Settings().drain_s + process.STREAM_END_S + 0.1

    def has_drained(num_requests: int, num_readers: int, elapsed_s: float = 0.0) -> bool:
        engine.num_open, streams.num_open = num_requests, num_readers
        return process._has_drained(app, elapsed_s)

    assert [has_drained(1, 1), has_drained(0, 1), has_drained(1, 0), has_drained(0, 0)] == [False, False, False, True]
    assert not has_drained(1, 1, Settings().drain_s)
    assert engine.said == []
    assert has_drained(0, 1, late_s), "whoever is left does not read"
    assert engine.said == ["end now"], "or waits for a step that does not come back in time"


def idle_worker() -> Any:
    worker: Any = object.__new__(DrainingWorker)
    worker.tmp = SimpleNamespace(notify=lambda: None)
    worker.alive = True
    return worker


def test_no_signal_comes_while_handlers_are_being_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn resets each to its default first, which would end the process with every stream in it."""
    held: list[set[int]] = []
    monkeypatch.setattr(Worker, "init_signals", lambda worker: held.append(held_signals()))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    before = held_signals()
    idle_worker().init_signals()
    assert held[0] == before | set(Worker.SIGNALS)
    assert held_signals() == before


def held_signals() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_a_draining_worker_does_not_wait_for_connections_without_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a body, or a client that does not read. gunicorn would wait for them until the arbiter kills the worker."""
    clock, worker = Clock(), idle_worker()
    monkeypatch.setattr("worker.web.draining.time", clock)
    worker.is_draining = True
    for _ in range(3):
        worker.notify()
        clock.now += 1
    with pytest.raises(SystemExit):
        worker.notify()


def test_a_draining_worker_does_not_leave_in_the_middle_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a body may end, and be answered, in the moment in which it is no longer waited for."""
    clock, worker = Clock(), idle_worker()
    monkeypatch.setattr("worker.web.draining.time", clock)
    worker.is_draining = True
    for _ in range(5):
        worker.notify()
        clock.now += 1
        worker.given_at = clock.now - 0.5
    worker.notify()
    clock.now += 1
    with pytest.raises(SystemExit):
        worker.notify()


def test_a_worker_notes_when_it_gives_a_thread_a_request() -> None:
    worker: Any = object.__new__(EndstopThreadWorker)
    worker._forget = worker.handle = lambda conn: None
    pool = ThreadPoolExecutor(1)
    worker.method_queue = SimpleNamespace(defer=lambda *args: None)
    began = time.monotonic()
    try:
        worker._give_thread(SimpleNamespace(), pool)
    finally:
        pool.shutdown()
    assert began <= worker.given_at <= time.monotonic()


def test_a_worker_that_is_out_of_time_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arbiter kills it soon, and what it has left is for the last bytes."""
    clock, worker = Clock(), idle_worker()
    monkeypatch.setattr("worker.web.draining.time", clock)
    worker.has_drained = worker.is_out_of_time = lambda elapsed_s: elapsed_s > 20
    worker.is_draining = True
    worker.notify()
    clock.now += 21
    with pytest.raises(SystemExit):
        worker.notify()


def test_a_draining_worker_leaves_when_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked, worker = Clock(), list[float](), idle_worker()
    monkeypatch.setattr("worker.web.draining.time", clock)

    def has_drained(elapsed_s: float) -> bool:
        asked.append(elapsed_s)
        return elapsed_s >= 2

    worker.has_drained = has_drained
    worker.notify()
    assert asked == [], "it does not leave"
    worker.is_draining = True
    for is_alive in (True, True, False):
        worker.notify()
        clock.now += 1
        assert worker.alive == is_alive
    worker.notify()
    assert asked == [0, 1, 2, 3], "streams are seen to while the worker waits for what is inside, too"


@pytest.mark.usefixtures("exits")
def test_a_worker_that_leaves_ends_its_streams_then_its_engine_then_itself(clock: Clock) -> None:
    engine = FakeEngine()

    class Streams:
        @property
        def num_open(self) -> int:
            is_open = clock.now < 1000.5
            engine.said.append("open" if is_open else "closed")
            return int(is_open)

    with pytest.raises(Exit) as left:
        process.leaving(fake_app(engine, Streams()))
    assert left.value.args == (0,)
    assert list(dict.fromkeys(engine.said)) == [
        "drain 0",
        "open",
        "closed",
        "end now",
        "stop",
        "last words",
        "telemetry",
    ]


def test_sigquit_ends_the_streams_before_gunicorn_exits(clock: Clock) -> None:
    engine = FakeEngine()

    class Streams:
        @property
        def num_open(self) -> int:
            return int(clock.now < 1000.5)

    process.interrupted(fake_app(engine, Streams()))
    assert engine.said == ["drain 0", "end now"]
    assert clock.now >= 1000.5, "the endings are written"


@pytest.mark.usefixtures("exits")
def test_a_worker_whose_terminal_is_gone_leaves_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", SimpleNamespace(flush=fail))
    with pytest.raises(Exit):
        process.leaving(fake_app(FakeEngine(), SimpleNamespace(num_open=0)))


class FakeArbiter:
    """Notes what reaches it."""

    def __init__(self) -> None:
        self.SIG_QUEUE: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.killed: list[tuple[int, int]] = []

    def stop(self, graceful: bool = True) -> None:
        self.kill_worker(7, signal.SIGTERM)

    def kill_worker(self, pid: int, number: int) -> None:
        self.killed.append((pid, number))

    def handle_term(self) -> None: ...


@pytest.fixture
def arbiter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose signals are softened; `handlers` are those that it would have."""
    arbiter: Any = FakeArbiter()
    arbiter.handlers = {}
    arbiter.terminals = [True, False, False]  # at the start, and at each hangup
    monkeypatch.setattr(signal, "signal", arbiter.handlers.__setitem__)
    monkeypatch.setattr(process, "_has_terminal", lambda: arbiter.terminals.pop(0))
    process.soften_stop(arbiter)
    return arbiter


def test_a_worker_that_nobody_follows_is_not_told_of_one(arbiter: Any) -> None:
    """It would close its door at its next look, and with the server that is no hand-over."""
    arbiter.kill_worker(7, signal.SIGTERM)
    assert arbiter.killed == [(7, signal.SIGUSR2), (7, signal.SIGTERM)], "an excess worker"
    arbiter.killed.clear()
    arbiter.stop()
    assert arbiter.killed == [(7, signal.SIGTERM)]


def test_a_second_worker_is_not_made_by_a_signal(arbiter: Any, caplog: pytest.LogCaptureFixture) -> None:
    for handle in (arbiter.handle_ttin, arbiter.handle_ttou):
        handle()
    assert caplog.text.count("SIGTTIN and SIGTTOU are ignored") == 2
    assert arbiter.killed == []


def test_a_hangup_is_no_second_signal_to_stop(arbiter: Any) -> None:
    """The kernel, the shell and `make` may each send one."""
    for _ in range(2):
        arbiter.handlers[signal.SIGHUP](signal.SIGHUP, None)
    assert arbiter.SIG_QUEUE.get_nowait() == signal.SIGTERM
    assert arbiter.SIG_QUEUE.empty()


@pytest.mark.usefixtures("exits")
def test_a_worker_that_leaves_does_not_wait_for_a_client_that_never_reads(clock: Clock) -> None:
    engine = FakeEngine()
    with pytest.raises(Exit):
        process.leaving(fake_app(engine, SimpleNamespace(num_open=1)))
    assert clock.now < 1000 + process.STREAM_END_S + 0.1
    assert engine.said == ["drain 0", "end now", "stop", "last words", "telemetry"]


def test_an_engine_that_was_dead_before_the_process_knew_it_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(process, "native_sleep", lambda seconds: None)
    monkeypatch.setattr(process, "show_loading", lambda engine: None)
    engine = FakeEngine()
    engine.state = "DEAD"
    process.started(fake_app(engine, None), SimpleNamespace(is_leaving=False))
    wait_until(lambda: codes == [process.EXIT_CANNOT_LOAD])


def test_a_process_that_does_not_linger_says_why_it_dies_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s: list[float] = []
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(process, "native_sleep", slept_s.append)
    monkeypatch.setattr(process, "show_loading", lambda engine: None)
    engine = FakeEngine()
    engine.state = "DEAD"
    app = fake_app(engine, None)
    app.extensions["endstop"].settings = Settings(dead_linger_s=0)
    process.started(app, SimpleNamespace(is_leaving=False))
    wait_until(lambda: codes == [process.EXIT_CANNOT_LOAD])
    assert slept_s == [process.LAST_WORDS_S]  # in which the housekeeper writes it


@BOTH
def test_a_process_that_was_stopped_goes_on_where_it_was(tmp_path: Path, worker_class: str) -> None:
    """Ctrl-Z, a paused container, a machine that moves: time has passed, and no step was stuck."""
    env = {"ENDSTOP_STEP_LIMIT_S": "1", "ENDSTOP_TOKEN_TIMEOUT_S": "60"}
    with running_server(tmp_path, worker_class, env=env) as server:
        server.allow("pace/20")
        with RawStream(server, "POST", "/execute", LONG | {"max_tokens": 40}) as stream:
            stream.read_until(b'"type":"token"')
            (worker,) = workers_of(server)
            os.kill(worker, signal.SIGSTOP)
            time.sleep(2.5)  # longer than a step may take; nothing in there can be waited for
            os.kill(worker, signal.SIGCONT)
            health = requests.get(server.url + "/health", timeout=30)
            assert health.status_code == 200, health.text + server.log()
            assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        assert workers_of(server) == [worker]


@pytest.mark.usefixtures("exits")
def test_signals_before_the_worker_has_handlers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it has those of the arbiter, which would stop a server in here that nobody is waiting for."""
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    process.prepare(Settings(), [])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        assert handlers[number](number, None) is None
    for number in (signal.SIGTERM, signal.SIGQUIT):
        with pytest.raises(Exit) as left:
            handlers[number](number, None)
        assert left.value.args == (0,)


def test_what_is_imported_for_good_is_not_searched_for_garbage() -> None:
    """Such a search stopped every thread for 0.2 s: one probe in a hundred took as long."""
    code = (
        "import gc; from worker import process; from worker.settings import Settings; process.prepare(Settings(), []);"
        "print(gc.isenabled(), len(gc.get_objects()), gc.get_freeze_count())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60).stdout
    is_enabled, num_searched, num_frozen = said.split()
    assert is_enabled == "True"
    assert int(num_searched) < 10_000 < 200_000 < int(num_frozen)


def test_accepted_sockets_inherit_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    settings = Settings()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process.prepare(settings, [listener])
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            patience_ms = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert patience_ms > 1000 * settings.slow_consumer_s, "the engine names a slow reader first"
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            # The kernel doubles what it is told.
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * process.SEND_BUFFER_BYTES
