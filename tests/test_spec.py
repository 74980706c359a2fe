"""The model in spec/ speaks of the code: each name and statement that it maps is there, in the order that it proves."""

import ast
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from spec import __main__ as checker
from spec.__main__ import MODELS, MUTANTS, SAFETY, CannotCheck, Model, Mutant, check_model, check_mutant, search

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "spec"
MODEL_FILES = sorted(SPEC.glob("*.pml"))

CODE = re.compile(r"([\w/]+\.py): ([\w.]+)")
STEP = re.compile(r"(\w+): (\w+)")
needs_spin = pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("cc") is None,
    reason="needs the Debian packages spin, gcc and libc6-dev",
)


@cache
def code_of(file: str) -> dict[str, str]:
    """The source of each function and class of a file by its qualified name, white space folded."""
    path = ROOT / file
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    found: dict[str, str] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = prefix + child.name
                found[name] = _folded(ast.get_source_segment(text, child) or "")
                visit(child, f"{name}.")

    visit(ast.parse(text), "")
    return found


def _folded(text: str) -> str:
    return " ".join(text.split())


def what_is_wrong(file: str, name: str, statements: list[str]) -> str:
    """Why the code is not as the model has it, or an empty string."""
    source = code_of(file).get(name)
    if source is None:
        return f"{file} has no {name}"
    place = 0
    for statement in statements:
        at = source.find(_folded(statement), place)
        if at < 0:
            return f"{file}: {name} has no `{statement}`" + (" at this place" if statement in source else "")
        place = at + len(_folded(statement))
    return ""


def rows_of_the_map() -> Iterator[tuple[list[tuple[str, str]], str, str, list[str]]]:
    """Steps, file, name and statements of each row of the README's table."""
    for line in (SPEC / "README.md").read_text(encoding="utf-8").splitlines():
        cells = line.strip("|").split(" | ")
        code = CODE.fullmatch(cells[1].strip(" `")) if len(cells) == 3 else None
        if code is not None:
            steps = [STEP.fullmatch(step) for step in re.findall(r"`([^`]+)`", cells[0])]
            assert all(steps), line
            yield [(step[1], step[2]) for step in steps if step], code[1], code[2], re.findall(r"`([^`]+)`", cells[2])


MAP = list(rows_of_the_map())


@pytest.mark.parametrize(("steps", "file", "name", "statements"), MAP, ids=[f"{row[1]}: {row[2]}" for row in MAP])
def test_the_code_is_as_the_map_has_it(
    steps: list[tuple[str, str]], file: str, name: str, statements: list[str]
) -> None:
    assert steps
    assert statements
    assert not what_is_wrong(file, name, statements)


def test_whoever_ends_a_stream_is_in_the_model() -> None:
    """A way to end streams that the model does not know was a way to lose outcomes."""
    mapped = {name for _, _, name, _ in MAP}
    ends = re.compile(r"self\.(_admission\.)?(close|_tell|_take_out|_?end_from_outside)\(")
    files = (f"worker/engine/{name}.py" for name in ("engine", "admission", "supervisor"))
    sources = {name: source for file in files for name, source in code_of(file).items() if "." in name}
    found = {name for name, source in sources.items() if ends.search(source)}
    assert len(found) >= 8
    assert found <= mapped


