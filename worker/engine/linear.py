"""The linear layers of a model, as our kernels compute them; nothing else of the model is touched.

Law: a row of a batch has the same result whoever is beside it.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from worker.engine import kernels

_NATIVE_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# The output of a linear layer is the sum of so many products that an error of one in 254 in each is lost in it; a layer
# with fewer inputs is small as well, and stays as it is.
_MIN_INPUTS = 32


class NativeLinear(nn.Linear):
    """An `nn.Linear` with the same weights, computed by `kernels.linear`."""

    is_exact = False

    def forward(self, input: Tensor) -> Tensor:
        return kernels.linear(input, self.weight, None, self.bias, is_exact=self.is_exact)


class Int8Linear(nn.Module):
    """A linear layer whose weights are int8, each output with a scale of its own; its input is not quantized."""

    numbers: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, *, is_exact: bool) -> None:
        super().__init__()
        wide = linear.weight.detach().float()
        scales = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("numbers", (wide / scales[:, None]).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = linear.bias
        self.is_exact = is_exact
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._dtype = linear.weight.dtype

    @property
    def weight(self) -> Tensor:
        """For code of a model's own that gives its input the type of the weights, or multiplies with them itself."""
        return (self.numbers * self.scales[:, None]).to(self._dtype)

    def forward(self, input: Tensor) -> Tensor:
        return kernels.linear(input, self.numbers, self.scales, self.bias, is_exact=self.is_exact)


class NotExact(Exception):
    """A part of the model computes a row in another way in company than alone; says which and why."""


def use_kernels(model: Any, *, is_exact: bool) -> None:
    """Have the linear layers of a model computed by our kernels, if there are any for its type and device.

    Args:
        model: On its device.
        is_exact: See `kernels.linear`. What is not a linear layer computes row by row in any case, as long as torch
            has one thread: several would cut a batch where a vector of theirs is not full.

    Raises:
        NotExact: Exactness is wanted, and there are weights that the kernels do not compute with.
    """
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is Conv1D:
                setattr(parent, name, _as_linear(module))
    for module in model.modules():
        if _is_plain(module) and kernels.IS_NATIVE and module.weight.device.type == "cpu":
            module.__class__ = NativeLinear
            module.is_exact = is_exact
    if is_exact:
        for path, module in model.named_modules():
            if not isinstance(module, NativeLinear | Int8Linear | nn.Embedding):
                for name, parameter in module.named_parameters(path, recurse=False):
                    if parameter.dim() > 1:
                        raise NotExact(f"{name} is multiplied by code that computes many rows in another way than one")


def check_widths(model: Any) -> None:
    """See that torch's functions between the layers compute a row in one way.

    They take a batch as one row of numbers, two vectors of the CPU at once, and what is left at its end one by one,
    with other last bits. Which numbers these are is a matter of the number of rows, unless a row is a multiple itself.
    Measured with silu and gelu.

    Args:
        model: On a CPU, after `use_kernels`.

    Raises:
        NotExact: A layer is not so wide.
    """
    step = (128 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 64) // model.dtype.itemsize
    for path, module in model.named_modules():
        if isinstance(module, NativeLinear | Int8Linear):
            # Behind the logits comes a tanh at most, which torch does not cut, and the sampler goes row by row.
            num_outputs = 0 if module is model.get_output_embeddings() else module.out_features
            for width in (module.in_features, num_outputs):
                if width % step:
                    raise NotExact(f"{path} is {width} numbers wide, and on this CPU it has to be a multiple of {step}")


def _as_linear(module: Conv1D) -> nn.Linear:
    """GPT-2's linear layers are called so, and have their weights the other way round."""
    num_inputs, num_outputs = module.weight.shape
    linear = nn.Linear(num_inputs, num_outputs, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
    linear.bias = module.bias
    return linear


def quantize(model: Any, *, is_exact: bool) -> None:
    """Replace the linear layers of a model by int8 ones. Embeddings, and what is no `nn.Linear`, stay as they are."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            linear = _as_linear(module) if type(module) is Conv1D else module
            if _is_plain(linear) and linear.in_features >= _MIN_INPUTS:
                setattr(parent, name, Int8Linear(cast("nn.Linear", linear), is_exact=is_exact))


def _is_plain(module: Any) -> bool:
    """Whether this is a linear layer and nothing more: one that is derived from it may do anything."""
    return type(module) is nn.Linear and module.weight.dtype in _NATIVE_TYPES and module.weight.is_contiguous()
