"""How long a sequence a model can take, from its config. No torch."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# What families call the number of their positions. Most have the first name, and some another beside it.
_LENGTHS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "n_positions", "n_ctx")


@dataclass(frozen=True, slots=True)
class Positions:
    """How many positions there are.

    Attributes:
        number: Of tokens of one sequence.
        why: Why not as many as the config names, for the log; empty if it is as many.
    """

    number: int
    why: str = ""


def positions_of(config: Any) -> Positions:
    """Of the part of a model that reads and writes text.

    With LongRoPE all positions of a sequence are others once it is longer than the original length, and so would be
    the keys that are in the cache already; transformers decides it for all rows of a batch by the longest. So no
    sequence may be longer: its neighbours' answers would change with it.
    """
    text = config.get_text_config(decoder=True)
    number = next((length for name in _LENGTHS if (length := getattr(text, name, None))), sys.maxsize)
    original = min(_original_lengths(text), default=number)
    if original < number:
        return Positions(original, f"of {number}: beyond, its LongRoPE would give all others in a step other positions")
    return Positions(number)


def _original_lengths(text: Any) -> Iterator[int]:
    """Of those rotary embeddings that have two sets of frequencies. Some models have others for each type of layer."""
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in [ropes, *(one for one in ropes.values() if isinstance(one, dict))]:
        length = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        if rope.get("rope_type") == "longrope" and length:
            yield length
