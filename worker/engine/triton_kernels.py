# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN202 Triton's compiler would look for the names of types among its own
"""Attention over the blocks of the cache on a GPU, in Triton. Generation thread only.

The GPU's sibling of `native/`: the same operators over the same layout. Nothing here waits for the GPU or looks at a
number that lies there, so that a step can be captured in a CUDA graph: how far a loop goes is read by the program that
runs it. What may not be looked at is not read.

The numbers of a head that share a key are rows of one query, in decodes and in prompts. Sums are in float32, and
float32 is multiplied as float32.

Source: online softmax and the split of the keys, FlashAttention-2, arXiv:2307.08691, and Flash-Decoding; queries packed
by head and token, and the search for a tile's chunk, as in vLLM's unified attention.
"""

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.kv_cache import BLOCK_TOKENS

if TYPE_CHECKING:
    from worker.engine.kernels import Kind, Prompts

# Keys that one program of a decode looks at. It is the same for all rows, so that the order of a row's sum does not
# depend on how long the others are.
PART_TOKENS = 256
# Rows of a query that one program computes, heads times tokens; tensor cores want 16 at least.
_MIN_ROWS = 16
_PROMPT_ROWS = 64
# Turns of a loop that are on their way at once. With three, a large head would not fit into every GPU's shared memory.
_NUM_STAGES = 2
# Triton runs its assembler, and a C compiler, as children of the thread that uses a kernel first.
_PARENTS = ("triton.knobs", "triton.runtime.build", "triton.backends.nvidia.compiler", "triton.backends.nvidia.driver")


def _keep_subprocess() -> None:
    """Give Triton a `subprocess` of its own. gevent's, which would be in its place, has children on the hub alone."""
    spec = importlib.util.find_spec("subprocess")
    assert spec is not None
    assert spec.loader is not None
    own: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    own._USE_POSIX_SPAWN = False  # Python's documented switch: `os.posix_spawn` is patched too
    for name in _PARENTS:
        parent: Any = sys.modules[name]
        parent.subprocess = own


