"""On a GPU: kernels, graphs and sampling as they are served. `pytest tests/engine/test_cuda.py -s` prints times too."""

import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.engine.test_kernels import HEAD_DIM, KINDS, LENGTHS, cache_of, chunks_of, one_by_one
from tests.engine.test_parity import check_parity
from tests.engine.test_sampler import ON_A_GPU, FakeRow
from tests.engine.test_trace import new_packed, prompts, row
from tests.support.random_models import PACKED, random_model, save_random_model
from worker.config import read_settings
from worker.engine import kernels
from worker.engine.cuda_graphs import CudaRecorder
from worker.engine.kernels import Kind, paged_decode, paged_prompt
from worker.engine.loader import load
from worker.engine.model_runner import PackedRunner
from worker.engine.sampler import sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

GPU = torch.device("cuda", 0)


def captured(model: Any) -> PackedRunner:
    runner = new_packed(model.to(GPU))
    runner.capture(CudaRecorder(GPU), max_context=512, max_rows=8)
    return runner


def test_triton_is_there() -> None:
    assert kernels.has_triton(GPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_attention_is_what_it_is_by_definition(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    given: dict[str, Any] = {
        name: one.to(GPU) if isinstance(one, torch.Tensor) else one for name, one in KINDS[kind].items()
    }
    here, there = Kind(HEAD_DIM**-0.5, **KINDS[kind]), Kind(HEAD_DIM**-0.5, **given)
    keys, values, tables, lengths = cache_of(LENGTHS, dtype)
    on_gpu = keys.to(GPU), values.to(GPU)
    query = torch.randn(6, len(LENGTHS), HEAD_DIM).to(dtype).transpose(0, 1)
    expected = one_by_one(query, keys, values, tables, lengths, here)
    out = paged_decode(query.to(GPU), *on_gpu, tables.to(GPU), lengths.to(GPU), there)
    assert (out.cpu().double() - expected).abs().max() < tolerance * expected.abs().max()
    sizes = (1, 15, 3, 1, 39, 70)
    query = torch.randn(6, sum(sizes), HEAD_DIM).to(dtype).transpose(0, 1)
    row_of = [row for row, size in enumerate(sizes) for _ in range(size)]
    seen = [length - size + i + 1 for length, size in zip(LENGTHS, sizes, strict=True) for i in range(size)]
    expected = one_by_one(query, keys, values, tables[row_of], torch.tensor(seen), here)
    chunks = chunks_of(sizes, LENGTHS, tables)
    moved = kernels.Prompts(chunks.tables.to(GPU), chunks.starts.to(GPU), chunks.bounds.to(GPU))
    out = paged_prompt(query.to(GPU), *on_gpu, moved, there)
    assert (out.cpu().double() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("family", [family for family in PACKED if family not in ("mixtral", "qwen2-moe", "gpt-oss")])
def test_greedy_tokens_equal_generate(family: str) -> None:
    """In graphs. Mixtures of experts may have to decide by values, and then run in Python."""
    check_parity(family, captured(random_model(family)))


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss"])
def test_greedy_tokens_equal_generate_in_python(family: str) -> None:
    check_parity(family, new_packed(random_model(family).to(GPU)))


def test_a_failed_capture_leaves_a_device_that_computes() -> None:
    model = random_model("llama").to(GPU)
    runner = new_packed(model)
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * float(output.sum() < 1e9))
    with pytest.raises(Exception, match="synchronizing"):
        runner.capture(CudaRecorder(GPU), max_context=512, max_rows=2)
    runner.forward(prompts([5]))
    assert runner.forward([row(0, 5, [8])])[1].isfinite().all()


@pytest.mark.parametrize("chosen", ON_A_GPU)
def test_until_the_tokens_are_wanted_nothing_waits(chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself says so, but for the one copy."""
    runner, tolist = captured(random_model("llama")), torch.Tensor.tolist
    runner.forward(prompts([5, 6, 7]))
    num_copies = 0

    def copy(tensor: torch.Tensor) -> Any:
        nonlocal num_copies
        num_copies += 1
        torch.cuda.set_sync_debug_mode("default")
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", copy)
    for is_warm in (False, True):  # what is made on first use may wait
        rows = [row(i, 5 + i + is_warm, [8]) for i in range(3)]
        torch.cuda.set_sync_debug_mode("error" if is_warm else "default")
        try:
            sample(runner.forward(rows)[1], [FakeRow(one, output_counts=Counter([3])) for one in chosen])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert num_copies == 2


def test_it_loads_and_says_how_it_decodes(tmp_path: Path) -> None:
    settings = read_settings({"ENDSTOP_MODEL": str(save_random_model(tmp_path)), "ENDSTOP_DEVICE": "cuda"})
    description = load(settings, lambda progress: None).description
    assert "decode in CUDA graphs of 1, 2, 4, 8, 16 rows" in description
    assert "without Triton" not in description


def test_how_long_a_step_takes() -> None:
    """Prints it beside the time in which the weights can be read, which no step can beat. Judges nothing."""
    auto: Any = AutoModelForCausalLM
    source, target = torch.empty(2, 2**30, dtype=torch.uint8, device=GPU)
    bytes_per_s = 2 * source.nbytes / _seconds(partial(target.copy_, source))
    for way, new_runner in (("in Python", new_packed), ("in graphs", captured)):
        config = LlamaConfig(num_hidden_layers=8, hidden_size=2048, intermediate_size=8192, num_attention_heads=32)
        model = auto.from_config(config, dtype=torch.bfloat16).to(GPU).eval()
        num_bytes = sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes
        floor_ms = 1e3 * num_bytes / bytes_per_s
        runner = new_runner(model)
        for num_rows in (1, 8):
            step_ms = 1e3 * _seconds(partial(runner.forward, [row(i, 40, [8]) for i in range(num_rows)]))
            print(f"{num_rows} rows {way}: {step_ms:.2f} ms, weights read in {floor_ms:.2f} ms")  # noqa: T201


def _seconds(work: Any, times: int = 20) -> float:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times
