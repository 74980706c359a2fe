"""Attention for a packed batch over the blocks of the KV cache, called by an unmodified transformers model.

transformers' models look their attention function up by name (`AttentionInterface`), so a model runs on our KV cache
without a line of it being changed. Generation thread only.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.kernels import Kind, paged_decode, store, store_and_decode, weigh
from worker.engine.kv_cache import BLOCK_TOKENS, PADDING_BLOCK, num_blocks_for
from worker.engine.scheduler import Row

# Arguments that a model passes when its attention is of a kind that this file does not know.
_UNKNOWN_KINDS = ("position_bias", "cu_seq_lens_q", "block_mask", "indices")


class UnsupportedAttention(Exception):
    """The model's attention is of a kind that this file does not compute."""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the rows of a step lie in the packed batch. Decodes come first.

    Attributes:
        places: (num_tokens,) int64, the place of each packed token in the cache.
        positions: (num_tokens,) int64, its position in its sequence.
        tables: (num_decodes, max_blocks) int32, their blocks; padded.
        lengths: (num_decodes,) int32, how many tokens each decode looks at, its own included.
        prefills: The other rows, each with the index of its first packed token and the places of all its tokens.
    """

    places: Tensor
    positions: Tensor
    tables: Tensor
    lengths: Tensor
    prefills: list[tuple[Row, int, Tensor]]

    @property
    def num_decodes(self) -> int:
        """Rows of one token that extend a cached sequence."""
        return len(self.lengths)


def lay_out(rows: list[Row], device: torch.device, *, is_exact: bool = False) -> tuple[list[Row], PackedLayout]:
    """Order the rows of a step and note where each lies.

    Args:
        is_exact: Take each token of a prompt for a decode of its own, so that it is computed in one way however the
            prompt is cut. Guesses are taken so in any case.

    Returns:
        The rows in packed order, and the layout.
    """
    decodes = [row for row in rows if row.is_decode]
    ordered = decodes + [row for row in rows if not row.is_decode]
    num_decodes = len(rows) if is_exact else len(decodes)
    max_blocks = max((len(row.blocks) for row in ordered[:num_decodes]), default=0)
    places: list[int] = []
    positions: list[int] = []
    tables: list[list[int]] = []
    prefills = []
    for i, row in enumerate(ordered):
        is_alone = i < num_decodes
        if is_alone:
            table = row.blocks + [PADDING_BLOCK] * (max_blocks - len(row.blocks))
            tables += [table] * len(row.token_ids)
        else:
            prefills.append((row, len(places), torch.tensor(_places(row, 0), device=device)))
        places += _places(row, row.start)
        positions += range(row.start, row.end)
    layout = PackedLayout(
        torch.tensor(places, device=device),
        torch.tensor(positions, device=device),
        torch.tensor(tables, dtype=torch.int32, device=device),
        torch.tensor([position + 1 for position in positions[: len(tables)]], dtype=torch.int32, device=device),
        prefills,
    )
    return ordered, layout


def _places(row: Row, start: int) -> list[int]:
    """Of each of the row's tokens from `start` up to its end, the place in the cache."""
    first = start // BLOCK_TOKENS
    places: list[int] = []
    for block in row.blocks[first : num_blocks_for(row.end)]:
        places += range(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
    return places[start - first * BLOCK_TOKENS : row.end - first * BLOCK_TOKENS]


class PagedAttention:
    """Keys and values of all blocks, and the attention over them.

    One layer's keys have shape (num_blocks * BLOCK_TOKENS, num_kv_heads, head_dim). A layer shows its shape when it is
    first called, which is during the check at load time.
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_places = (num_blocks + 1) * BLOCK_TOKENS  # and the block for padding
        self.caches: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values of each layer
        self._kinds: dict[int, Kind] = {}
        self.layout: PackedLayout | None = None  # set by the runner for each step

    @property
    def bytes_per_token(self) -> int:
        """Of all layers that have been called."""
        return sum(cache[0].nbytes for caches in self.caches.values() for cache in caches)

    @torch.inference_mode()
    def resize(self, num_blocks: int) -> None:
        """Make room for so many blocks. What was in the cache is lost.

        Raises:
            torch.OutOfMemoryError, RuntimeError: There is not so much memory.
        """
        self._num_places = (num_blocks + 1) * BLOCK_TOKENS
        for layer, (keys, values) in self.caches.items():
            self.caches[layer] = keys.new_empty(0), values.new_empty(0)  # first give back
            shapes = [(self._num_places, *one.shape[1:]) for one in (keys, values)]
            self.caches[layer] = keys.new_zeros(shapes[0]), values.new_zeros(shapes[1])

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of one layer, in the signature of transformers' `AttentionInterface`.

        Args:
            query: (1, num_heads, num_tokens, head_dim).
            key, value: (1, num_kv_heads, num_tokens, head_dim).

        Returns:
            (1, num_tokens, num_heads, value_dim), and no weights.
        """
        layout, layer = self.layout, module.layer_idx
        assert layout is not None
        kind = self._kinds.get(layer)
        if kind is None:
            kind = self._kinds[layer] = _kind_of(query, scaling, kwargs)
        if layer not in self.caches:
            self.caches[layer] = self._new_cache(key[0]), self._new_cache(value[0])
        keys, values = self.caches[layer]
        new = key[0].transpose(0, 1), value[0].transpose(0, 1)
        if not layout.prefills:
            rows = query[0].transpose(0, 1)
            return store_and_decode(rows, *new, keys, values, layout.places, layout.tables, layout.lengths, kind)[
                None
            ], None
        store(*new, keys, values, layout.places)
        num_heads, num_tokens, num_decodes = query.shape[1], query.shape[2], layout.num_decodes
        out = query.new_empty(num_tokens, num_heads, value.shape[-1])
        if num_decodes:
            decodes = query[0, :, :num_decodes].transpose(0, 1)
            out[:num_decodes] = paged_decode(decodes, keys, values, layout.tables, layout.lengths, kind)
        for row, at, places in layout.prefills:
            stop = at + len(row.token_ids)
            if row.start:
                row_key, row_value = keys[places].transpose(0, 1), values[places].transpose(0, 1)
            else:
                row_key, row_value = key[0, :, at:stop], value[0, :, at:stop]
            out[at:stop] = attend(query[0, :, at:stop], row_key, row_value, row.start, kind).transpose(0, 1)
        return out[None], None

    def _new_cache(self, new: Tensor) -> Tensor:
        return new.new_zeros(self._num_places, new.shape[0], new.shape[-1])


def _kind_of(query: Tensor, scaling: float | None, kwargs: dict[str, Any]) -> Kind:
    unknown = [name for name in _UNKNOWN_KINDS if kwargs.get(name) is not None]
    if unknown or kwargs.get("is_causal") is False:
        raise UnsupportedAttention(f"attention with {', '.join(unknown) or 'is_causal=False'}")
    return Kind(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window") or 0,
        softcap=kwargs.get("softcap") or 0.0,
        sinks=kwargs.get("s_aux"),
    )


def attend(query: Tensor, key: Tensor, value: Tensor, start: int, kind: Kind) -> Tensor:
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
    return weigh(products, mask, kind).to(value.dtype) @ value
