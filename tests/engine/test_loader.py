"""A model loads, with its progress shown, or says in one line why not."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, Gemma3Config, GPT2Config, MptConfig, WhisperConfig
from transformers.utils import logging as transformers_logging

from tests.engine.test_cuda_graphs import Failing, FakeRecorder
from tests.support.random_models import VOCAB_SIZE, byte_level_tokenizer, random_model, save_random_model
from worker.config import read_settings
from worker.engine import kernels, loader
from worker.engine.loader import LoadedModel, LoadingProgress, _choose_device, load
from worker.engine.model_runner import FallbackRunner, PackedRunner, check_last_position, new_runner
from worker.engine.positions import Positions, positions_of
from worker.engine.scheduler import Row
from worker.errors import ModelLoadError
from worker.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that the test may break."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, neither here nor in a child; the library has read the variable already."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def load_from(source: Path | str, **settings: Any) -> tuple[LoadedModel, list[LoadingProgress]]:
    reports: list[LoadingProgress] = []
    chosen = replace(Settings(), **{"model": str(source), "max_slots": 2, "max_context": 64, **settings})
    return load(chosen, reports.append), reports


def reason(source: Path | str, **settings: Any) -> str:
    """Why it does not load, in one line that names the model."""
    with pytest.raises(ModelLoadError) as error:
        load_from(source, **settings)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_a_saved_model_loads(saved: Path) -> None:
    model, _ = load_from(saved)
    assert isinstance(model.runner, PackedRunner)
    assert (model.max_context, model.vocab_size, model.device) == (64, VOCAB_SIZE, "cpu")
    assert "float32 on cpu" in model.description
    assert "\n" not in model.description
    assert model.tokenizer.encode("the fox")


def test_a_model_with_another_attention_is_served_row_by_row(tmp_path: Path) -> None:
    model, _ = load_from(save_random_model(tmp_path, "mpt"))
    assert isinstance(model.runner, FallbackRunner)
    assert "row by row" in model.description


def test_a_model_that_keeps_its_state_in_another_way_is_refused(tmp_path: Path) -> None:
    """It would answer, and every token behind the first would be wrong."""
    assert "models of the kind 'mamba' are not supported" in reason(save_random_model(tmp_path, "mamba"))


def test_no_sequence_is_so_long_that_others_get_other_positions(tmp_path: Path) -> None:
    """With LongRoPE a long neighbour would change an answer, and a cached beginning the answer behind it."""
    model, _ = load_from(save_random_model(tmp_path, "phi3-longrope"), max_context=512)
    assert model.max_context == 64
    assert "requests of up to 64 tokens (of 512: beyond, its LongRoPE" in model.description
    shorter, _ = load_from(tmp_path, max_context=32)
    assert shorter.max_context == 32
    assert "LongRoPE" not in shorter.description


def test_a_model_that_makes_its_own_mask_is_refused(tmp_path: Path) -> None:
    """Its window is longer than the prompts of the check, and it is wrong beyond, packed or with a prompt in parts."""
    assert "mask of the model's own" in reason(save_random_model(tmp_path, "doge"))


def test_a_window_that_only_a_mask_knows_of_is_served_row_by_row(tmp_path: Path) -> None:
    model, _ = load_from(save_random_model(tmp_path, "qwen2-moe-window"))
    assert isinstance(model.runner, FallbackRunner)
    assert "a window of 24 tokens that only its mask knows of" in model.description


@pytest.mark.parametrize("error", [ValueError("not so"), RuntimeError("not so"), IndexError("not so")])
def test_a_model_that_computes_in_neither_way_is_refused_with_both_reasons(error: Exception) -> None:
    model = random_model("mpt")
    forward = model.forward

    def without_a_cache(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            raise error
        return forward(*args, **kwargs)

    model.forward = without_a_cache
    with pytest.raises(ModelLoadError, match=rf"\(packed: .*; row by row, .*: {type(error).__name__}: not so\)"):
        new_runner(model, lambda _: 1)


def test_neither_of_two_long_reasons_hides_the_other(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(runner: FallbackRunner | PackedRunner, rows: list[Row]) -> None:
        raise RuntimeError(f"not\n{'packed' if runner.is_packed else 'row by row'} " * 100)

    monkeypatch.setattr(PackedRunner, "forward", fail)
    monkeypatch.setattr(FallbackRunner, "forward", fail)
    text = reason(saved)
    assert "RuntimeError: not packed" in text
    assert "RuntimeError: not row by row" in text
    assert text.endswith(")")


def test_a_model_without_memory_for_its_own_cache_is_not_called_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(FallbackRunner, "forward", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        new_runner(random_model("mpt"), lambda _: 1)


def test_a_model_whose_chunks_a_short_check_cannot_see_is_served_row_by_row(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_chunk_size": 64}))
    model, _ = load_from(folder)
    assert isinstance(model.runner, FallbackRunner)
    assert "attention in chunks" in model.description


def test_the_cache_is_as_large_as_it_may_be(saved: Path) -> None:
    bytes_per_token = 3 * 2 * 2 * 16 * 4  # layers, keys and values, heads, their size, float32
    model, _ = load_from(saved, max_slots=64, max_context=512, cache_mb=1)
    assert model.num_blocks == 2**20 // (16 * bytes_per_token)
    assert f"cache of {model.num_blocks * 16} tokens" in model.description
    assert load_from(saved, max_slots=1, max_context=64, cache_mb=1)[0].num_blocks == 4, "what nobody could use"


def test_the_cache_of_a_model_that_is_served_row_by_row_is_as_large_as_it_may_be(tmp_path: Path) -> None:
    bytes_per_token = 3 * 2 * 4 * 16 * 4  # layers, keys and values, heads, their size, float32
    folder = save_random_model(tmp_path, "mpt")
    model, _ = load_from(folder, max_slots=64, max_context=512, cache_mb=1)
    assert model.num_blocks == 2**20 // (16 * bytes_per_token)
    assert f"cache of {model.num_blocks * 16} tokens" in model.description


def test_a_cache_that_is_measured_again_is_not_bound_by_the_first_time(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a model may be tried twice: first row by row, because Triton failed, and then packed."""

    def twice(model: Any, num_blocks: Callable[[int], int], **kwargs: Any) -> Any:
        num_blocks(2**40)
        return new_runner(model, num_blocks, **kwargs)

    monkeypatch.setattr(loader, "new_runner", twice)
    assert load_from(saved, max_slots=1, max_context=64)[0].num_blocks == 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "without batching, a prefix cache ("),
        ({"prefix_cache": "off"}, "without batching ("),
        ({"speculation": "ngram"}, "without batching, a prefix cache, guesses ("),
    ],
)
def test_who_is_served_row_by_row_is_told_what_it_goes_without(
    tmp_path: Path, settings: dict[str, str], expected: str
) -> None:
    assert expected in load_from(save_random_model(tmp_path, "mpt"), **settings)[0].description


