"""Numbers for the device. Generation thread only."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def upload(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these numbers, (n,), for which a GPU is not waited for.

    From memory that is not pinned a copy begins when everything before it is done, and this thread waits for that.
    torch keeps the pinned memory for as long as the copy takes.
    """
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def upload_bytes(rows: Sequence[bytes], device: torch.device) -> Tensor:
    """Bytes, (n, length) uint8, of rows of equal length. In one copy, as `upload`."""
    numbers = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)
    return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=True)


def upload_parts(parts: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device) -> Sequence[Tensor]:
    """The same for several lists, in one copy."""
    numbers = upload(list(itertools.chain(*parts)), dtype, device)
    return torch.split(numbers, [len(part) for part in parts])
