"""What goes wrong inside the engine, how often, and how many rows it cost.

The counts are for the accounts: an ending that says INFERENCE_FAILED and that no fault here explains is a fault of
the engine's own. Used by the generation thread, and under the tokenizer's lock; plain Python, no locks.
"""

import random
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Chances, each per what it happens to. About one stream in ten is hit by something."""

    step_error: float = 1 / 700  # per step: the model raises
    step_oom: float = 1 / 1000
    slow_step: float = 1 / 150
    poisoned_row: float = 1 / 5000  # per row: no finite logit
    lost_row: float = 1 / 400  # per stream: the model forgets it, and its tokens never come
    detokenizer: float = 1 / 150  # per stream: raises at some token
    tokenizer: float = 1 / 200  # per request: raises before anything was accepted


CALM = Rates(0, 0, 0, 0, 0, 0, 0)
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

    def hits(self, name: str) -> bool:
        """Whether this one goes wrong now."""
        return bool(self._random.random() < getattr(self.rates, name))

    def between(self, low: float, high: float) -> float:
        """Some number in between."""
        return self._random.uniform(low, high)

    def count(self, name: str, num_rows: int = 1) -> None:
        """Note that rows were hit."""
        self.counts[name] += num_rows
