"""Work that takes long, beside the server: one piece at a time, in a real thread, while everybody else goes on.

A greenlet that computed for a second would stop the hub for all: probes, streams, and the heartbeat, without which
gunicorn kills the worker. In a thread of the pool the same work holds up only those who come with work as long.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from worker.streams.native import is_gevent_patched, new_lock

R = TypeVar("R")


class Aside(Protocol):
    """A place for one piece of work at a time."""

    def run(self, work: Callable[[], R]) -> R:
        """Do it, after those who came before; give back its result or raise its error."""
        ...


class ThreadAside:
    """Where every request has a thread already, it is that one which works and waits."""

    def __init__(self) -> None:
        self._lock = new_lock()

    def run(self, work: Callable[[], R]) -> R:
        with self._lock:
            return work()


class GeventAside:
    """A thread of its own; the greenlet waits in the hub. Create it in the thread that runs the hub."""

    def __init__(self) -> None:
        import gevent
        from gevent.threadpool import ThreadPool

        self._pool: Any = ThreadPool(1, hub=gevent.get_hub())

    def run(self, work: Callable[[], R]) -> R:
        outcome: list[R] = []
        error: BaseException | None = self._pool.apply(_error_of, (work, outcome))
        if error is None:
            return outcome[0]
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, and the frame would hold it


def _error_of(work: Callable[[], R], outcome: list[R]) -> BaseException | None:
    """gevent would print an error that leaves the thread, as one that nobody handles."""
    try:
        outcome.append(work())
    except BaseException as error:
        return error
    return None


def new_aside() -> Aside:
    """A place beside the server, by what gevent has patched. Call it in the thread that will serve."""
    return GeventAside() if is_gevent_patched() else ThreadAside()
