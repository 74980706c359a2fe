"""The docs say what the code does: the settings table, the routes, and the README's own examples."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.support.servers import assert_ended_once, running_server
from worker.request import GenerateRequest
from worker.settings import EMBEDDED_MODEL, ROOT, Settings, variable_name


def _rows(path: Path) -> dict[str, list[str]]:
    """Table rows by the code in their first cell."""
    rows = {}
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            for name in re.findall(r"`([^`]+)`", cells[0]):
                rows[name] = cells[1:]
    return rows


def test_the_settings_table_has_every_setting_and_its_default() -> None:
    rows = _rows(ROOT / "docs" / "settings.md")
    assert list(rows) == [variable_name(setting) for setting in fields(Settings)]
    for setting in fields(Settings):
        default = "models/endstop-tiny" if setting.name == "model" else str(setting.default) or "(empty)"
        assert rows[variable_name(setting)][0] == default, setting.name
        assert rows[variable_name(setting)][1] == setting.metadata["help"], setting.name


def test_the_readme_table_names_real_settings() -> None:
    names = {variable_name(setting) for setting in fields(Settings)}
    assert set(_rows(ROOT / "README.md")) <= names


def test_the_field_table_has_every_field_of_the_request() -> None:
    documented = set(_rows(ROOT / "docs" / "stream.md"))
    assert set(GenerateRequest.model_fields) - {"prompt", "messages"} <= documented


@pytest.mark.slow
def test_the_readme_examples_run(tmp_path: Path) -> None:
    """The curl and both Python examples, as they are printed, against a real server with the embedded model."""
    text = (ROOT / "README.md").read_text()
    curl = re.search(r"^    (curl -N .*\\\n.*)$", text, re.MULTILINE)
    assert curl is not None
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    with running_server(tmp_path, app="wsgi:app", env={"ENDSTOP_MODEL": str(EMBEDDED_MODEL)}) as server:

        def here(example: str) -> str:
            return example.replace("http://127.0.0.1:8000", server.url)

        output = subprocess.run(["bash", "-c", here(curl[1])], capture_output=True, timeout=60, check=True)
        assert assert_ended_once(output.stdout)["stop_reason"] == "EOS"
        assert b"Paris" in output.stdout
        for example in examples:
            result = subprocess.run(
                [sys.executable, "-c", here(example)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
            )
            assert result.returncode == 0, result.stderr
            assert result.stdout.strip()
