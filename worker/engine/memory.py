"""Tells want of memory from other faults, on every device."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed. torch's allocator for CPUs has no class of its own for it."""
    is_cpu_allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return is_cpu_allocator or isinstance(error, torch.OutOfMemoryError | MemoryError)