_keep_subprocess()


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _attend(
    query,
    positions,
    begin,
    stop,
    keys,
    values,
    table,
    kv_head,
    scale,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
):
    """Attention of a query's rows over the keys of one sequence from `begin` to `stop`.

    Args:
        query: (NUM_ROWS, BLOCK_DIM); zeros beyond HEAD_DIM.
        positions: (NUM_ROWS,) of each row's token.
        table: The blocks of the sequence.

    Returns:
        Of each row the largest product, the sum of weights relative to it, and the values so weighted, float32.
    """
    dims = tl.arange(0, BLOCK_DIM)
    value_dims = tl.arange(0, BLOCK_VALUE)
    largest = tl.full((NUM_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((NUM_ROWS,), tl.float32)
    weighted = tl.zeros((NUM_ROWS, BLOCK_VALUE), tl.float32)
    for first in range(begin, stop, NUM_KEYS):
        at = first + tl.arange(0, NUM_KEYS)
        is_there = at < stop
        block = tl.load(table + at // BLOCK_TOKENS, mask=is_there, other=0)
        row = (block.to(tl.int64) * BLOCK_TOKENS + at % BLOCK_TOKENS) * NUM_KV_HEADS + kv_head
        key = tl.load(
            keys + row[None, :] * HEAD_DIM + dims[:, None],
            mask=is_there[None, :] & (dims < HEAD_DIM)[:, None],
            other=0.0,
        )
        products = tl.dot(query, key, input_precision="ieee") * scale
        if SOFTCAP > 0.0:
            products = _tanh(products / SOFTCAP) * SOFTCAP
        may_look = is_there[None, :] & (at[None, :] <= positions[:, None])
        if WINDOW > 0:
            may_look = may_look & (at[None, :] > positions[:, None] - WINDOW)
        products = tl.where(may_look, products, float("-inf"))
        now_largest = tl.maximum(largest, tl.max(products, 1))
        # A row that may look at none of these keys yet: -inf minus itself would be no number.
        base = tl.where(now_largest == float("-inf"), 0.0, now_largest)
        weights = tl.exp(products - base[:, None])
        fade = tl.exp(largest - base)
        value = tl.load(
            values + row[:, None] * VALUE_DIM + value_dims[None, :],
            mask=is_there[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        weighted = weighted * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * fade + tl.sum(weights, 1)
        largest = now_largest
    return largest, total, weighted


# A kernel is compiled again for whether a number divides by 16, or a tensor begins where 16 bytes do, and that takes
# seconds. Those are named here of which it changes from step to step.
@triton.jit(
    do_not_specialize=["num_parts", "table_stride", "row_stride"],
    do_not_specialize_on_alignment=["tables", "lengths", "totals"],
)
def _decode_part(
    query,
    keys,
    values,
    tables,
    lengths,
    largests,
    totals,
    weighteds,
    scale,
    num_parts,
    table_stride,
    row_stride,
    head_stride,
    dim_stride,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    PART_TOKENS: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
):
    """One part of the keys of one row of the batch, for the heads of one key. What has nothing to look at is over."""
    row, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    begin = part * PART_TOKENS
    stop = tl.minimum(begin + PART_TOKENS, length)
    if WINDOW > 0:
        begin = tl.maximum(begin, length - WINDOW)
    if begin >= stop:
        return
    member = tl.arange(0, NUM_ROWS)
    is_head = member < GROUP
    head = kv_head * GROUP + member
    dims = tl.arange(0, BLOCK_DIM)
    own = tl.load(
        query + row * row_stride + head[:, None] * head_stride + dims[None, :] * dim_stride,
        mask=is_head[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )
    largest, total, weighted = _attend(
        own,
        tl.zeros((NUM_ROWS,), tl.int32) + length - 1,
        begin,
        stop,
        keys,
        values,
        tables + row.to(tl.int64) * table_stride,
        kv_head,
        scale,
        WINDOW,
        SOFTCAP,
        NUM_KV_HEADS,
        HEAD_DIM,
        VALUE_DIM,
        BLOCK_DIM,
        BLOCK_VALUE,
        BLOCK_TOKENS,
        NUM_ROWS,
        NUM_KEYS,
    )
    slot = (row.to(tl.int64) * NUM_KV_HEADS * GROUP + head) * num_parts + part
    tl.store(largests + slot, largest, mask=is_head)
    tl.store(totals + slot, total, mask=is_head)
    value_dims = tl.arange(0, BLOCK_VALUE)
    tl.store(
        weighteds + slot[:, None] * VALUE_DIM + value_dims[None, :],
        weighted,
        mask=is_head[:, None] & (value_dims < VALUE_DIM)[None, :],
    )


@triton.jit(do_not_specialize=["num_parts"], do_not_specialize_on_alignment=["lengths", "totals"])
def _join_parts(
    lengths,
    largests,
    totals,
    weighteds,
    sinks,
    out,
    num_parts,
    WINDOW: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    PART_TOKENS: tl.constexpr,
):
    """One head of one row: add up its parts, those that have been computed."""
    row, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + row)
    begin = length * 0
    if WINDOW > 0:
        begin = tl.maximum(length - WINDOW, 0) // PART_TOKENS
    dims = tl.arange(0, BLOCK_VALUE)
    is_dim = dims < VALUE_DIM
    own = row.to(tl.int64) * NUM_HEADS + head
    largest, total = _start(sinks, head)
    weighted = tl.zeros((BLOCK_VALUE,), tl.float32)
    for part in range(begin, (length + PART_TOKENS - 1) // PART_TOKENS):
        slot = own * num_parts + part
        its_largest = tl.load(largests + slot)
        now_largest = tl.maximum(largest, its_largest)
        fade, share = tl.exp(largest - now_largest), tl.exp(its_largest - now_largest)
        weighted = weighted * fade + tl.load(weighteds + slot * VALUE_DIM + dims, mask=is_dim, other=0.0) * share
        total = total * fade + tl.load(totals + slot) * share
        largest = now_largest
    tl.store(out + own * VALUE_DIM + dims, (weighted / total).to(out.dtype.element_ty), mask=is_dim)


@triton.jit
def _start(sinks, head):
    """Before any key: what a head's sink has in products and in weights, or nothing."""
    if sinks is None:
        return float("-inf"), 0.0
    return tl.load(sinks + head).to(tl.float32), 1.0


@triton.jit(
    do_not_specialize=["num_chunks", "table_stride", "row_stride"],
    do_not_specialize_on_alignment=["tables", "starts", "bounds"],
)
def _prompt_tile(
    query,
    keys,
    values,
    tables,
    starts,
    bounds,
    sinks,
    out,
    scale,
    num_chunks,
    table_stride,
    row_stride,
    head_stride,
    dim_stride,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
):
    """A few tokens of one chunk, for the heads of one key."""
    TILE_TOKENS: tl.constexpr = NUM_ROWS // GROUP
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    # A chunk's first tile is not before this one: each before it has at most one tile that is not full.
    chunk = tile * 0
    for i in range(1, num_chunks):
        chunk += (tl.load(bounds + i) // TILE_TOKENS + i <= tile).to(tl.int32)
    begin, end = tl.load(bounds + chunk), tl.load(bounds + chunk + 1)
    first = begin + (tile - begin // TILE_TOKENS - chunk) * TILE_TOKENS
    if first >= end:
        return
    member = tl.arange(0, NUM_ROWS)
    token = first + member // GROUP
    head = kv_head * GROUP + member % GROUP
    is_row = (member < TILE_TOKENS * GROUP) & (token < end)
    dims = tl.arange(0, BLOCK_DIM)
    own = tl.load(
        query + token[:, None].to(tl.int64) * row_stride + head[:, None] * head_stride + dims[None, :] * dim_stride,
        mask=is_row[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )
    offset = tl.load(starts + chunk) - begin
    since = offset * 0
    if WINDOW > 0:
        since = tl.maximum(offset + first - WINDOW + 1, 0)
    largest, total, weighted = _attend(
        own,
        offset + token,
        since,
        offset + tl.minimum(first + TILE_TOKENS, end),
        keys,
        values,
        tables + chunk.to(tl.int64) * table_stride,
        kv_head,
        scale,
        WINDOW,
        SOFTCAP,
        NUM_KV_HEADS,
        HEAD_DIM,
        VALUE_DIM,
        BLOCK_DIM,
        BLOCK_VALUE,
        BLOCK_TOKENS,
        NUM_ROWS,
        NUM_KEYS,
    )
    if sinks is not None:
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32)
        now_largest = tl.maximum(largest, sink)
        fade = tl.exp(largest - now_largest)
        weighted, total = weighted * fade[:, None], total * fade + tl.exp(sink - now_largest)
    value_dims = tl.arange(0, BLOCK_VALUE)
    tl.store(
        out + (token[:, None].to(tl.int64) * NUM_KV_HEADS * GROUP + head[:, None]) * VALUE_DIM + value_dims[None, :],
        (weighted / total[:, None]).to(out.dtype.element_ty),
        mask=is_row[:, None] & (value_dims < VALUE_DIM)[None, :],
    )


def _sizes_of(query: Tensor, keys: Tensor, values: Tensor, kind: "Kind", num_rows: int) -> dict[str, Any]:
    """What the kernels are compiled for.

    Args:
        num_rows: Of a program's query, where the heads of one key are not more.
    """
    num_kv_heads, head_dim = keys.shape[1:]
    group = query.shape[1] // num_kv_heads
    block_dim = max(16, triton.next_power_of_2(head_dim))
    # Keys and values of a program lie in shared memory, two turns of each: 64 KiB is what every GPU has.
    num_keys = max(16, min(64, 16384 // (block_dim * keys.element_size())))
    return {
        "WINDOW": kind.window,
        "SOFTCAP": kind.softcap,
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": values.shape[2],
        "BLOCK_DIM": block_dim,
        "BLOCK_VALUE": max(16, triton.next_power_of_2(values.shape[2])),
        "BLOCK_TOKENS": BLOCK_TOKENS,
        "NUM_ROWS": max(num_rows, triton.next_power_of_2(group)),
        "NUM_KEYS": num_keys,
    }


def paged_decode(query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, kind: "Kind") -> Tensor:
    """As `kernels.paged_decode`."""
    num_rows, num_heads, _ = query.shape
    sizes = _sizes_of(query, keys, values, kind, _MIN_ROWS)
    num_parts = triton.cdiv(tables.shape[1] * BLOCK_TOKENS, PART_TOKENS)
    largests, totals = query.new_empty(2, num_rows, num_heads, num_parts, dtype=torch.float32)
    weighteds = query.new_empty(num_rows, num_heads, num_parts, values.shape[2], dtype=torch.float32)
    out = query.new_empty(num_rows, num_heads, values.shape[2])
    parts = (lengths, largests, totals, weighteds)
    _decode_part[(num_rows, keys.shape[1], num_parts)](
        query,
        keys,
        values,
        tables,
        *parts,
        kind.scale,
        num_parts,
        tables.stride(0),
        *query.stride(),
        **sizes,
        PART_TOKENS=PART_TOKENS,
        num_stages=_NUM_STAGES,
    )
    _join_parts[(num_rows, num_heads)](
        *parts,
        kind.sinks,
        out,
        num_parts,
        WINDOW=kind.window,
        NUM_HEADS=num_heads,
        VALUE_DIM=values.shape[2],
        BLOCK_VALUE=sizes["BLOCK_VALUE"],
        PART_TOKENS=PART_TOKENS,
    )
    return out


def paged_prompt(query: Tensor, keys: Tensor, values: Tensor, prompts: "Prompts", kind: "Kind") -> Tensor:
    """As `kernels.paged_prompt`."""
    num_tokens, num_heads, _ = query.shape
    # Without tensor cores, as float32 is multiplied, more rows are only more code: a minute to compile it.
    sizes = _sizes_of(query, keys, values, kind, _PROMPT_ROWS if keys.element_size() < 4 else _MIN_ROWS)
    out = query.new_empty(num_tokens, num_heads, values.shape[2])
    num_chunks = len(prompts.starts)
    # As many as there can be, however the tokens are shared out among the chunks: that is known on the GPU only.
    num_tiles = num_tokens // (sizes["NUM_ROWS"] // sizes["GROUP"]) + num_chunks
    _prompt_tile[(num_tiles, keys.shape[1])](
        query,
        keys,
        values,
        prompts.tables,
        prompts.starts,
        prompts.bounds,
        kind.sinks,
        out,
        kind.scale,
        num_chunks,
        prompts.tables.stride(0),
        *query.stride(),
        **sizes,
        num_stages=_NUM_STAGES,
    )
    return out