def test_the_reader_of_code_notices_what_is_gone_and_what_has_moved() -> None:
    file = "worker/streams/wakeup.py"
    right = ["self._acquire(False)", "self._is_armed = True"]
    assert not what_is_wrong(file, "ThreadWaiter.arm", right)
    assert what_is_wrong(file, "ThreadWaiter.arm", right[::-1]).endswith("at this place")
    assert "has no `self._acquire(None)`" in what_is_wrong(file, "ThreadWaiter.arm", ["self._acquire(None)"])
    assert what_is_wrong(file, "ThreadWaiter.disarm", []) == f"{file} has no ThreadWaiter.disarm"
    assert what_is_wrong("worker/streams/gone.py", "arm", []) == "worker/streams/gone.py has no arm"


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_every_step_of_a_model_is_mapped_and_none_else(path: Path) -> None:
    defined = set(re.findall(r"^(?:active )?(?:\[\w+\] )?(?:inline|proctype) (\w+)", path.read_text(), re.MULTILINE))
    mapped = {step for steps, *_ in MAP for file, step in steps if file == path.stem}
    assert defined
    assert mapped == defined


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)
def test_the_code_that_a_model_names_is_there(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("/*")
    named = CODE.findall(text)
    assert named
    wrong = [what_is_wrong(file, name, []) for file, name in named]
    assert not any(wrong), wrong
    for file in re.findall(r"tests/[\w/]+\.py", text):
        assert (ROOT / file).exists()


def test_every_switch_of_a_model_is_a_mutant_or_a_configuration() -> None:
    """A fault that nobody switches on proves nothing."""
    texts = {path.stem: path.read_text() for path in MODEL_FILES}
    own = {name for text in texts.values() for name in re.findall(r"#define (\w+)", text)}
    used = {name for text in texts.values() for name in re.findall(r"#ifn?def (\w+)|defined\((\w+)\)", text)}
    switches = {name for pair in used for name in pair if name} - own
    known = {mutant.switch for mutant in MUTANTS} | {switch for model in MODELS for switch in model.switches}
    assert switches == known
    for mutant in MUTANTS:
        assert re.search(rf"\b{mutant.switch}\b", texts[mutant.file] + texts["wakeup"]), mutant
        assert any((mutant.file, mutant.switches) == (model.file, model.switches) for model in MODELS), mutant


def test_every_formula_is_checked() -> None:
    for path in MODEL_FILES:
        formulas = set(re.findall(r"^ltl (\w+)", path.read_text(), re.MULTILINE))
        checked = {name for model in MODELS if model.file == path.stem for name in model.properties} - {SAFETY}
        assert formulas == checked


def test_the_readme_lists_the_mutants() -> None:
    text = (SPEC / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `((?:channel|shutdown|journal) [A-Z_ ]+)` \|", text, re.MULTILINE)
    assert listed == [mutant.name for mutant in MUTANTS]


def test_a_missing_tool_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotCheck, match="apt-get install spin gcc libc6-dev"):
        search("shutdown", (), SAFETY)


@needs_spin
@pytest.mark.slow
def test_a_model_holds_and_its_mutant_is_rejected() -> None:
    """The smallest of them; `make spec` does all."""
    row, holds = check_model(Model("shutdown", (), (SAFETY,)), SAFETY)
    assert holds, row
    row, is_rejected = check_mutant(Mutant("CLOSE_WITHOUT_TEST", "shutdown", SAFETY))
    assert is_rejected
    assert "num_closes" in row


@needs_spin
@pytest.mark.slow
def test_a_fault_fails_with_its_trace_and_a_mutant_without_fault_survives() -> None:
    row, holds = check_model(Model("shutdown", ("CLOSE_WITHOUT_TEST",), (SAFETY,)), SAFETY)
    assert not holds
    assert "FAILS: assertion violated (num_closes[i]==1)" in row
    assert "is_open[0] = 1" in row  # a step of the trace
    row, is_rejected = check_mutant(Mutant("NO_SUCH_SWITCH", "shutdown", SAFETY))
    assert not is_rejected
    assert "SURVIVES" in row


@needs_spin
@pytest.mark.slow
def test_a_search_that_is_cut_short_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checker, "DEPTH_LIMIT", 50)
        with pytest.raises(CannotCheck, match="cut short"):
            search("shutdown", (), SAFETY)
    monkeypatch.setattr(checker, "MEMORY_LIMIT_MB", 50)
    with pytest.raises(CannotCheck, match="cut short"):
        search("shutdown", (), SAFETY)


@needs_spin
@pytest.mark.slow
def test_a_statement_that_is_never_reached_is_no_proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = "bool is_on;\nactive proctype lamp() { if :: is_on -> is_on = false :: else fi }\n"
    (tmp_path / "lamp.pml").write_text(model)
    monkeypatch.setattr(checker, "HERE", tmp_path)
    row, holds = check_model(Model("lamp", (), (SAFETY,)), SAFETY)
    assert not holds
    assert "UNREACHED" in row
    assert "is_on = 0" in row


@needs_spin
def test_a_model_that_spin_cannot_read_is_no_proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torn.pml").write_text("active proctype torn() {")
    monkeypatch.setattr(checker, "HERE", tmp_path)
    with pytest.raises(CannotCheck, match=r"torn\.pml"):
        search("torn", (), SAFETY)
