"""Every block of code in the documents is run as it is printed, or says why not.

A block is run by its language: `sh`, and an indented block, in bash; `python` in an interpreter; `toml`, `yaml` and
`json` are parsed. All in a copy of the tree, with http://127.0.0.1:8000 being a real server with the embedded model. A
comment right above a block says what else is to be done with it:

    <!-- not run: REASON -->    nothing
    <!-- output -->             it is what the block before it prints; `...` stands for anything
    <!-- continues -->          Python that goes on from the block before it
    <!-- file: NAME -->         it is a file, for the blocks behind it
    <!-- ready at: PATH -->     a server that says somewhere else whether it is ready

What takes minutes is tried with the same command line and does less: `make` says what it would do, of pytest only the
files are looked up, programs of ours show their help. A block that starts a server has to become ready, and is ended.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.documents import DOCUMENTS, Block, blocks_of
from tests.support.servers import Server, free_port, running_server
from worker.config import read_settings
from worker.settings import EMBEDDED_MODEL, ROOT

BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
BY_DOCUMENT = {name: [block for block in BLOCKS if block.document == name] for name in {b.document for b in BLOCKS}}

# How many blocks of a document are not run. Whoever adds one says so here too.
NOT_RUN = {
    "CONTRIBUTING.md": 1,
    "README.md": 1,
    "docs/deploy.md": 10,
    "docs/embed.md": 1,
    "docs/endings.md": 2,
    "docs/metrics.md": 2,
    "docs/own-model.md": 3,
    "docs/quickstart.md": 1,
    "spec/README.md": 1,
}

SHELL = ("", "sh")
CONFIGURATION = ("toml", "yaml", "json")
NOT_RUN_NOTE, FILE_NOTE, READY_NOTE = "not run: ", "file: ", "ready at: "

URL = "http://127.0.0.1:8000"
LIMIT_S = 120.0
_SERVES = re.compile(r"make serve|worker serve|gunicorn (-\S+ \S+ )*\S+:app")
# Nobody's test may do this to a machine.
_REACHES_OUT = re.compile(r"\b(sudo|apt|apt-get|pip|npm|systemctl|docker|podman|kubectl|heroku|git push)\b")
_ONLY_SHOWS = re.compile(r"--print-config|--help")
_PORT = re.compile(r"(?<=PORT=)\d+|(?<=--port )\d+")

# `make` of these takes minutes, the network or a person.
_DRY = "setup|test|spec|types|check|soak|mutations|chat|bench|llama-server|model|clean"
_MAKE = f'make() {{ case "$1" in {_DRY}) command make -n "$@";; *) command make "$@";; esac; }}\n'

_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m pytest") for name; do case "$name" in tests/*) test -e "$name" || exit 4 ;; esac; done; exit 0 ;;
  "-m worker.engine.native") exec {python} -c "import worker.engine.native" ;;
  "-m bench"*|"-m tests.soak"|"-m tests.mutations"|"-m spec"|"-m models.training") exec {python} "$@" --help ;;
esac
exec {python} "$@"
"""

needs_tools = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("bash", "make", "curl")), reason="bash, make or curl is not here"
)


def test_every_block_says_how_it_is_run() -> None:
    for block in BLOCKS:
        if block.note.startswith(NOT_RUN_NOTE):
            assert len(block.note) > len(NOT_RUN_NOTE) + 3, f"{block}: why not?"
        elif block.note == "continues":
            assert block.language == "python", block
        elif block.note == "output":
            assert block.language == "text", block
        elif block.note.startswith(READY_NOTE):
            assert _SERVES.search(block.text), block
        elif block.note.startswith(FILE_NOTE):
            assert block.language in ("python", *CONFIGURATION), block
        else:
            assert not block.note, f"{block}: what is {block.note!r}?"
            assert block.language not in SHELL or not _REACHES_OUT.search(block.text), f"{block}: mark it as not run"
            assert block.language in (*SHELL, "python", *CONFIGURATION), f"{block}: how is {block.language!r} run?"


def test_blocks_that_are_not_run_are_known() -> None:
    notes = [(block, block.note) for block in BLOCKS if block.note.startswith(NOT_RUN_NOTE)]
    found = Counter(block.document for block, _ in notes)
    assert dict(found) == NOT_RUN, "\n".join(f"{block}: {note}" for block, note in notes)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in CONFIGURATION and not b.note.startswith(NOT_RUN_NOTE)], ids=str
)
def test_configuration_is_what_its_reader_takes(block: Block, tmp_path: Path) -> None:
    if block.language == "toml":
        file = tmp_path / "endstop.toml"
        file.write_text(block.text)
        assert read_settings({"ENDSTOP_CONFIG": str(file)}) != read_settings({})
    elif block.language == "yaml":
        assert isinstance(yaml.safe_load(block.text), dict)
    else:
        json.loads(block.text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, app="wsgi:app", env={"ENDSTOP_MODEL": str(EMBEDDED_MODEL)}) as server:
        yield server


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout after `make setup`."""
    tree = tmp_path / "endstop"
    without = shutil.ignore_patterns(".git", ".venv", "node_modules", "__pycache__", ".*_cache", ".hypothesis", "out")
    shutil.copytree(ROOT, tree, ignore=without)
    programs = tree / ".venv" / "bin"
    programs.mkdir(parents=True)
    for program in (Path(sys.prefix) / "bin").iterdir():
        if not program.name.startswith("python"):
            (programs / program.name).symlink_to(program)
    (programs / "python").write_text(_PYTHON.format(python=sys.executable))
    (programs / "python").chmod(0o755)
    for stamp in (".runtime", ".dev", ".bench"):
        (tree / ".venv" / stamp).touch()
    return tree


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("document", sorted(BY_DOCUMENT))
def test_what_is_printed_runs(document: str, tree: Path, server: Server) -> None:
    output, python = "", ""
    for block in BY_DOCUMENT[document]:
        text = block.text.replace(URL, server.url)
        if block.note == "output":
            expected = re.escape(" ".join(text.split())).replace(r"\.\.\.", ".*")
            assert re.search(expected, " ".join(output.split())), f"{block}: the block before it printed\n{output}"
        elif block.note.startswith(FILE_NOTE):
            (tree / block.note.removeprefix(FILE_NOTE)).write_text(text)
        elif block.note.startswith(NOT_RUN_NOTE) or block.language in CONFIGURATION:
            continue
        elif block.language == "python":
            python = python + text if block.note == "continues" else text
            output = run(block, [sys.executable, "-c", python], tree)
        elif _SERVES.search(text) and not _ONLY_SHOWS.search(text):
            start(block, text, tree)
        else:
            output = run(block, ["bash", "-euo", "pipefail", "-c", _MAKE + text], tree)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENDSTOP_", "MAKE"))}
    return kept | {"ENDSTOP_HOST": "127.0.0.1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def run(block: Block, command: list[str], tree: Path) -> str:
    """What it prints."""
    done = subprocess.run(
        command, cwd=tree, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{block}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def start(block: Block, text: str, tree: Path) -> None:
    """Start a server as the block says, wait until it is ready, and end it as a terminal does."""
    port = free_port()
    command = _MAKE + _PORT.sub(str(port), text)  # the shell may go on to what stands behind it, when it has ended well
    log = tree / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=tree,
            env=environment() | {"PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        if block.note.startswith(READY_NOTE):
            server.wait_ready(block.note.removeprefix(READY_NOTE))
        else:
            server.wait_ready()
        os.killpg(process.pid, signal.SIGINT)
        server.wait_exit()
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(10)
