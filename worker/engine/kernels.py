"""What a step does most of the time: by a native kernel on a CPU, by Triton's on a GPU, and without those by torch.

Attention over the blocks of the cache, and linear layers. Generation thread only.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine import native
from worker.engine.kv_cache import BLOCK_TOKENS, num_blocks_for

IS_NATIVE = native.load()


def _import_triton() -> tuple[Any, str]:
    """Triton's kernels, or None and why. A torch that is built for CUDA brings Triton with it.

    With this module, and not when a GPU is chosen: gevent would have patched what Triton's locks are made of.
    """
    if torch.version.cuda is None:
        return None, "this torch is not built for CUDA"
    try:
        from worker.engine import triton_kernels
    except Exception as error:  # not there, or one that does not fit this torch, which may raise anything
        return None, f"{type(error).__name__}: {error}"
    return triton_kernels, ""


_triton, _triton_fault = _import_triton()


def has_triton(device: torch.device) -> bool:
    """Whether attention on this device is computed by Triton's kernels."""
    return _triton is not None and device.type == "cuda"


def why_no_triton() -> str:
    """Why torch computes attention on GPUs; empty if it does not."""
    return _triton_fault


def drop_triton(reason: str) -> None:
    """Have torch compute attention on GPUs from now on, for the whole process."""
    global _triton, _triton_fault
    _triton, _triton_fault = None, reason


@dataclass(frozen=True, slots=True)
class Kind:
    """What a layer's attention is beside causal softmax attention.

    Attributes:
        scale: Of the products of queries and keys.
        window: How many of the latest tokens a token sees, itself included; 0: all.
        softcap: Products are squeezed below it by tanh; 0: not.
        sinks: (num_heads,) products with nobody, which take weight and give no value.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Prompts:
    """Chunks of prompts in a packed batch.

    Attributes:
        tables: (num_chunks, max_blocks) int32, the blocks of each sequence; padded.
        starts: (num_chunks,) int32, the position of each chunk's first token.
        bounds: (num_chunks + 1,) int32, where each begins among the tokens of all, and where the last one ends.
    """

    tables: Tensor
    starts: Tensor
    bounds: Tensor


def paged_decode(query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, kind: Kind) -> Tensor:
    """Attention of one new token of each row over its tokens in the cache, itself included.

    Args:
        query: (num_rows, num_heads, head_dim).
        keys, values: (num_places, num_kv_heads, head_dim) of the whole cache.
        tables: (num_rows, max_blocks) int32, padded with the padding block.
        lengths: (num_rows,) int32.

    Returns:
        (num_rows, num_heads, value_dim).
    """
    if has_triton(query.device):
        by_triton: Tensor = _triton.paged_decode(query, keys, values, tables, lengths, kind)
        return by_triton
    if IS_NATIVE and query.device.type == "cpu":
        native_decode = torch.ops.endstop.paged_decode
        out: Tensor = native_decode(
            query, keys, values, tables, lengths, kind.scale, kind.window, kind.softcap, kind.sinks
        )
        return out
    return paged_decode_in_torch(query, keys, values, tables, lengths, kind)


def store_and_decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    tables: Tensor,
    lengths: Tensor,
    kind: Kind,
) -> Tensor:
    """Write the new key and value of each row into the cache, and then as `paged_decode`: one call for each layer.

    Args:
        key, value: (num_rows, num_kv_heads, head_dim).
        places: (num_rows,) int64, where they go.
    """
    if IS_NATIVE and query.device.type == "cpu":
        native_call = torch.ops.endstop.store_and_decode
        rest = (tables, lengths, kind.scale, kind.window, kind.softcap, kind.sinks)
        out: Tensor = native_call(query, key, value, keys, values, places, *rest)
        return out
    store(key, value, keys, values, places)
    return paged_decode(query, keys, values, tables, lengths, kind)


def store(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> None:
    """Write new keys and values, (num_tokens, num_kv_heads, head_dim), to their places in the cache."""
    keys.index_copy_(0, places, key)
    values.index_copy_(0, places, value)


def paged_decode_in_torch(
    query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, kind: Kind
) -> Tensor:
    """As `paged_decode`, on any device: copies the rows' keys and values together, padded to the longest."""
    num_rows, num_heads, _ = query.shape
    num_kv_heads = keys.shape[1]
    length = int(lengths.max())
    tables = tables[:, : num_blocks_for(length)].long()
    places = (tables[:, :, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS, device=query.device)).flatten(1)
    places = places[:, :length]
    at = torch.arange(length, device=query.device)
    may_look = at < lengths[:, None]
    if kind.window:
        may_look &= at >= lengths[:, None] - kind.window
    # What may not be looked at is read all the same, and is another's or old: it must not be a NaN, which no weight of
    # zero silences. So it is read from the padding.
    places = places * may_look
    row_keys = keys[places].transpose(1, 2)
    row_values = values[places].transpose(1, 2)
    # The heads that share a key are rows of one query: `enable_gqa` was 4 to 15 times slower in bf16 on a CPU.
    grouped = query.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, -1)
    mask = may_look[:, None, None]
    if not kind.softcap and kind.sinks is None:
        decoded = F.scaled_dot_product_attention(grouped, row_keys, row_values, attn_mask=mask, scale=kind.scale)
    else:
        products = (grouped @ row_keys.transpose(2, 3)).float() * kind.scale
        flat = products.reshape(num_rows, num_heads, 1, length).transpose(0, 1)
        weights = _weigh(flat, may_look[None, :, None], kind).transpose(0, 1).reshape(products.shape)
        decoded = weights.to(row_values.dtype) @ row_values
    return decoded.reshape(num_rows, num_heads, -1)


