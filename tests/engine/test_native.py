"""A library of kernels is loaded if it is whole, built if it is not, and is never the reason why there is no server."""

import hashlib
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker.engine import native
from worker.engine.kernels import IS_NATIVE
from worker.settings import ROOT

needs_native = pytest.mark.skipif(not IS_NATIVE, reason="python -m worker.engine.native has not built it")

# Small, always there, and of no consequence in this process.
SOME_LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so"


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the library is looked for. To try it there torch is not imported, which takes seconds."""
    found = tmp_path / "build" / "endstop.so"
    found.parent.mkdir()
    monkeypatch.setattr(native, "library", lambda: found)
    monkeypatch.setattr(native, "why_not", "")
    monkeypatch.setattr(native, "_LOADING", "import ctypes, sys; ctypes.CDLL(sys.argv[1])")
    return found


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A compiler whose output is what lies beside it."""
    made = tmp_path / "made"
    made.write_bytes(SOME_LIBRARY.read_bytes())
    script = tmp_path / "c++"
    script.write_text(f'#!/bin/sh\nfor output; do :; done\necho "$output" >> {tmp_path}/outputs\ncp {made} "$output"\n')
    script.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(script))
    return made


LIBRARY = SOME_LIBRARY.read_bytes()
DAMAGED = {
    "empty": b"",
    "cut off": sealed(LIBRARY)[: len(LIBRARY) // 2],
    "its end is missing": sealed(LIBRARY)[:-1],
    "its checksum is missing": LIBRARY,
    "a hole": sealed(LIBRARY).replace(LIBRARY[64:4096], bytes(4096 - 64)),
}
USELESS = DAMAGED | {"no library": sealed(b"#!/bin/sh\n")}


@pytest.mark.parametrize("content", USELESS.values(), ids=USELESS)
def test_a_library_that_cannot_be_loaded_is_none_and_the_reason_is_known(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert native.load() is False
    assert path.name in native.why_not
    assert ("is damaged" in native.why_not) == (content in DAMAGED.values())


def test_a_library_that_is_whole_is_loaded(path: Path) -> None:
    assert native.load() is False
    assert native.why_not == "not built"
    path.write_bytes(sealed(LIBRARY))
    assert native.load() is True
    assert native.why_not == ""


@pytest.mark.parametrize("content", USELESS.values(), ids=USELESS)
def test_a_library_that_cannot_be_loaded_is_built_again(path: Path, compiler: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert native.build() == path
    assert native.load() is True
    assert list(path.parent.iterdir()) == [path]


def test_a_library_that_can_be_loaded_is_not_built_again(path: Path, compiler: Path) -> None:
    path.write_bytes(sealed(LIBRARY))
    compiler.unlink()
    assert native.build() == path


def test_two_that_build_do_not_write_over_each_other(path: Path, compiler: Path, tmp_path: Path) -> None:
    native.build()
    (output,) = (tmp_path / "outputs").read_text().split()
    assert str(os.getpid()) in Path(output).name
    assert Path(output).parent == path.parent


def test_what_the_compiler_made_and_cannot_be_loaded_is_not_left_for_a_server(path: Path, compiler: Path) -> None:
    compiler.write_bytes(LIBRARY[:100])
    with pytest.raises(native.CannotBuild, match="cannot be loaded: "):
        native.build()
    assert list(path.parent.iterdir()) == []


def test_a_library_that_ends_its_process_ends_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(sealed(LIBRARY))
    monkeypatch.setattr(native, "_LOADING", "import os, signal; os.kill(os.getpid(), signal.SIGBUS)")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(native.CannotBuild, match=r"no C\+\+ compiler"):
        native.build()


def test_a_folder_that_cannot_be_written_to_is_a_reason(path: Path, compiler: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("no folder")
    with pytest.raises(native.CannotBuild, match="build has to be a folder that can be written to"):
        native.build()
    assert native.load() is False


def test_a_folder_that_is_read_only_is_a_reason(
    path: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before the compiler has worked for a minute. Not by permissions: who runs tests may be root."""

    def read_only(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(native.CannotBuild, match="build has to be a folder that can be written to"):
        native.build()
    assert not (tmp_path / "outputs").exists()


def test_a_package_that_is_missing_is_a_reason(path: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.cpp_extension", raising=False)
    monkeypatch.setitem(sys.modules, "setuptools", None)
    with pytest.raises(native.CannotBuild, match="python -m pip install setuptools"):
        native.build()


def test_a_compiler_that_takes_too_long_is_a_reason(
    path: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c++").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(native, "BUILD_LIMIT_S", 0.05)
    with pytest.raises(native.CannotBuild, match="was not done after"):
        native.build()
    assert list(path.parent.iterdir()) == []


def test_who_could_not_build_is_told_how_to_try_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    runpy.run_module("worker.engine.native")
    assert capsys.readouterr().err.endswith(f"\n{sys.executable} -m worker.engine.native tries again\n")


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
@pytest.mark.parametrize("name", ["linear.cpp", "parallel.h"])
def test_make_builds_again_when_a_source_has_changed(tmp_path: Path, name: str) -> None:
    """As after an upgrade: nothing else would tell that the library of before fits no more."""
    shutil.copytree(ROOT / "worker" / "engine" / "native", tmp_path / "worker" / "engine" / "native")
    for file in ("Makefile", "requirements.txt"):
        shutil.copy2(ROOT / file, tmp_path / file)
    done = tmp_path / ".venv" / ".runtime"
    done.parent.mkdir()
    done.touch()
    command = ["make", "--question", ".venv/.runtime"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    source = tmp_path / "worker" / "engine" / "native" / name
    os.utime(source, (done.stat().st_atime, done.stat().st_mtime + 1))
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 1


@needs_native
@pytest.mark.slow
def test_the_library_is_tried_as_a_server_loads_it() -> None:
    """It needs torch, and is nothing without."""
    assert native._why_not_loaded(native.library()) == ""
