"""One forward pass for the rows of a step, over the KV cache. Generation thread only.

Two ways: `PackedRunner` computes all rows in one ragged batch, for every model whose attention goes through
transformers' `AttentionInterface`. `FallbackRunner` computes row by row with the model's own cache, as `generate`
does, for all others. Which one serves a model is decided by comparing logits at load time, not by a list of names.
"""

import bisect
import inspect
import itertools
import random
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from worker.engine.attention import OwnMask, PagedAttention, UnsupportedAttention, lay_out
from worker.engine.closeness import largest_distance, tolerance_of
from worker.engine.cuda_graphs import GraphedDecode, Recorder
from worker.engine.kv_cache import num_blocks_for
from worker.engine.memory import is_out_of_memory
from worker.engine.scheduler import Row
from worker.engine.sequence import Sequence
from worker.engine.trace import TracedDecode
from worker.errors import ModelLoadError, one_line

# Characters of a reason: short enough that two of them are read to their end.
NO_LONGER_THAN = 150


class ModelRunner(Protocol):
    """Computes steps. Holds the KV cache.

    Attributes:
        is_packed: Whether rows are computed together, and may be computed again when that has failed. If not, they
            are given one by one.
    """

    is_packed: bool

    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        """Compute the rows' tokens into the cache.

        Returns:
            The rows that are sampled, and their logits in the same order: (n, vocab_size), one for each, and one more
            for each of its guesses.
        """
        ...

    def forget(self, blocks: list[int]) -> None:
        """A sequence has given its blocks back."""


_runner_numbers = itertools.count()


class PackedRunner:
    """All rows in one forward. One runner per model: it changes the model's attention implementation."""

    is_packed = True

    def __init__(self, model: Any, num_blocks: int, *, is_exact: bool = False) -> None:
        """Take the model over.

        Args:
            is_exact: Whether a token's logits have to be the same to the bit, whatever else is in the step and however
                prompts are cut. Takes longer for prompts.
        """
        self._model = model
        self._is_exact = is_exact
        self.attention = PagedAttention(num_blocks)
        # A name of its own: transformers' registry is global, and a process may hold several runners in tests.
        self._name = f"endstop_blocks_{next(_runner_numbers)}"
        AttentionInterface.register(self._name, self.attention)
        # No mask of this name: our attention knows which row a token is of, and one over the packed batch would be
        # wrong. Of a name that has one, even one that gives None, transformers first looks at the positions, and on a
        # GPU that is to wait for it in every step.
        model.set_attn_implementation(self._name)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._traced: TracedDecode | GraphedDecode | None = None

    def check_masks(self, rows: list[Row]) -> None:
        """See that the layers say themselves what the model's masks would say: we make none.

        A window that only a mask knows of would not show in a prompt that is shorter.

        Raises:
            UnsupportedAttention: A mask says more.
        """
        wanted: set[int] = set()

        def note(*args: Any, local_size: int | None = None, **kwargs: Any) -> None:
            if local_size:
                wanted.add(local_size)

        name = f"{self._name}_masked"
        AttentionInterface.register(name, self.attention)
        AttentionMaskInterface.register(name, note)
        self._model.set_attn_implementation(name)
        try:
            self.forward(rows)
        finally:
            self._model.set_attn_implementation(self._name)
        unknown = sorted(wanted - self.attention.windows)
        if unknown:
            raise UnsupportedAttention(f"a window of {unknown[0]} tokens that only its mask knows of")

    @torch.inference_mode()
    def trace(self, max_context: int) -> str:
        """Run steps that only decode without Python from now on.

        Raises:
            CannotTrace: This model goes on as before.

        Returns:
            Why the recording is not fused; empty if it is.
        """
        self._traced = TracedDecode(self._model, self.attention, max_context)
        return self._traced.why_not_fused

    @torch.inference_mode()
    def capture(self, recorder: Recorder, max_context: int, max_rows: int) -> list[int]:
        """Run steps that only decode as CUDA graphs from now on, those of up to `max_rows` rows.

        Raises:
            CannotTrace: This model goes on as before.
            torch.OutOfMemoryError: There is no memory for it.

        Returns:
            The numbers of rows for which there is a graph.
        """
        self._traced = GraphedDecode(self._model, self.attention, recorder, max_context, max_rows)
        return self._traced.sizes

    @torch.inference_mode()
    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        step = lay_out(rows, self._model.device, is_exact=self._is_exact)
        sampled, keep, layout = step.sampled, step.keep, step.layout
        if self._traced is not None and all(row.is_decode for row in rows):
            logits = self._traced(step.token_ids, layout)
            return sampled, logits if len(keep) == len(step.token_ids) else logits[keep]
        self.attention.layout = layout
        try:
            logits = self._model(
                input_ids=step.token_ids[None],
                position_ids=layout.positions[None],
                use_cache=False,
                **({"logits_to_keep": keep} if self._keeps_logits else {}),
            ).logits[0]
        finally:
            self.attention.layout = None
        return sampled, logits if self._keeps_logits else logits[keep]

    def forget(self, blocks: list[int]) -> None:
        pass  # nobody looks at a place that is not its own


