"""Under load, and under gevent.

Hunts lost wake-ups with no other timer running: see `flood.py`. What needs gevent's patches runs in a process of
its own, the tests of the other files among it: see `patched.py`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.streams.flood import flood, flood_jittered, flood_merged

ROOT = Path(__file__).parents[2]
HERE = Path("tests/streams")
LAWS = [
    str(HERE / name)
    for name in ("test_channel.py", "test_merge.py", "test_narration.py", "test_wakeup.py", "test_aside.py")
]
SAME_EVERYWHERE = ("Machine", "merge_waiting", "merged_tokens", "script")  # neither thread nor wake-up in it


@pytest.mark.slow
def test_a_million_items_into_threads() -> None:
    flood(1_000_000, num_channels=8)


@pytest.mark.slow
@pytest.mark.parametrize("num_channels", [1, 4])
def test_any_change_of_threads_is_survived(num_channels: int) -> None:
    flood_jittered(4_000, num_channels)


@pytest.mark.slow
def test_two_threads_may_wake_one_thread() -> None:
    flood_merged(50_000, num_consumers=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([*LAWS, "-k", " and ".join(f"not {name}" for name in SAME_EVERYWHERE)], id="laws"),
        pytest.param([str(HERE / "under_gevent.py")], id="traps"),
    ],
)
def test_under_gevent(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "tests.streams.patched", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"hangs\n{error.stdout!r}\n{error.stderr!r}")
    if done.returncode:
        pytest.fail(done.stdout + done.stderr)
