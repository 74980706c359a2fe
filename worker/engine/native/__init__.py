"""Native kernels: their sources, how they are built, and the library that comes of it.

They are built at set-up, by `python -m worker.engine.native`, where there is a C++ compiler; without them torch does
the same, more slowly. Knows nothing of what they compute.
"""

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

_HERE = Path(__file__).resolve().parent
_SOURCES = sorted(_HERE.glob("*.cpp"))
_HEADERS = sorted(_HERE.glob("*.h"))
# Not -ffast-math: it links code that switches subnormal numbers off for the whole process. Nor may sums be reordered,
# nor products joined with them: the sources say how, so that it is the same for one row and for many.
_MATH = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
_FLAGS = ("-std=c++20", "-O3", "-march=native", *_MATH, "-fPIC", "-shared", "-w")
BUILD_LIMIT_S = 300


class CannotBuild(Exception):
    """There is no compiler, or it failed; says why."""


def library() -> Path:
    """Where the library is or would be: another one for each source, version of torch and kind of CPU."""
    key = hashlib.sha256(torch.__version__.encode())
    for source in (*_SOURCES, *_HEADERS):
        key.update(source.read_bytes())
    key.update(" ".join(_FLAGS).encode())
    key.update(_cpu().encode())
    return _HERE / "build" / f"endstop-{key.hexdigest()[:16]}.so"


def load() -> bool:
    """Load the library into this process, if it has been built. Returns whether it is there."""
    path = library()
    if path.is_file():
        ops: Any = torch.ops
        ops.load_library(str(path))
    return path.is_file()


def build() -> Path:
    """Build the library, if it is not there yet.

    Raises:
        CannotBuild: There is no compiler, or it failed.
    """
    path = library()
    if path.is_file():
        return path
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise CannotBuild("there is no C++ compiler; the Debian package is g++")
    from torch.utils.cpp_extension import include_paths, library_paths  # needs setuptools, which a server does not

    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    includes = [f"-I{folder}" for folder in include_paths("cpu")]
    libraries = [f"-L{folder}" for folder in library_paths("cpu")]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    command = [compiler, *_FLAGS, abi, *includes, *map(str, _SOURCES), *libraries, "-lc10", "-ltorch_cpu"]
    try:
        done = subprocess.run(
            [*command, "-o", str(unfinished)], capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CannotBuild(f"{compiler} was not done after {BUILD_LIMIT_S} s") from error
    if done.returncode:
        raise CannotBuild(f"{compiler} failed:\n{done.stderr[-2000:]}")
    unfinished.rename(path)
    return path


def _cpu() -> str:
    """What `-march=native` looks at: a library that was built for another CPU may not run on this one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
