"""`models`: what is listed, brought and removed, as a person at the terminal meets it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.engines import wait_until
from tests.support.fake_hub import fake_hub
from tests.support.processes import descendants_of, is_running
from tests.support.random_models import save_random_model
from worker.engine import download
from worker.errors import ModelLoadError
from worker.settings import ROOT

pytestmark = pytest.mark.slow

NAME = "someone/random-llama"


class Terminal:
    """Runs commands with a hub and a cache of their own."""

    def __init__(self, endpoint: str, cache: Path) -> None:
        self.env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "COLUMNS": "200"}

    def run(self, *arguments: str, answer: str = "") -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "worker", "models", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.env, input=answer, capture_output=True, text=True, timeout=60, check=False
        )

    def names(self) -> list[str]:
        return [model["name"] for model in json.loads(self.run("list", "--json").stdout)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_random_model(tmp_path / "source")


@pytest.fixture
def terminal(source: Path, tmp_path: Path) -> Iterator[Terminal]:
    with fake_hub(NAME, source) as (endpoint, _):
        yield Terminal(endpoint, tmp_path / "cache")


def test_a_model_comes_is_listed_and_goes(terminal: Terminal, tmp_path: Path, source: Path) -> None:
    assert terminal.names() == ["endstop-tiny"]
    assert "models download OWNER/NAME" in terminal.run("list").stdout
    brought = terminal.run("download", NAME)
    assert brought.returncode == 0, brought.stderr
    assert f"serve --model {NAME}" in brought.stdout
    assert brought.stderr == ""  # no bar where there is no terminal
    folder = Path(brought.stdout.splitlines()[1])
    for file in source.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert terminal.names() == ["endstop-tiny", NAME]
    assert NAME in terminal.run("list").stdout
    assert "nothing was missing" in terminal.run("download", NAME).stdout
    kept = terminal.run("remove", NAME, answer="n\n")
    assert kept.returncode == 1
    assert terminal.names() == ["endstop-tiny", NAME]
    assert terminal.run("remove", NAME, answer="y\n").returncode == 0
    assert terminal.names() == ["endstop-tiny"]
    assert not folder.exists()


def test_what_cannot_be_removed_is_named_with_the_nearest_and_nothing_goes(terminal: Terminal) -> None:
    terminal.run("download", NAME)
    for wrong, says in {
        "someone/random-lama": f"did you mean {NAME}?",
        "endstop-tiny": "is part of Endstop",
        "../../etc": "is no name of a model",
    }.items():
        result = terminal.run("remove", "--yes", NAME, wrong)
        assert result.returncode == 1
        assert says in result.stderr
    assert NAME in terminal.names()


def test_folders_of_other_names_are_listed_and_can_be_removed(terminal: Terminal, tmp_path: Path) -> None:
    """The hub's client refuses these names; somebody has made the folders all the same."""
    odd = {"a/b/c": "models--a--b--c", "a/b c": "models--a--b c", "": "models--"}
    for folder in odd.values():
        (tmp_path / "cache" / "hub" / folder).mkdir(parents=True)
    assert sorted(terminal.names()) == sorted(["endstop-tiny", *odd])
    assert terminal.run("list").stdout.count("(incomplete)") == len(odd)
    removed = terminal.run("remove", "--yes", *odd)
    assert removed.returncode == 0, removed.stderr
    assert terminal.names() == ["endstop-tiny"]


@pytest.mark.parametrize("name", ["a--b/c", "a..b/c", "a/b.git"])
def test_a_name_that_the_hub_cannot_have_is_one_line(terminal: Terminal, name: str) -> None:
    refused = terminal.run("download", name)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: {name}: ")
    assert "repo_id" in refused.stderr.lower()
    assert len(refused.stderr.splitlines()) == 1


def test_a_link_is_not_removed(terminal: Terminal, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "cache" / "hub").mkdir(parents=True)
    (tmp_path / "cache" / "hub" / "models--a--b").symlink_to(elsewhere)
    refused = terminal.run("remove", "--yes", "a/b")
    assert refused.returncode == 1
    assert f"models--a--b is a link to {elsewhere}" in refused.stderr
    assert elsewhere.is_dir()


def test_a_model_that_needs_a_token_says_so(source: Path, tmp_path: Path) -> None:
    with fake_hub(NAME, source, is_gated=True) as (endpoint, _):
        terminal = Terminal(endpoint, tmp_path / "cache")
        refused = terminal.run("download", NAME)
        assert refused.returncode == 1
        assert "accept it on the hub, then set HF_TOKEN" in refused.stderr
        assert "Traceback" not in refused.stderr
        terminal.env["HF_TOKEN"] = "hf_0123456789"
        assert terminal.run("download", NAME).returncode == 0


