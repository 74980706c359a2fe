"""How long a client may take to say what it wants, and how many may take their time at once.

gunicorn waits for each piece, and a client may send many. Works on gunicorn's reader of a connection, which both worker
classes share.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from worker.streams.native import new_lock


class Places:
    """Room for those that hold a thread or a connection while they wait for their client. Any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._num_taken = 0
        self._lock = new_lock()  # guards the count: places are taken on the loop and left on any thread

    def take(self) -> Callable[[], None] | None:
        """Take a place.

        Returns:
            What to call to leave it, once or more often; None if there is none.
        """
        with self._lock:
            if self._num_taken >= self.limit:
                return None
            self._num_taken += 1
        is_taken = True

        def leave() -> None:
            nonlocal is_taken
            with self._lock:
                was_taken, is_taken = is_taken, False
                self._num_taken -= was_taken

        return leave


def when_read(unreader: Any, leave: Callable[[], None]) -> None:
    """Call this when the app has read the body of the next request."""
    unreader.leave = leave


def limit_reads(unreader: Any, sock: Any, limit_s: float) -> None:
    """From now on, until `unlimit_reads`, everything read from the connection has to come within `limit_s` together.

    Later reads raise TimeoutError. The socket is left with whatever timeout the last read had.
    """
    deadline = time.monotonic() + limit_s
    read = type(unreader).chunk

    def read_in_time(size_hint: int | None = None) -> Any:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        sock.settimeout(remaining_s)
        return read(unreader, size_hint)

    unreader.chunk = read_in_time


def unlimit_reads(unreader: Any) -> None:
    """Undo `limit_reads`."""
    vars(unreader).pop("chunk", None)


@contextmanager
def body_within(environ: dict[str, Any], limit_s: float) -> Iterator[None]:
    """Read the body of a request in this block, in time."""
    sock = environ.get("gunicorn.socket")
    if sock is None:  # Flask's test client
        yield
        return
    reader = environ["wsgi.input"].reader
    unreader = reader.unreader if hasattr(reader, "unreader") else reader.req.unreader  # with a length; in chunks
    limit_reads(unreader, sock, limit_s)
    try:
        yield
    finally:
        unlimit_reads(unreader)
        vars(unreader).pop("leave", lambda: None)()
