"""How a native thread wakes a waiting thread or a waiting greenlet.

Law: a wake-up is never lost, and none depends on some other timer ticking. A waiter is used in three steps, and
the order is what makes it safe: `arm()`, look whether there is anything to do, and only if not, `wait()`. The
other side makes its change first and calls `wake()` second. Whoever comes later sees the other's mark.

Why two of them: a native thread's `put` on a queue that gevent has patched never wakes the greenlet in `get`, and
an unpatched `get` in a greenlet stops the whole hub. tests/streams/test_stress.py hunts lost wake-ups under both.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from worker.streams.native import is_gevent_patched, new_lock


class Waiter(Protocol):
    """One consumer's place to sleep. `arm` and `wait` belong to that consumer, `wake` to any thread."""

    def arm(self) -> None:
        """Ask for the next `wake()` to count. Forgets the wake-ups before it."""

    def wait(self, timeout_s: float) -> bool:
        """Sleep until woken or until the time is over. May wake for nothing: look again.

        Returns:
            False if the time was over.
        """
        ...

    def wake(self) -> None:
        """Wake the consumer if it has armed. Any thread; never blocks, takes no lock that could be held."""


class Wakeup(Protocol):
    """The way of waking that fits the worker class. One per process."""

    def new_waiter(self) -> Waiter:
        """A waiter for one consumer."""
        ...


class ThreadWaiter:
    """A native lock used as a binary semaphore."""

    __slots__ = ("_acquire", "_is_armed", "_release")

    def __init__(self) -> None:
        lock = new_lock()
        lock.acquire()
        self._acquire = lock.acquire
        self._release = lock.release
        self._is_armed = False

    def arm(self) -> None:
        # In this order. A wake-up meant for an earlier round may come at any moment; after the mark is set, whoever
        # clears it also releases. The other way round its release would be swallowed here with the mark cleared,
        # and the next wake-up would find nobody armed.
        self._acquire(False)
        self._is_armed = True

    def wait(self, timeout_s: float) -> bool:
        return self._acquire(True, timeout_s)

    def wake(self) -> None:
        if self._is_armed:
            self._is_armed = False
            try:
                self._release()
            except RuntimeError:  # two threads woke us at once: one release is enough
                pass


class ThreadWakeup:
    """Wakes threads (gthread, plain scripts, tests)."""

    def new_waiter(self) -> ThreadWaiter:
        return ThreadWaiter()


class GeventWaiter:
    """A greenlet parked in the hub."""

    __slots__ = ("_greenlet", "_is_armed", "_wakeup")

    def __init__(self, wakeup: "GeventWakeup") -> None:
        self._wakeup = wakeup
        self._is_armed = False
        self._greenlet: Any = None

    def arm(self) -> None:
        self._is_armed = True

    def wait(self, timeout_s: float) -> bool:
        hub = self._wakeup.hub
        self._greenlet = self._wakeup.current_greenlet()
        timer = hub.loop.timer(timeout_s)
        timer.start(self.resume, False)
        try:
            return bool(hub.switch())
        finally:
            # A kill leaves by here too. A late wake-up must find nobody: switching into a greenlet that
            # meanwhile waits for something else would hand it our result.
            self._greenlet = None
            timer.stop()
            timer.close()

    def wake(self) -> None:
        if self._is_armed:
            self._is_armed = False
            self._wakeup.post(self)

    def resume(self, was_woken: bool) -> None:
        """Switch into the parked greenlet, once. Hub only."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.switch(was_woken)


class GeventWakeup:
    """Wakes greenlets of one hub from any thread: one libev async watcher and a list of who is ready.

    Create it in the thread that runs the hub. `async_().send()` is the one call of libev that other threads
    may make; libev folds sends that come before the hub has woken into one.
    """

    def __init__(self) -> None:
        import gevent
        import greenlet

        self.hub = gevent.get_hub()
        self.current_greenlet: Callable[[], Any] = greenlet.getcurrent
        self._ready: deque[GeventWaiter] = deque()
        # ref=True (the default): without it the hub thinks nothing can ever happen and raises LoopExit.
        self._watcher = self.hub.loop.async_()
        self._watcher.start(self._resume_ready)

    def new_waiter(self) -> GeventWaiter:
        return GeventWaiter(self)

    def post(self, waiter: GeventWaiter) -> None:
        """Have the hub resume this waiter. Any thread."""
        self._ready.append(waiter)
        self._watcher.send()

    def _resume_ready(self) -> None:
        # Only those that are ready now: a greenlet that runs here may make others ready, and they get a turn
        # after the hub's other events, each with its own send().
        for _ in range(len(self._ready)):
            self._ready.popleft().resume(True)


def new_wakeup() -> Wakeup:
    """The wake-up for this process, by what gevent has patched. Call it in the thread that will serve."""
    return GeventWakeup() if is_gevent_patched() else ThreadWakeup()
