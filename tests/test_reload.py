"""SIGHUP, and workers that replace others: settings are read when that is asked for, and wrong ones change nothing."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.processes import workers_of
from tests.support.servers import WORKER_CLASSES, RawStream, Server, assert_ended_once, running_server
from worker.settings import ROOT

pytestmark = pytest.mark.slow
BOTH = pytest.mark.parametrize("worker_class", WORKER_CLASSES)

LONG = {"prompt": "the quick brown fox", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
BROKEN = {"that is no TOML": "max_slots = = 3\n", "with a bad value": "max_slots = 0\n"}


def slots_of(server: Server) -> int:
    found = re.search(r'^endstop_limit\{.*what="slots"\} (\d+)', server.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def is_ready(server: Server) -> bool:
    try:
        return server.get("/ready").status_code == 200
    except OSError:
        return False


@BOTH
@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_reload_with_bad_settings_is_refused_and_nobody_notices(tmp_path: Path, worker_class: str, text: str) -> None:
    config = tmp_path / "endstop.toml"
    config.write_text("max_slots = 3\n")
    env = {"ENDSTOP_CONFIG": str(config)}
    with (
        running_server(tmp_path, worker_class, env=env) as server,
        RawStream(server, "POST", "/execute", LONG) as stream,
    ):
        server.allow("pace/100")
        stream.read_until(b'"type":"token"')
        before = workers_of(server)
        config.write_text(text)
        server.signal(signal.SIGHUP)
        server.wait_for(lambda: "SIGHUP is not obeyed" in server.log(), "the reason in the log")
        assert "max_slots" in server.log() or "is not TOML" in server.log()
        assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
        assert workers_of(server) == before
        config.write_text("max_slots = 5\n")
        server.signal(signal.SIGHUP)
        server.wait_for(lambda: is_ready(server) and slots_of(server) == 5, "the new settings")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0


@BOTH
@pytest.mark.parametrize("text", ["max_slots = = 3\n", "max_slots = 5\n"], ids=["broken", "edited"])
def test_a_worker_that_replaces_one_that_died_has_the_same_settings(
    tmp_path: Path, worker_class: str, text: str
) -> None:
    config = tmp_path / "endstop.toml"
    config.write_text("max_slots = 3\n")
    with running_server(tmp_path, worker_class, "wsgi:app", env={"ENDSTOP_CONFIG": str(config)}) as server:
        (worker,) = workers_of(server)
        config.write_text(text)  # somebody is at it
        os.kill(worker, signal.SIGKILL)
        server.wait_for(lambda: worker not in workers_of(server) and is_ready(server), "the next one is ready")
        assert slots_of(server) == 3
        assert server.process.poll() is None


@BOTH
def test_a_signal_while_the_app_is_imported_is_obeyed(tmp_path: Path, worker_class: str) -> None:
    (tmp_path / "slow_app.py").write_text(
        "import os, signal\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"  # as the arbiter passes it on, and here at once
        "from wsgi import app\n"
    )
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with running_server(tmp_path, worker_class, "slow_app:app", wait=False, env=env) as server:
        assert server.wait_exit() == 0
        assert "Traceback" not in server.log()