def paged_prompt(query: Tensor, keys: Tensor, values: Tensor, prompts: Prompts, kind: Kind) -> Tensor:
    """Attention of the tokens of chunks, each over those before it in its sequence and itself. All are in the cache.

    Args:
        query: (num_tokens, num_heads, head_dim), one chunk behind the other.
        keys, values: (num_places, num_kv_heads, head_dim) of the whole cache.

    Returns:
        (num_tokens, num_heads, value_dim).
    """
    if has_triton(query.device):
        by_triton: Tensor = _triton.paged_prompt(query, keys, values, prompts, kind)
        return by_triton
    if IS_NATIVE and query.device.type == "cpu":
        native_prompt = torch.ops.endstop.paged_prompt
        where = (prompts.tables, prompts.starts, prompts.bounds)
        out: Tensor = native_prompt(query, keys, values, *where, kind.scale, kind.window, kind.softcap, kind.sinks)
        return out
    return paged_prompt_in_torch(query, keys, values, prompts, kind)


def paged_prompt_in_torch(query: Tensor, keys: Tensor, values: Tensor, prompts: Prompts, kind: Kind) -> Tensor:
    """As `paged_prompt`, on any device, one chunk after the other."""
    bounds, starts = prompts.bounds.tolist(), prompts.starts.tolist()
    in_block = torch.arange(BLOCK_TOKENS, device=query.device)
    parts = []
    for table, start, at, stop in zip(prompts.tables, starts, bounds, bounds[1:], strict=False):
        places = (table[:, None].long() * BLOCK_TOKENS + in_block).flatten()[: start + stop - at]
        seen = keys[places].transpose(0, 1), values[places].transpose(0, 1)
        parts.append(_attend(query[at:stop].transpose(0, 1), *seen, start, kind).transpose(0, 1))
    return torch.cat(parts)


def _attend(query: Tensor, key: Tensor, value: Tensor, start: int, kind: Kind) -> Tensor:
    """Attention of the tokens from `start` on over all tokens of one sequence.

    Args:
        query: (num_heads, num_new, head_dim).
        key, value: (num_kv_heads, start + num_new, head_dim).

    Returns:
        (num_heads, num_new, value_dim).
    """
    num_new, end = query.shape[1], key.shape[1]
    group = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(group, dim=0), value.repeat_interleave(group, dim=0)
    is_narrow = 0 < kind.window < end
    mask = None
    if start or is_narrow or kind.softcap or kind.sinks is not None:
        mask = torch.ones(num_new, end, dtype=torch.bool, device=query.device).tril(start)
        if is_narrow:
            mask = mask.triu(start - kind.window + 1)
    if not kind.softcap and kind.sinks is None:
        return F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, is_causal=mask is None, scale=kind.scale
        )[0]
    assert mask is not None
    products = (query @ key.transpose(1, 2)).float() * kind.scale
    return _weigh(products, mask, kind).to(value.dtype) @ value


def _weigh(products: Tensor, mask: Tensor, kind: Kind) -> Tensor:
    """Softmax with cap and sinks, in float32. (num_heads, ..., num_keys), mask that broadcasts -> the same."""
    if kind.softcap:
        products = (products / kind.softcap).tanh() * kind.softcap
    products = products.masked_fill(~mask, float("-inf"))
    if kind.sinks is None:
        return products.softmax(dim=-1)
    sinks = kind.sinks.float().reshape(-1, *[1] * (products.dim() - 1)).expand(*products.shape[:-1], 1)
    return torch.cat([products, sinks], dim=-1).softmax(dim=-1)[..., :-1]


def set_threads(number: int) -> None:
    """How many threads the native kernels use, for the whole process; 0: as many as torch."""
    if IS_NATIVE:
        torch.ops.endstop.set_threads(number)


def linear(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, *, is_exact: bool) -> Tensor:
    """`x @ weight.T + bias`.

    Args:
        x: (..., k) floats.
        weight: (n, k) of the type of x, or int8.
        scales: (n,) what each row of an int8 weight is multiplied with.
        bias: (n,) floats.
        is_exact: That a row of x gives the same to the bit whoever is beside it, for any number of rows. The native
            kernel does it for few rows in any case.
    """
    if IS_NATIVE and x.device.type == "cpu":
        native_linear = torch.ops.endstop.linear
        out: Tensor = native_linear(x, weight, scales, bias, is_exact)
        return out
    if scales is not None:
        weight = weight.to(x.dtype) * scales[:, None].to(x.dtype)
    return F.linear(x, weight, bias)
