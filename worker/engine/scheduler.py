"""Who computes what in the next step. Plain Python, no torch. Generation thread only.

Every running sequence that is past its prompt decodes one token in every step. What is left of the step's token
budget goes to prompts, in the order of arrival, in chunks: a long prompt slows running streams by a bounded amount
per step and never stops them.

When the cache has no room for the next token of a sequence, the youngest one gives its blocks up, goes back to the head
of the queue and is computed again later: it loses time and no token. The oldest always advances, and a request that the
whole cache could not hold is refused when it comes; so there is no deadlock, and nobody starves.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from worker.engine.kv_cache import BLOCK_TOKENS, ROOT, BlockPool, num_blocks_for
from worker.engine.sequence import Sequence, SequenceState

# Prompts advance by at least this much per step even when decodes alone fill the budget: no starvation.
MIN_PREFILL_TOKENS = 16
# So many tokens a step computes in about the time of one: the time is that of reading the weights.
CHEAP_ROWS = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step.

    Attributes:
        blocks: Where its keys and values are, in the order of its tokens. Enough for all up to `end`.
        token_ids: The tokens to compute, which follow the `start` tokens that are in the cache already.
        is_sampled: Whether the last of them is the newest token, so that the next one is drawn after it.
        num_guesses: How many of them, at the end, are guesses: a next one is drawn after each of them too.
    """

    sequence: Sequence
    blocks: list[int]
    start: int
    token_ids: list[int]
    is_sampled: bool
    num_guesses: int = 0

    @property
    def end(self) -> int:
        """Tokens in the cache after this step."""
        return self.start + len(self.token_ids)

    @property
    def is_decode(self) -> bool:
        """Whether this row extends a sequence by its one newest token, and by guesses."""
        return len(self.token_ids) == 1 + self.num_guesses and self.start > 0

    @property
    def guesses(self) -> list[int]:
        """The guessed tokens, in order."""
        return self.token_ids[len(self.token_ids) - self.num_guesses :]


