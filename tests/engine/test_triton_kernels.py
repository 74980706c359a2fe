"""Triton's kernels without a GPU: what they compute in its interpreter, and what its compiler makes of them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.test_kernels import chunks_of
from tests.support.looks import Looks
from worker.engine.kernels import Kind
from worker.engine.kv_cache import BLOCK_TOKENS

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from worker.engine import kernels, triton_kernels

HERE = Path(__file__).resolve().parent
# Shared memory of one program, which all GPUs with tensor cores have.
SHARED_BYTES = 64 * 1024
HEAD_DIM = 64


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    run("-m", "pytest", "-p", "no:cacheprovider", str(HERE / "under_triton_interpreter.py"))


@pytest.mark.slow
def test_they_are_compiled_on_a_native_thread_under_gevent(tmp_path: Path) -> None:
    """By children of it, which gevent's subprocess would not start there."""
    run("-m", "tests.engine.triton_under_gevent", str(tmp_path))


def test_they_are_imported_where_torch_is_built_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    assert kernels._import_triton() == (None, "this torch is not built for CUDA")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert kernels._import_triton() == (triton_kernels, "")
    monkeypatch.setitem(sys.modules, "worker.engine.triton_kernels", None)
    monkeypatch.delattr("worker.engine.triton_kernels")
    module, reason = kernels._import_triton()
    assert module is None
    assert "ModuleNotFoundError" in reason or "ImportError" in reason


class NoGpu:
    """Triton's driver for a GPU that is not there: takes what has been compiled, and launches nothing."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)
        self.compiled: list[str] = []
        self.launched: list[tuple[int, ...]] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED_BYTES}, load_binary=self._load
        )

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: self.launched.append(arguments[:3])

    def _load(self, name: str, *rest: Any) -> tuple[object, object, int, int, int]:
        self.compiled.append(name)
        return object(), object(), 0, 0, 1024


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], NoGpu]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def new(architecture: int) -> NoGpu:
        one = NoGpu(architecture)
        monkeypatch.setattr(driver, "_active", one)
        return one

    return new


def launch(num_rows: int, length: int, kind: Kind, dtype: torch.dtype, offset: int = 0) -> None:
    """Decodes and two chunks of a prompt of as many tokens, with tensors that begin `offset` numbers late."""
    width = -(-length // BLOCK_TOKENS)
    keys, values = torch.empty(2, (width + 1) * BLOCK_TOKENS, 2, HEAD_DIM, dtype=dtype)
    query = torch.empty(1, 8, num_rows, HEAD_DIM, dtype=dtype)[0].transpose(0, 1)
    tables = torch.ones(num_rows * width + offset, dtype=torch.int32)[offset:].view(num_rows, width)
    lengths = torch.full((num_rows + offset,), length, dtype=torch.int32)[offset:]
    chunks = chunks_of((1, num_rows - 1), (1, length), tables[:2])
    with Looks() as looks:
        triton_kernels.paged_decode(query, keys, values, tables, lengths, kind)
        triton_kernels.paged_prompt(query, keys, values, chunks, kind)
    assert not looks.seen


@pytest.mark.slow
def test_they_are_compiled_once_and_nothing_waits_for_the_gpu(gpu: Callable[[int], NoGpu]) -> None:
    """For an Ampere GPU, by the compiler that a server would use, up to machine code."""
    ampere = gpu(80)
    kind = Kind(0.125, window=20, softcap=30.0, sinks=torch.ones(8, dtype=torch.bfloat16))
    for num_rows, length, offset in ((2, 40, 0), (3, 17, 1), (5, 500, 2), (16, 256, 0), (17, 4096, 3)):
        launch(num_rows, length, kind, torch.bfloat16, offset)
    assert sorted(ampere.compiled) == ["_decode_part", "_join_parts", "_prompt_tile"]
    assert len(ampere.launched) == 5 * 3
    assert all(min(grid) >= 1 for grid in ampere.launched)
