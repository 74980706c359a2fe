"""The native kernel computes what torch computes, and neither looks at a place that is not the row's own."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.engine import native
from worker.engine.kernels import (
    IS_NATIVE,
    Kind,
    Prompts,
    paged_decode,
    paged_decode_in_torch,
    paged_prompt,
    paged_prompt_in_torch,
)
from worker.engine.kv_cache import BLOCK_TOKENS, num_blocks_for

HEAD_DIM = 24
needs_native = pytest.mark.skipif(not IS_NATIVE, reason="python -m worker.engine.native has not built it")
DECODES = [paged_decode_in_torch, pytest.param(paged_decode, marks=needs_native)]
PROMPTS = [paged_prompt_in_torch, pytest.param(paged_prompt, marks=needs_native)]
LENGTHS = (1, 15, 16, 17, 40, 100)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 20},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.linspace(-2, 2, 6)},
    "all of it": {"window": 20, "softcap": 1.5, "sinks": torch.linspace(-2, 2, 6)},
}


def cache_of(lengths: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values, tables and lengths. What belongs to nobody is no number."""
    torch.manual_seed(0)
    num_blocks = sum(map(num_blocks_for, lengths))
    places = (num_blocks + 1) * BLOCK_TOKENS
    keys, values = torch.randn(places, 3, HEAD_DIM).to(dtype), torch.randn(places, 3, HEAD_DIM + 8).to(dtype)
    shuffled = (1 + torch.randperm(num_blocks)).tolist()
    tables = torch.zeros(len(lengths), num_blocks_for(max(lengths)), dtype=torch.int32)
    for row, length in enumerate(lengths):
        blocks = [shuffled.pop() for _ in range(num_blocks_for(length))]
        tables[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        unused = blocks[-1] * BLOCK_TOKENS + torch.arange((length - 1) % BLOCK_TOKENS + 1, BLOCK_TOKENS)
        keys[unused], values[unused] = math.nan, math.nan
    keys[:BLOCK_TOKENS], values[:BLOCK_TOKENS] = 0, 0
    return keys, values, tables, torch.tensor(lengths, dtype=torch.int32)


def one_by_one(query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, kind: Kind) -> Tensor:
    """The definition, in float64."""
    rows = []
    for q, table, length in zip(query, tables, lengths.tolist(), strict=True):
        places = (table[:, None].long() * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten()[:length]
        places = places[-kind.window :] if kind.window else places
        group = q.shape[0] // keys.shape[1]
        k = keys[places].double().repeat_interleave(group, dim=1)
        v = values[places].double().repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,khd->hk", q.double(), k) * kind.scale
        if kind.softcap:
            scores = (scores / kind.softcap).tanh() * kind.softcap
        if kind.sinks is not None:
            scores = torch.cat([scores, kind.sinks.double()[:, None]], dim=1)
        weights = scores.softmax(dim=1)[:, : len(places)]
        rows.append(torch.einsum("hk,khd->hd", weights, v))
    return torch.stack(rows)


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_decodes_are_what_attention_is_by_definition(
    decode: Any, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    chosen = Kind(HEAD_DIM**-0.5, **KINDS[kind])
    cache = cache_of(LENGTHS, dtype)
    query = torch.randn(6, len(LENGTHS), HEAD_DIM).to(dtype).transpose(0, 1)  # as a model gives it: not contiguous
    expected = one_by_one(query, *cache, chosen)
    out = decode(query, *cache, chosen)
    assert out.dtype == dtype
    assert out.shape == (len(LENGTHS), 6, HEAD_DIM + 8)
    assert (out.double() - expected).abs().max() < tolerance * expected.abs().max()


def chunks_of(sizes: tuple[int, ...], lengths: tuple[int, ...], tables: Tensor) -> Prompts:
    """The last so many tokens of each sequence."""
    starts = [length - size for length, size in zip(lengths, sizes, strict=True)]
    bounds = [0, *itertools.accumulate(sizes)]
    return Prompts(tables, torch.tensor(starts, dtype=torch.int32), torch.tensor(bounds, dtype=torch.int32))


@pytest.mark.parametrize("attend", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_prompts_are_what_attention_is_by_definition(
    attend: Any, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    chosen = Kind(HEAD_DIM**-0.5, **KINDS[kind])
    keys, values, tables, _ = cache_of(LENGTHS, dtype)
    sizes = (1, 15, 3, 1, 39, 70)  # whole prompts and last chunks, over the borders of blocks
    query = torch.randn(6, sum(sizes), HEAD_DIM).to(dtype).transpose(0, 1)
    out = attend(query, keys, values, chunks_of(sizes, LENGTHS, tables), chosen)
    row_of = [row for row, size in enumerate(sizes) for _ in range(size)]
    seen = [length - size + i + 1 for length, size in zip(LENGTHS, sizes, strict=True) for i in range(size)]
    expected = one_by_one(query, keys, values, tables[row_of], torch.tensor(seen), chosen)
    assert out.dtype == dtype
    assert out.shape == expected.shape
    assert (out.double() - expected).abs().max() < tolerance * expected.abs().max()


@needs_native
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "all of it"])
def test_a_token_of_a_prompt_is_the_same_to_the_bit_however_it_is_cut(kind: str, num_threads: int) -> None:
    length, chosen = 300, Kind(HEAD_DIM**-0.5, **KINDS[kind])
    keys, values, tables, _ = cache_of((length, 40), torch.bfloat16)
    query = torch.randn(length, 6, HEAD_DIM).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        whole = paged_prompt(query, keys, values, chunks_of((length,), (length,), tables[:1]), chosen)
        for cut in (1, 7, 16, 100, 299):
            ends = [*range(cut, length, cut), length]
            parts = [
                paged_prompt(query[start:end], keys, values, chunks_of((end - start,), (end,), tables[:1]), chosen)
                for start, end in itertools.pairwise([0, *ends])
            ]
            assert torch.equal(torch.cat(parts), whole)
        beside = torch.cat([query[-50:], query[:40]])
        both = paged_prompt(beside, keys, values, chunks_of((50, 40), (length, 40), tables), chosen)
        assert torch.equal(both[:50], whole[-50:])
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_is_the_same_to_the_bit_whoever_is_beside_it(num_threads: int) -> None:
    lengths = (300, 20, 700, 90)
    cache, kind = cache_of(lengths, torch.bfloat16), Kind(HEAD_DIM**-0.5)
    query = torch.randn(len(lengths), 6, HEAD_DIM).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        together = paged_decode(query, *cache, kind)
        keys, values, tables, numbers = cache
        for i in range(len(lengths)):
            one = slice(i, i + 1)
            alone = paged_decode(query[one], keys, values, tables[one].contiguous(), numbers[one], kind)
            assert torch.equal(alone, together[one])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("decode", DECODES)
def test_a_nan_of_its_own_is_not_hidden(decode: Any) -> None:
    """The sampler looks for it, and ends the row."""
    keys, values, tables, lengths = cache_of((20, 20), torch.float32)
    keys[tables[0, 0] * BLOCK_TOKENS] = math.nan
    out = decode(torch.randn(2, 6, HEAD_DIM), keys, values, tables, lengths, Kind(1.0))
    assert not out[0].isfinite().any()
    assert out[1].isfinite().all()


def test_the_library_leaves_the_arithmetic_of_the_process_alone() -> None:
    """-ffast-math links code that switches subnormal numbers off, for everybody in the process."""
    smallest = 5e-324
    assert IS_NATIVE in (True, False)
    assert smallest / 1.0 > 0.0
    assert (torch.tensor(1e-310, dtype=torch.float64) / 1).item() > 0


def test_without_a_compiler_there_are_no_kernels_and_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(native, "library", lambda: tmp_path / "none.so")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert native.load() is False
    with pytest.raises(native.CannotBuild, match=r"no C\+\+ compiler"):
        native.build()


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(native, "library", lambda: tmp_path / "build" / "none.so")
    monkeypatch.setattr("shutil.which", lambda name: "/bin/false")
    with pytest.raises(native.CannotBuild, match="/bin/false failed"):
        native.build()
    assert native.load() is False
