"""The tokens that one forward pass lets be drawn: whose they are, and where their logits lie."""

from dataclasses import dataclass

import torch

from worker.engine.sampler import SampledTokens, sample
from worker.engine.scheduler import Row
from worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Draw:
    """A token to draw.

    Attributes:
        place: Of its logits among those of the step.
        guesses: What the next ones may be, for which there are logits behind.
    """

    sequence: Sequence
    place: int
    guesses: list[int]


def draws_of(sampled: list[Row]) -> list[Draw]:
    """The first token of each row that has logits; those of its guesses lie behind."""
    draws = []
    place = 0
    for row in sampled:
        draws.append(Draw(row.sequence, place, row.guesses))
        place += 1 + row.num_guesses
    return draws


def draw_tokens(logits: torch.Tensor, draws: list[Draw]) -> SampledTokens:
    """Draw one token for each, from the logits of the whole step."""
    places = [draw.place for draw in draws]
    is_all = len(places) == len(logits)
    return sample(logits if is_all else logits[places], [draw.sequence for draw in draws])
