"""The linear layers of a model, as our kernels compute them; nothing else of the model is touched.

Law: a row of a batch has the same result whoever is beside it.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

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

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, *, is_exact: bool) -> None:
        super().__init__()
        wide = linear.weight.detach().float()
        scales = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (wide / scales[:, None]).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = linear.bias
        self.is_exact = is_exact

    def forward(self, input: Tensor) -> Tensor:
        return kernels.linear(input, self.weight, self.scales, self.bias, is_exact=self.is_exact)


def use_kernels(model: Any, *, is_exact: bool) -> None:
    """Have the linear layers of a model computed by our kernels, if there are any for its type and device.

    Args:
        model: On its device.
        is_exact: See `kernels.linear`.
    """
    for module in model.modules():
        if _is_plain(module) and kernels.IS_NATIVE and module.weight.device.type == "cpu":
            module.__class__ = NativeLinear
            module.is_exact = is_exact


def quantize(model: Any, *, is_exact: bool) -> None:
    """Replace the linear layers of a model by int8 ones. Embeddings, and what is no `nn.Linear`, stay as they are."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if _is_plain(module) and module.in_features >= _MIN_INPUTS:
                setattr(parent, name, Int8Linear(cast("nn.Linear", module), is_exact=is_exact))


def _is_plain(module: Any) -> bool:
    """Whether this is a linear layer and nothing more: one that is derived from it may do anything."""
    return type(module) is nn.Linear and module.weight.dtype in _NATIVE_TYPES and module.weight.is_contiguous()