def test_a_download_without_a_hub_says_why(tmp_path: Path) -> None:
    refused = Terminal("http://127.0.0.1:9", tmp_path / "cache").run("download", NAME)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: {NAME}: ")
    assert len(refused.stderr.splitlines()) == 1


def test_a_download_that_was_broken_off_is_marked_and_goes_on(source: Path, tmp_path: Path) -> None:
    (source / "extra.safetensors").write_bytes(os.urandom(3_000_000))
    with fake_hub(NAME, source, bytes_per_s=100_000) as (endpoint, _):
        terminal = Terminal(endpoint, tmp_path / "cache")
        command = [sys.executable, "-m", "worker", "models", "download", NAME]
        process = subprocess.Popen(command, cwd=ROOT, env=terminal.env)
        try:
            while not _has_begun(tmp_path / "cache" / "hub"):
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        assert "(incomplete)" in terminal.run("list").stdout
    with fake_hub(NAME, source) as (endpoint, _):
        again = Terminal(endpoint, tmp_path / "cache")
        assert again.run("download", NAME).returncode == 0
        assert again.names() == ["endstop-tiny", NAME]
        assert "(incomplete)" not in again.run("list").stdout


def _has_begun(cache: Path) -> bool:
    try:
        return any(file.stat().st_size for file in cache.rglob("*.incomplete"))
    except FileNotFoundError:  # one that was small has become whole
        return False


@pytest.fixture
def begun(source: Path, tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """A download that will not end by itself, in a process group of its own, as a terminal has it."""
    (source / "extra.safetensors").write_bytes(os.urandom(3_000_000))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
    with fake_hub(NAME, source, bytes_per_s=50_000) as (endpoint, _):
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "models", "download", NAME],
            cwd=ROOT,
            env=Terminal(endpoint, tmp_path / "cache").env,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            while not any((tmp_path / "cache").rglob("*.incomplete")):
                assert process.poll() is None
                time.sleep(0.01)
            yield process
        finally:
            signal.signal(signal.SIGINT, before)
            process.kill()
            process.communicate()


def test_ctrl_c_ends_a_download(begun: "subprocess.Popen[str]") -> None:
    children = descendants_of(begun.pid)
    os.killpg(begun.pid, signal.SIGINT)
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == 1
    assert said.strip() == "Aborted!"
    wait_until(lambda: not any(map(is_running, children)))


def test_a_download_does_not_outlive_who_began_it(begun: "subprocess.Popen[str]") -> None:
    children = descendants_of(begun.pid)
    assert children
    begun.kill()
    begun.wait()
    wait_until(lambda: not any(map(is_running, children)))


def test_a_model_that_the_disk_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ModelLoadError, match=r"it has 2.5 kB more, and .* has room for 1.0 kB: make room"):
        download._check_room(tmp_path / "not" / "yet", 2500)
    download._check_room(tmp_path, 1000)


@pytest.mark.parametrize("how", ["offline", "the hub is away", "the hub knows it no more"])
def test_what_is_there_is_served_without_the_hub(how: str, source: Path, tmp_path: Path) -> None:
    """With the same weights in other formats too, which are never brought and so never there."""
    (source / "pytorch_model.bin").write_bytes(b"the same weights once more")
    with fake_hub(NAME, source) as (endpoint, _):
        terminal = Terminal(endpoint, tmp_path / "cache")
        folder = terminal.run("download", NAME).stdout.splitlines()[1]
    with fake_hub("someone/else", source) as (endpoint, _):
        if how == "offline":
            terminal.env["HF_HUB_OFFLINE"] = "1"
        elif how == "the hub knows it no more":
            terminal.env["HF_ENDPOINT"] = endpoint
        again = terminal.run("download", NAME)
    assert again.returncode == 0, again.stderr
    assert folder in again.stdout.splitlines()
    assert ("as it lies in the cache" in again.stdout) == (how != "offline")


def test_leftovers_of_broken_off_downloads_do_not_pile_up(terminal: Terminal, tmp_path: Path) -> None:
    terminal.run("download", NAME)
    [blobs] = (tmp_path / "cache").glob("hub/models--*/blobs")
    old, new = blobs / "0123.4567.incomplete", blobs / "89ab.cdef.incomplete"
    for leftover in (old, new):
        leftover.write_bytes(b"half of it")
    os.utime(old, (1, 1))
    assert terminal.run("download", NAME).returncode == 0
    assert not old.exists()
    assert new.exists()  # somebody may be writing it
