"""What ends a stream while the generation thread is in a step: deadlines, the watchdog, a process that leaves."""

import threading
from dataclasses import replace

import pytest

from tests.support.bench import bench, model_of, stop_reason
from tests.support.engines import PATIENT, WAIT_S, Reply, new_sequence, wait_until
from tests.support.runners import ScriptedRunner
from worker.engine.admission import EngineState
from worker.engine.engine import Engine
from worker.engine.sequence import SequenceState
from worker.errors import NotReady
from worker.events import End, Failure, Metrics, StopReason, Terminal, Token
from worker.observe.watchdog import Phase, Stamp
from worker.settings import Settings
from worker.streams.channel import EndOfChannel
from worker.streams.native import new_lock
from worker.streams.wakeup import ThreadWakeup


def ending_of(reply: Reply) -> str:
    """The code or the reason at the end of a stream, which has told all that it counts."""
    *before, metrics, terminal = reply.events()
    assert isinstance(metrics, Metrics)
    assert isinstance(terminal, End | Failure)
    assert sum(event.count for event in before if isinstance(event, Token)) <= terminal.usage.completion_tokens
    return terminal.code if isinstance(terminal, Failure) else terminal.stop_reason.value


def has_ended(engine: Engine) -> bool:
    """Whether the log of an engine has been closed, and so its housekeeper ends."""
    try:
        engine.records.take()
    except EndOfChannel:
        return True
    return False


# ---- deadlines


def test_a_deadline_does_not_wait_for_the_step_that_is_under_way() -> None:
    """The one decodes in it, the other waits for a slot."""
    with bench(max_slots=1) as b:
        b.gate.let(2)
        running = b.submit([3], replace(PATIENT, total_s=0.3), max_tokens=99)
        waiting = b.submit([4], replace(PATIENT, queue_s=0.3))
        patient = b.submit([5], max_tokens=3)
        b.gate.wait_until_held()
        assert [ending_of(running), ending_of(waiting)] == ["TIMEOUT", "QUEUE_TIMEOUT"]  # the gate is still shut
        assert b.engine.num_open == 1
        b.gate.open()
        assert stop_reason(patient) is StopReason.MAX_TOKENS
        wait_until(lambda: running.sequence.state is waiting.sequence.state is SequenceState.FINISHED)
        assert b.outcomes(running, waiting, patient) == ["error{TIMEOUT}", "error{QUEUE_TIMEOUT}", "end{MAX_TOKENS}"]


def test_a_stream_that_nobody_claims_is_given_up_in_a_long_step_too() -> None:
    with bench(max_slots=1) as b:
        b.gate.hold()
        reply = b.submit([3], replace(PATIENT, claim_s=0.2))
        b.gate.wait_until_held()
        wait_until(lambda: b.engine.num_open == 0)
        assert ending_of(reply) == "CANCELLED"
        b.gate.open()
        assert b.outcomes(reply) == ["cancelled{unclaimed}"]


