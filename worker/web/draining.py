"""How a gunicorn worker leaves: the part that both worker classes share.

gunicorn closes a leaving worker's door first and lets what is inside run on. That is right when another worker takes
over (SIGHUP, a replaced worker). When the whole server goes away it would turn every probe and every late client into
a refused connection, so then the door stays open and says 503 with a Retry-After until the last stream has ended.
The arbiter tells the two apart (`worker.process.soften_stop`): it sends SIGUSR2 ahead of the SIGTERM that means both.
Whichever it is, streams that have not ended in time are ended from here: the generation thread may be in a step that
takes longer than the process has left. tests/test_process.py and tests/test_every_stream_ends.py show each.
"""

import signal
import time
from collections.abc import Callable
from typing import Any

from gunicorn.workers.base import Worker


class DrainingWorker(Worker):  # type: ignore[misc]
    """Drains before it closes the door, if the server is stopping."""

    is_server_stopping = False
    is_draining = False
    leaving_since: float | None = None  # monotonic
    # Set by who knows the app, when it has been made. Given the seconds since this worker began to leave, sees to it
    # that streams end in time, and says whether nothing is left to wait for.
    has_drained: Callable[[float], bool] = staticmethod(lambda elapsed_s: True)

    @property
    def is_leaving(self) -> bool:
        """Whether no new work is to be accepted. gunicorn calls no hook on SIGTERM: the engine polls this."""
        return self.is_draining or not self.alive

    def init_signals(self) -> None:
        """Install the handlers."""
        super().init_signals()
        signal.signal(signal.SIGUSR2, self.handle_server_stopping)
        # Ctrl-C in a terminal reaches every process of the group. The arbiter is the one that decides what it means.
        signal.signal(signal.SIGINT, lambda *_: None)

    def handle_server_stopping(self, sig: int, frame: Any) -> None:
        """The next SIGTERM will be for the whole server."""
        self.is_server_stopping = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        if self.is_server_stopping and self.wsgi is not None:
            self.is_draining = True
        else:
            super().handle_exit(sig, frame)

    def notify(self) -> None:
        """Called about once a second by the loop of either class, also while it waits for what is inside."""
        super().notify()
        if not self.is_leaving:
            return
        now = time.monotonic()
        if self.leaving_since is None:
            self.leaving_since = now
        if self.has_drained(now - self.leaving_since) and self.alive:
            super().handle_exit(signal.SIGTERM, None)