def test_a_context_that_the_whole_cache_cannot_hold_is_none(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that could never be computed would be begun again for ever."""
    monkeypatch.setattr("worker.engine.loader.cache_bytes", lambda wanted_mb, device: 10 * 16 * 768 + 5)
    model, _ = load_from(saved, max_slots=1, max_context=512)
    assert (model.num_blocks, model.max_context) == (10, 160)


def test_a_cache_without_room_for_anything_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.loader.cache_bytes", lambda wanted_mb, device: 100)
    assert "ENDSTOP_CACHE_MB" in reason(saved)


def test_the_context_is_that_of_the_model_at_most(saved: Path) -> None:
    assert load_from(saved, max_context=4096)[0].max_context == 512


def test_the_context_of_a_model_that_is_served_row_by_row_is_its_own_at_most(tmp_path: Path) -> None:
    """Beyond it the model fails, and whoever asks has to be refused beforehand."""
    assert load_from(save_random_model(tmp_path, "mpt"), max_context=4096)[0].max_context == 512


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_positions=77), 77),
        (MptConfig(max_seq_len=77), 77),
        (WhisperConfig(max_target_positions=77), 77),
        (Gemma3Config(text_config={"max_position_embeddings": 77}), 77),  # text is one of several parts
        (BloomConfig(), sys.maxsize),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_number_of_positions_has_many_names(config: Any, expected: int) -> None:
    assert positions_of(config) == Positions(expected)


@pytest.mark.parametrize("trace", ["on", "off"])
@pytest.mark.parametrize("max_context", [513, 600, 4096])
def test_a_model_that_has_fewer_positions_than_it_says_tells_how_many_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_context: int, trace: str
) -> None:
    folder = save_random_model(tmp_path, "gpt2")
    monkeypatch.setattr("worker.engine.loader.positions_of", lambda config: Positions(sys.maxsize))
    assert "ENDSTOP_MAX_CONTEXT=512 would do" in reason(folder, max_context=max_context, trace=trace)
    assert load_from(folder, max_context=512, trace=trace)[0].max_context == 512


def test_a_device_that_is_lost_at_the_last_position_is_not_asked_for_others(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def lost(runner: PackedRunner, rows: list[Row]) -> None:
        asked.append(rows[0].start)
        raise torch.AcceleratorError("device-side assert triggered")

    runner = load_from(saved)[0].runner
    assert isinstance(runner, PackedRunner)
    monkeypatch.setattr(PackedRunner, "forward", lost)
    with pytest.raises(ModelLoadError, match="fails at position 63; lower ENDSTOP_MAX_CONTEXT"):
        check_last_position(runner, 64)
    assert asked == [63]


@pytest.mark.parametrize(("dtype", "shown"), [("bfloat16", "bfloat16"), ("auto", "float32")])
def test_the_type_of_the_weights_is_the_one_asked_for(saved: Path, dtype: str, shown: str) -> None:
    assert shown in load_from(saved, dtype=dtype)[0].description


@pytest.mark.parametrize("shard_size", ["50KB", "5GB"])
def test_progress_never_goes_back(tmp_path: Path, shard_size: str) -> None:
    random_model("llama").save_pretrained(tmp_path, max_shard_size=shard_size)
    byte_level_tokenizer().save_pretrained(tmp_path)
    _, reports = load_from(tmp_path)
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert all(0 <= fraction <= 1 for fraction in fractions)
    phases = list(dict.fromkeys(report.phase for report in reports))
    assert phases[-4:] == ["configuration", "tokenizer", "weights", "check"]
    assert len([report for report in reports if report.phase == "weights"]) > 5, "the weights show no progress"


def test_the_bars_of_transformers_are_given_back(saved: Path) -> None:
    before = transformers_logging.set_tqdm_hook(None)
    transformers_logging.set_tqdm_hook(before)
    load_from(saved)
    assert transformers_logging.set_tqdm_hook(before) is before


@pytest.mark.parametrize(
    ("configured", "expected"),
    [(7, {7}), ([7, 9], {7, 9}), (None, {2})],  # none: the tokenizer's <|im_end|>
)
def test_eos_ids_are_those_of_the_generation_config_else_of_the_tokenizer(
    folder: Path, configured: int | list[int] | None, expected: set[int]
) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": configured}))
    assert load_from(folder)[0].eos_ids == expected


def test_eos_ids_of_the_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 11}))
    assert load_from(folder)[0].eos_ids == {11}


# ---- what does not load


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "~/model"])
def test_a_folder_that_is_missing(name: str) -> None:
    assert "does not exist" in reason(name)
    assert name in reason(name)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert "has no config.json" in reason(tmp_path)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_a_hub_id_that_cannot_be_reached(name: str) -> None:
    assert name in reason(name)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model_type": "unheard-of"}'])
def test_a_broken_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "cannot load model" in reason(folder)


def test_a_missing_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "cannot load model" in reason(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "cannot load model" in reason(folder)


@pytest.mark.parametrize("num_bytes", [0, 7, 5000])
def test_weights_that_are_cut_off(folder: Path, num_bytes: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert "cannot load model" in reason(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = {name: w[:10].contiguous() if "norm" in name else w for name, w in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    assert "cannot load model" in reason(folder)


def test_weights_that_lack_a_layer(folder: Path) -> None:
    """transformers only warns, and fills the layer with random numbers: a model that talks nonsense."""
    path = folder / "model.safetensors"
    weights = {name: w for name, w in load_file(path).items() if ".layers.1." not in name}
    save_file(weights, path, metadata={"format": "pt"})
    assert "layers.1" in reason(folder)


@pytest.mark.parametrize(
    ("wanted", "num_devices", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_which_device_is_chosen(monkeypatch: pytest.MonkeyPatch, wanted: str, num_devices: int, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: num_devices > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_devices)
    assert _choose_device(wanted) == device


@pytest.mark.parametrize(
    ("wanted", "num_devices", "reason"), [("cuda:2", 2, "sees 2 of them, counted from 0"), ("cuda", 0, "sees no CUDA")]
)
def test_a_device_beyond_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, wanted: str, num_devices: int, reason: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: num_devices > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_devices)
    with pytest.raises(ModelLoadError, match=f"ENDSTOP_DEVICE={wanted}, but torch {reason}"):
        _choose_device(wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there(saved: Path) -> None:
    assert "ENDSTOP_DEVICE" in reason(saved, device="cuda")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 80 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 GiB"),
    ],
)
def test_a_cache_that_does_not_fit_says_what_to_lower(
    error: Exception, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: object) -> None:
        raise error

    monkeypatch.setattr("worker.engine.attention.PagedAttention._new_cache", no_memory)
    assert "ENDSTOP_MAX_SLOTS" in reason(saved)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A CPU that is taken for `cuda:1`. Holds what was made the current device."""
    current: list[str] = []
    load_weights = loader._load_weights
    monkeypatch.setattr(loader, "_choose_device", lambda wanted: "cuda:1")
    monkeypatch.setattr(
        loader, "_load_weights", lambda source, settings, _, report: load_weights(source, settings, "cpu", report)
    )
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**33, 2**33))
    monkeypatch.setattr(loader, "CudaRecorder", lambda device: FakeRecorder())
    return current