class TellingLock:
    """A lock that tells when somebody has to wait for it: what they do without it they have done by then."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self.is_waited_for = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(False):
            self.is_waited_for.set()
            self._lock.acquire()

    def __exit__(self, *args: object) -> None:
        self._lock.release()


def idle_engine() -> tuple[Engine, TellingLock]:
    """One that accepts, and neither generates nor has a watchdog: the test says when what happens."""
    engine, lock = (
        Engine(Settings(), ThreadWakeup(), lambda settings, report: model_of(ScriptedRunner())),
        TellingLock(),
    )
    admission = engine._admission
    admission.state, admission.is_accepting, admission.lock = EngineState.READY, True, lock  # type: ignore[assignment]
    return engine, lock


def test_nobody_is_ended_from_outside_while_tokens_are_delivered() -> None:
    """It would count tokens that come behind the end, or miss some that came before it."""
    engine, _ = idle_engine()
    reply = new_sequence([3], replace(PATIENT, total_s=-1))
    engine.submit(reply.sequence)
    for phase in Phase:
        if phase not in (Phase.FORWARD, Phase.SAMPLING):
            engine._supervisor.stamp = Stamp(phase, 0.0)
            engine._supervisor.end_overdue()
            assert engine.num_open == 1
    engine._supervisor.stamp = Stamp(Phase.FORWARD, 0.0)
    engine._supervisor.end_overdue()
    assert ending_of(reply) == "TIMEOUT"


def test_nobody_is_ended_from_outside_when_the_step_is_over_meanwhile() -> None:
    engine, lock = idle_engine()
    reply = new_sequence([3], replace(PATIENT, total_s=-1))
    engine.submit(reply.sequence)
    engine._supervisor.stamp = Stamp(Phase.FORWARD, 0.0)
    ending = threading.Thread(target=engine._supervisor.end_overdue)
    with lock:
        ending.start()
        assert lock.is_waited_for.wait(WAIT_S)
        engine._supervisor.stamp = Stamp(Phase.SCHEDULING, 0.0)
    ending.join(WAIT_S)
    assert engine.num_open == 1
    engine.end_now()
    assert ending_of(reply) == "SHUTTING_DOWN"


def test_a_short_step_is_left_to_the_generation_thread() -> None:
    engine, _ = idle_engine()
    reply = new_sequence([3], replace(PATIENT, total_s=-1))
    engine.submit(reply.sequence)
    engine._supervisor.stamp = Stamp(Phase.FORWARD, float("inf"))
    engine._supervisor.end_overdue()
    assert engine.num_open == 1
    engine.end_now()
    assert ending_of(reply) == "SHUTTING_DOWN"


def test_a_step_of_many_tokens_is_stuck_at_the_latest_when_nobody_may_wait_for_it() -> None:
    stamp = Stamp(Phase.FORWARD, at=0.0, num_tokens=4096)
    assert not stamp.overdue(599.0, step_limit_s=20.0, longest_s=600.0)
    assert stamp.overdue(601.0, step_limit_s=20.0, longest_s=600.0)
    assert not stamp.overdue(19.0, step_limit_s=20.0, longest_s=1.0)


# ---- a process that leaves


def test_who_leaves_accepts_nobody_though_a_step_is_under_way() -> None:
    with bench(max_slots=1) as b:
        b.gate.hold()
        reply = b.submit([3], max_tokens=2)
        b.gate.wait_until_held()
        b.engine.should_drain = lambda: True
        for refused in (b.engine.check_room, lambda: b.submit([4])):
            with pytest.raises(NotReady) as refusal:
                refused()
            assert (refusal.value.code, refusal.value.retry_after_s) == ("DRAINING", 10)
        b.gate.open()
        assert stop_reason(reply) is StopReason.MAX_TOKENS


def test_a_drain_that_is_asked_for_refuses_at_once() -> None:
    with bench(max_slots=1) as b:
        b.gate.hold()
        reply = b.submit([3], max_tokens=2)
        b.gate.wait_until_held()
        b.engine.drain(60)
        with pytest.raises(NotReady, match="shutting down"):
            b.submit([4])
        b.gate.open()
        assert stop_reason(reply) is StopReason.MAX_TOKENS


def test_who_is_ended_because_the_process_leaves_is_ended_once_and_nobody_comes_after() -> None:
    with bench(max_slots=1) as b:
        b.gate.let(1)
        running, waiting = b.submit([3], max_tokens=9), b.submit([4])
        b.gate.wait_until_held()
        b.engine.end_now()
        assert [ending_of(running), ending_of(waiting)] == ["SHUTTING_DOWN"] * 2
        assert b.engine.state is EngineState.DRAINING
        with pytest.raises(NotReady) as refusal:
            b.submit([5])
        assert refusal.value.code == "DRAINING"
        assert not b.engine._admission.is_accepting
        b.gate.open()
        assert b.engine.wait_ended(WAIT_S)
        assert b.outcomes(running, waiting) == ["error{SHUTTING_DOWN}"] * 2


def test_no_outcome_is_lost_when_the_step_comes_back_while_everyone_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the model (NO_DEBTS): the thread ended in between and closed the log."""
    with bench(max_slots=4) as b:
        b.gate.hold()
        replies = [b.submit([n], max_tokens=9) for n in range(3, 9)]
        b.gate.wait_until_held()
        tell, told = b.engine._admission._tell, list[Terminal]()

        def tell_late(*args: object) -> None:
            told.append(args[1])  # type: ignore[arg-type]
            if len(told) == 2:
                b.gate.open()
                assert b.engine.wait_ended(WAIT_S)
            tell(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(b.engine._admission, "_tell", tell_late)
        b.engine.end_now()
        assert [ending_of(reply) for reply in replies] == ["SHUTTING_DOWN"] * 6
        assert b.outcomes(*replies) == ["error{SHUTTING_DOWN}"] * 6
        wait_until(lambda: has_ended(b.engine))


# ---- a step that is stuck


def test_one_stall_has_one_code_though_the_step_comes_back_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(max_slots=2, step_limit_s=0.05) as b:
        b.gate.hold()
        replies = [b.submit([n], max_tokens=9) for n in range(3, 9)]
        b.gate.wait_until_held()
        take_out = b.engine._supervisor._end_from_outside

        def take_out_late(*args: object) -> None:
            if threading.get_ident() != generation and b.engine.state is EngineState.DEAD:
                b.gate.open()
                assert b.engine.wait_ended(WAIT_S)
            take_out(*args)  # type: ignore[arg-type]

        generation = 0
        monkeypatch.setattr(b.engine._supervisor, "_end_from_outside", take_out_late)
        assert [ending_of(reply) for reply in replies] == ["STALLED"] * 6
        assert b.outcomes(*replies) == ["error{STALLED}"] * 6


def test_who_is_given_up_in_the_moment_it_has_loaded_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would accept requests that nobody will ever look at."""
    engine, lock = idle_engine()
    engine._admission.state, engine._admission.is_accepting = EngineState.LOADING, False
    engine._model = model_of(ScriptedRunner())
    monkeypatch.setattr(engine._supervisor, "liveness", lambda: "the model is still loading")
    begin, giving_up = engine._supervisor.begin, threading.Thread(target=engine.abandon)

    def begin_and_be_overtaken(phase: Phase) -> float:
        giving_up.start()
        assert lock.is_waited_for.wait(WAIT_S)
        return begin(phase)

    monkeypatch.setattr(engine._supervisor, "begin", begin_and_be_overtaken)
    engine._become_ready()
    giving_up.join(WAIT_S)
    assert (engine.state, engine._admission.is_accepting) == (EngineState.DEAD, False)


# ---- admission


def test_only_time_with_work_counts_for_how_fast_requests_leave() -> None:
    with bench(max_slots=1) as b:
        rate = b.engine._admission._service_rate
        b.gate.hold()
        replies = [b.submit([n], max_tokens=1) for n in (3, 4)]
        assert rate._working_since is not None
        b.gate.open()
        assert [stop_reason(reply) for reply in replies] == [StopReason.MAX_TOKENS] * 2
        wait_until(lambda: rate._working_since is None)


def test_room_is_looked_for_under_the_lock() -> None:
    """A set that changes while it is walked raises, and a request would be answered 500."""
    with bench() as b:
        looked = threading.Thread(target=b.engine.check_room)
        with b.engine._admission.lock:
            looked.start()
            looked.join(0.05)
            assert looked.is_alive()
        looked.join(WAIT_S)
