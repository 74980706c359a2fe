"""How long a server takes from SIGTERM to its end, at most, and how long a supervisor has to wait for that."""

import math

from worker import process
from worker.settings import Settings

# What gunicorn.conf.py makes its graceful timeout of.
LEAVING_S = math.ceil(Settings().drain_s) + process.LEAVE_S


def assert_waits_long_enough(wait_s: float, ahead_s: float = 0) -> None:
    """Longer than it takes, and not by much: nobody waits for what hangs.

    Args:
        ahead_s: What passes of it before SIGTERM is sent.
    """
    assert LEAVING_S + ahead_s + 2 <= wait_s <= LEAVING_S + ahead_s + 15
