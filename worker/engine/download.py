"""Brings a model from the hub into the local cache: `python -m worker.engine.download ID`, in a process of its own.

Why a process: the hub's client uses threads, locks and TLS that gevent patches, and the generation thread, which
loads the model, may touch none of them. A child has no gevent and can be killed: when loading takes too long, or by
Ctrl-C, behind which the client's threads would bring their files to the end. It prints how far it is, `progress DONE
TOTAL` in bytes, then `cached WHY` if the hub could not be asked, and as its last line the folder, or why there is none.
Its standard input says nothing; when that ends so does the child, for whoever began it is gone.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from worker.errors import ModelLoadError, one_line
from worker.settings import ROOT
from worker.streams.native import native_sleep, native_spawn, native_waitpid

# How much of how many bytes is there.
ReportBytes = Callable[[int, int], None]

POLL_S = 0.2
_PROGRESS = "progress "
_WHY_CACHED = "cached "
# The client's own 10 MiB move a bar every ten seconds on a slow line.
CHUNK_BYTES = 2**20
# A file that somebody is writing has been written to within that time.
LEFTOVER_S = 600.0

# Of a repository with safetensors nothing else is needed: the same weights again, in formats of other libraries.
_OTHER_WEIGHTS = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.tflite", "original/*", "onnx/*"]


# A name of a repository: `owner/name`, or a bare name of the hub's first years (`gpt2`).
HUB_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")


def is_folder(name: str) -> bool:
    """Whether a model is a folder here; else it has the name of one on the hub.

    Raises:
        ModelLoadError: It is a folder without a model, or can be no name and is not here.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ModelLoadError(f"model folder {name!r} has no config.json")
        return True
    if not HUB_ID.fullmatch(name):
        raise ModelLoadError(f"model folder {name!r} does not exist; set ENDSTOP_MODEL to a model folder or a hub id")
    return False


@dataclass(frozen=True, slots=True)
class Found:
    """A model's folder.

    Attributes:
        folder: In the cache of the hub's client.
        why_cached: Why the hub was not asked whether there is a newer one; empty when it was, or was not to be.
    """

    folder: str
    why_cached: str = ""