class FallbackRunner:
    """Row by row with the model's own cache: slower, and right for any causal model that `generate` can run."""

    is_packed = False  # a cache that has grown by half of a failed forward cannot be wound back

    def __init__(self, model: Any) -> None:
        self._model = model
        self._caches: dict[int, Any] = {}  # by first block: nothing is shared here

    @torch.inference_mode()
    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        logits = [self._forward_one(row) for row in rows]
        sampled = [(row, one) for row, one in zip(rows, logits, strict=True) if row.is_sampled]
        if not sampled:
            return [], torch.empty(0, 0)
        return [row for row, _ in sampled], torch.stack([one for _, one in sampled])

    def _forward_one(self, row: Row) -> Tensor:
        cache = self._caches.get(row.blocks[0]) if row.start else None
        output = self._model(
            input_ids=torch.tensor([row.token_ids], device=self._model.device),
            past_key_values=cache,
            use_cache=True,
        )
        self._caches[row.blocks[0]] = output.past_key_values
        last: Tensor = output.logits[0, -1]
        return last

    def forget(self, blocks: list[int]) -> None:
        self._caches.pop(blocks[0], None)

    def num_bytes(self, block: int) -> int:
        """What the cache of the sequence that begins with this block takes."""
        return _num_bytes(self._caches[block], set())


