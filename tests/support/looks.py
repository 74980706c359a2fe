"""Where numbers of a tensor are looked at from Python: on a GPU, all that was launched before is waited for there."""

from typing import Any

from torch.overrides import TorchFunctionMode

_LOOKS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "nonzero", "numpy")


class Looks(TorchFunctionMode):
    """Notes every look while it is entered, by the name of the method."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each of its functions."""
        name = getattr(func, "__name__", "")
        if name in _LOOKS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))
