"""A decode step through buffers and graphs, with a recorder that runs again what it was given."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.test_parity import check_parity
from tests.engine.test_trace import new_packed, prompts, row
from tests.support.looks import Looks
from tests.support.random_models import PACKED, random_model
from worker.engine.cuda_graphs import CudaRecorder, sizes_up_to
from worker.engine.kernels import IS_NATIVE
from worker.engine.kv_cache import BLOCK_TOKENS, PADDING_BLOCK
from worker.engine.model_runner import PackedRunner
from worker.engine.trace import CannotTrace

MAX_CONTEXT = 512


class FakeRecorder:
    """Runs the work once where a GPU would capture it, and again where the graph would be launched."""

    def __init__(self) -> None:
        self.num_replays = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            self.num_replays += 1
            work()

        work()
        return replay


def captured(model: Any, max_rows: int) -> tuple[PackedRunner, FakeRecorder]:
    runner, recorder = new_packed(model), FakeRecorder()
    runner.capture(recorder, MAX_CONTEXT, max_rows)
    recorder.num_replays = 0
    return runner, recorder


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9]), (32, [1, 2, 4, 8, 16, 24, 32])],
)
def test_there_is_a_graph_for_few_rows_and_for_every_eight(max_rows: int, sizes: list[int]) -> None:
    assert sizes_up_to(max_rows) == sizes


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_greedy_tokens_equal_generate(family: str) -> None:
    runner, recorder = captured(random_model(family), 5)
    check_parity(family, runner)
    assert recorder.num_replays > 20


def test_a_captured_step_is_the_models_own() -> None:
    """With padding and without, over the borders of blocks, with ever other rows."""
    lengths = [30, 1, 17, 90, 64]
    model = random_model("llama")
    (graphed, recorder), eager = captured(model, 5), new_packed(random_model("llama"))
    for runner in (graphed, eager):
        runner.forward(prompts(lengths))
    for step in range(6):
        rows = [row(i, length + step, [7 + i + step]) for i, length in enumerate(lengths)][step % 4 :]
        logits, expected = (runner.forward(rows)[1] for runner in (graphed, eager))
        assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert recorder.num_replays == 6


def test_rows_of_an_earlier_step_are_not_computed_again() -> None:
    """What they had would be written over a block that is somebody else's by now."""
    runner, _ = captured(random_model("llama"), 4)
    runner.forward(prompts([5, 6, 7, 8]))
    runner.forward([row(i, 5 + i, [9]) for i in range(4)])
    before = {layer: cache[0].clone() for layer, cache in runner.attention.caches.items()}
    runner.forward([row(i, 6 + i, [9]) for i in range(3)])  # in the graph of four
    for layer, (keys, _) in runner.attention.caches.items():
        changed = (keys != before[layer]).flatten(1).any(dim=1).nonzero().flatten().tolist()
        blocks_of_three = [(1 + i * 8) * BLOCK_TOKENS + 6 + i for i in range(3)]
        assert set(changed) - {runner.attention.scratch_place} == set(blocks_of_three)
    graphed: Any = runner._traced
    assert graphed._tables[3].tolist()[:1] == [PADDING_BLOCK], "nor read"


@torch.inference_mode()
def test_the_padding_block_holds_zeros_for_ever_and_nobody_looks_at_the_scratch() -> None:
    runner, _ = captured(random_model("llama"), 8)
    runner.forward(prompts([5, 6, 7]))
    for keys, values in runner.attention.caches.values():
        keys[runner.attention.scratch_place], values[runner.attention.scratch_place] = math.nan, math.nan
    sampled, logits = runner.forward([row(i, 5 + i, [9]) for i in range(3)])
    assert len(sampled) == len(logits) == 3
    assert logits.isfinite().all()
    for keys, values in runner.attention.caches.values():
        assert not keys[:BLOCK_TOKENS].any()
        assert not values[:BLOCK_TOKENS].any()
        assert keys[runner.attention.scratch_place].isfinite().all(), "the padding was written here"


def test_more_rows_than_the_largest_graph_run_the_models_code() -> None:
    runner, recorder = captured(random_model("llama"), 2)
    runner.forward(prompts([5, 6, 7]))
    _, logits = runner.forward([row(i, 5 + i, [9]) for i in range(3)])
    assert recorder.num_replays == 0
    assert logits.isfinite().all()
    _, pair = runner.forward([row(i, 5 + i, [9]) for i in range(2)])
    assert recorder.num_replays == 1
    assert torch.allclose(logits[:2], pair, rtol=1e-4, atol=1e-4)


def test_a_sequence_longer_than_the_buffers_runs_the_models_code() -> None:
    runner, recorder = new_packed(random_model("llama")), FakeRecorder()
    runner.capture(recorder, max_context=32, max_rows=2)
    recorder.num_replays = 0
    runner.forward(prompts([40]))
    assert runner.forward([row(0, 40, [9])])[1].isfinite().all()
    assert recorder.num_replays == 0


