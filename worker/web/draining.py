"""How a gunicorn worker leaves: the part that both worker classes share.

gunicorn closes a leaving worker's door first and lets what is inside run on. That is right when another worker takes
over (SIGHUP, an excess worker). When the whole server goes away it would turn every probe and every late client into
a refused connection, so then the door stays open and says 503 with a Retry-After until the last stream has ended.
Both begin with a SIGTERM. The arbiter announces a hand-over with a SIGUSR2 ahead of it (`worker.process.soften_stop`),
and not the other way round: systemd and Heroku send SIGTERM to every process at once, so that a worker may have its own
before the arbiter has looked at the one that it got.
Whichever it is, streams that have not ended in time are ended from here: the generation thread may be in a step that
takes longer than the process has left. tests/test_process.py and tests/test_every_stream_ends.py show each.
"""

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from gunicorn import util
from gunicorn.workers.base import Worker

from worker.web.early_answers import write_error

# Behind the last stream, and behind `keepalive`: a request that is already on its way is still told why it is refused.
IDLE_S = 2.5
# Enough for a client to read the last bytes before the reset that a close with unread input would send.
LINGER_S = 1.0


class DrainingWorker(Worker):  # type: ignore[misc]
    """Drains before it closes the door, unless another worker takes over."""

    wsgi: Any = None  # until the app is made; gunicorn has no such attribute before
    is_handing_over = False
    is_draining = False
    leaving_since: float | None = None  # monotonic
    # Set by who knows the app, when it has been made. Given the seconds since this worker began to leave, sees to it
    # that streams end in time, and says whether nothing is left to wait for.
    has_drained: Callable[[float], bool] = staticmethod(lambda elapsed_s: True)
    # Set with it: whether so many seconds are all that there is.
    is_out_of_time: Callable[[float], bool] = staticmethod(lambda elapsed_s: False)
    drained_at: float | None = None  # monotonic
    # When a thread was last given a request, monotonic. It is answered within LINGER_S, or will be for long.
    given_at = 0.0
    # How long a body may take, and how large it may be: set with it.
    body_timeout_s = 60.0
    max_body_bytes = 0

    @property
    def is_leaving(self) -> bool:
        """Whether no new work is to be accepted. gunicorn calls no hook on SIGTERM: the engine polls this."""
        return self.is_draining or not self.alive

    def init_process(self) -> None:
        """In the new process. Does not return."""
        util.write_error = write_error  # what gunicorn refuses by itself is answered as everything else is
        super().init_process()

    def init_signals(self) -> None:
        """Install the handlers."""
        # gunicorn resets each to its default first, and what would come in that moment would kill this process.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)
        super().init_signals()
        signal.signal(signal.SIGUSR2, self.handle_hand_over)
        # Ctrl-C in a terminal, and the end of the terminal itself, reach every process of the group. The arbiter is the
        # one that decides what they mean.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def handle_hand_over(self, sig: int, frame: Any) -> None:
        """The next SIGTERM comes because another worker takes over."""
        self.is_handing_over = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        if self.is_handing_over or self.wsgi is None:
            super().handle_exit(sig, frame)
        else:
            self.is_draining = True

    def notify(self) -> None:
        """Called about once a second by the loop of either class, also while it waits for what is inside."""
        super().notify()
        if not self.is_leaving:
            return
        now = time.monotonic()
        if self.leaving_since is None:
            self.leaving_since = now
        elapsed_s = now - self.leaving_since
        if not self.has_drained(elapsed_s):
            return
        if self.drained_at is None:
            self.drained_at = now
            super().handle_exit(signal.SIGTERM, None)
        is_idle = now - self.drained_at > IDLE_S and now - self.given_at > LINGER_S
        if is_idle or self.is_out_of_time(elapsed_s):
            # What is open is idle, sends half a body or does not read. gunicorn would wait for it until it is killed.
            sys.exit(0)
