"""Guesses the next tokens of a sequence: those that followed when its last few tokens stood there before.

Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding). Answers that quote their prompt,
code and lists repeat themselves; a guess that is right saves a step, and one that is wrong costs little while the time
of a step is that of reading the weights. Generation thread only. No torch.
"""

from typing import Protocol

# Fewer tokens are found everywhere, and what follows them is anything.
_GRAM = 3


class Tokens(Protocol):
    """What is read of a sequence."""

    @property
    def num_tokens(self) -> int: ...

    def tokens(self, start: int, stop: int) -> list[int]: ...


class Lookup:
    """Where every few tokens of one sequence stood last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # of the latest of each, but for the one at the very end
        self._num_seen = 0  # tokens of which every gram that has a token behind it is known

    def guess(self, sequence: Tokens, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none if its last tokens are new."""
        num_tokens = sequence.num_tokens
        start = max(0, self._num_seen - _GRAM)
        window = sequence.tokens(start, num_tokens)
        for end in range(max(_GRAM, self._num_seen - start), len(window)):
            self._ends[tuple(window[end - _GRAM : end])] = start + end
        self._num_seen = num_tokens
        if limit < 1 or num_tokens < _GRAM:
            return []
        found = self._ends.get(tuple(window[-_GRAM:]))
        if found is None:
            return []
        known = sequence.tokens(found, min(found + limit, num_tokens))
        return [known[i % len(known)] for i in range(limit)]  # what has come round once may come round again
