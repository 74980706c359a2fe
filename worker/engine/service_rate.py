"""How fast requests have been leaving lately, and so how long one more has to wait. Pure Python, no torch.

Any thread, under its owner's lock: a deque that changes while it is read raises.
"""

import math
from collections import deque

# Of the recent past only: a long prompt an hour ago says nothing about now.
WINDOW = 64
NEVER_LONGER_S = 60  # nobody should be sent away for longer than the queue's own limit


class ServiceRate:
    """Counts the requests that leave, and their prompt tokens."""

    def __init__(self) -> None:
        self._left: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=WINDOW)  # by the clock below
        self._worked_s = 0.0
        self._working_since: float | None = None
        self._num_inside = 0

    def came(self, now: float) -> None:
        """Note that a request has come. Time in which there is none says nothing of how fast anybody leaves."""
        if not self._num_inside:
            self._working_since = now
        self._num_inside += 1

    def left(self, now: float, num_prompt_tokens: int) -> None:
        """Note that a request has left."""
        self._left.append((self._clock(now), num_prompt_tokens))
        self._num_inside -= 1
        if not self._num_inside:
            self._worked_s, self._working_since = self._clock(now), None

    def _clock(self, now: float) -> float:
        """Seconds with work."""
        return self._worked_s + (0.0 if self._working_since is None else now - self._working_since)

    def retry_after_s(self, now: float, num_requests: int, num_prompt_tokens: int) -> int:
        """When to come back: as long as it has lately taken for this much to leave. At least 1, whole seconds.

        Args:
            now: Monotonic seconds.
            num_requests: How many have to leave.
            num_prompt_tokens: How many prompt tokens have to leave.
        """
        left = self._left
        elapsed_s = self._clock(now) - left[0][0]
        # With nothing gone yet, the time since the work began is all that is known: it takes at least as long.
        per_request_s = elapsed_s / max(1, len(left) - 1)
        per_token_s = elapsed_s / max(1, sum(tokens for _, tokens in left) - left[0][1])
        wait_s = max(num_requests * per_request_s, num_prompt_tokens * per_token_s)
        return max(1, min(NEVER_LONGER_S, math.ceil(wait_s)))
