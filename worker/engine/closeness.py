"""How far logits may be from the model's own when another way to compute them is tried. Generation thread only."""

import torch
from torch import Tensor

# Relative distance of logits that rounding may cause. Measured on random models: below 1e-6 in float32 and 2e-2 in
# bfloat16; a wrong mask or position gives about 1.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def tolerance_of(dtype: torch.dtype) -> float:
    """The largest distance that may be of a model of this type."""
    return _TOLERANCES.get(dtype, 1e-3)


def largest_distance(logits: Tensor, expected: Tensor) -> float:
    """Relative distance of the row that is furthest off. Shapes: (n, vocab), (n, vocab)."""
    distances = (logits.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    # nan compares false with everything: what gives nan here must not pass for equal
    return float(distances.nan_to_num(nan=float("inf"), posinf=float("inf")).max())
