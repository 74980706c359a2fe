"""Runs tests in a copy of the tree, with one guard taken away or with none. Linux only, as the server is."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.mutation import Mutation

ROOT = Path(__file__).parents[2]
BUILT = Path("worker/engine/native/build")
TEST_S = 60  # pytest's own limit for one test: what hangs without its guard fails
RUN_S = 150  # for what pytest cannot end, of one guard
# pytest's exit codes of a run that has judged nothing: interrupted, internal error, bad usage, no test found.
NO_VERDICT = (2, 3, 4, 5)


class NoVerdict(Exception):
    """The tests could not be run; the message holds their output."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a selection of tests said.

    Attributes:
        red: The test that failed; empty when all were green.
        reason: The line of its failure that says most.
    """

    red: str
    reason: str
    seconds: float


def judge(mutation: Mutation) -> Verdict:
    """What the mutation's tests say without the guard.

    Raises:
        Stale: The source is not what the table says.
        NoVerdict: The tests could not be run.
    """
    with copied_tree() as folder:
        (folder / mutation.file).write_text(mutation.mutate(folder))
        return _verdict(folder, mutation.tests, mutation.is_gevent, RUN_S)


def judge_whole(tests: tuple[str, ...], is_gevent: bool) -> Verdict:
    """What tests say with every guard in place.

    Raises:
        NoVerdict: The tests could not be run.
    """
    with copied_tree() as folder:
        return _verdict(folder, tests, is_gevent, RUN_S * len(tests))


@contextmanager
def copied_tree() -> Iterator[Path]:
    """What git would commit, in a folder of its own. Behind it no process is left that was started in there.

    And the native kernels, if they have been built: without them their tests are skipped, and miss nothing.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name).resolve()
        for path in os.fsdecode(listed.stdout).split("\0"):
            if path and (ROOT / path).is_file() and not (ROOT / path).is_symlink():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, folder / path)
        if (ROOT / BUILT).exists():
            shutil.copytree(ROOT / BUILT, folder / BUILT)
        if (ROOT / ".venv").exists():
            (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
        try:
            yield folder
        finally:
            _kill_all_of(folder)


def _verdict(folder: Path, tests: tuple[str, ...], is_gevent: bool, limit_s: float) -> Verdict:
    began = time.monotonic()
    code, output = _run(folder, tests, is_gevent, limit_s)
    if code in NO_VERDICT or "ERROR collecting" in output:
        raise NoVerdict(f"{' '.join(tests)} could not be run:\n{output[-3000:]}")
    red = _first_red(output) or tests[0] if code else ""
    return Verdict(red, _reason(output) if code else "", time.monotonic() - began)


def _run(folder: Path, tests: tuple[str, ...], is_gevent: bool, limit_s: float) -> tuple[int, str]:
    if is_gevent:  # it says itself why pytest's timeout is off there
        command = ["-m", "tests.streams.patched", *tests, "-x", "-rfE"]
    else:
        command = ["-m", "pytest", *tests, "-x", "-q", "-rfE", "-p", "no:cacheprovider", f"--timeout={TEST_S}"]
    # No bytecode: a cached file is told from a changed one by size and second, and a mutation may keep both.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    # Into a file and not a pipe: a server that is left behind would hold a pipe open.
    with (folder / ".output").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def _kill_all_of(folder: Path) -> None:
    """Servers have sessions of their own, so no process group reaches them all; but all were started in the folder."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue  # gone meanwhile, or somebody else's


def _first_red(output: str) -> str:
    found = re.search(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", output, re.MULTILINE)
    return found[1] if found else ""


def _reason(output: str) -> str:
    lines = [line[1:].strip() for line in output.splitlines() if line.startswith("E  ")]
    if lines:
        return lines[0][:200]
    return "it hangs" if "Timeout" in output or "FAILED" not in output else ""
