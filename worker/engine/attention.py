"""Attention for a packed batch over slots, called by an unmodified transformers model.

transformers' models look their attention function up by name (`AttentionInterface`), so a model runs on our KV cache
without a line of it being changed. Generation thread only.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.scheduler import Row

# Arguments that a model passes when its attention is not plain causal softmax attention. We do not know them.
_UNKNOWN_KINDS = ("sliding_window", "softcap", "s_aux", "position_bias", "cu_seq_lens_q")


class UnsupportedAttention(Exception):
    """The model's attention is of a kind that this file does not compute."""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the rows of a step lie in the packed batch. Decodes come first, sorted by slot.

    Attributes:
        slots: (num_tokens,) int64, the slot of each packed token.
        positions: (num_tokens,) int64, its position in its sequence.
        decodes: Rows of one token that extend a cached sequence.
        prefills: The other rows, each with the index of its first packed token.
        dense: Slots lo:hi if the decodes are computed as one batch over them, else None.
        dense_mask: (hi - lo, 1, 1, max_len), 0 where a decode may look and -inf elsewhere.
        dense_index: (num_decodes,) int64, the place of each decode in lo:hi.
    """

    slots: Tensor
    positions: Tensor
    decodes: list[Row]
    prefills: list[tuple[Row, int]]
    dense: tuple[int, int] | None
    dense_mask: Tensor | None
    dense_index: Tensor | None


def lay_out(rows: list[Row], dtype: torch.dtype, device: torch.device) -> tuple[list[Row], PackedLayout]:
    """Order the rows of a step and note where each lies.

    Returns:
        The rows in packed order, and the layout.
    """
    decodes = sorted((row for row in rows if row.is_decode), key=lambda row: row.slot)
    ordered = decodes + [row for row in rows if not row.is_decode]
    slots: list[int] = []
    positions: list[int] = []
    prefills = []
    for row in ordered:
        if not row.is_decode:
            prefills.append((row, len(slots)))
        slots += [row.slot] * len(row.token_ids)
        positions += range(row.start, row.end)
    dense = dense_mask = dense_index = None
    if _is_dense(decodes):
        lo, hi = decodes[0].slot, decodes[-1].slot + 1
        lengths = torch.ones(hi - lo, dtype=torch.int64)  # a gap looks at position 0; its output is not read
        dense_index = torch.tensor([row.slot - lo for row in decodes])
        lengths[dense_index] = torch.tensor([row.end for row in decodes])
        may_look = torch.arange(max(row.end for row in decodes)) < lengths[:, None]
        dense_mask = torch.zeros(may_look.shape, dtype=dtype).masked_fill_(~may_look, float("-inf"))
        dense_mask = dense_mask[:, None, None].to(device)
        dense_index = dense_index.to(device)
        dense = (lo, hi)
    layout = PackedLayout(
        torch.tensor(slots, device=device),
        torch.tensor(positions, device=device),
        decodes,
        prefills,
        dense,
        dense_mask,
        dense_index,
    )
    return ordered, layout


def _is_dense(decodes: list[Row]) -> bool:
    """Whether one padded batch reads at most about twice what row by row would: the calls saved pay for that."""
    if len(decodes) < 2:
        return False
    num_slots = decodes[-1].slot + 1 - decodes[0].slot
    return num_slots * max(row.end for row in decodes) <= 2 * sum(row.end for row in decodes)


class SlotAttention:
    """Keys and values of all slots, and the attention over them.

    One layer's cache has shape (num_slots, num_kv_heads, max_context, head_dim). It is made when the layer is first
    called, which is during the check at load time: a cache that does not fit fails there and not in a request.
    """

    def __init__(self, num_slots: int, max_context: int) -> None:
        self._num_slots = num_slots
        self._max_context = max_context
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self.layout: PackedLayout | None = None  # set by the runner for each step

    @torch.inference_mode()  # the cache was made in it
    def scrub(self, slot: int, length: int) -> None:
        """Clear a slot up to `length`. A NaN left behind would reach its next owner through the mask (0 * NaN)."""
        for cache in (*self._keys.values(), *self._values.values()):
            cache[slot, :, :length].zero_()

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
            (1, num_tokens, num_heads, head_dim), and no weights.
        """
        unknown = [name for name in _UNKNOWN_KINDS if kwargs.get(name) is not None]
        if unknown or kwargs.get("is_causal") is False:
            raise UnsupportedAttention(f"attention with {', '.join(unknown) or 'is_causal=False'}")
        layout = self.layout
        assert layout is not None
        keys, values = self._store(module.layer_idx, key[0], value[0], layout)
        num_heads, num_tokens = query.shape[1], query.shape[2]
        packed = query[0].transpose(0, 1)  # (num_tokens, num_heads, head_dim)
        out = torch.empty(num_tokens, num_heads, value.shape[-1], dtype=query.dtype, device=query.device)
        if layout.dense is not None:
            self._decode_dense(packed, keys, values, layout, scaling, out)
        else:
            for i, row in enumerate(layout.decodes):
                out[i] = self._decode_one(packed[i], keys, values, row, scaling)
        for row, at in layout.prefills:
            stop = at + len(row.token_ids)
            out[at:stop] = self._prefill(query[:, :, at:stop], keys, values, row, scaling)
        return out[None], None

    def _store(self, layer: int, key: Tensor, value: Tensor, layout: PackedLayout) -> tuple[Tensor, Tensor]:
        """Write the new keys and values into the layer's cache and return the cache."""
        if layer not in self._keys:
            for caches, new in ((self._keys, key), (self._values, value)):
                shape = (self._num_slots, new.shape[0], self._max_context, new.shape[-1])
                caches[layer] = torch.zeros(shape, dtype=new.dtype, device=new.device)
        keys, values = self._keys[layer], self._values[layer]
        keys[layout.slots, :, layout.positions] = key.transpose(0, 1)
        values[layout.slots, :, layout.positions] = value.transpose(0, 1)
        return keys, values

    def _decode_dense(
        self, packed: Tensor, keys: Tensor, values: Tensor, layout: PackedLayout, scaling: float | None, out: Tensor
    ) -> None:
        """All decodes as one padded batch over neighbouring slots."""
        assert layout.dense is not None
        assert layout.dense_mask is not None
        assert layout.dense_index is not None
        lo, hi = layout.dense
        length = layout.dense_mask.shape[-1]
        num_decodes = len(layout.decodes)
        num_kv_heads = keys.shape[1]
        # The heads that share a key are rows of one query: `enable_gqa` was 4 to 15 times slower in bf16 on a CPU.
        grouped = packed[:num_decodes].reshape(num_decodes, num_kv_heads, -1, packed.shape[-1])
        if num_decodes < hi - lo:
            spread = grouped.new_zeros((hi - lo, *grouped.shape[1:]))
            spread[layout.dense_index] = grouped
            grouped = spread
        result = F.scaled_dot_product_attention(
            grouped, keys[lo:hi, :, :length], values[lo:hi, :, :length], attn_mask=layout.dense_mask, scale=scaling
        )
        if num_decodes < hi - lo:
            result = result[layout.dense_index]
        out[:num_decodes] = result.reshape(num_decodes, -1, out.shape[-1])

    def _decode_one(self, query: Tensor, keys: Tensor, values: Tensor, row: Row, scaling: float | None) -> Tensor:
        """One decode. (num_heads, head_dim) -> (num_heads, value_dim)."""
        num_heads = query.shape[0]
        slot, num_kv_heads = row.slot, keys.shape[1]
        result = F.scaled_dot_product_attention(
            query.reshape(1, num_kv_heads, num_heads // num_kv_heads, -1),
            keys[slot : slot + 1, :, : row.end],
            values[slot : slot + 1, :, : row.end],
            scale=scaling,
        )
        return result.reshape(num_heads, -1)

    def _prefill(self, query: Tensor, keys: Tensor, values: Tensor, row: Row, scaling: float | None) -> Tensor:
        """One chunk of a prompt. (1, num_heads, n, head_dim) -> (n, num_heads, value_dim)."""
        group = query.shape[1] // keys.shape[1]
        slot = slice(row.slot, row.slot + 1)
        key = keys[slot, :, : row.end].repeat_interleave(group, dim=1)
        value = values[slot, :, : row.end].repeat_interleave(group, dim=1)
        num_new = query.shape[2]
        mask = None
        if row.start:  # each token looks at what was cached and at its elders in the chunk
            mask = torch.ones(num_new, row.end, dtype=torch.bool, device=query.device).tril(row.start)
        result = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
        return result[0].transpose(0, 1)
