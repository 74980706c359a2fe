"""The docs say what the code does: tables of settings, routes, codes and events, names in the text, links."""

import re
from dataclasses import fields
from http import HTTPStatus
from pathlib import Path
from typing import get_args

import pytest

from tests.support.apps import app_in_process
from tests.support.documents import DOCUMENTS, anchors_of, code_of, links_of, name_of
from worker import errors
from worker.engine.admission import EngineState
from worker.errors import DeadlineExceeded, GenerationFailed, NotReady, RequestError
from worker.settings import ROOT, Settings, variable_name
from worker.web import native_answers
from worker.web.page import PATHS

DOCS = ROOT / "docs"

# What Kubernetes would set for a Service of this name.
_NO_SETTINGS = {"ENDSTOP_PORT"}


def _rows(text: str) -> dict[str, list[str]]:
    """Table rows by the code in their first cell."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            for name in re.findall(r"`([^`]+)`", cells[0]):
                rows[name] = cells[1:]
    return rows


def _section(page: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    return (DOCS / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


# ---- reference


def test_the_settings_table_has_every_setting_and_its_default() -> None:
    rows = _rows((DOCS / "settings.md").read_text())
    assert list(rows) == [variable_name(setting) for setting in fields(Settings)]
    for setting in fields(Settings):
        default = "models/endstop-tiny" if setting.name == "model" else str(setting.default) or "(empty)"
        assert rows[variable_name(setting)][0] == default, setting.name
        assert rows[variable_name(setting)][1] == setting.metadata["help"], setting.name


def _codes_of(base: type[RequestError] | type[GenerationFailed]) -> dict[str, int]:
    """Codes and statuses of the classes of errors.py that have one code each, and of the base itself."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, base)]
    return {kind.code: kind.status for kind in found if kind is not NotReady}


def test_every_refusal_is_in_its_table() -> None:
    expected = _codes_of(RequestError)
    expected |= {state.value: NotReady.status for state in EngineState if state is not EngineState.READY}
    expected |= {status.name: status.value for status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)}
    expected["INTERNAL"] = 500
    section = _section("errors.md", "Refusals").partition("\nBytes that are no request")[0]
    assert {code: int(cells[0]) for code, cells in _rows(section).items()} == expected


def test_every_terminal_error_is_in_its_table() -> None:
    expected = _codes_of(GenerationFailed)
    raised = "".join((ROOT / "worker" / "engine" / name).read_text() for name in ("sequence.py", "supervisor.py"))
    expected |= dict.fromkeys(re.findall(r'DeadlineExceeded\(.*"([A-Z_]+)"\)', raised), DeadlineExceeded.status)
    assert {code: int(cells[0]) for code, cells in _rows(_section("errors.md", "Terminal errors")).items()} == expected


def test_every_event_and_its_fields_are_in_the_table() -> None:
    rows = _rows(_section("stream.md", "Native events"))
    types = {get_args(event.__annotations__["type"])[0]: event for event in get_args(native_answers.JobEvent)}
    assert rows.keys() == types.keys()
    for name, event in types.items():
        documented = set(re.findall(r"`([a-z_]+)`", re.sub(r"\(when [^)]*\)", "", rows[name][0])))
        assert documented == event.__annotations__.keys() - {"type"}, name


def test_every_route_is_in_the_table() -> None:
    documented = set()
    for line in _section("api.md", "Routes").splitlines():
        method = ""
        for code in re.findall(r"`([^`]+)`", line.split("|")[1]) if line.startswith("| `") else ():
            method, path = code.split() if " " in code else (method, code)
            documented.add((method, re.sub(r"\{\w+\}", "{}", path)))
    with app_in_process() as app:
        rules = list(app.url_map.iter_rules())
    routes = {(method, re.sub(r"<[\w:]+>", "{}", rule.rule)) for rule in rules for method in rule.methods or ()}
    routes = {(method, path) for method, path in routes if method in ("GET", "POST", "DELETE")}
    assert documented == routes - {("GET", path) for path in PATHS if path != "/"}


# ---- names


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_variables_are_those_of_settings(document: Path) -> None:
    known = {variable_name(setting) for setting in fields(Settings)} | _NO_SETTINGS
    assert set(re.findall(r"\bENDSTOP_[A-Z_]*[A-Z]\b", document.read_text())) <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_and_files_in_the_text_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in code_of(document):
        for target in re.findall(r"(?:^|\s)make ([a-z-]+)", code):
            assert target in targets, code
        for module in re.findall(r"(?:^|/|\s)python -m ([\w.]+)", code):
            path = ROOT / module.replace(".", "/")
            is_ours = path.parts[len(ROOT.parts)] in ("worker", "bench", "tests", "spec", "models")
            assert not is_ours or path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), code
        if re.fullmatch(r"[\w./-]+/[\w.-]+\.(py|md|toml|json|yml|yaml|h|cpp|js|pml)", code) and "path/to" not in code:
            rooms = (document.parent, ROOT, ROOT / "worker", ROOT / "worker" / "engine", ROOT / "tests")
            assert any((room / code).is_file() for room in rooms), code


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for link in links_of(document):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors_of(target), link


def test_the_index_names_every_page() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in links_of(DOCS / "README.md")}
    assert set(DOCS.glob("*.md")) - {DOCS / "README.md"} <= linked


def test_pictures_are_small_and_shown() -> None:
    shown = {(document.parent / link).resolve() for document in DOCUMENTS for link in links_of(document)}
    for picture in [*DOCS.glob("*.png"), *DOCS.glob("images/*")]:
        assert picture in shown, picture
        assert picture.stat().st_size < 150_000, picture