def _num_bytes(value: Any, seen: set[int]) -> int:
    """Of the tensors in a cache, whatever it is made of. Each is counted once."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else getattr(value, "__dict__", {}).values()
    return sum(_num_bytes(part, seen) for part in (value if isinstance(value, list | tuple) else parts))


@torch.inference_mode()
def new_runner(model: Any, num_blocks: Callable[[int], int], *, is_exact: bool = False) -> tuple[ModelRunner, str]:
    """The fastest runner that computes what the model computes.

    Two random prompts run through the model alone, then through the packed runner in chunks, mixed, in company.

    Args:
        model: On its device.
        num_blocks: How many blocks the cache is to have, from the bytes that one token takes in it.
        is_exact: See `PackedRunner`.

    Raises:
        ModelLoadError: The model's own logits are not numbers.

    Returns:
        The runner, and for the log why it is the fallback; empty if it is not.
    """
    implementation = model.config._attn_implementation
    prompts = _random_prompts(model)
    expected = [model(input_ids=torch.tensor([p], device=model.device)).logits[0, -1] for p in prompts]
    if not all(logits.isfinite().all() for logits in expected):
        raise ModelLoadError(f"the model computes infinities or no numbers at all in {model.dtype}; try ENDSTOP_DTYPE")
    tolerance = tolerance_of(model.dtype)
    try:
        if getattr(model.config.get_text_config(), "attention_chunk_size", None):
            raise UnsupportedAttention("attention in chunks")  # which the short prompts of this check would not show
        runner = PackedRunner(model, num_blocks=len(prompts), is_exact=is_exact)
        runner.check_masks([Row(cast("Sequence", None), [1], 0, prompts[0], True)])
        distance = _largest_distance(runner, prompts, expected)
        if distance <= tolerance:
            runner.attention.resize(num_blocks(runner.attention.bytes_per_token))
            return runner, ""
        reason = f"packed logits differ from the model's own by {distance:.2g}"
    except Exception as error:  # anything a model's code may raise when its attention is not what we assume
        if is_out_of_memory(error):
            raise  # not a matter of how the model computes: the caller says what to lower
        if isinstance(error, OwnMask):  # nor would it be right row by row, of which a short check shows nothing
            raise ModelLoadError(
                f"models of the kind {model.config.model_type!r} are not supported: {error}"
            ) from error
        reason = one_line(error, NO_LONGER_THAN)
    model.set_attn_implementation(implementation)
    row_by_row = FallbackRunner(model)
    try:
        distance = _largest_distance(row_by_row, prompts, expected)
        problem = "" if distance <= tolerance else f"logits differ from those of the whole prompt by {distance:.2g}"
    except Exception as error:  # whatever a model's code may raise that keeps another cache
        if is_out_of_memory(error):
            raise
        problem = one_line(error, NO_LONGER_THAN)
    if problem:
        raise ModelLoadError(
            f"models of the kind {model.config.model_type!r} are not supported (packed: {reason}; row by row, with the "
            f"cache that most models have: {problem})"
        )
    # What does not grow with a sequence, a state or a window, is not a matter of the number of tokens.
    num_bytes = row_by_row.num_bytes(1) - row_by_row.num_bytes(2)
    num_blocks(max(1, num_bytes // (len(prompts[0]) - len(prompts[1]))))
    return FallbackRunner(model), reason


def check_last_position(runner: PackedRunner, max_context: int) -> None:
    """See that the model computes a token at the last position that may be asked for: a decode step, or some ten.

    Raises:
        ModelLoadError: It does not; says how long a context would do.
    """

    def failure(context: int) -> Exception | None:
        row = Row(cast("Sequence", None), [1] * num_blocks_for(context), context - 1, [0], True)
        try:
            runner.forward([row])[1][0, 0].item()  # on a GPU it is waited for
        except Exception as error:  # whatever a model's code raises at a position that it does not have
            return error
        return None

    error = failure(max_context)
    if error is not None:
        advice = "lower ENDSTOP_MAX_CONTEXT"
        if not isinstance(error, torch.AcceleratorError):  # behind which this process computes nothing more
            too_long = bisect.bisect_left(
                range(max_context), True, lo=2, key=lambda length: failure(length) is not None
            )
            advice = f"ENDSTOP_MAX_CONTEXT={too_long - 1} would do"
        reason = one_line(error, NO_LONGER_THAN)
        raise ModelLoadError(f"the model fails at position {max_context - 1}; {advice} ({reason})") from error


def _random_prompts(model: Any) -> list[list[int]]:
    rng = random.Random(0)
    vocab_size = model.get_input_embeddings().num_embeddings
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in (11, 7)]


def _largest_distance(runner: ModelRunner, prompts: list[list[int]], expected: list[Tensor]) -> float:
    """Run both prompts with every kind of row (first chunk, later chunk, decode, mixed) and compare the ends."""
    first, second = prompts
    steps = [
        [(0, first, 0, 6)],
        [(0, first, 6, 9), (1, second, 0, 5)],
        [(0, first, 9, 10), (1, second, 5, 6)],
        [(0, first, 10, 11), (1, second, 6, 7)],
    ]
    ends: dict[int, Tensor] = {}
    for step in steps:
        rows = [
            Row(cast("Sequence", None), [1 + i], start, ids[start:stop], stop == len(ids))  # a runner needs no sequence
            for i, ids, start, stop in step
        ]
        sampled, logits = runner.forward(rows)
        ends.update({row.blocks[0] - 1: one for row, one in zip(sampled, logits, strict=True)})
    return largest_distance(torch.stack([ends[i] for i in range(len(prompts))]), torch.stack(expected))
