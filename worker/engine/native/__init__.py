"""Native kernels: their sources, how they are built, and the library that comes of it.

They are built at set-up, by `python -m worker.engine.native`, where there is a C++ compiler; without them torch does
the same, more slowly. Knows nothing of what they compute.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from worker.errors import one_line

_HERE = Path(__file__).resolve().parent
_SOURCES = sorted(_HERE.glob("*.cpp"))
_HEADERS = sorted(_HERE.glob("*.h"))
# Not -ffast-math: it links code that switches subnormal numbers off for the whole process. Nor may sums be reordered,
# nor products joined with them: the sources say how, so that it is the same for one row and for many.
_MATH = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
_FLAGS = ("-std=c++20", "-O3", "-march=native", *_MATH, "-fPIC", "-shared", "-w")
# It takes a minute where nothing else runs. Beside fifteen other jobs 300 s were not enough, and without the kernels a
# server has half its speed.
BUILD_LIMIT_S = 1200
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_LOADING = "import sys, torch; torch.ops.load_library(sys.argv[1])"

# Why the library is not in this process; for the log.
why_not = ""


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
    """Load the library into this process. Returns whether it is there; if not, `why_not` says why."""
    global why_not
    try:
        path = library()
        why_not = _damage(path)
        if not why_not:
            ops: Any = torch.ops
            ops.load_library(str(path))
    except OSError as error:  # what is whole need not be a library, nor one of this system's
        why_not = one_line(str(error))
    return not why_not


def build() -> Path:
    """Build the library, if there is not one that can be loaded.

    Raises:
        CannotBuild: Says why, and what to do.
    """
    path = library()
    if not _why_not_loaded(path):
        return path
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise CannotBuild("there is no C++ compiler; the Debian package is g++")
    unfinished = path.with_suffix(f".{os.getpid()}")  # another process may be building too
    try:
        path.parent.mkdir(exist_ok=True)
        unfinished.touch()  # known at once, and not when the compiler has worked for a minute
        _compile(compiler, unfinished)
        with unfinished.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(hashlib.sha256(unfinished.read_bytes()).digest())
        problem = _why_not_loaded(unfinished)
        if problem:
            raise CannotBuild(f"what {compiler} made cannot be loaded: {problem}")
        unfinished.rename(path)
    except OSError as error:
        raise CannotBuild(f"{error}; {path.parent} has to be a folder that can be written to") from error
    except ImportError as error:
        raise CannotBuild(f"{error}; python -m pip install {error.name}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
    return path


def _compile(compiler: str, output: Path) -> None:
    from torch.utils.cpp_extension import include_paths, library_paths  # needs setuptools, which a server does not

    includes = [f"-I{folder}" for folder in include_paths("cpu")]
    libraries = [f"-L{folder}" for folder in library_paths("cpu")]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    command = [compiler, *_FLAGS, abi, *includes, *map(str, _SOURCES), *libraries, "-lc10", "-ltorch_cpu"]
    try:
        done = subprocess.run(
            [*command, "-o", str(output)], capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CannotBuild(f"{compiler} was not done after {BUILD_LIMIT_S} s") from error
    if done.returncode:
        raise CannotBuild(f"{compiler} failed:\n{done.stderr[-2000:]}")


def _damage(path: Path) -> str:
    """What is wrong with a library's file; empty if nothing is.

    Behind the library is its checksum, which the loader of the system does not look at: to load a file that is cut off
    ends the process.
    """
    if not path.is_file():
        return "not built"
    content = path.read_bytes()
    if hashlib.sha256(content[:-_CHECKSUM_BYTES]).digest() != content[-_CHECKSUM_BYTES:]:
        return f"{path.name} is damaged"
    return ""


def _why_not_loaded(path: Path) -> str:
    """As a process of its own finds it; empty if it is loaded there."""
    try:
        damage = _damage(path)
        if damage:
            return damage
        command = [sys.executable, "-c", _LOADING, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return one_line(str(error))
    return one_line(done.stderr[-300:]) or f"exit code {done.returncode}" if done.returncode else ""


def _cpu() -> str:
    """What `-march=native` looks at: a library that was built for another CPU may not run on this one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
