"""The servers that are measured: how each is started on a model folder, and what a request to it has to say besides.

Each runs as its makers run it, on the same two cores, with 16-bit weights as they are in the folder.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import requests

from bench import procs
from bench.models import EMBEDDED, OUT

ROOT = Path(__file__).resolve().parent.parent
MAX_STREAMS = 32
MAX_CONTEXT = 2048
READY_LIMIT_S = 300.0
LLAMA_SERVER = os.environ.get("LLAMA_SERVER") or str(OUT / "llama.cpp" / "bin" / "llama-server")

Command = Callable[[Path, int], list[str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A server that can be measured.

    Attributes:
        command: Its command line, from a model folder and a port.
        env: What it is told besides.
        fields: What a request to it has to say besides.
        health: A path that answers 200 when the model is loaded.
        why_not: Says of a model why this server cannot be measured on it; empty if it can.
    """

    command: Command
    env: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    health: str = "/health"
    why_not: Callable[[str], str] = lambda model: ""

    def body(self, messages: list[dict[str, Any]], num_tokens: int) -> dict[str, Any]:
        """A request for a stream of so many tokens, greedy."""
        return {
            "messages": messages,
            "stream": True,
            "max_tokens": num_tokens,
            "temperature": 0,
            "seed": 0,
            **self.fields,
        }


def _gunicorn(*arguments: str) -> list[str]:
    # No heartbeat: a server is stopped while others are measured, and would be taken for dead.
    return [sys.executable, "-m", "gunicorn", "--timeout", "0", *arguments]


def _endstop(worker_class: str, **more: str) -> Kind:
    def command(folder: Path, port: int) -> list[str]:
        return _gunicorn("-c", "gunicorn.conf.py", "--bind", f"127.0.0.1:{port}", "wsgi:app")

    env = {
        "ENDSTOP_WORKER_CLASS": worker_class,
        "ENDSTOP_MAX_SLOTS": str(MAX_STREAMS),
        "ENDSTOP_MAX_CONTEXT": str(MAX_CONTEXT),
    }
    return Kind(command, env | more, {"stream_options": {"include_usage": True}}, health="/ready")


def _naive(folder: Path, port: int) -> list[str]:
    threads = ("-c", os.devnull, "--worker-class", "gthread", "--threads", str(2 * MAX_STREAMS))
    return _gunicorn(*threads, "--bind", f"127.0.0.1:{port}", f"bench.naive:make_app({str(folder)!r})")


def _lacks_serving(model: str) -> str:
    return "" if importlib.util.find_spec("uvicorn") else "pip install -r requirements-bench.txt"


def _transformers(*arguments: str) -> Kind:
    program = str(Path(sys.executable).with_name("transformers"))

    def command(folder: Path, port: int) -> list[str]:
        return [program, "serve", "--port", str(port), *arguments, str(folder)]

    return Kind(command, {"HF_HUB_OFFLINE": "1"}, why_not=_lacks_serving)


def _llama(weights: str) -> Kind:
    def command(folder: Path, port: int) -> list[str]:
        from bench.gguf_file import gguf_file

        file = str(gguf_file(folder, weights))
        return [
            *(LLAMA_SERVER, "--model", file, "--port", str(port), "--threads", str(os.cpu_count())),
            *("--parallel", str(MAX_STREAMS), "--ctx-size", str(MAX_STREAMS * MAX_CONTEXT), "--jinja", "--no-webui"),
        ]

    fields = {"stream_options": {"include_usage": True}, "ignore_eos": True}
    return Kind(command, fields=fields, why_not=_lacks_llama)


def _lacks_llama(model: str) -> str:
    if model == EMBEDDED:
        return "not converted: its tokenizer is none that llama.cpp knows"
    return "" if shutil.which(LLAMA_SERVER) else "make llama-server"


KINDS = {
    "endstop-gevent": _endstop("gevent"),
    "endstop-gthread": _endstop("gthread"),
    "naive": Kind(_naive),
    "transformers-serve": _transformers(),
    # By default its cache takes half of the memory, and all servers share this machine.
    "transformers-cb": _transformers("--continuous-batching", "--cb-max-memory-percent", "0.3"),
    "llama-server": _llama("bf16"),
    # Not measured unless they are named: 8 bits against 8 bits.
    "endstop-int8": _endstop("gevent", ENDSTOP_QUANTIZATION="int8"),
    "llama-server-q8_0": _llama("q8_0"),
}
BY_DEFAULT = [name for name in KINDS if name not in ("endstop-int8", "llama-server-q8_0")]


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready."""

    url: str
    session: int
    kind: Kind


class DidNotStart(Exception):
    """A server is not there; carries the end of what it said."""


@contextmanager
def running(kind: Kind, folder: Path) -> Iterator[Running]:
    """Run a server, ready and then paused, while the block lasts.

    Raises:
        DidNotStart: It exited or was not ready in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    env = os.environ | {"ENDSTOP_MODEL": str(folder), "ENDSTOP_LOG_LEVEL": "warning"} | kind.env
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            kind.command(folder, port), cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            server = Running(f"http://127.0.0.1:{port}", process.pid, kind)
            _wait_until_ready(server, process, log)
            yield server
        finally:
            procs.resume(process.pid)
            procs.kill(process.pid)
            process.wait(30)


def _wait_until_ready(server: Running, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    give_up_at = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < give_up_at and process.poll() is None:
        try:
            if requests.get(server.url + server.kind.health, timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    size = os.fstat(log.fileno()).st_size
    raise DidNotStart(os.pread(log.fileno(), 3000, max(0, size - 3000)).decode(errors="replace"))
