"""Every test of this folder leaves no thread behind. Knows nothing of gevent: `patched.py` brings it."""

import _thread
import time
from collections.abc import Iterator

import pytest

from tests.streams.threads import PATIENCE_S, the_wakeup
from worker.streams.wakeup import Wakeup


@pytest.fixture(scope="session")
def wakeup() -> Wakeup:
    """The one of this process."""
    return the_wakeup()


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail if a native thread outlives the test. It cannot be joined, so its end is waited for."""
    num_before = _thread._count()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while _thread._count() > num_before:
        assert time.monotonic() < deadline, "a native thread is still running"
        time.sleep(0.001)
