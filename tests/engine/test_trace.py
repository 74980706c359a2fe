"""A recorded decode step is the model's own to the bit, or it is not used."""

import ctypes
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.support.random_models import VOCAB_SIZE, random_model, save_random_model
from worker.config import read_settings
from worker.engine.kernels import IS_NATIVE
from worker.engine.kv_cache import num_blocks_for
from worker.engine.loader import LoadedModel, load
from worker.engine.model_runner import PackedRunner, new_runner
from worker.engine.scheduler import Row
from worker.engine.sequence import Sequence
from worker.engine.trace import CannotTrace

pytestmark = pytest.mark.skipif(not IS_NATIVE, reason="without the native kernel decodes look at values in Python")

MAX_CONTEXT = 512
BLOCKS_OF_ONE = 8


def new_packed(model: Any) -> PackedRunner:
    runner, reason = new_runner(model, lambda _: 64)
    assert isinstance(runner, PackedRunner), reason
    return runner


def row(number: int, start: int, token_ids: list[int], *, is_sampled: bool = True) -> Row:
    """Each with blocks of its own."""
    blocks = [1 + number * BLOCKS_OF_ONE + i for i in range(num_blocks_for(start + len(token_ids)))]
    return Row(cast("Sequence", None), blocks, start, token_ids, is_sampled)


def prompts(lengths: list[int]) -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    return [
        row(i, 0, torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist())
        for i, length in enumerate(lengths)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt-oss", "mixtral", "gpt2"])
def test_a_traced_step_is_equal_to_the_bit(family: str, dtype: torch.dtype) -> None:
    lengths = [30, 1, 17, 90, 64]
    runners = [new_packed(random_model(family).to(dtype)) for _ in range(2)]
    runners[1].trace(MAX_CONTEXT)
    for runner in runners:
        runner.forward(prompts(lengths))
    for step in range(20):  # over the borders of blocks, and with fewer rows in every other step
        rows = [row(i, length + step, [7 + i + step]) for i, length in enumerate(lengths)][step % 2 * 2 :]
        logits = [runner.forward(rows)[1] for runner in runners]
        assert torch.equal(*logits)
        assert logits[0].isfinite().all()


def test_rows_that_are_not_sampled_have_no_logits() -> None:
    """The last chunk but one of a prompt may be of one token."""
    runner = new_packed(random_model("llama"))
    runner.trace(MAX_CONTEXT)
    runner.forward(prompts([5, 6, 7]))
    rows = [row(0, 5, [8]), row(1, 6, [9], is_sampled=False), row(2, 7, [10])]
    sampled, logits = runner.forward(rows)
    _, all_logits = runner.forward([rows[0], row(1, 6, [9]), rows[2]])
    assert sampled == [rows[0], rows[2]]
    assert torch.equal(logits, all_logits[[0, 2]])


def _decides_by_a_value(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.sum() > 1e6 else x


def _decides_by_the_number_of_rows(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if int(x.shape[1]) == 2 else x


_calls = itertools.count()


def _counts(x: torch.Tensor) -> torch.Tensor:
    return x + next(_calls)


def _bakes_the_number_of_rows(x: torch.Tensor) -> torch.Tensor:
    num_rows = x.untyped_storage().nbytes() // x.element_size() // 64  # out of the tracer's sight
    return x.reshape(1, num_rows, -1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_decides_by_a_value, "decides by values, in test_trace.py"),
        (_decides_by_the_number_of_rows, "decides by values, in test_trace.py"),
        (_counts, "is not equal"),
        (_bakes_the_number_of_rows, "recorded step of 1 rows failed"),
    ],
)
def test_what_a_recording_would_not_see_is_not_traced(
    change: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    model = random_model("llama")
    runner = new_packed(model)
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: change(output))
    with pytest.raises(CannotTrace, match=reason):
        runner.trace(MAX_CONTEXT)
    runner.forward(prompts([5]))
    assert runner.forward([row(0, 5, [8])])[1].isfinite().all()


def test_far_positions_are_compared_too() -> None:
    """Some position embeddings change beyond a length."""
    model = random_model("llama")
    runner = new_packed(model)
    forward = model.model.rotary_emb.forward

    def two_lengths(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        numbers = ctypes.cast(position_ids.data_ptr(), ctypes.POINTER(ctypes.c_int64))  # out of the tracer's sight
        is_far = max(numbers[: position_ids.numel()]) > 200
        cos, sin = forward(x, position_ids)
        return (cos * 2, sin) if is_far else (cos, sin)

    model.model.rotary_emb.forward = two_lengths
    with pytest.raises(CannotTrace, match="is not equal"):
        runner.trace(MAX_CONTEXT)


def test_a_position_that_the_model_does_not_have_is_no_fault_of_the_recording() -> None:
    runner = new_packed(random_model("gpt2"))
    with pytest.raises(CannotTrace, match="the model fails on 1 rows: IndexError"):
        runner.trace(MAX_CONTEXT + 1)


def _load(folder: Path, **env: str) -> LoadedModel:
    return load(read_settings({"ENDSTOP_MODEL": str(folder), **env}), lambda progress: None)


def test_the_loader_says_which_way_decodes_run(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path)
    assert _load(folder).description.endswith("decode traced and fused")
    assert _load(folder, ENDSTOP_TRACE="off").description.endswith("decode in Python (ENDSTOP_TRACE=off)")
