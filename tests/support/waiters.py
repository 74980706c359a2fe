"""A waiter for a test that has another thread's call come at the worst moment."""

from collections.abc import Callable

from worker.streams.wakeup import ThreadWaiter


class InterruptedWaiter(ThreadWaiter):
    """Makes a call just before the first `arm`, as another thread may. Never sleeps: a wait is noted, and times out."""

    __slots__ = ("_call", "num_waits")

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self.num_waits = 0

    def arm(self) -> None:
        call, self._call = self._call, lambda: None
        call()
        super().arm()

    def wait(self, timeout_s: float) -> bool:
        self.num_waits += 1
        return False
