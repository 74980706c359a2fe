"""The systemd unit: systemd itself reads it, gunicorn tells it when it listens, and the times fit."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.deploy.timing import assert_waits_long_enough
from tests.support.servers import ANSWER_S, running_server
from worker import process
from worker.settings import ROOT

UNIT = (ROOT / "deploy" / "endstop.service").read_text()


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    gunicorn = tmp_path / ".venv" / "bin" / "gunicorn"
    gunicorn.parent.mkdir(parents=True)
    gunicorn.touch(0o755)
    unit = tmp_path / "endstop.service"
    unit.write_text(UNIT.replace("/opt/endstop", str(tmp_path)))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_given_the_time_to_drain() -> None:
    assert values("KillMode") == ["mixed"]  # the workers hear of it from gunicorn
    assert_waits_long_enough(float(values("TimeoutStopSec")[0]))


def test_it_starts_what_the_procfile_starts() -> None:
    (command,) = values("ExecStart")
    line = (ROOT / "Procfile").read_text().strip().removeprefix("web: ")
    assert command == f"{values('WorkingDirectory')[0]}/.venv/bin/{line}"


def test_it_has_as_many_files_as_the_server_would_take() -> None:
    assert values("LimitNOFILE") == [str(process.MAX_FILES)]


def test_what_the_server_needs_is_not_taken_away() -> None:
    """torch makes code and runs it; the kernels are found by /proc/cpuinfo and the cache is sized by /proc/meminfo."""
    assert not values("MemoryDenyWriteExecute")
    assert not values("ProcSubset")
    assert values("DynamicUser") == ["yes"]
    assert any("HF_HOME=%C/endstop" in line for line in values("Environment"))
    assert values("CacheDirectory") == ["endstop"]


def test_keys_are_read_from_where_systemd_puts_them() -> None:
    (name, source) = values("LoadCredential")[0].split(":")
    assert source == "/etc/endstop/api_keys"
    assert f"ENDSTOP_API_KEYS_FILE=%d/{name}" in values("Environment")


@pytest.mark.slow
def test_gunicorn_tells_systemd_when_it_listens(tmp_path: Path) -> None:
    assert values("Type") == ["notify"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(ANSWER_S)
        with running_server(tmp_path, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}, wait=False):
            assert systemd.recv(4096).startswith(b"READY=1")
