"""Notices that the generation thread does not come back or is gone, and sees that every stream ends all the same.

A real thread of its own: the one that it watches may be stuck in a kernel for ever, and the hub may be busy. It can do
nothing while another thread keeps the GIL; then gunicorn's heartbeat, which needs the GIL too, gets the process killed.
"""

import math
import sys
import time
import traceback
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

# How late a stall may be noticed. The end of the thread is noticed at once: the watchdog waits for it.
TICK_S = 0.05
# A step with more tokens than this may take longer in proportion: a long prefill is no stall.
TOKENS_PER_LIMIT = 64
# Longer between two looks of the watchdog, and not the generation thread stood still but the whole process.
STANDSTILL_S = 1.0


class Phase(StrEnum):
    """What the generation thread is doing."""

    LOADING = "loading the model"
    IDLE = "waiting for work"
    SCHEDULING = "scheduling"
    FORWARD = "the model's forward pass"
    SAMPLING = "sampling"
    DELIVERING = "delivering tokens"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the generation thread began last, and when (monotonic). One assignment, so any thread may read it."""

    phase: Phase
    at: float
    num_tokens: int = 0

    def overdue(self, now: float, step_limit_s: float, longest_s: float = math.inf) -> str:
        """Why this phase counts as stuck, or an empty string.

        Args:
            now: Monotonic seconds.
            step_limit_s: How long a phase of up to TOKENS_PER_LIMIT tokens may take.
            longest_s: How long it may take with any number of tokens.
        """
        if self.phase in (Phase.LOADING, Phase.ENDED):  # the one has its own limit, the other is no wait
            return ""
        limit_s = min(step_limit_s * max(1.0, self.num_tokens / TOKENS_PER_LIMIT), max(step_limit_s, longest_s))
        if now - self.at <= limit_s:
            return ""
        tokens = f" of {self.num_tokens} tokens" if self.num_tokens else ""
        return f"a step{tokens} has not come back for {limit_s:g} s; it is in: {self.phase.value}"


class Standstills:
    """Tells a step that is stuck from a process that was stopped: by Ctrl-Z, a paused container, a machine that moved.

    While such a process stood still its watchdog did not look either.
    """

    def __init__(self) -> None:
        self.looked_at: float | None = None  # monotonic
        self.num_standstills = 0
        self._resumed: tuple[Stamp, float] | None = None  # what was under way when it went on, and when that was

    def looked(self, stamp: Stamp, now: float) -> None:
        """The watchdog looks. If it comes late, what is under way has all its time once more; but not twice."""
        is_late = self.looked_at is not None and now - self.looked_at > STANDSTILL_S
        self.num_standstills += is_late
        if is_late and (self._resumed is None or self._resumed[0] is not stamp):
            self._resumed = stamp, now
        self.looked_at = now

    def overdue(self, stamp: Stamp, now: float, step_limit_s: float, longest_s: float = math.inf) -> str:
        """As `Stamp.overdue`, but for the time in which the process stood still. Thread: any."""
        if self.looked_at is not None and now - self.looked_at > STANDSTILL_S:
            return ""  # the watchdog says when it has looked
        if self._resumed is not None and self._resumed[0] is stamp:
            stamp = replace(stamp, at=self._resumed[1])
        return stamp.overdue(now, step_limit_s, longest_s)


class Watched(Protocol):
    """What the watchdog needs of an engine."""

    stamp: Stamp
    standstills: Standstills

    def wait_ended(self, timeout_s: float) -> bool: ...
    def abandon(self) -> bool: ...
    def end_overdue(self) -> None: ...
    def gone(self) -> None: ...


def watch(engine: Watched) -> None:
    """Wait for the generation thread's end or its stall, and clean up behind it. Thread: a native one of its own."""
    has_ended = False
    while not has_ended:
        engine.standstills.looked(engine.stamp, time.monotonic())
        has_ended = engine.wait_ended(TICK_S)
        try:
            # One look decides: a step that came back between two would leave the engine unwatched, or its process
            # replaced under open streams (spec/shutdown.pml, WATCHDOG_LOOKS_TWICE).
            was_abandoned = engine.abandon()
            if not was_abandoned:
                engine.end_overdue()
        except BaseException:
            engine.gone()
            raise
        if was_abandoned:
            engine.gone()
            return


def all_stacks() -> str:
    """Where every thread of this process is. Of greenlets it shows the one that runs."""
    # No names: `threading.enumerate` takes a lock that gevent has patched.
    stacks = (f"thread {i}\n{''.join(traceback.format_stack(frame))}" for i, frame in sys._current_frames().items())
    return "stacks of all threads\n" + "\n".join(stacks)