def test_no_more_rows_are_captured_than_there_are_blocks() -> None:
    runner = new_packed(random_model("llama"))
    runner.attention.resize(3)
    assert runner.capture(FakeRecorder(), MAX_CONTEXT, 512) == [1, 2, 3]


def test_rows_that_are_not_sampled_have_no_logits() -> None:
    runner, _ = captured(random_model("llama"), 4)
    runner.forward(prompts([5, 6, 7]))
    rows = [row(0, 5, [8]), row(1, 6, [9], is_sampled=False), row(2, 7, [10])]
    sampled, logits = runner.forward(rows)
    _, all_logits = runner.forward([rows[0], row(1, 6, [9]), rows[2]])
    assert sampled == [rows[0], rows[2]]
    assert torch.equal(logits, all_logits[[0, 2]])


@pytest.mark.parametrize(("factor", "distance"), [(2.0, "0"), (math.nan, "inf")])
def test_what_is_captured_differently_is_not_used(factor: float, distance: str) -> None:
    """A recorder whose graphs leave out what the model's code does beside launching."""
    model = random_model("llama")
    runner = new_packed(model)
    is_captured = False

    class Forgetful(FakeRecorder):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            def replay() -> None:
                nonlocal is_captured
                is_captured = True
                work()
                is_captured = False

            return replay

    model.model.layers[1].mlp.register_forward_hook(
        lambda module, inputs, output: output * factor if is_captured else output
    )
    with pytest.raises(CannotTrace, match=f"a captured step of 1 rows differs by {distance}"):
        runner.capture(Forgetful(), MAX_CONTEXT, 4)
    runner.forward(prompts([5]))
    assert runner.forward([row(0, 5, [8])])[1].isfinite().all()


@pytest.mark.skipif(not IS_NATIVE, reason="without the native kernel decodes look at values in Python")
@pytest.mark.parametrize("family", PACKED)
def test_no_step_of_a_model_waits_for_the_gpu(family: str) -> None:
    """Else nothing of it could be captured. Drawing does, once for each step."""
    runner, (first, second, third) = new_packed(random_model(family)), prompts([5, 6, 7])
    with Looks() as looks:
        runner.forward([first, second])
        runner.forward([row(0, 5, [8]), third])
        runner.forward([row(0, 6, [8]), row(1, 6, [8])])
    assert not looks.seen


class Failing(FakeRecorder):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        raise self._error


def test_what_cannot_be_captured_runs_the_models_code() -> None:
    runner = new_packed(random_model("llama"))
    with pytest.raises(CannotTrace, match="RuntimeError: called a synchronizing CUDA operation"):
        runner.capture(Failing(RuntimeError("called a synchronizing CUDA operation")), MAX_CONTEXT, 4)
    runner.forward(prompts([5]))
    assert runner.forward([row(0, 5, [8])])[1].isfinite().all()


def test_want_of_memory_is_no_fault_of_the_model() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        new_packed(random_model("llama")).capture(Failing(torch.OutOfMemoryError("none")), MAX_CONTEXT, 4)


def test_a_device_that_is_lost_in_a_capture_is_noticed_at_once() -> None:
    """And not by the first request."""
    model = random_model("llama")
    runner = new_packed(model)

    class Losing(FakeRecorder):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            def fail(*_: Any) -> None:
                raise torch.AcceleratorError("the device is lost")

            model.model.layers[0].register_forward_pre_hook(fail)
            raise RuntimeError("capture failed")

    with pytest.raises(torch.AcceleratorError):
        runner.capture(Losing(), MAX_CONTEXT, 4)


class FakeCuda:
    """Notes what is asked of `torch.cuda`, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.mode: int | str = 0
        stream = SimpleNamespace(wait_stream=lambda other: self.calls.append("wait"))
        for name, value in {
            "graph_pool_handle": lambda: (0, 0),
            "Stream": lambda device: stream,
            "current_stream": lambda: stream,
            "stream": lambda one: nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.calls.append("replay")),
            "graph": self._graph,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self._set_mode,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def _graph(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Any:
        self.calls.append("capture")
        return nullcontext()

    def _set_mode(self, mode: Any) -> None:
        self.mode = mode


def test_a_capture_comes_behind_two_runs_of_which_one_may_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    replay = CudaRecorder(torch.device("cuda", 0)).record(lambda: cuda.calls.append(f"work {cuda.mode}"))
    replay()
    assert cuda.calls == ["wait", "work 0", "work error", "wait", "capture", "work 0", "replay"]


def test_after_work_that_waits_it_may_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)

    def wait() -> None:
        if cuda.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        CudaRecorder(torch.device("cuda", 0)).record(wait)
    assert cuda.mode == 0
    assert "capture" not in cuda.calls