def test_on_a_gpu_decodes_are_captured_and_the_log_says_so(saved: Path, gpu: list[str]) -> None:
    model, _ = load_from(saved, max_slots=5)
    assert gpu == ["cuda:1"], "Triton launches on the current device"
    assert "decode in CUDA graphs of 1, 2, 4, 5 rows" in model.description
    assert "attention by torch, without Triton's kernels (this torch is not built for CUDA)" in model.description


def test_guesses_are_captured_too(saved: Path, gpu: list[str]) -> None:
    model, _ = load_from(saved, max_slots=5, max_context=512, speculation="ngram")
    assert "graphs of 1, 2, 4, 8, 16 rows" in model.description


def test_graphs_can_be_done_without(saved: Path, gpu: list[str]) -> None:
    assert "decode in Python (ENDSTOP_TRACE=off)" in load_from(saved, trace="off")[0].description


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("tried to allocate 1 GiB"), "no memory for CUDA graphs"),
        (torch.AcceleratorError("an illegal memory access was encountered"), "cuda:1 failed at CUDA graphs"),
    ],
)
def test_a_gpu_that_fails_at_graphs_says_what_to_do(
    error: Exception, said: str, saved: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("worker.engine.model_runner.GraphedDecode", fail)
    text = reason(saved)
    assert said in text
    assert "ENDSTOP_TRACE=off" in text


def test_what_cannot_be_captured_runs_in_python(saved: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "CudaRecorder", lambda device: Failing(RuntimeError("it waits")))
    assert "decode in Python (CannotTrace: RuntimeError: it waits)" in load_from(saved)[0].description


def test_a_gpu_without_room_for_a_cache_says_so(saved: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**30, 2**33))
    assert "beside the weights cuda:1 has no memory for a cache" in reason(saved)


def test_where_triton_fails_torch_computes_and_the_log_says_so(
    saved: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a C compiler it can be imported and not used."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(kernels, "_triton", Broken())
    monkeypatch.setattr(kernels, "_triton_fault", "")
    monkeypatch.setattr(kernels, "has_triton", lambda device: kernels._triton is not None)
    model, _ = load_from(saved)
    assert isinstance(model.runner, PackedRunner)
    assert model.description.endswith("without Triton's kernels (RuntimeError: Failed to find C compiler)")


def test_the_weights_are_reported_in_bytes(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path)
    reported: list[LoadingProgress] = []
    load(read_settings({"ENDSTOP_MODEL": str(folder)}), reported.append)
    weights = [progress for progress in reported if progress.total_bytes is not None]
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - it is no dict
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert {progress.total_bytes for progress in weights} == {total}
    done = [progress.done_bytes for progress in weights]
    assert done == sorted(done, key=lambda n: n or 0)
    assert (done[-1], len(done)) == (total, len(tensors))
    fractions = [progress.fraction for progress in reported]
    assert fractions == sorted(fractions)