class Scheduler:
    """The queue and the running sequences, both in the order of arrival."""

    def __init__(self, max_running: int, step_tokens: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.pool = BlockPool(0)
        self.forget: Callable[[list[int]], None] = lambda blocks: None  # told of the blocks of who gives way
        self.num_preempted = 0
        self.max_guesses = 0  # next tokens of a sequence that may be guessed and computed with its newest one
        self.num_guessed = 0
        self.num_guessed_right = 0
        self.num_prefix_tokens = 0  # of those who got a slot: looked for in the cache
        self.num_prefix_hits = 0  # and found there
        self._max_running = max_running
        self._step_tokens = step_tokens

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the queue."""
        self.waiting.append(sequence)

    def sequences(self) -> list[Sequence]:
        """All that are not finished, running ones first."""
        return [*self.running, *self.waiting]

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is. Its blocks are free."""
        if sequence.state is SequenceState.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is SequenceState.RUNNING:
            self.running.remove(sequence)
            self._release(sequence)
        sequence.state = SequenceState.FINISHED

    def schedule(self) -> list[Row]:
        """The rows of the next step: decodes first, then chunks of prompts. Empty when there is nothing to do."""
        rows = []
        prefilling = []
        for sequence in tuple(self.running):
            if sequence.state is not SequenceState.RUNNING:
                continue  # it has just given its blocks up to an older one
            if sequence.num_tokens - sequence.num_computed > 1:
                prefilling.append(sequence)
            elif self._has_room(sequence):
                rows.append(self._row(sequence, 1))
        if self.max_guesses:
            rows = self._with_guesses(rows)
        budget = max(self._step_tokens - sum(len(row.token_ids) for row in rows), MIN_PREFILL_TOKENS)
        while budget > 0:
            if prefilling:
                sequence = prefilling.pop(0)
            elif self.waiting and len(self.running) < self._max_running and self._start(self.waiting[0]):
                sequence = self.waiting.popleft()
            else:
                break
            row = self._row(sequence, min(budget, sequence.num_tokens - sequence.num_computed))
            budget -= len(row.token_ids)
            rows.append(row)
        return rows

    def computed(self, row: Row) -> None:
        """Note that a row's tokens are in the cache. Guesses count when they have proved right."""
        row.sequence.num_computed = row.end - row.num_guesses
        self.num_guessed += row.num_guesses

    def guessed_right(self, sequence: Sequence) -> None:
        """Note that the token that was drawn is the next guess, whose keys and values are in the cache already."""
        sequence.num_computed += 1
        self.num_guessed_right += 1

    def guessed_in_vain(self, sequence: Sequence) -> None:
        """Note that nothing could be drawn behind the right guess: a step needs a token to compute, and this is it."""
        sequence.num_computed -= 1
        self.num_guessed_right -= 1

    def publish(self, sequence: Sequence) -> None:
        """Let others have what is computed of a sequence. Call it when its logits have proved to be numbers."""
        while (sequence.num_published + 1) * BLOCK_TOKENS <= sequence.num_computed:
            i = sequence.num_published
            tokens = sequence.tokens(i * BLOCK_TOKENS, (i + 1) * BLOCK_TOKENS)
            sequence.content = self.pool.publish(sequence.blocks[i], sequence.content, tokens)
            sequence.num_published += 1

    def _start(self, sequence: Sequence) -> bool:
        """Give a waiting sequence the blocks that its tokens need, if there are so many."""
        # The last token is computed in any case: without it there are no logits to draw from.
        matched = self.pool.match(sequence.tokens(0, sequence.num_tokens - 1))
        num_missing = num_blocks_for(sequence.num_tokens) - len(matched)
        # Room for one more token of each who runs: else the next step would take back what this one gives.
        if num_missing + len(self.running) > self.pool.num_free:
            self.pool.release(matched)
            return False
        sequence.blocks = matched + self.pool.take(num_missing)
        sequence.num_computed = len(matched) * BLOCK_TOKENS
        if sequence.scheduled_at is None:
            sequence.scheduled_at = time.monotonic()
            sequence.num_cached = sequence.num_computed
            self.num_prefix_tokens += sequence.num_tokens
            self.num_prefix_hits += sequence.num_cached
        sequence.state = SequenceState.RUNNING
        self.running.append(sequence)
        return True

    def _has_room(self, sequence: Sequence) -> bool:
        """See that a sequence has a block for its newest token; the youngest have to give way. False: it was itself."""
        while len(sequence.blocks) < num_blocks_for(sequence.num_tokens):
            if self.pool.num_free:
                sequence.blocks += self.pool.take(1)
                continue
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _with_guesses(self, decodes: list[Row]) -> list[Row]:
        """The same rows with guesses behind their tokens, as long as they cost next to nothing.

        That is few rows in all, no block that another would have to give up, and nothing behind the last token that
        may be drawn.
        """
        limit = min(self.max_guesses, CHEAP_ROWS // max(1, len(decodes)) - 1)
        found = []
        for row in decodes:
            sequence = row.sequence
            num_left = sequence.params.max_tokens - len(sequence.output_ids) - 1
            # What may follow a guess is not known where there is a grammar.
            guesses = [] if sequence.constraint else sequence.lookup.guess(sequence, min(limit, num_left))
            num_missing = num_blocks_for(sequence.num_tokens + len(guesses)) - len(sequence.blocks)
            if guesses and num_missing <= self.pool.num_free:
                sequence.blocks += self.pool.take(max(0, num_missing))
                row = Row(sequence, sequence.blocks, row.start, row.token_ids + guesses, True, len(guesses))
            found.append(row)
        return found

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.forget(sequence.blocks)
        self._release(sequence)
        sequence.state = SequenceState.WAITING
        self.waiting.appendleft(sequence)
        self.num_preempted += 1

    def _release(self, sequence: Sequence) -> None:
        blocks, sequence.blocks = sequence.blocks, []
        sequence.num_computed = sequence.num_published = 0
        sequence.content = ROOT
        self.pool.release(blocks)

    def _row(self, sequence: Sequence, num_tokens: int) -> Row:
        start = sequence.num_computed
        end = start + num_tokens
        return Row(sequence, sequence.blocks, start, sequence.tokens(start, end), end == sequence.num_tokens)
