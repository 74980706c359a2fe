"""The watchdog against a real engine whose stall may end at any of its looks. spec/shutdown.pml is the whole of it."""

import itertools
from dataclasses import replace

import pytest

from tests.support.engines import new_sequence
from worker.engine.engine import Engine, EngineState
from worker.observe.watchdog import watch
from worker.settings import Settings
from worker.streams.wakeup import ThreadWakeup


@pytest.mark.parametrize("num_overdue", [1, 2, 3])
def test_a_step_that_comes_back_between_two_looks_costs_nobody_an_ending(
    num_overdue: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the model (WATCHDOG_LOOKS_TWICE).

    A second look that sees no stall any more must neither end the watch while the engine lives, nor have the process
    replaced while streams are open.
    """
    engine = Engine(replace(Settings()), ThreadWakeup(), lambda *_: pytest.fail("it is never loaded"))
    engine.state = EngineState.READY
    reply = new_sequence([3])
    engine._open.add(reply.sequence)
    overdue = itertools.chain(["the step has not come back"] * num_overdue, itertools.repeat(""))
    waits = iter([False] * 5)  # and then the thread has ended
    num_open_at_replacement: list[int] = []
    monkeypatch.setattr(engine, "liveness", lambda: next(overdue))
    monkeypatch.setattr(engine, "wait_ended", lambda timeout_s: next(waits, True))
    engine.on_dead = lambda: num_open_at_replacement.append(engine.num_open)

    watch(engine)

    assert num_open_at_replacement in ([], [0]), "the process is replaced under an open stream"
    is_over = next(waits, True)
    assert num_open_at_replacement or is_over, "the engine lives and nobody watches it"
