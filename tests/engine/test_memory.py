"""How much memory a cache may take, in a container too, and which faults mean that there was none."""

from pathlib import Path

import pytest
import torch

from worker.engine.memory import CPU_SHARE, CUDA_RESERVE_BYTES, CUDA_SHARE, cache_bytes, is_out_of_memory

MIB = 2**20


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The files of a control group, of which a test writes those that it wants."""
    monkeypatch.setattr("worker.engine.memory._CGROUP", tmp_path)
    return tmp_path


def write(folder: Path, limit: str, used: int, files: int = 0) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile 9\ninactive_file {files // 2}\nactive_file {files // 2}\n")


def test_what_is_wanted_is_taken(container: Path) -> None:
    write(container, "1000", 1000)
    assert cache_bytes(3, "cpu") == 3 * MIB


def test_without_a_container_it_is_a_share_of_what_the_machine_has_free(container: Path) -> None:
    of_the_machine = cache_bytes(0, "cpu")
    assert of_the_machine > MIB
    write(container, "max", 10**15)
    assert 0.5 < cache_bytes(0, "cpu") / of_the_machine < 2, "others use the machine meanwhile"


def test_in_a_container_it_is_a_share_of_what_that_has_left(container: Path) -> None:
    write(container, str(64 * MIB), 24 * MIB)
    assert cache_bytes(0, "cpu") == 40 * MIB * CPU_SHARE


def test_files_that_the_kernel_remembers_are_not_in_the_way(container: Path) -> None:
    """Else a model whose weights have just been read leaves no room for its own cache."""
    write(container, str(64 * MIB), 64 * MIB, files=30 * MIB)
    assert cache_bytes(0, "cpu") == 30 * MIB * CPU_SHARE


def test_a_container_that_is_over_its_limit_has_nothing_left(container: Path) -> None:
    write(container, str(64 * MIB), 65 * MIB)
    assert cache_bytes(0, "cpu") == 0


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (80 * 2**30, int(80 * 2**30 * CUDA_SHARE)),
        (3 * 2**30, 3 * 2**30 - CUDA_RESERVE_BYTES),
        (2**29, 0),
    ],
)
def test_of_a_gpu_there_is_room_left_for_steps_and_graphs(
    free: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 2 * free))
    assert cache_bytes(0, "cuda:0") == expected
    assert cache_bytes(3, "cuda:0") == 3 * MIB


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shapes"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_want_of_memory_is_told_from_other_faults(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
