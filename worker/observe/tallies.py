"""What the generation thread counts, in plain numbers, and what a monitor is shown of it.

Law: one writer, the generation thread; no lock. `prometheus_client` has locks of `threading`, which gevent patches, so
that thread may not touch it: it adds to numbers and lists of its own, and whoever asks reads them (metrics.py). An
answer may so be one event ahead in one number and not yet in the next. Pure Python, imports nothing of ours.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# vLLM's, so that its dashboards and rules read ours (vllm/v1/metrics/loggers.py).
TTFT_BOUNDS_S: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75)
TTFT_BOUNDS_S += (1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
GAP_BOUNDS_S: tuple[float, ...] = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75)
GAP_BOUNDS_S += (1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
STEP_TOKEN_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# Ours: from a decode of a small model to the longest step that is no stall.
STEP_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)


class Tally:
    """How often a value was how large: a histogram."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Count nothing yet.

        Args:
            bounds: The largest value of each bucket but the last, rising.
        """
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def note(self, value: float) -> None:
        """Count a value. Thread: the one writer."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulated(self) -> tuple[list[tuple[str, float]], float]:
        """Buckets by upper bound, each with all that is below it, and the sum: as `prometheus_client` has it."""
        found, below = [], 0
        counts, total = self.counts[:], self.total
        for bound, count in zip((*self.bounds, float("inf")), counts, strict=True):
            below += count
            found.append((str(float(bound)) if bound != float("inf") else "+Inf", float(below)))
        return found, total


class Tallies:
    """What the generation thread counts beside its work."""

    __slots__ = ("gap_s", "num_accepted", "num_generated", "num_prompt_tokens", "step_s", "step_tokens", "ttft_s")

    def __init__(self) -> None:
        self.num_prompt_tokens = 0  # of requests that have got their first token
        self.num_generated = 0
        self.num_accepted = 0  # guesses that proved right
        self.ttft_s = Tally(TTFT_BOUNDS_S)
        self.gap_s = Tally(GAP_BOUNDS_S)
        self.step_s = Tally(STEP_BOUNDS_S)
        self.step_tokens = Tally(STEP_TOKEN_BOUNDS)

    def first_token(self, num_prompt_tokens: int, ttft_s: float) -> None:
        """Count the first token of an answer."""
        self.num_generated += 1
        self.num_prompt_tokens += num_prompt_tokens
        self.ttft_s.note(ttft_s)

    def next_token(self, gap_s: float) -> None:
        """Count a token behind another."""
        self.num_generated += 1
        self.gap_s.note(gap_s)

    def step(self, elapsed_s: float, num_tokens: int) -> None:
        """Count a step that came to its end."""
        self.step_s.note(elapsed_s)
        self.step_tokens.note(num_tokens)


class PhaseTimes:
    """How long the generation thread has spent in each phase, in all and at most."""

    __slots__ = ("longest_s", "total_s")

    def __init__(self, phases: Sequence[str]) -> None:
        self.total_s = dict.fromkeys(phases, 0.0)
        self.longest_s = dict.fromkeys(phases, 0.0)

    def note(self, phase: str, elapsed_s: float) -> None:
        """Count a phase that is over. Thread: the one writer."""
        self.total_s[phase] += elapsed_s
        if elapsed_s > self.longest_s[phase]:
            self.longest_s[phase] = elapsed_s


@dataclass(frozen=True, slots=True)
class EngineNumbers:
    """An engine at one moment, as a monitor is shown it.

    Attributes:
        num_waiting: Accepted, without a slot.
        cache_usage: Blocks that sequences own, of all, from 0 to 1. What is only remembered is free.
        cache_remembered: Free blocks whose content is known, of all.
        num_prefix_tokens: Of those who got a slot: tokens that were looked for in the cache.
        num_prefix_hits: Tokens that were found there.
        num_ended_outside: Streams that were ended while the generation thread was in a long step, stuck or dead.
        num_standstills: How often the whole process stood still.
        phase_age_s: How long the generation thread has been in its phase.
        watchdog_age_s: Since the watchdog looked last; 0 before it has.
        backlog_events: Events that have been sent and wait for their readers.
    """

    state: str
    device: str
    uptime_s: float
    num_running: int
    num_waiting: int
    cache_usage: float
    cache_remembered: float
    num_prefix_tokens: int
    num_prefix_hits: int
    num_preempted: int
    num_guessed: int
    num_ended_outside: int
    num_standstills: int
    phase: str
    phase_age_s: float
    watchdog_age_s: float
    backlog_events: int
    phase_total_s: Mapping[str, float]
    phase_longest_s: Mapping[str, float]
