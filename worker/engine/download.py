"""Brings a model from the hub into the local cache: `python -m worker.engine.download ID`, in a process of its own.

Why a process: the hub's client uses threads, locks and TLS that gevent patches, and the generation thread, which
loads the model, may touch none of them. A child has no gevent, can be killed when loading takes too long, and its
progress goes to the terminal as it is. The folder is the last line it prints.
"""

import os
import re
import sys
from pathlib import Path

from worker.errors import ModelLoadError, one_line
from worker.settings import ROOT
from worker.streams.native import native_sleep, native_spawn, native_waitpid

POLL_S = 0.2

# Of a repository with safetensors nothing else is needed: the same weights again, in formats of other libraries.
_OTHER_WEIGHTS = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.tflite", "original/*", "onnx/*"]


def download(name: str, limit_s: float) -> str:
    """The local folder of a hub model, after downloading what is not there. Blocks this thread; any thread may.

    Raises:
        ModelLoadError: It cannot be downloaded, or not within `limit_s`.
    """
    read_end, write_end = os.pipe()
    arguments = [sys.executable, "-m", "worker.engine.download", name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    child = native_spawn(arguments, environment, stdout=write_end)
    os.close(write_end)
    waited_s = 0.0
    status = None
    while status is None:
        if waited_s > limit_s:
            os.kill(child, 9)
        native_sleep(POLL_S)
        waited_s += POLL_S
        done, code = native_waitpid(child, os.WNOHANG)
        status = code if done else None
    with os.fdopen(read_end) as output:
        lines = output.read().strip().splitlines()
    if status != 0:
        reason = f"not within {limit_s:g} s" if waited_s > limit_s else lines[-1] if lines else "see the log"
        raise ModelLoadError(f"model {name!r} is neither a folder here nor can it be downloaded: {reason}")
    return lines[-1]


def main() -> None:
    """Download the model that the command line names; print its folder, or why not, as the last line."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    name = sys.argv[1]
    try:
        if is_offline_mode():
            folder = snapshot_download(name, local_files_only=True)
        else:
            has_safetensors = any(re.fullmatch(r"[^/]+\.safetensors", file) for file in list_repo_files(name))
            folder = snapshot_download(name, ignore_patterns=_OTHER_WEIGHTS if has_safetensors else None)
    except GatedRepoError:
        sys.exit(_say(f"its owner asks for an agreement: accept it on the hub, then set HF_TOKEN ({name})"))
    except RepositoryNotFoundError:
        sys.exit(_say("the hub has no such model, or it is private: check the name, or set HF_TOKEN"))
    except Exception as error:  # whatever the network, the disk or the hub's client raises is the reason
        sys.exit(_say(one_line(error)))
    print(Path(folder))


def _say(reason: str) -> int:
    print(reason)
    return 1


if __name__ == "__main__":
    main()
