"""Every test of this folder leaves no engine thread behind, no owned block and no open request."""

import time
import weakref
from collections.abc import Iterator

import pytest
import torch

from worker.engine.engine import Engine

PATIENCE_S = 20.0


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_op() -> None:
    """Two threads that wait for each other on a busy machine make an op of 10 us take milliseconds."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if an engine that was started in the test still runs, owns a block or has an open request."""
    started: list[weakref.ref[Engine]] = []
    start = Engine.start

    def remembered_start(engine: Engine) -> None:
        started.append(weakref.ref(engine))
        start(engine)

    monkeypatch.setattr(Engine, "start", remembered_start)
    yield
    deadline = time.monotonic() + PATIENCE_S
    for engine in [engine for reference in started if (engine := reference()) is not None]:
        assert engine.wait_ended(max(0.0, deadline - time.monotonic())), "a generation thread still runs"
        pool = engine._scheduler.pool
        assert pool.num_free == pool.num_blocks, "a block is still owned"
        assert engine._scheduler.sequences() == [], "a sequence is still in the scheduler"
        assert engine.num_open == 0, "a request is still counted as open"
        assert not engine._admission.inbox, "a request was accepted and never looked at"
