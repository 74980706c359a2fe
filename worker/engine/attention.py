"""Attention for a packed batch over the blocks of the KV cache, called by an unmodified transformers model.

transformers' models look their attention function up by name (`AttentionInterface`), so a model runs on our KV cache
without a line of it being changed. Generation thread only.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.engine.kernels import Kind, Prompts, paged_decode, paged_prompt, store, store_and_decode
from worker.engine.kv_cache import BLOCK_TOKENS, PADDING_BLOCK, num_blocks_for
from worker.engine.scheduler import Row
from worker.engine.upload import upload_parts

# Arguments that a model passes when its attention is of a kind that this file does not know.
_UNKNOWN_KINDS = ("position_bias", "cu_seq_lens_q", "block_mask", "indices")


class UnsupportedAttention(Exception):
    """The model's attention is of a kind that this file does not compute."""


class OwnMask(UnsupportedAttention):
    """The model makes a mask by itself, of what it has seen so far: with a prompt in parts it may be another."""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the rows of a step lie in the packed batch. Decodes come first, then chunks of prompts.

    Attributes:
        places: (num_tokens,) int64, the place of each packed token in the cache.
        positions: (num_tokens,) int64, its position in its sequence.
        tables: (num_decodes, max_blocks) int32, the blocks of each decoded token; padded.
        lengths: (num_decodes,) int32, how many tokens each of them looks at, itself included.
        prompts: The chunks; None if there are none.
    """

    places: Tensor
    positions: Tensor
    tables: Tensor
    lengths: Tensor
    prompts: Prompts | None


@dataclass(frozen=True, slots=True)
class PackedStep:
    """A step on the device.

    Attributes:
        sampled: The rows that are sampled, in packed order.
        keep: (n,) int64, which tokens have logits that somebody wants.
        token_ids: (num_tokens,) int64.
    """

    sampled: list[Row]
    keep: Tensor
    token_ids: Tensor
    layout: PackedLayout


def lay_out(rows: list[Row], device: torch.device, *, is_exact: bool = False) -> PackedStep:
    """Order the rows of a step and note where each lies. What the device needs of it goes there in two copies.

    Args:
        is_exact: Take each token of a prompt for a decode of its own, so that it is computed in one way however the
            prompt is cut. Guesses are taken so in any case.
    """
    decodes = [row for row in rows if row.is_decode]
    chunks = [row for row in rows if not row.is_decode]
    ordered = decodes + chunks
    if is_exact:
        decodes, chunks = ordered, []
    token_ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    keep: list[int] = []
    for row in ordered:
        token_ids += row.token_ids
        positions += range(row.start, row.end)
        places += _places(row)
        if row.is_sampled:
            keep += range(len(token_ids) - 1 - row.num_guesses, len(token_ids))
    num_decodes = sum(len(row.token_ids) for row in decodes)
    lengths = [position + 1 for position in positions[:num_decodes]]
    tables = [table for row, table in zip(decodes, _tables(decodes), strict=True) for _ in row.token_ids]
    bounds = [0, *itertools.accumulate(len(row.token_ids) for row in chunks)]

    wide = upload_parts([token_ids, positions, places, keep], torch.int64, device)
    narrow = upload_parts(
        [lengths, _flat(tables), bounds, [row.start for row in chunks], _flat(_tables(chunks))], torch.int32, device
    )
    prompts = Prompts(narrow[4].view(len(chunks), -1), narrow[3], narrow[2]) if chunks else None
    decode_tables = narrow[1].view(num_decodes, len(tables[0]) if tables else 0)
    layout = PackedLayout(wide[2], wide[1], decode_tables, narrow[0], prompts)
    return PackedStep([row for row in ordered if row.is_sampled], wide[3], wide[0], layout)


def _flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain(*lists))


def _tables(rows: list[Row]) -> list[list[int]]:
    """The blocks of each row, padded to the longest."""
    max_blocks = max((len(row.blocks) for row in rows), default=0)
    return [row.blocks + [PADDING_BLOCK] * (max_blocks - len(row.blocks)) for row in rows]


def _places(row: Row) -> list[int]:
    """Of each of the row's tokens that are computed, the place in the cache."""
    first = row.start // BLOCK_TOKENS
    places: list[int] = []
    for block in row.blocks[first : num_blocks_for(row.end)]:
        places += range(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
    return places[row.start - first * BLOCK_TOKENS : row.end - first * BLOCK_TOKENS]


class PagedAttention:
    """Keys and values of all blocks, and the attention over them.

    One layer's keys have shape (num_places, num_kv_heads, head_dim): the block for padding, the `num_blocks` that are
    owned, and one place for scratch. A layer shows its shape when it is first called, which is during the check at load
    time.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.caches: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values of each layer
        self._kinds: dict[int, Kind] = {}
        self.layout: PackedLayout | None = None  # set by the runner for each step

    @property
    def windows(self) -> set[int]:
        """Of all layers that have been called; 0: the whole sequence."""
        return {kind.window for kind in self._kinds.values()}

    @property
    def bytes_per_token(self) -> int:
        """Of all layers that have been called."""
        return sum(cache[0].nbytes for caches in self.caches.values() for cache in caches)

    @property
    def scratch_place(self) -> int:
        """Where a row that is only padding writes to. It is behind all blocks, and nobody looks at it."""
        return (self.num_blocks + 1) * BLOCK_TOKENS

    @property
    def _num_places(self) -> int:
        return self.scratch_place + 1

    @torch.inference_mode()
    def resize(self, num_blocks: int) -> None:
        """Make room for so many blocks. What was in the cache is lost.

        Raises:
            torch.OutOfMemoryError, RuntimeError: There is not so much memory.
        """
        self.num_blocks = num_blocks
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
        if attention_mask is not None:  # we make none
            raise OwnMask("attention with a mask of the model's own")
        kind = self._kinds.get(layer)
        if kind is None:
            kind = self._kinds[layer] = _kind_of(query, scaling, kwargs)
        if layer not in self.caches:
            self.caches[layer] = self._new_cache(key[0]), self._new_cache(value[0])
        keys, values = self.caches[layer]
        new = key[0].transpose(0, 1), value[0].transpose(0, 1)
        rows = query[0].transpose(0, 1)
        tables, lengths, prompts = layout.tables, layout.lengths, layout.prompts
        if prompts is None:
            out = store_and_decode(rows, *new, keys, values, layout.places, tables, lengths, kind)
            return out[None], None
        store(*new, keys, values, layout.places)
        num_decodes = len(lengths)
        out = paged_prompt(rows[num_decodes:], keys, values, prompts, kind)
        if num_decodes:
            out = torch.cat([paged_decode(rows[:num_decodes], keys, values, tables, lengths, kind), out])
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