def download(name: str, limit_s: float, report: ReportBytes) -> Found:
    """A hub model, after downloading what is not there. Blocks this thread; any thread may.

    Raises:
        ModelLoadError: Says in one line why it cannot be downloaded, or that it was not within `limit_s`.
    """
    theirs_in, to_child = os.pipe()
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    arguments = [sys.executable, "-m", "worker.engine.download", name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    child = native_spawn(arguments, environment, stdout=write_end, stdin=theirs_in)
    os.close(write_end)
    os.close(theirs_in)
    waited_s = 0.0
    status = None
    output = b""
    why_cached = last_line = ""
    try:
        while status is None:
            if waited_s > limit_s:
                os.kill(child, signal.SIGKILL)
            native_sleep(POLL_S)
            waited_s += POLL_S
            done, code = native_waitpid(child, os.WNOHANG)
            status = code if done else None
            *lines, output = (output + _read_waiting(read_end)).split(b"\n")
            for line in lines:
                if line.startswith(_PROGRESS.encode()):
                    report(*map(int, line.split()[1:]))
                elif line.startswith(_WHY_CACHED.encode()):
                    why_cached = line.decode(errors="replace").removeprefix(_WHY_CACHED)
                elif text := line.decode(errors="replace").strip():
                    last_line = text
    finally:
        if status is None:  # Ctrl-C
            os.kill(child, signal.SIGKILL)
            native_waitpid(child, 0)
        os.close(to_child)
        os.close(read_end)
    if status != 0:
        raise ModelLoadError(f"not within {limit_s:g} s" if waited_s > limit_s else last_line or "see the log")
    return Found(last_line, why_cached)


def _read_waiting(descriptor: int) -> bytes:
    data = b""
    while True:
        try:
            more = os.read(descriptor, 65536)
        except BlockingIOError:
            return data
        if not more:
            return data
        data += more


def fetch(name: str, report: ReportBytes) -> Found:
    """What `download` does, in this process, whose threads have to be real ones.

    A model that is wholly in the cache is served whatever the hub says: a server must start on a day when the hub is
    away.

    Args:
        name: A hub id.
        report: Called from threads of the hub's client, often.

    Raises:
        ModelLoadError: Says in one line why there is no such model here.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.ERROR)  # of its own retries; what it raises in the end is what is said
    cached = in_cache(name)
    if is_offline_mode():
        if cached:
            return Found(cached)
        raise ModelLoadError("it is not in the local cache, or not wholly, and HF_HUB_OFFLINE forbids to ask the hub")
    try:
        return Found(_fetch(name, report))
    except ModelLoadError:
        raise
    except GatedRepoError as error:
        reason = f"its owner asks for an agreement: accept it on the hub, then set HF_TOKEN ({name})"
        wrong: Exception = error
    except RepositoryNotFoundError as error:
        reason = "the hub has no such model, or it is private: check the name, or set HF_TOKEN"
        wrong = error
    except Exception as error:  # whatever the network, the disk or the hub's client raises is the reason
        reason = one_line(error)
        wrong = error
    if cached:
        return Found(cached, reason)
    raise ModelLoadError(reason) from wrong


def in_cache(name: str) -> str:
    """The folder of a model that is wholly in the cache; empty if it is not. Asks nobody."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for unwanted in (None, _OTHER_WEIGHTS):
        try:
            folder = Path(snapshot_download(name, local_files_only=True, ignore_patterns=unwanted))
        except (LocalEntryNotFoundError, HFValidationError):  # the second: no model of the hub has such a name
            continue
        has_weights = unwanted is None or any(folder.glob("*.safetensors"))
        if has_weights and (folder / "config.json").is_file():
            return str(folder)
    return ""


def _fetch(name: str, report: ReportBytes) -> str:
    from huggingface_hub import constants, list_repo_files, snapshot_download

    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    has_safetensors = any(re.fullmatch(r"[^/]+\.safetensors", file) for file in list_repo_files(name))
    unwanted = _OTHER_WEIGHTS if has_safetensors else None
    silent = _counting_bar(0, report)
    plan = snapshot_download(name, ignore_patterns=unwanted, tqdm_class=silent, dry_run=True)
    _remove_leftovers(Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}")
    num_bytes = sum(file.file_size or 0 for file in plan if file.will_download)
    _check_room(Path(constants.HF_HUB_CACHE), num_bytes)
    bar_class = _counting_bar(num_bytes, report)
    return str(Path(snapshot_download(name, ignore_patterns=unwanted, tqdm_class=bar_class)))


def _remove_leftovers(repository: Path) -> None:
    """Delete what downloads that were broken off have left: the hub's client begins anew, under another name."""
    for leftover in repository.glob("blobs/*.incomplete"):
        with contextlib.suppress(OSError):  # it has become whole just now, or is another user's
            if time.time() - leftover.stat().st_mtime > LEFTOVER_S:
                leftover.unlink()


def _check_room(cache: Path, num_bytes: int) -> None:
    folder = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ModelLoadError(
            f"it has {decimal(num_bytes)} more, and {folder} has room for {decimal(free)}: make room "
            "(python -m worker models list), or set HF_HOME to a folder on a larger disk"
        )


def _counting_bar(num_bytes: int, report: ReportBytes) -> type[Any]:
    """A class that the hub's client takes for its progress bars. It shows nothing and reports bytes."""
    from tqdm import tqdm

    furthest = 0

    class CountingBar(tqdm):  # type: ignore[misc]
        """One of several: bytes from the network, bytes on the disk, files. Who is ahead is believed."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.num_done = 0
            self.is_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self.num_done += int(n or 0)
            if self.is_bytes and furthest < self.num_done <= num_bytes:
                furthest = self.num_done
                report(furthest, num_bytes)

    return CountingBar


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)  # sys.exit would wait for the threads of the hub's client


def main() -> None:
    """Download the model that the command line names; print its folder, or why not, as the last line."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # of a terminal or a platform, meant for the parent
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_input, daemon=True).start()
    said_at = 0.0

    def say(done: int, total: int) -> None:
        nonlocal said_at
        if done == total or time.monotonic() - said_at > POLL_S:
            said_at = time.monotonic()
            print(f"{_PROGRESS}{done} {total}", flush=True)

    try:
        found = fetch(sys.argv[1], say)
        if found.why_cached:
            print(f"{_WHY_CACHED}{found.why_cached}")
        print(found.folder)
    except ModelLoadError as error:
        print(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
