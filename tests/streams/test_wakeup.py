"""The waiters alone. The order of steps that the module promises to be safe is tried at every bytecode."""

import itertools
import time

import pytest

from tests.streams.interleave import Halted, Steps
from tests.streams.threads import PATIENCE_S, start_consumer, start_native
from worker.streams import native
from worker.streams.wakeup import GeventWakeup, ThreadWakeup, Waiter, Wakeup, new_wakeup


def test_new_wakeup_follows_what_gevent_has_patched() -> None:
    assert type(new_wakeup()) is (GeventWakeup if native.is_gevent_patched() else ThreadWakeup)


def test_wait_is_over_in_time(wakeup: Wakeup) -> None:
    waiter = wakeup.new_waiter()
    waiter.arm()
    started_at = time.monotonic()
    assert not waiter.wait(0.02)
    assert time.monotonic() - started_at < PATIENCE_S


def test_a_wake_between_arm_and_wait_counts(wakeup: Wakeup) -> None:
    waiter = wakeup.new_waiter()
    waiter.arm()
    waiter.wake()
    assert waiter.wait(PATIENCE_S)


def test_a_wake_before_the_first_arm_is_forgotten(wakeup: Wakeup) -> None:
    waiter = wakeup.new_waiter()
    waiter.wake()
    waiter.arm()
    assert not waiter.wait(0.02)


def test_one_waiter_serves_many_rounds(wakeup: Wakeup) -> None:
    waiter = wakeup.new_waiter()
    for _ in range(10):
        waiter.arm()
        waiter.wake()
        waiter.wake()  # not armed any more
        assert waiter.wait(PATIENCE_S)
        waiter.arm()
        assert not waiter.wait(0.001)


def test_a_sleeping_consumer_is_woken_from_a_native_thread(wakeup: Wakeup) -> None:
    waiter = wakeup.new_waiter()
    waiter.arm()
    consumer = start_consumer(lambda: waiter.wait(PATIENCE_S))
    start_native(waiter.wake).result()
    assert consumer.result()


def test_only_the_one_that_was_woken_wakes(wakeup: Wakeup) -> None:
    asleep, woken = wakeup.new_waiter(), wakeup.new_waiter()
    asleep.arm()
    woken.arm()
    sleeper = start_consumer(lambda: asleep.wait(PATIENCE_S))
    other = start_consumer(lambda: woken.wait(PATIENCE_S))
    woken.wake()
    assert other.result()
    assert not sleeper.is_done(0.02)
    asleep.wake()
    assert sleeper.result()


@pytest.mark.parametrize("num_late", [1, 2])
def test_late_wakes_at_any_step_of_arm_do_not_cost_the_next_one(wakeup: Wakeup, num_late: int) -> None:
    # The late wake-up belongs to an item that has been taken before this round: the look between arm and wait
    # finds nothing, and the next item's wake-up is the one that must count.
    steps = Steps(at_least=3)
    for _ in steps:
        waiter = wakeup.new_waiter()
        waiter.arm()

        def wake_late(waiter: Waiter = waiter) -> None:
            for _ in range(num_late):
                waiter.wake()

        steps.run(waiter.arm, wake_late)
        waiter.wake()
        assert waiter.wait(PATIENCE_S)


def test_a_wake_up_may_be_interrupted_anywhere(wakeup: Wakeup) -> None:
    # The consumer sleeps, and has a turn while the other thread stands still in the middle of wake().
    for cut in itertools.count(1):
        waiter = wakeup.new_waiter()
        waiter.arm()
        consumer = start_consumer(lambda waiter=waiter: waiter.wait(PATIENCE_S))  # type: ignore[misc]
        time.sleep(0.001)
        waking = Halted(waiter.wake, cut)
        time.sleep(0.001)
        waking.finish()
        assert consumer.result(), f"cut at step {cut}"
        if not waking.is_halted:
            break
    assert cut > 8


@pytest.mark.slow
def test_a_late_wake_may_itself_be_interrupted_anywhere(wakeup: Wakeup) -> None:
    # The same with the late wake-up cut in two: up to `cut` before arm(), the rest at any step inside it.
    for cut in itertools.count(1):
        for _ in (steps := Steps(at_least=3)):
            waiter = wakeup.new_waiter()
            waiter.arm()
            late = Halted(waiter.wake, cut)
            time.sleep(0.001)  # the hub may already have resumed for it
            steps.run(waiter.arm, late.finish)
            late.finish()
            waiter.wake()
            assert waiter.wait(PATIENCE_S), f"cut at step {cut}"
        if not late.is_halted:
            break
    assert cut > 8


def test_two_senders_may_wake_at_once(wakeup: Wakeup) -> None:
    for cut in itertools.count(1):
        waiter = wakeup.new_waiter()
        waiter.arm()
        first = Halted(waiter.wake, cut)
        waiter.wake()
        first.finish()
        assert waiter.wait(PATIENCE_S)
        if not first.is_halted:
            break
    assert cut > 8
