"""Calls in threads of their own, waited for within limits, and waiters that show or replace the sleep.

A sender runs in a real OS thread under every worker class. A consumer runs in a `threading.Thread`, which is a
greenlet where gevent has patched it: so the same test covers both worlds (`patched.py` runs it in the other one).
"""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from worker.streams import native
from worker.streams.channel import EndOfChannel, Receiver
from worker.streams.wakeup import Waiter, Wakeup, new_wakeup

T = TypeVar("T")

PATIENCE_S = 20.0  # for what happens at once on a free machine; only a failing test waits it out


class Lock(Protocol):
    """Native or patched."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


class Running(Generic[T]):
    """A call that has been started."""

    def __init__(
        self,
        call: Callable[[], T],
        lock: Lock,
        start: Callable[[Callable[[], None]], object],
    ) -> None:
        self._call: Callable[[], T] | None = call
        self._value: T
        self._error: BaseException | None = None
        self._lock = lock
        self._lock.acquire()
        start(self._run)

    def _run(self) -> None:
        assert self._call is not None
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        finally:
            self._call = None  # what it holds is dropped in this thread, before anybody is told
            self._lock.release()

    def is_done(self, timeout_s: float = 0.0) -> bool:
        """Whether the call has returned or raised, now or within the time."""
        if not self._lock.acquire(True, timeout_s):
            return False
        self._lock.release()
        return True

    def result(self, timeout_s: float = PATIENCE_S) -> T:
        """What the call returned.

        Raises:
            TimeoutError: It has not returned in time.
            BaseException: It raised that.
        """
        if not self.is_done(timeout_s):
            raise TimeoutError(f"still running after {timeout_s} s")
        if self._error is not None:
            raise self._error
        return self._value


def start_native(call: Callable[[], T]) -> Running[T]:
    """In an OS thread. Waiting for it stops the hub, so it must not wait for a greenlet."""
    return Running(call, native.new_lock(), native.start_thread)


def start_consumer(call: Callable[[], T]) -> Running[T]:
    """In a thread of the worker class: an OS thread, or a greenlet."""
    return Running(call, threading.Lock(), lambda run: threading.Thread(target=run, daemon=True).start())


@functools.cache
def the_wakeup() -> Wakeup:
    """One per process, as in a worker."""
    return new_wakeup()


def receive_woken(receiver: Receiver[T, Any]) -> list[T]:
    """What comes, and not because the time was over: `receive` looks again then, which would hide a lost wake-up."""
    started_at = time.monotonic()
    try:
        items = receiver.receive(PATIENCE_S)
    finally:
        assert time.monotonic() - started_at < PATIENCE_S, "a wake-up was lost"
    assert items, "woken for nothing"
    return items


def drain(receiver: Receiver[T, Any]) -> list[T]:
    """All that comes until the end. The end must come by itself."""
    items: list[T] = []
    while True:
        try:
            items += receive_woken(receiver)
        except EndOfChannel:
            return items


class ShownWaiter:
    """A real waiter that says when it goes to sleep."""

    def __init__(self, waiter: Waiter, goes_to_sleep: threading.Event) -> None:
        self._waiter = waiter
        self._goes_to_sleep = goes_to_sleep
        self.arm = waiter.arm
        self.wake = waiter.wake

    def wait(self, timeout_s: float) -> bool:
        self._goes_to_sleep.set()
        return self._waiter.wait(timeout_s)


class ShownWakeup:
    """Gate for "the consumer sleeps": under gevent exactly then, with threads a moment before."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._goes_to_sleep = threading.Event()

    def new_waiter(self) -> ShownWaiter:
        return ShownWaiter(self._wakeup.new_waiter(), self._goes_to_sleep)

    def wait_until_asleep(self) -> None:
        assert self._goes_to_sleep.wait(PATIENCE_S)
        self._goes_to_sleep.clear()


class SleeplessWaiter:
    """Fails where a real waiter would sleep until its time is over."""

    def __init__(self, at_sleep: Callable[[], object]) -> None:
        self._at_sleep = at_sleep  # what the rest of the world still does
        self._is_armed = False
        self._was_woken = False

    def arm(self) -> None:
        self._is_armed = True
        self._was_woken = False

    def wait(self, timeout_s: float) -> bool:
        self._at_sleep()
        assert self._was_woken, "asleep, and nobody will wake it"
        self._was_woken = False
        return True

    def wake(self) -> None:
        if self._is_armed:
            self._is_armed = False
            self._was_woken = True


class SleeplessWakeup:
    """See `SleeplessWaiter`."""

    def __init__(self, at_sleep: Callable[[], object]) -> None:
        self._at_sleep = at_sleep

    def new_waiter(self) -> SleeplessWaiter:
        return SleeplessWaiter(self._at_sleep)


class LookingWaiter:
    """Looks at the very moment it is woken. Whoever wakes first and changes second shows it nothing."""

    def __init__(self, look: Callable[[], object]) -> None:
        self._look = look

    def arm(self) -> None:
        pass

    def wait(self, timeout_s: float) -> bool:
        raise AssertionError("nobody sleeps here")

    def wake(self) -> None:
        self._look()
