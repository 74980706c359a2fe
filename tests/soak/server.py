"""The server of a soak: a real gunicorn in a process group of its own, and its last word.

Its law: the group does not outlive the block, however the block ends.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import free_port
from worker.settings import ROOT

EXIT_LIMIT_S = 40.0
KEEP_ALIVE_S = 1.0

# Everything that has a limit is small, so that a short soak reaches it.
LIMITS = {
    "ENDSTOP_MAX_SLOTS": "12",
    "ENDSTOP_MAX_QUEUE": "20",
    "ENDSTOP_MAX_QUEUE_TOKENS": "1500",
    "ENDSTOP_MAX_CONTEXT": "1280",
    "ENDSTOP_STEP_TOKENS": "64",
    "ENDSTOP_MAX_BODY_BYTES": "65536",
    "ENDSTOP_BODY_TIMEOUT_S": "1.5",
    "ENDSTOP_KEEP_ALIVE_S": str(KEEP_ALIVE_S),
    "ENDSTOP_QUEUE_TIMEOUT_S": "8",
    "ENDSTOP_FIRST_TOKEN_TIMEOUT_S": "5",  # so long that who waits for it in vain misses the keep-alives
    "ENDSTOP_TOKEN_TIMEOUT_S": "3",
    "ENDSTOP_TOTAL_TIMEOUT_S": "10",
    "ENDSTOP_CLAIM_TIMEOUT_S": "3",
    "ENDSTOP_SLOW_CONSUMER_S": "1.5",
    "ENDSTOP_ORPHAN_TTL_S": "2",
    "ENDSTOP_JOB_TTL_S": "4",
    "ENDSTOP_STEP_LIMIT_S": "3",
    "ENDSTOP_DRAIN_S": "1.5",
}
NUM_SLOTS = int(LIMITS["ENDSTOP_MAX_SLOTS"])
QUEUE_TIMEOUT_S = float(LIMITS["ENDSTOP_QUEUE_TIMEOUT_S"])
FIRST_TOKEN_TIMEOUT_S = float(LIMITS["ENDSTOP_FIRST_TOKEN_TIMEOUT_S"])
TOKEN_TIMEOUT_S = float(LIMITS["ENDSTOP_TOKEN_TIMEOUT_S"])
TOTAL_TIMEOUT_S = float(LIMITS["ENDSTOP_TOTAL_TIMEOUT_S"])
SLOW_CONSUMER_S = float(LIMITS["ENDSTOP_SLOW_CONSUMER_S"])
WRITE_LIMIT_S = 2 * SLOW_CONSUMER_S  # worker/web/context.py
ORPHAN_TTL_S = float(LIMITS["ENDSTOP_ORPHAN_TTL_S"])
JOB_TTL_S = float(LIMITS["ENDSTOP_JOB_TTL_S"])


class SoakServer:
    """One running server."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self._process = process
        self._log = log
        self.port = port

    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def is_running(self) -> bool:
        """Whether the arbiter lives."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the arbiter, as a platform does."""
        self._process.send_signal(number)

    def worker_pids(self) -> list[int]:
        """The arbiter's children, oldest first."""
        pid = self._process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def arbiter(self) -> dict[str, int]:
        """Counters of the arbiter, which outlives every worker."""
        proc = Path(f"/proc/{self._process.pid}")
        return {"threads": len(os.listdir(proc / "task")), "descriptors": len(os.listdir(proc / "fd"))}

    def exit_code(self) -> int | None:
        """Wait for the end. None: it did not come in time."""
        try:
            return self._process.wait(EXIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            return None


@contextmanager
def soak_server(folder: Path, worker_class: str) -> Iterator[SoakServer]:
    """A server while the block lasts."""
    port = free_port()
    log = folder / f"{worker_class}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENDSTOP_")}
    environment |= {"PORT": str(port), "ENDSTOP_HOST": "127.0.0.1", "ENDSTOP_WORKER_CLASS": worker_class, **LIMITS}
    environment |= {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "tests/soak/gunicorn_conf.py", "tests.soak.wsgi:app"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield SoakServer(process, port, log)
    finally:
        # No farewell: what a farewell is like has been looked at by then, or something else went wrong.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(EXIT_LIMIT_S)
        _wait_until_gone(process.pid)


def _wait_until_gone(group: int) -> None:
    """Until no process of the group is left: orphans are reaped by somebody else, a little later."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.02)
