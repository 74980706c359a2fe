"""Triton's kernels, computed by its interpreter on a CPU: the same source, without its compiler.

In a process of its own (`test_triton_kernels.py` starts it): what is to interpret has to be known when Triton is
imported.
"""

# The order of the imports is the point.

import os

os.environ["TRITON_INTERPRET"] = "1"

import math
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton.language as tl
from triton.runtime import interpreter

from tests.engine.test_cuda_graphs import FakeRecorder
from tests.engine.test_kernels import HEAD_DIM, KINDS, cache_of, chunks_of, one_by_one
from tests.engine.test_trace import prompts, row
from tests.support.random_models import random_model
from worker.engine import kernels, triton_kernels
from worker.engine.kernels import Kind, Prompts, paged_decode_in_torch, paged_prompt_in_torch
from worker.engine.kv_cache import BLOCK_TOKENS, num_blocks_for
from worker.engine.model_runner import PackedRunner, new_runner
from worker.engine.triton_kernels import PART_TOKENS, paged_decode, paged_prompt

LENGTHS = (1, 15, 16, 17, PART_TOKENS, PART_TOKENS + 30)
CASES = [
    *((kind, torch.float32, 1e-5) for kind in ("plain", "window", "all of it")),
    ("all of it", torch.bfloat16, 2e-2),
    ("plain", torch.float16, 3e-3),
]


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter holds bfloat16 as integers, and multiplies them as such."""
    of_others = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return of_others(self, _wide(a), _wide(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def _wide(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(numpy.uint32) << 16).view(numpy.float32), tl.float32)


@pytest.mark.parametrize(("kind", "dtype", "tolerance"), CASES)
def test_decodes_are_what_attention_is_by_definition(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    chosen = Kind(HEAD_DIM**-0.5, **KINDS[kind])
    cache = cache_of(LENGTHS, dtype)
    query = torch.randn(6, len(LENGTHS), HEAD_DIM).to(dtype).transpose(0, 1)  # as a model gives it: not contiguous
    expected = one_by_one(query, *cache, chosen)
    out = paged_decode(query, *cache, chosen)
    assert out.dtype == dtype
    assert out.shape == (len(LENGTHS), 6, HEAD_DIM + 8)
    assert (out.double() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(("kind", "dtype", "tolerance"), CASES)
def test_prompts_are_what_attention_is_by_definition(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    chosen = Kind(HEAD_DIM**-0.5, **KINDS[kind])
    lengths, sizes = (1, 15, 16, 17, 40, 100), (1, 15, 3, 1, 20, 9)  # whole prompts and last chunks
    keys, values, tables, _ = cache_of(lengths, dtype)
    query = torch.randn(6, sum(sizes), HEAD_DIM).to(dtype).transpose(0, 1)
    out = paged_prompt(query, keys, values, chunks_of(sizes, lengths, tables), chosen)
    row_of = [row for row, size in enumerate(sizes) for _ in range(size)]
    seen = [length - size + i + 1 for length, size in zip(lengths, sizes, strict=True) for i in range(size)]
    expected = one_by_one(query, keys, values, tables[row_of], torch.tensor(seen), chosen)
    assert out.dtype == dtype
    assert (out.double() - expected).abs().max() < tolerance * expected.abs().max()


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Prompts, Kind]:
    """Query, keys, values, tables, lengths, chunks that end there, and a kind, of any shape."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    num_kv_heads, group = draw(1, 2), (1, 3, 7, 20)[draw(0, 3)]
    head_dim, value_dim = (8, 40, 80, 96)[draw(0, 3)], (16, 48, 80)[draw(0, 2)]
    lengths = [draw(1, 70) for _ in range(draw(1, 3))]
    sizes = [draw(1, min(length, 12)) for length in lengths]
    num_blocks = sum(map(num_blocks_for, lengths))
    shape = ((num_blocks + 1) * BLOCK_TOKENS, num_kv_heads)
    keys = torch.randn(*shape, head_dim, generator=generator)
    values = torch.randn(*shape, value_dim, generator=generator)
    shuffled = (1 + torch.randperm(num_blocks, generator=generator)).tolist()
    tables = torch.zeros(len(lengths), num_blocks_for(max(lengths)), dtype=torch.int32)
    is_owned = torch.zeros(shape[0], dtype=torch.bool)
    for table, length in zip(tables, lengths, strict=True):
        table[: num_blocks_for(length)] = torch.tensor([shuffled.pop() for _ in range(num_blocks_for(length))])
        places = (table[:, None].long() * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten()[:length]
        is_owned[places] = True
    keys[~is_owned], values[~is_owned] = math.nan, math.nan
    keys[:BLOCK_TOKENS], values[:BLOCK_TOKENS] = 0, 0
    query = torch.randn(sum(sizes), num_kv_heads * group, head_dim, generator=generator)
    sinks = torch.randn(num_kv_heads * group, generator=generator) if draw(0, 1) else None
    kind = Kind(head_dim**-0.5, draw(0, 1) * draw(1, 40), draw(0, 1) * 2.0, sinks)
    chunks = chunks_of(tuple(sizes), tuple(lengths), tables)
    return query, keys, values, tables, torch.tensor(lengths, dtype=torch.int32), chunks, kind


@pytest.mark.parametrize("seed", range(6))
def test_any_shape_is_what_torch_makes_of_it(seed: int) -> None:
    """Heads that are no power of two, or many for one key; values of another size; NaNs where nobody may look."""
    query, keys, values, tables, lengths, chunks, kind = random_case(seed)
    expected = paged_prompt_in_torch(query, keys, values, chunks, kind)
    torch.testing.assert_close(paged_prompt(query, keys, values, chunks, kind), expected, rtol=1e-4, atol=1e-5)
    last = chunks.bounds[1:].long() - 1
    expected = paged_decode_in_torch(query[last], keys, values, tables, lengths, kind)
    out = paged_decode(query[last], keys, values, tables, lengths, kind)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert expected.isfinite().all()


def test_a_nan_of_its_own_is_not_hidden() -> None:
    """The sampler looks for it, and ends the row."""
    keys, values, tables, lengths = cache_of((20, 20), torch.float32)
    keys[tables[0, 0] * BLOCK_TOKENS] = math.nan
    out = paged_decode(torch.randn(2, 6, HEAD_DIM), keys, values, tables, lengths, Kind(1.0))
    assert not out[0].isfinite().any()
    assert out[1].isfinite().all()


def test_a_row_is_the_same_to_the_bit_whoever_is_beside_it() -> None:
    keys, values, tables, lengths = cache_of((20, PART_TOKENS + 20), torch.float32)
    query = torch.randn(2, 6, HEAD_DIM)
    together = paged_decode(query, keys, values, tables, lengths, Kind(1.0))
    alone = paged_decode(query[:1], keys, values, tables[:1, :2], lengths[:1], Kind(1.0))
    assert torch.equal(together[:1], alone)


def test_a_token_that_sees_nothing_of_the_first_keys_sees_the_others() -> None:
    """A tile of more tokens than a turn has keys, of which the last ones look at later keys only."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(5 * BLOCK_TOKENS, 1, dim, generator=generator).half() for dim in (136, 16))
    query = torch.randn(64, 1, 136, generator=generator).half()
    chunks, kind = chunks_of((64,), (64,), torch.arange(1, 5, dtype=torch.int32)[None]), Kind(136**-0.5, window=4)
    expected = paged_prompt_in_torch(query, keys, values, chunks, kind)
    torch.testing.assert_close(paged_prompt(query, keys, values, chunks, kind), expected, rtol=1e-2, atol=1e-2)


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Attention of a CPU's tensors by Triton; counts the calls."""
    calls = {"paged_decode": 0, "paged_prompt": 0}

    class Counting:
        def __getattr__(self, name: str) -> Any:
            calls[name] += 1
            return getattr(triton_kernels, name)

    monkeypatch.setattr(kernels, "_triton", Counting())
    monkeypatch.setattr(kernels, "has_triton", lambda device: True)
    monkeypatch.setattr(kernels, "IS_NATIVE", False)
    return calls


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_a_model_computes_through_them_what_it_computes_alone(family: str, by_triton: dict[str, int]) -> None:
    runner, reason = new_runner(random_model(family), lambda _: 16)
    assert isinstance(runner, PackedRunner), reason
    assert by_triton == {"paged_decode": 3 * 2, "paged_prompt": 3 * 3}, "three layers; one prompt to look at masks"


def test_a_captured_step_computes_through_them(by_triton: dict[str, int]) -> None:
    runner, _ = new_runner(random_model("llama"), lambda _: 16)
    assert isinstance(runner, PackedRunner)
    runner.forward(prompts([20]))
    _, expected = runner.forward([row(0, 20, [7])])
    runner.capture(FakeRecorder(), max_context=32, max_rows=1)
    runner.forward(prompts([20]))  # again: its block was good enough for the comparison
    by_triton["paged_decode"] = 0
    _, logits = runner.forward([row(0, 20, [7])])
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert by_triton["paged_decode"] == 3
