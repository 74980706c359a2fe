"""The spawned server: ready inside the block and gone behind it, however the block ends."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.scripted_server import WAIT_S, ScriptedServer
from worker import spawn
from worker.client import Client, EndstopError
from worker.spawn import SpawnFailed, spawned_server

# Stands for gunicorn: answers GET /ready with 200, says its settings, ends by SIGTERM unless told to be stubborn.
FAKE_SERVER = """
import os, signal, socket, sys
print("host", os.environ["ENDSTOP_HOST"], "class", os.environ.get("ENDSTOP_WORKER_CLASS"), flush=True)
if "crash" in sys.argv:
    sys.exit("no such model")
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
body = b'{"state": "DEAD"}' if "dead" in sys.argv else b'{"state": "LOADING"}' if "slow" in sys.argv else b""
status = b"503 Service Unavailable" if body else b"404 Not Found" if "stranger" in sys.argv else b"200 OK"
print("ready to answer", flush=True)
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 %b\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (status, len(body), body))
    connection.close()
"""


def fake_server(*words: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", FAKE_SERVER, *words]


def is_listening(url: str) -> bool:
    with Client(url) as client:
        try:
            return bool(client.ready())
        except EndstopError:
            return False


def test_a_spawned_server_is_ready_and_then_gone() -> None:
    with spawned_server("gthread", command=fake_server()) as server:
        assert is_listening(server.url)
        assert server.log_tail() == "host 127.0.0.1 class gthread\nready to answer"
        assert server.log_tail().endswith("ready to answer")  # reading it has not moved the server's pen
    assert not is_listening(server.url)


def test_a_spawned_server_is_gone_after_an_error() -> None:
    urls = []

    def spawn_and_fail() -> None:
        with spawned_server(command=fake_server()) as server:
            urls.append(server.url)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spawn_and_fail()
    assert not is_listening(urls[0])


def test_a_server_that_exits_is_reported_at_once_with_its_log() -> None:
    with pytest.raises(SpawnFailed) as caught, spawned_server(command=fake_server("crash")):
        pass
    assert str(caught.value) == (
        "the server exited with status 1 before it was ready; its log ends with\n"
        "host 127.0.0.1 class None\nno such model"
    )


def test_a_server_that_is_dead_is_reported_at_once() -> None:
    with pytest.raises(SpawnFailed, match="could not load its model"), spawned_server(command=fake_server("dead")):
        pass


def test_a_server_that_is_not_ours_is_reported() -> None:
    with pytest.raises(SpawnFailed, match="GET /ready with 404"), spawned_server(command=fake_server("stranger")):
        pass


def test_a_server_that_never_gets_ready_is_given_up() -> None:
    with (
        ScriptedServer({"GET /ready": lambda peer: peer.json({"state": "LOADING"}, 503)}) as server,
        subprocess.Popen(["sleep", "60"]) as process,
        tempfile.TemporaryFile() as log,
    ):
        with pytest.raises(SpawnFailed, match=r"not ready after 0 s \(LOADING\)"):
            spawn._wait_until_ready(spawn.SpawnedServer(server.url, log), process, 0.0)
        process.kill()


def test_an_impatient_user_has_the_server_killed() -> None:
    class Interrupted(subprocess.Popen[bytes]):
        def terminate(self) -> None:
            """It would obey, and this one must not."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                raise KeyboardInterrupt
            return super().wait()

    process = Interrupted(["sleep", "60"], process_group=0)
    with pytest.raises(KeyboardInterrupt):
        spawn._stop(process, WAIT_S)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_server_that_ignores_sigterm_is_killed() -> None:
    with spawned_server(command=fake_server("stubborn"), stop_limit_s=0.2) as server:
        assert is_listening(server.url)
    assert not is_listening(server.url)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_takes_the_server_along(signum: signal.Signals) -> None:
    """The whole way: a process that has spawned a server is signalled, and both are gone."""
    code = (
        "import signal, time\n"
        "from worker.spawn import spawned_server\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored when we are a background job
        f"with spawned_server(command={fake_server()!r}) as server:\n"
        "    print(server.url, flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"  # signal.pause() would miss a signal that comes just before it
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=spawn.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert is_listening(url)
        process.send_signal(signum)
        assert process.wait(WAIT_S) != 0
    assert not is_listening(url)


def test_the_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with spawned_server(command=fake_server()):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_spawned_exists() -> None:
    assert spawn.SERVE_COMMAND[1:] == ("-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app")
    assert Path(spawn.ROOT, "worker", "spawn.py").samefile(spawn.__file__)
