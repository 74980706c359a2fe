"""Log-probabilities in step with the text. Plain Python, no torch. Generation thread only.

Law: what is told of a token is told with the text in which it begins. A token whose text is held back waits, and one
whose text is never released, since a stop string begins before it, is never told.
"""

from collections import deque
from dataclasses import dataclass

from worker.events import TokenLogprob


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of a drawn token, and of the likeliest ones: ids and log-probabilities.

    They are the model's own, before temperature, penalties, biases and filters.
    """

    drawn: float
    top: list[tuple[int, float]]


class HeldLogprobs:
    """Those of one stream whose text has not been released yet."""

    def __init__(self) -> None:
        self._held: deque[tuple[int, TokenLogprob]] = deque()
        self._num_decided = 0  # characters that the detokenizer has given
        self._num_released = 0  # of these, those that the reader has

    def hold(self, logprob: TokenLogprob) -> None:
        """Take that of the token whose text comes next."""
        self._held.append((self._num_decided, logprob))

    def decided(self, text: str) -> None:
        """Note the text that the detokenizer gives for the tokens so far."""
        self._num_decided += len(text)

    def release(self, text: str) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that begin in `text`, which the reader gets now."""
        self._num_released += len(text)
        ready = []
        while self._held and self._held[0][0] < self._num_released:
            ready.append(self._held.popleft()[1])
        return tuple(ready)
