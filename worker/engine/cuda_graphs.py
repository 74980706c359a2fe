"""A decode step as one launch: the kernels of a step, captured in CUDA graphs and launched together.

Why: a step of a small model is a thousand kernels, and a GPU is done with one before the next is launched. A graph is
captured for a number of rows, so there are several, and a step takes the smallest that holds its rows. What is left of
it is padded with rows that look at the padding block and write to the scratch block, which nobody looks at.

A graph is blind to Python, as a recording is (`trace.py`): where the model's code waits for the GPU to decide by a
value, or a captured step is not what the model computes, there are no graphs, and the model's code runs in every step.
Generation thread only.
"""

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from worker.engine.attention import PackedLayout, PagedAttention
from worker.engine.closeness import largest_distance, tolerance_of
from worker.engine.kv_cache import BLOCK_TOKENS, PADDING_BLOCK, num_blocks_for
from worker.engine.memory import is_out_of_memory
from worker.engine.trace import CannotTrace, DecodeStep


class Recorder(Protocol):
    """Captures graphs; all that is used of `torch.cuda` for it."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run work that reads and writes the same tensors every time, and capture it.

        Returns:
            What runs it again.
        """
        ...


class CudaRecorder:
    """Captures graphs on a CUDA device, in one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        new_stream: Any = torch.cuda.Stream
        self._stream = new_stream(device)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`. The work runs three times: what is made on first use may not be made in a capture."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
            _without_waiting(work)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what another thread of this process does with CUDA is no matter of ours.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


def _without_waiting(work: Callable[[], None]) -> None:
    """Run work, with an error where it waits for the GPU. In a capture it would be one too, and a messier one."""
    cuda: Any = torch.cuda
    before = cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode does not see everything
        cuda.set_sync_debug_mode("error")
        try:
            work()
        finally:
            cuda.set_sync_debug_mode(before)


def sizes_up_to(max_rows: int) -> list[int]:
    """Numbers of rows to capture a graph for, ascending. The last one is `max_rows`."""
    return sorted({min(size, max_rows) for size in (1, 2, 4, *range(8, max_rows + 8, 8))})


class GraphedDecode:
    """What `PackedRunner` calls for steps that only decode, on a CUDA device."""

    def __init__(
        self, model: Any, attention: PagedAttention, recorder: Recorder, max_context: int, max_rows: int
    ) -> None:
        """Capture and compare.

        Args:
            model: Whose attention is `attention`, with all its layers called before and its caches of their last size.
            max_context: The latest position is one below.
            max_rows: Steps of more rows run the model's own code.

        Raises:
            CannotTrace: There is no graph to be had of this model.
            torch.OutOfMemoryError: There is no memory for graphs.
        """
        self._attention = attention
        self._step = DecodeStep(model, attention)
        self._vocab_size = model.get_input_embeddings().num_embeddings
        max_rows = min(max_rows, attention.num_blocks)  # each sequence has one at least
        device = model.device
        self._tables = torch.full(
            (max_rows, num_blocks_for(max_context)), PADDING_BLOCK, dtype=torch.int32, device=device
        )
        # What a graph reads, and what it reads of a row that is padding: token, position, place and length.
        self._padding = (0, 0, attention.scratch_place, 1)
        dtypes = (torch.int64, torch.int64, torch.int64, torch.int32)
        self._numbers = [
            torch.full((max_rows,), number, dtype=dtype, device=device)
            for number, dtype in zip(self._padding, dtypes, strict=True)
        ]
        self._logits = self._in_python(*self._example([0])).new_empty(max_rows, self._vocab_size)
        self.sizes = sizes_up_to(max_rows)
        self._replays: dict[int, Callable[[], None]] = {}
        for size in reversed(self.sizes):  # the largest first: the others fit into what it takes of the pool
            try:
                self._replays[size] = recorder.record(partial(self._compute, size))
            except Exception as error:  # whatever a model's code raises, or CUDA for it
                if is_out_of_memory(error):
                    raise
                # A device that was lost by it says so here, and not to the first request.
                self._in_python(*self._example([0])).sum().item()
                raise CannotTrace(f"{type(error).__name__}: {error}") from error
        far = max_context - 1
        tolerance = tolerance_of(model.dtype)
        for before, size in itertools.pairwise([0, *self.sizes]):  # with as much padding as there may be
            starts = [min(start, far) for start in itertools.islice(itertools.cycle((far, 1, 40, 100)), before + 1)]
            example = self._example(starts)
            expected = self._in_python(*example)
            distance = largest_distance(self(*example), expected)
            if distance > tolerance:
                raise CannotTrace(f"a captured step of {size} rows differs by {distance:.2g}")

    def __call__(self, token_ids: Tensor, layout: PackedLayout) -> Tensor:
        """Compute a step.

        Args:
            token_ids: (num_rows,), one for each decode.
            layout: Without prompts.

        Returns:
            The logits of all rows, (num_rows, vocab_size). The next step overwrites them.
        """
        num_rows, num_blocks = layout.tables.shape
        size = next((size for size in self.sizes if size >= num_rows), None)
        if size is None or num_blocks > self._tables.shape[1]:
            return self._in_python(token_ids, layout)
        given = (token_ids, layout.positions, layout.places, layout.lengths)
        for buffer, new, padding in zip(self._numbers, given, self._padding, strict=True):
            buffer[:num_rows].copy_(new)
            buffer[num_rows:size].fill_(padding)
        # What is behind a row's own blocks is of an earlier step, and lies beyond its length.
        self._tables[:num_rows, :num_blocks].copy_(layout.tables)
        self._tables[num_rows:size, 0].fill_(PADDING_BLOCK)
        self._replays[size]()
        return self._logits[:num_rows]

    def _compute(self, size: int) -> None:
        """A step of so many rows, from the buffers and into them."""
        token_ids, positions, places, lengths = (buffer[:size] for buffer in self._numbers)
        layout = PackedLayout(places, positions, self._tables[:size], lengths, None)
        self._logits[:size].copy_(self._in_python(token_ids, layout))

    def _in_python(self, token_ids: Tensor, layout: PackedLayout) -> Tensor:
        """The same by the model's own code, as it is launched from Python."""
        caches = [cache for pair in self._attention.caches.values() for cache in pair]
        logits: Tensor = self._step(
            token_ids[None], layout.positions, layout.places, layout.tables, layout.lengths, *caches
        )
        return logits

    def _example(self, starts: list[int]) -> tuple[Tensor, PackedLayout]:
        """Rows that decode at these positions, each in a block of its own, which it sees again and again."""
        device = self._tables.device
        token_ids = torch.randint(self._vocab_size, (len(starts),), generator=torch.Generator().manual_seed(0))
        positions = torch.tensor(starts, device=device)
        blocks = 1 + torch.arange(len(starts), dtype=torch.int32, device=device)
        tables = blocks[:, None].repeat(1, num_blocks_for(max(starts) + 1))
        places = blocks.long() * BLOCK_TOKENS + positions % BLOCK_TOKENS
        lengths = (positions + 1).to(torch.int32)
        return token_ids.to(device), PackedLayout(places, positions, tables, lengths, None)
