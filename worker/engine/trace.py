"""A decode step without Python: the model's operators, recorded once and played back by torch's own interpreter.

Why: a step of a small model is a thousand short operators, and to call them from Python costs as much as half of what
they compute. The playback calls the same operators on the same tensors, so that its logits are the model's own to the
bit, and it holds no GIL, so that whoever sends tokens out does it meanwhile.

A recording is blind to Python: what the model's code decides by the values or the number of tokens is decided once and
for all. Where torch's tracer sees such a decision, or one step of several of different sizes is not equal, there is no
recording, and the model's code runs in every step. Generation thread only.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.engine.attention import PackedLayout, PagedAttention
from worker.engine.fuse import fuse
from worker.engine.kv_cache import BLOCK_TOKENS, num_blocks_for
from worker.errors import one_line


class CannotTrace(Exception):
    """The model's code does not run alike for all steps; says where."""


class TracedDecode:
    """What `PackedRunner` calls for steps that only decode."""

    def __init__(self, model: Any, attention: PagedAttention, max_context: int) -> None:
        """Record and compare. Takes as long as some ten steps.

        Args:
            model: Whose attention is `attention`, with all its layers called before and its caches of their last size.
            max_context: The latest position is one below.

        Raises:
            CannotTrace: There is no recording to be had of this model.
        """
        self._attention = attention
        self._vocab_size = model.get_input_embeddings().num_embeddings
        step = DecodeStep(model, attention)
        jit: Any = torch.jit
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                recorded = jit.trace(step, (*self._example([1, 40]), *self._caches()), check_trace=False, strict=False)
            except Exception as error:  # whatever a model's code may raise when its numbers are a tracer's
                raise CannotTrace(f"{type(error).__name__}: {error}") from error
        for one in seen:
            if issubclass(one.category, jit.TracerWarning):
                raise CannotTrace(f"it decides by values, in {Path(one.filename).name}:{one.lineno}")
        self._recorded = recorded
        self._compare(step, max_context)
        self.why_not_fused = self._fuse(step, max_context)

    def _fuse(self, step: "DecodeStep", max_context: int) -> str:
        """Put a recording with fewer operators in the place of this one, if it is equal. Returns why it is not."""
        recorded = self._recorded
        try:
            self._recorded = fuse(recorded)
            self._compare(step, max_context)
        except Exception as error:  # of torch's compiler, on an operator that it does not know as we do
            self._recorded = recorded
            return one_line(error)
        return ""

    def _compare(self, step: "DecodeStep", max_context: int) -> None:
        """See that the recording gives what the model's code does, for rows of several numbers and positions."""
        far = max_context - 1
        for starts in ([far], [1, 40, 2], [17, 1, far, 3, 100], [5]):
            example = self._example([min(start, far) for start in starts])
            try:
                expected = step(*example, *self._caches())
            except Exception as error:  # of the model's own code
                raise CannotTrace(f"the model fails on {len(starts)} rows: {type(error).__name__}") from error
            try:
                is_equal = torch.equal(expected, self._recorded(*example, *self._caches()))
            except Exception as error:  # of torch's interpreter, for a size that was recorded as a number
                raise CannotTrace(f"a recorded step of {len(starts)} rows failed: {type(error).__name__}") from error
            if not is_equal:
                raise CannotTrace(f"a recorded step of {len(starts)} rows is not equal")

    def __call__(self, token_ids: Tensor, layout: PackedLayout) -> Tensor:
        """Compute a step.

        Args:
            token_ids: (num_rows,), one for each decode.
            layout: Without prompts.

        Returns:
            The logits of all rows, (num_rows, vocab_size).
        """
        logits: Tensor = self._recorded(
            token_ids[None], layout.positions, layout.places, layout.tables, layout.lengths, *self._caches()
        )
        return logits

    def _caches(self) -> list[Tensor]:
        return [cache for pair in self._attention.caches.values() for cache in pair]

    def _example(self, starts: list[int]) -> tuple[Tensor, ...]:
        """Rows that decode at these positions. They share one block, and write over each other in it."""
        device = self._caches()[0].device
        token_ids = torch.randint(self._vocab_size, (1, len(starts)), generator=torch.Generator().manual_seed(0))
        positions = torch.tensor(starts, device=device)
        tables = torch.ones(len(starts), num_blocks_for(max(starts) + 1), dtype=torch.int32, device=device)
        lengths = (positions + 1).to(torch.int32)
        return token_ids.to(device), positions, BLOCK_TOKENS + positions % BLOCK_TOKENS, tables, lengths


class DecodeStep(torch.nn.Module):
    """A decode step as a function of tensors alone."""

    def __init__(self, model: Any, attention: PagedAttention) -> None:
        super().__init__()
        self.model = model
        self._attention = attention

    def forward(
        self, token_ids: Tensor, positions: Tensor, places: Tensor, tables: Tensor, lengths: Tensor, *caches: Tensor
    ) -> Tensor:
        attention = self._attention
        own = attention.caches
        attention.caches = dict(zip(own, zip(caches[::2], caches[1::2], strict=True), strict=True))
        attention.layout = PackedLayout(places, positions, tables, lengths, None)
        try:
            logits: Tensor = self.model(input_ids=token_ids, position_ids=positions[None], use_cache=False).logits[0]
        finally:
            attention.caches, attention.layout = own, None
        return logits
