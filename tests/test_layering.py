"""Imports run one way.

web -> jobs -> job, prompts, grammars, call_grammar -> engine -> structure -> streams, observe -> body, answer_parser
    -> answer, config -> request, message, schema, origin, events, errors, keys, settings
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "worker").rglob("*.py"))

# Rooms and single modules, the lowest first. One may import from lower ones, and from its own.
LEVELS = [
    {"worker.request", "worker.message", "worker.schema", "worker.origin"}
    | {"worker.events", "worker.errors", "worker.keys", "worker.settings"},
    {"worker.answer", "worker.config"},
    {"worker.streams", "worker.observe", "worker.body", "worker.answer_parser"},
    {"worker.structure"},
    {"worker.engine"},
    {"worker.job", "worker.prompts", "worker.grammars", "worker.call_grammar"},
    {"worker.jobs"},
    {"worker.web"},
    # what starts a process, or talks to one from outside: nobody imports these
    {"worker.process", "worker.__main__", "worker.client", "worker.chat", "app", "wsgi"}
    | {"worker.serve", "worker.models", "worker.load", "worker.bench"}
    | {"worker.check", "worker.checks", "worker.spawn", "worker.recording", "worker.rules"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
TOP = len(LEVELS) - 1

TORCH = {"torch", "transformers", "tokenizers", "safetensors", "accelerate", "triton", "llguidance"}
FLASK = {"flask", "werkzeug", "gunicorn"}

# In the room of torch, and without it.
TORCH_FREE = {"admission", "limits", "supervisor", "delivery", "endings", "scheduler", "sequence", "kv_cache"}
TORCH_FREE |= {"stop_strings", "detokenizer", "tokenizer", "logprobs", "conversation"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Everything that is imported, at the top, inside functions and for type checkers only."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """The entry of LEVELS that a module belongs to."""
    parts = module.split(".")
    return next((name for n in (2, 1) if (name := ".".join(parts[:n])) in LEVEL), None)


def roots_of(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(path)}


def test_the_reader_of_imports_sees_all_of_them(tmp_path: Path) -> None:
    seen = set(imports_of(ROOT / "worker" / "engine" / "engine.py"))
    assert {"torch", "worker.engine.sampler", "worker.engine.loader"} <= seen  # the last for type checkers only
    assert "worker.engine.loader" in set(imports_of(ROOT / "worker" / "process.py"))  # inside a function
    assert room_of("worker.engine.engine") == "worker.engine"
    assert room_of("worker.jobs.Jobs") == "worker.jobs"
    assert room_of("json") is None


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(module_of(path))
    if room is None:
        assert module_of(path) == "worker", "a module that has no place in LEVELS"
        return
    for name in imports_of(path):
        other = room_of(name)
        if other is None or other == room or name == "worker":
            continue
        if LEVEL[room] == 0:
            assert LEVEL[other] == 0, f"{room} imports {other}"
        elif LEVEL[room] == TOP:
            continue
        elif LEVEL[room] == LEVEL[other] == LEVEL["worker.streams"]:
            assert (room, other) == ("worker.observe", "worker.streams"), f"{room} imports {other}"
        else:
            assert LEVEL[other] < LEVEL[room], f"{room} imports {other}"


@pytest.mark.parametrize("path", [*FILES, ROOT / "app.py", ROOT / "wsgi.py"], ids=module_of)
def test_each_library_lives_in_its_room(path: Path) -> None:
    room = room_of(module_of(path))
    roots = roots_of(path)
    if room != "worker.engine":
        assert not roots & TORCH, "torch lives in worker/engine and nowhere else"
    if room not in ("worker.web", "app"):
        assert not roots & FLASK, "flask lives in worker/web and app.py and nowhere else"
    if module_of(path) != "worker.observe.otlp":
        assert "opentelemetry" not in roots, "it is an extra: only what is imported when it is on may import it"


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_what_is_plain_python_in_the_engine_stays_so(name: str) -> None:
    assert not roots_of(ROOT / "worker" / "engine" / f"{name}.py") & TORCH


def test_the_client_needs_nothing_but_requests() -> None:
    """It can be copied out of here into another project."""
    others = roots_of(ROOT / "worker" / "client.py") - sys.stdlib_module_names
    assert others == {"requests"}


@pytest.mark.parametrize("name", ["request", "message", "schema", "origin", "events", "errors", "keys", "settings"])
def test_the_lowest_modules_import_no_third_party_but_the_schema(name: str) -> None:
    others = roots_of(ROOT / "worker" / f"{name}.py") - sys.stdlib_module_names - {"worker"}
    assert others <= ({"pydantic", "pydantic_core"} if name in ("request", "message", "schema") else set())


def test_no_import_of_the_rooms_starts_torch() -> None:
    """`worker.config` and `worker.process` are read by gunicorn's arbiter, before the fork."""
    seen: set[str] = set()
    todo = ["worker.config", "worker.process", "worker.streams.channel", "worker.client", "worker.request"]
    while todo:
        module = todo.pop()
        path = ROOT / (module.replace(".", "/") + ".py")
        if module in seen or not path.exists():
            continue
        seen.add(module)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:  # at the top only: what is inside a function comes later
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        assert not {name.partition(".")[0] for name in todo} & TORCH
    assert "worker.streams.native" in seen
