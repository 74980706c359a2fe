"""The watchdog against engines that only tell it how they are, and against a real one whose stall may end at any look.

spec/shutdown.pml is the whole of it.
"""

import itertools
from dataclasses import replace

import pytest

from tests.support.engines import new_sequence
from worker.engine.admission import EngineState
from worker.engine.engine import Engine
from worker.observe.watchdog import STANDSTILL_S, Phase, Stamp, Standstills, watch
from worker.settings import Settings
from worker.streams.wakeup import ThreadWakeup


class FakeEngine:
    """Ends and fails by a script.

    Attributes:
        said: What the watchdog has asked for, in order.
    """

    def __init__(self, ends: list[bool], reasons: list[str], abandon_fails: bool = False) -> None:
        self._ends = ends  # what each wait for the end finds; the watchdog may not wait again after the last
        self._reasons = reasons  # why it does not live, from look to look; the last one stays
        self._abandon_fails = abandon_fails
        self.said: list[str] = []
        self.num_looks = 0  # for who is overdue
        self.stamp = Stamp(Phase.IDLE, 0.0)
        self.standstills = Standstills()

    def wait_ended(self, timeout_s: float) -> bool:
        assert self._ends, "waited for once too often"
        return self._ends.pop(0)

    def abandon(self) -> bool:
        reason = self._reasons.pop(0) if len(self._reasons) > 1 else self._reasons[0]
        if not reason:
            return False
        self.said.append("abandon")
        if self._abandon_fails:
            raise RuntimeError("not everyone could be told")
        return True

    def end_overdue(self) -> None:
        self.num_looks += 1

    def gone(self) -> None:
        self.said.append("gone")


def test_a_thread_that_ends_well_is_left_alone() -> None:
    engine = FakeEngine([False, False, True], [""])
    watch(engine)
    assert engine.said == []


def test_a_thread_that_has_died_is_cleaned_up_behind() -> None:
    engine = FakeEngine([False, True], ["", "it died"])
    watch(engine)
    assert engine.said == ["abandon", "gone"]


def test_a_stall_is_cleaned_up_though_the_thread_does_not_end() -> None:
    engine = FakeEngine([False, False], ["", "a step has not come back"])
    watch(engine)
    assert engine.said == ["abandon", "gone"]
    assert engine._ends == [], "it was not waited for"


def test_the_process_is_replaced_though_not_everyone_could_be_told() -> None:
    engine = FakeEngine([True], ["it died"], abandon_fails=True)
    with pytest.raises(RuntimeError, match="not everyone"):
        watch(engine)
    assert engine.said == ["abandon", "gone"]


def test_loading_and_the_end_are_no_stall() -> None:
    for phase in Phase:
        is_stall = bool(Stamp(phase, at=0.0).overdue(1e6, step_limit_s=10.0))
        assert is_stall == (phase not in (Phase.LOADING, Phase.ENDED))


def test_a_process_that_stood_still_is_not_taken_for_a_stuck_step() -> None:
    standstills, stamp, limit_s = Standstills(), Stamp(Phase.FORWARD, at=0.0), 10.0
    standstills.looked(stamp, 9.0)
    assert not standstills.overdue(stamp, 9.5, limit_s)
    # From here to 100 s nobody ran. Whoever is the first to run again asks first.
    assert not standstills.overdue(stamp, 100.0, limit_s)
    standstills.looked(stamp, 100.1)
    assert not standstills.overdue(stamp, 100.2, limit_s)


def test_a_step_that_is_stuck_in_a_process_that_stood_still_is_noticed_in_the_end() -> None:
    standstills, stamp, limit_s = Standstills(), Stamp(Phase.FORWARD, at=0.0), 10.0
    for i in range(100):  # the watchdog is always late, as under a step that keeps the GIL for seconds at a time
        now = 2.0 * STANDSTILL_S * i
        standstills.looked(stamp, now)
        assert bool(standstills.overdue(stamp, now, limit_s)) == (now > 2 * STANDSTILL_S + limit_s)


def test_a_step_that_begins_behind_a_standstill_has_its_own_time() -> None:
    standstills, limit_s = Standstills(), 10.0
    standstills.looked(Stamp(Phase.FORWARD, at=0.0), 0.0)
    standstills.looked(Stamp(Phase.FORWARD, at=0.0), 100.0)
    later = Stamp(Phase.FORWARD, at=100.0)
    standstills.looked(later, 110.5)
    standstills.looked(later, 110.6)
    assert not standstills.overdue(later, 110.6, limit_s)
    standstills.looked(later, 120.6)
    assert standstills.overdue(later, 120.6, limit_s)


@pytest.mark.parametrize("num_overdue", [1, 2, 3])
def test_a_step_that_comes_back_between_two_looks_costs_nobody_an_ending(
    num_overdue: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the model (WATCHDOG_LOOKS_TWICE).

    A second look that sees no stall any more must neither end the watch while the engine lives, nor have the process
    replaced while streams are open.
    """
    engine = Engine(replace(Settings()), ThreadWakeup(), lambda *_: pytest.fail("it is never loaded"))
    engine._admission.state = EngineState.READY
    reply = new_sequence([3])
    engine._admission._open.add(reply.sequence)
    engine._admission._service_rate.came(0.0)
    overdue = itertools.chain(["the step has not come back"] * num_overdue, itertools.repeat(""))
    waits = iter([False] * 5)  # and then the thread has ended
    num_open_at_replacement: list[int] = []
    monkeypatch.setattr(engine._supervisor, "liveness", lambda: next(overdue))
    monkeypatch.setattr(engine._supervisor, "wait_ended", lambda timeout_s: next(waits, True))
    engine.on_dead = lambda: num_open_at_replacement.append(engine.num_open)

    watch(engine._supervisor)

    assert num_open_at_replacement in ([], [0]), "the process is replaced under an open stream"
    is_over = next(waits, True)
    assert num_open_at_replacement or is_over, "the engine lives and nobody watches it"
