"""Joined operators give to the bit what they give one by one, and a recording that does not is not used."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.test_trace import MAX_CONTEXT, new_packed, prompts, row
from tests.support.random_models import random_model
from worker.engine import fuse as fuse_module
from worker.engine import kernels
from worker.engine.fuse import fuse
from worker.engine.kernels import IS_NATIVE
from worker.engine.linear import quantize, use_kernels

pytestmark = pytest.mark.skipif(not IS_NATIVE, reason="python -m worker.engine.native has not built them")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NUM_LAYERS = 3
endstop: Any = torch.ops.endstop


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    """Large and small ones, and zeros of both signs."""
    torch.manual_seed(sum(shape))
    exponents = torch.randint(-9, 5, shape)
    return (torch.randn(shape) * 10.0**exponents * torch.randint(0, 9, shape).bool()).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 64, 576])
def test_a_norm_is_the_same_to_the_bit(width: int, dtype: torch.dtype) -> None:
    x, weight, epsilon = numbers(1, 5, width, dtype=dtype), numbers(width, dtype=dtype), torch.tensor(1e-6).double()
    wide = x.float()
    mean = wide.pow(2).mean(-1, keepdim=True)
    assert torch.equal(endstop.squares(x), wide.pow(2))
    expected = weight * (wide * torch.rsqrt(mean + 1e-6)).to(dtype)
    assert torch.equal(endstop.scaled_by_rms(x, mean, epsilon, weight), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("width", [2, 64, 80])
def test_a_rotation_is_the_same_to_the_bit(width: int, num_rows: int, dtype: torch.dtype) -> None:
    x = numbers(1, num_rows, 4, width, dtype=dtype).transpose(1, 2)
    cos, sin = numbers(1, 1, num_rows, width, dtype=dtype), numbers(1, 1, num_rows, width + 1, dtype=dtype)[..., 1:]
    turned = torch.cat((-x[..., width // 2 :], x[..., : width // 2]), dim=-1)
    assert torch.equal(endstop.rotate(x, cos, sin), x * cos + turned * sin)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 5, 200])
@pytest.mark.parametrize("is_int8", [False, True])
def test_layers_together_are_the_same_to_the_bit(is_int8: bool, num_rows: int, dtype: torch.dtype) -> None:
    x = torch.randn(num_rows, 96).to(dtype)
    sizes = [3, 64, 33]
    weights = [torch.randn(n, 96).to(dtype) for n in sizes]
    scales: list[Tensor | None] = [None] * len(sizes)
    if is_int8:
        weights = [(weight * 30).clamp(-127, 127).to(torch.int8) for weight in weights]
        scales = [torch.rand(n) / 30 for n in sizes]
    biases = [None, torch.randn(64).to(dtype), None]
    together = endstop.linears(x, weights, scales, biases, False)
    alone = [endstop.linear(x, *one, False) for one in zip(weights, scales, biases, strict=True)]
    assert all(map(torch.equal, together, alone))


@pytest.mark.parametrize("is_int8", [False, True])
def test_the_operators_of_a_step_are_joined(is_int8: bool) -> None:
    model = random_model("llama").bfloat16()
    if is_int8:
        quantize(model, is_exact=False)
    use_kernels(model, is_exact=False)
    runner = new_packed(model)
    assert runner.trace(MAX_CONTEXT) == ""
    recorded: Any = runner._traced._recorded  # type: ignore[union-attr]
    kinds = Counter(node.kind() for node in recorded.graph.nodes())
    assert kinds["endstop::scaled_by_rms"] == 2 * NUM_LAYERS + 1
    assert kinds["endstop::rotate"] == 2 * NUM_LAYERS
    assert kinds["endstop::linears"] == 2 * NUM_LAYERS  # queries, keys and values; the two that feed the activation
    assert kinds["endstop::linear"] == 2 * NUM_LAYERS + 1
    assert not kinds["aten::rsqrt"] + kinds["aten::cat"] - 1  # the one that makes the angles


def test_a_recording_that_is_joined_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, joined = fuse_module._ROTATE
    monkeypatch.setattr(fuse_module, "_ROTATE", (pattern, joined.replace("%cos, %sin)\n", "%sin, %cos)\n")))
    runners = [new_packed(random_model("llama")) for _ in range(2)]
    assert "is not equal" in runners[1].trace(MAX_CONTEXT)
    for runner in runners:
        runner.forward(prompts([5]))
    assert torch.equal(*[runner.forward([row(0, 5, [8])])[1] for runner in runners])


def test_an_operator_that_cannot_be_joined_leaves_the_recording_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_module, "_NORM", ("graph(%x): nonsense", ""))
    runner = new_packed(random_model("llama"))
    assert "RuntimeError" in runner.trace(MAX_CONTEXT)
    runner.forward(prompts([5]))
    assert runner.forward([row(0, 5, [8])])[1].isfinite().all()


class _WeightOfAnother(nn.Module):
    """The second layer's weights come of the first one's output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        first = kernels.linear(x, self.weight, None, None, is_exact=False)
        return kernels.linear(x, first.contiguous(), None, None, is_exact=False)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_layer_whose_weights_are_not_there_yet_is_not_joined() -> None:
    module, x = _WeightOfAnother(), torch.randn(32, 32)
    with torch.inference_mode():
        fused = fuse(torch.jit.trace(module, (x,)))  # type: ignore[no-untyped-call]
        assert torch.equal(fused(x), module(x))
