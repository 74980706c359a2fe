"""Linear layers by our kernels: right, the same for a row whoever is beside it, and nothing else is replaced."""

import copy
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.support.random_models import CONFIGS, VOCAB_SIZE, byte_level_tokenizer, random_model, save_random_model
from worker.config import read_settings
from worker.engine import kernels
from worker.engine.kernels import IS_NATIVE
from worker.engine.kv_cache import num_blocks_for
from worker.engine.linear import Int8Linear, NativeLinear, NotExact, check_widths, quantize, use_kernels
from worker.engine.loader import load
from worker.engine.model_runner import PackedRunner, new_runner
from worker.engine.scheduler import Row
from worker.engine.sequence import Sequence
from worker.errors import ModelLoadError

needs_native = pytest.mark.skipif(not IS_NATIVE, reason="python -m worker.engine.native has not built it")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# whole vectors and such that are not, whole tiles and panels and such that are not
SHAPES = [(64, 64), (576, 192), (24, 30), (17, 3), (100, 33), (7, 130), (1, 1)]
NUM_ROWS = (1, 2, 3, 5, 7, 48, 49, 100)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights(k: int, n: int, dtype: torch.dtype, *, is_int8: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    torch.manual_seed(k * 1000 + n)
    weight, bias = torch.randn(n, k), torch.randn(n).to(dtype)
    if is_int8:
        return (weight * 40).clamp(-127, 127).to(torch.int8), torch.rand(n) / 40, bias
    return weight.to(dtype), None, bias


def by_definition(x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None) -> Tensor:
    """In float64."""
    wide = weight.double() if scales is None else weight.double() * scales.double()[:, None]
    product = x.double() @ wide.T
    return product if bias is None else product + bias.double()


@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_layer_is_what_it_is_by_definition(dtype: torch.dtype, is_int8: bool, is_exact: bool) -> None:
    for k, n in SHAPES:
        weight, scales, bias = weights(k, n, dtype, is_int8=is_int8)
        for num_rows in NUM_ROWS:
            x = torch.randn(2, num_rows, k).to(dtype)[1]
            for added in (None, bias):
                out = kernels.linear(x, weight, scales, added, is_exact=is_exact)
                expected = by_definition(x, weight, scales, added)
                assert out.dtype == dtype
                assert out.shape == (num_rows, n)
                assert (out.double() - expected).abs().max() < TOLERANCES[dtype] * max(1.0, float(expected.abs().max()))


def test_the_shape_of_the_input_is_kept_and_it_may_be_strided() -> None:
    weight, _, bias = weights(24, 30, torch.float32, is_int8=False)
    x = torch.randn(24, 5, 3).permute(2, 1, 0)
    out = kernels.linear(x, weight, None, bias, is_exact=False)
    assert out.shape == (3, 5, 30)
    assert torch.allclose(out, nn.functional.linear(x, weight, bias), atol=1e-5)


@pytest.mark.parametrize("is_int8", [False, True])
def test_no_rows_at_all(is_int8: bool) -> None:
    """A step of which nobody is sampled has no logits."""
    weight, scales, bias = weights(64, 30, torch.bfloat16, is_int8=is_int8)
    out = kernels.linear(torch.empty(1, 0, 64, dtype=torch.bfloat16), weight, scales, bias, is_exact=True)
    assert out.shape == (1, 0, 30)


@needs_native
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_to_the_bit_whoever_is_beside_it(dtype: torch.dtype, is_int8: bool) -> None:
    for k, n in SHAPES:
        weight, scales, bias = weights(k, n, dtype, is_int8=is_int8)
        x = torch.randn(100, k).to(dtype)
        with threads(1):
            alone = torch.cat([kernels.linear(row[None], weight, scales, bias, is_exact=True) for row in x])
        for number in (1, 2):
            with threads(number):
                for num_rows in NUM_ROWS:
                    together = kernels.linear(x[:num_rows], weight, scales, bias, is_exact=True)
                    assert torch.equal(together, alone[:num_rows])


@needs_native
def test_who_computes_beside_another_gets_no_helper_and_the_same_result() -> None:
    weight, _, _ = weights(576, 192, torch.bfloat16, is_int8=False)
    inputs = [torch.randn(3, 576).bfloat16() for _ in range(8)]
    expected = [kernels.linear(x, weight, None, None, is_exact=True) for x in inputs]
    kernels.set_threads(3)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(50):
                found = pool.map(lambda x: kernels.linear(x, weight, None, None, is_exact=True), inputs)
                assert all(map(torch.equal, found, expected))
    finally:
        kernels.set_threads(0)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_with_its_row(dtype: torch.dtype) -> None:
    """The sampler looks for it, and ends the row."""
    weight, _, _ = weights(100, 33, dtype, is_int8=False)
    x = torch.randn(7, 100).to(dtype)
    x[2, 50], x[4, 99] = math.nan, math.inf
    out = kernels.linear(x, weight, None, None, is_exact=False)
    assert out[2].isnan().all()
    assert not out[4].isfinite().any()
    assert out[[0, 1, 3, 5, 6]].isfinite().all()


@needs_native
def test_a_weight_of_another_type_is_an_error_and_not_nonsense() -> None:
    with pytest.raises(RuntimeError):
        kernels.linear(torch.randn(2, 16), torch.randn(4, 16).bfloat16(), None, None, is_exact=False)
    with pytest.raises(RuntimeError):
        kernels.linear(torch.randn(2, 15), torch.randn(4, 16), None, None, is_exact=False)


class _Derived(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


@needs_native
def test_only_what_is_a_plain_linear_layer_is_replaced() -> None:
    model = nn.Sequential(nn.Linear(32, 32), _Derived(32, 32), nn.Embedding(4, 32), nn.Linear(32, 32).double())
    for replace in (quantize, use_kernels):
        replace(model, is_exact=False)
    assert [type(module) for module in model] == [Int8Linear, _Derived, nn.Embedding, nn.Linear]


@needs_native
def test_the_weights_stay_where_they_are() -> None:
    """Tied to the embedding, and not twice in memory."""
    model = random_model("llama")
    before = model.lm_head.weight.data_ptr()
    use_kernels(model, is_exact=False)
    assert type(model.lm_head) is NativeLinear
    assert model.lm_head.weight.data_ptr() == before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_int8_weights_are_a_small_error_and_a_quarter_of_the_memory(family: str) -> None:
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        expected = random_model(family)(input_ids=ids).logits
        model = random_model(family)
        names = {name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
        quantize(model, is_exact=False)
        logits = model(input_ids=ids).logits
    assert (logits - expected).norm() / expected.norm() < 0.05
    modules = dict(model.named_modules())
    assert names
    assert all(modules[name].numbers.dtype == torch.int8 for name in names)
    assert model.get_input_embeddings().weight.dtype == torch.float32


class _Looking(nn.Module):
    """Looks at the weights of its layer: as the indexers of DeepSeek's sparse attention do, and as Bloom's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.proj(x.to(self.proj.weight.dtype)), nn.functional.linear(x, self.proj.weight, self.proj.bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_may_look_at_weights_that_are_int8(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = _Looking().to(dtype), torch.randn(5, 64).to(dtype)
    with torch.inference_mode():
        expected = model.proj(x)
        quantize(model, is_exact=False)
        for out in model(x):
            assert out.dtype == dtype
            assert (out - expected).norm() / expected.norm() < 0.02


def _row(number: int, start: int, token_ids: list[int]) -> Row:
    blocks = [1 + number * 8 + i for i in range(num_blocks_for(start + len(token_ids)))]
    return Row(cast("Sequence", None), blocks, start, token_ids, True)


def _logits(runner: PackedRunner, prompts: list[list[int]], numbers: list[int], cut: int) -> dict[int, list[Tensor]]:
    """Of the end of each prompt and of four decodes, of these together, prompts in chunks of `cut`."""
    found: dict[int, list[Tensor]] = {i: [] for i in numbers}
    done = dict.fromkeys(numbers, 0)
    while any(len(logits) < 5 for logits in found.values()):
        rows = {}
        for i in numbers:
            if done[i] < len(prompts[i]):
                rows[i] = _row(i, done[i], prompts[i][done[i] : done[i] + cut])
            elif len(found[i]) < 5:
                rows[i] = _row(i, done[i], [7 + done[i] % 50])
        sampled, logits = runner.forward(list(rows.values()))
        for i, row in rows.items():
            done[i] = row.end
            if row.end >= len(prompts[i]):
                found[i].append(logits[next(at for at, one in enumerate(sampled) if one is row)])
    return found


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = (100, 40, 77, 5, 90, 64, 33, 20)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


DENSE = ["llama", "qwen2", "qwen3", "gpt2", "gpt-neox", "phi3", "mistral-window", "gemma2", "gemma3"]


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", DENSE)
def test_an_exact_model_computes_a_token_in_one_way(family: str, dtype: torch.dtype) -> None:
    model = random_model(family).to(dtype)
    kernels.set_threads(2)
    try:
        with threads(1):
            use_kernels(model, is_exact=True)
            runner, reason = new_runner(model, lambda _: 80, is_exact=True)
            assert isinstance(runner, PackedRunner), reason
            runner.trace(512)
            prompts = _prompts()
            alone = [_logits(runner, prompts, [i], cut=512)[i] for i in range(len(prompts))]
            for cut in (16, 48, 512):
                together = _logits(runner, prompts, list(range(len(prompts))), cut)
                for i, expected in enumerate(alone):
                    assert all(map(torch.equal, together[i], expected))
    finally:
        kernels.set_threads(0)


@needs_native
def test_torchs_own_linear_layers_are_not_exact() -> None:
    """Or the test above shows nothing."""
    model = random_model("qwen3")
    runner, _ = new_runner(model, lambda _: 80)
    assert isinstance(runner, PackedRunner)
    prompts = _prompts()
    alone = [_logits(runner, prompts, [i], cut=512)[i] for i in range(len(prompts))]
    num_differing = 0
    for cut in (16, 48, 512):
        together = _logits(runner, prompts, list(range(len(prompts))), cut)
        num_differing += sum(
            not torch.equal(*pair) for i, one in enumerate(alone) for pair in zip(together[i], one, strict=True)
        )
    assert num_differing


@needs_native
@pytest.mark.parametrize("family", ["mixtral", "gpt-oss", "mamba"])
def test_a_model_that_multiplies_in_its_own_way_is_not_exact(family: str) -> None:
    with pytest.raises(NotExact, match=r"layers\.0\."):
        use_kernels(random_model(family), is_exact=True)


def _load(folder: Path, **env: str) -> Any:
    threads_before = torch.get_num_threads()
    try:
        return load(read_settings({"ENDSTOP_MODEL": str(folder), **env}), lambda progress: None)
    finally:
        kernels.set_threads(0)
        torch.set_num_threads(threads_before)


def test_the_loader_quantizes_and_says_so(tmp_path: Path) -> None:
    loaded = _load(save_random_model(tmp_path), ENDSTOP_QUANTIZATION="int8")
    assert "int8 weights, float32 on cpu" in loaded.description
    assert isinstance(loaded.runner._model.lm_head, Int8Linear)


@needs_native
def test_the_loader_makes_a_model_exact(tmp_path: Path) -> None:
    loaded = _load(save_random_model(tmp_path), ENDSTOP_DETERMINISTIC="1")
    assert loaded.runner._model.lm_head.is_exact
    assert loaded.runner._is_exact


@needs_native
def test_an_exact_model_has_one_thread_of_torchs_and_as_many_of_ours_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = save_random_model(tmp_path), list[int]()
    monkeypatch.setattr(kernels, "set_threads", told.append)
    env = {"ENDSTOP_MODEL": str(folder), "ENDSTOP_DETERMINISTIC": "1", "ENDSTOP_CPU_THREADS": "2"}
    with threads(2):
        load(read_settings(env), lambda progress: None)
        assert torch.get_num_threads() == 1
    assert told == [2]


@pytest.mark.parametrize(
    ("family", "is_native", "reason"),
    [
        ("mixtral", True, "model.layers.0.mlp.gate.weight is multiplied by code"),
        ("mpt", True, "row by row"),
        ("llama", False, "native kernels"),
    ],
)
def test_a_model_that_cannot_be_exact_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, is_native: bool, reason: str
) -> None:
    if is_native and not IS_NATIVE:
        pytest.skip("python -m worker.engine.native has not built it")
    monkeypatch.setattr(kernels, "IS_NATIVE", is_native)
    with pytest.raises(ModelLoadError, match=f"ENDSTOP_DETERMINISTIC=1 is not possible .*{reason}"):
        _load(save_random_model(tmp_path, family), ENDSTOP_DETERMINISTIC="1")


def _llama(**shape: Any) -> Any:
    auto: Any = AutoModelForCausalLM
    config = copy.deepcopy(CONFIGS["llama"])
    for name, value in shape.items():
        setattr(config, name, value)
    return auto.from_config(config).eval()


@needs_native
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_model_whose_layers_torchs_functions_cut_is_not_exact(tmp_path: Path, quantization: str) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path)
    _llama(intermediate_size=100).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"DETERMINISTIC=1 is not possible .*gate_proj is 100 numbers wide"):
        _load(tmp_path, ENDSTOP_DETERMINISTIC="1", ENDSTOP_QUANTIZATION=quantization)


@needs_native
def test_the_number_of_tokens_that_a_model_knows_is_not_a_width() -> None:
    """Of GPT-2's it is 50,257."""
    model = _llama(vocab_size=401)
    use_kernels(model, is_exact=True)
    check_widths(model)


class _Layers(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.dtype = torch.float32

    def get_output_embeddings(self) -> None:
        return None


@needs_native
def test_the_step_that_a_width_is_a_multiple_of_is_that_of_torchs_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_refused(width: int, dtype: torch.dtype) -> bool:
        model = _Layers(width).to(dtype)
        model.dtype = dtype
        use_kernels(model, is_exact=False)
        try:
            check_widths(model)
        except NotExact:
            return True
        return False

    for width in range(8, 200, 4):
        for dtype in DTYPES:
            for function in (nn.functional.silu, nn.functional.gelu, torch.sigmoid):
                rows = (torch.randn(9, width, generator=torch.Generator().manual_seed(width)) * 3).to(dtype)
                alone = torch.cat([function(row[None].clone()) for row in rows])
                assert torch.equal(function(rows), alone) or is_refused(width, dtype), (width, dtype, function)
    for capability, steps in (("AVX2", (16, 32)), ("AVX512", (32, 64))):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda capability=capability: capability)
        for dtype, step in zip((torch.float32, torch.bfloat16), steps, strict=True):
            assert not is_refused(step, dtype)
            assert is_refused(step // 2, dtype)


def test_who_runs_without_the_kernels_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_random_model(tmp_path)
    monkeypatch.setattr(kernels, "IS_NATIVE", False)
    assert "python -m worker.engine.native" in _load(folder).description
    monkeypatch.setattr(kernels, "IS_NATIVE", True)
    if IS_NATIVE:
        assert "python -m worker.engine.native" not in _load(folder).description
