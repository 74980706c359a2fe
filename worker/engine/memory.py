"""How much memory there is, and the faults of there being none, on every device."""

from pathlib import Path

import torch

# Of what is free when the model has been loaded. The rest is for activations, for the web side and for others.
CPU_SHARE = 0.5
CUDA_SHARE = 0.85
# And no less than this is left of a GPU's, for what a step computes, its logits, and the graphs of decode steps. Not
# measured: vLLM's log tells of about half of it for its graphs.
CUDA_RESERVE_BYTES = 1024 * 1024 * 1024
_CGROUP = Path("/sys/fs/cgroup")
_REMEMBERED = ("active_file ", "inactive_file ")
# What torch's allocator for CPUs says, and what comes of a failed allocation in a kernel.
_NATIVE_WORDS = ("can't allocate memory", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed. torch has no class of its own for it on a CPU."""
    is_native = isinstance(error, RuntimeError) and any(words in str(error) for words in _NATIVE_WORDS)
    return is_native or isinstance(error, torch.OutOfMemoryError | MemoryError)


def cache_bytes(wanted_mb: int, device: str) -> int:
    """How large the KV cache may be: as large as is wanted, or with 0 a share of what is free."""
    if wanted_mb:
        return wanted_mb * 1024 * 1024
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(max(0, min(free * CUDA_SHARE, free - CUDA_RESERVE_BYTES)))
    return int(_free_bytes() * CPU_SHARE)


def _free_bytes() -> int:
    """What this process may still take, of the machine and of its container."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit, used, details = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
    except OSError:
        return free  # no control group of the second version
    if limit.strip() == "max":
        return free
    # What the kernel remembers of files counts as used until somebody needs the room: the weights that were just read.
    files = sum(int(line.split()[1]) for line in details.splitlines() if line.startswith(_REMEMBERED))
    return min(free, max(0, int(limit) - int(used) + files))
