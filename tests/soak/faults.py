"""What goes wrong inside the engine, how often, and how many rows it cost.

The counts are for the accounts: an ending that says INFERENCE_FAILED and that no fault here explains is a fault of
the engine's own. Used by the generation thread, and under the tokenizer's lock; plain Python, no locks.
"""

import random
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Chances, each per what it happens to. About one stream in twenty is hit by something.

    A step that raises once is tried again in parts, and costs nobody anything unless it has one row only. A broken row
    makes every step raise that it is part of, and has to be found among its neighbours.
    """

    step_error: float = 1 / 100  # per forward pass: the model raises
    step_oom: float = 1 / 100
    slow_step: float = 1 / 150
    broken_row: float = 1 / 2500  # per row of a pass: from then on it raises
    hungry_row: float = 1 / 2500  # the same, out of memory
    poisoned_row: float = 1 / 5000  # no finite logit
    lost_row: float = 1 / 400  # per stream: the model forgets it, and its tokens never come
    detokenizer: float = 1 / 150  # per stream: raises at some token
    tokenizer: float = 1 / 200  # per request: raises before anything was accepted


CALM = Rates(0, 0, 0, 0, 0, 0, 0, 0, 0)
# What each fault has to end its row with. The first two are of a pass; they are counted only where one row was in it.
FAILED_BY = {
    "step_error": "INFERENCE_FAILED",
    "step_oom": "VRAM_OOM",
    "broken_row": "INFERENCE_FAILED",
    "hungry_row": "VRAM_OOM",
    "poisoned_row": "INFERENCE_FAILED",
    "detokenizer": "INFERENCE_FAILED",
}
# Slow enough to be seen between tokens, far from every limit.
SLOW_STEP_S = (0.05, 0.3)


class Injected(RuntimeError):
    """A fault that was meant."""


class Faults:
    """Draws what goes wrong next, and counts it."""

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.counts: Counter[str] = Counter()
        self._random = random.Random()
        # Set by a control route, taken by the next step: what ends the whole process.
        self.is_fatal_due = False
        self.is_stuck_due = False
        # Set by a control route for a while: no stream that gets a slot gets a token; every row is out of memory.
        self.is_starving = False
        self.is_breaking = False

    def hits(self, name: str) -> bool:
        """Whether this one goes wrong now."""
        return bool(self._random.random() < getattr(self.rates, name))

    def between(self, low: float, high: float) -> float:
        """Some number in between."""
        return self._random.uniform(low, high)

    def count(self, name: str) -> None:
        """Note that a row was hit, or what else the name says."""
        self.counts[name] += 1
