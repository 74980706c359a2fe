"""Who computes what in the next step. Plain Python, no torch. Generation thread only.

Every running sequence that is past its prompt decodes one token in every step. What is left of the step's token
budget goes to prompts, in the order of arrival, in chunks: a long prompt slows running streams by a bounded amount
per step and never stops them.
"""

import time
from collections import deque
from dataclasses import dataclass

from worker.engine.kv_cache import SlotPool
from worker.engine.sequence import Sequence, SequenceState

# Prompts advance by at least this much per step even when decodes alone fill the budget: no starvation.
MIN_PREFILL_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step.

    Attributes:
        token_ids: The tokens to compute, which follow the `start` tokens that are in the cache already.
        is_sampled: Whether the last of them is the newest token, so that the next one is drawn after it.
    """

    sequence: Sequence
    slot: int
    start: int
    token_ids: list[int]
    is_sampled: bool

    @property
    def end(self) -> int:
        """Tokens in the cache after this step."""
        return self.start + len(self.token_ids)

    @property
    def is_decode(self) -> bool:
        """Whether this row extends a sequence by its one newest token."""
        return len(self.token_ids) == 1 and self.start > 0


class Scheduler:
    """The queue and the running sequences."""

    def __init__(self, num_slots: int, step_tokens: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._slots = SlotPool(num_slots)
        self._step_tokens = step_tokens

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the queue."""
        self.waiting.append(sequence)

    def sequences(self) -> list[Sequence]:
        """All that are not finished, running ones first."""
        return [*self.running, *self.waiting]

    def remove(self, sequence: Sequence) -> int:
        """Take a sequence out, wherever it is.

        Returns:
            The slot that became free, or -1 if it had none.
        """
        slot, sequence.slot = sequence.slot, -1
        if sequence.state is SequenceState.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is SequenceState.RUNNING:
            self.running.remove(sequence)
            self._slots.give_back(slot)
        sequence.state = SequenceState.FINISHED
        return slot

    def schedule(self) -> list[Row]:
        """The rows of the next step: decodes first, then chunks of prompts. Empty when there is nothing to do."""
        rows = []
        prefilling = []
        for sequence in self.running:
            if sequence.num_tokens - sequence.num_computed == 1:
                rows.append(self._row(sequence, 1))
            else:
                prefilling.append(sequence)
        budget = max(self._step_tokens - len(rows), MIN_PREFILL_TOKENS)
        while budget > 0:
            if prefilling:
                sequence = prefilling.pop(0)
            elif self.waiting and self._slots.num_free:
                sequence = self._start(self.waiting.popleft())
            else:
                break
            row = self._row(sequence, min(budget, sequence.num_tokens - sequence.num_computed))
            budget -= len(row.token_ids)
            rows.append(row)
        return rows

    def computed(self, row: Row) -> None:
        """Note that a row's tokens are in the cache."""
        row.sequence.num_computed = row.end

    def _start(self, sequence: Sequence) -> Sequence:
        sequence.slot = self._slots.take()
        sequence.state = SequenceState.RUNNING
        sequence.scheduled_at = time.monotonic()
        self.running.append(sequence)
        return sequence

    def _row(self, sequence: Sequence, num_tokens: int) -> Row:
        start = sequence.num_computed
        end = start + num_tokens
        return Row(sequence, sequence.slot, start, sequence.tokens(start, end), end == sequence.num_tokens)
