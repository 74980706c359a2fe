"""The soak's faults cannot be on in production: nothing that is served knows of them."""

import ast
from pathlib import Path

import pytest

from tests.test_layering import imports_of
from worker.config import read_settings
from worker.settings import ROOT

SERVED = [*sorted((ROOT / "worker").rglob("*.py")), ROOT / "app.py", ROOT / "wsgi.py", ROOT / "gunicorn.conf.py"]
# Who reads the environment: the settings, which refuse what they do not know, and what starts a process.
READ_FROM_ENVIRONMENT = {"app.py", "gunicorn.conf.py", "worker/__main__.py", "worker/spawn.py"}


@pytest.mark.parametrize("path", SERVED, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_served_imports_tests(path: Path) -> None:
    assert "tests" not in {name.partition(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", SERVED, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_served_speaks_of_soaks_or_injected_faults(path: Path) -> None:
    """No variable, no route, no flag: neither as a name nor within a string."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        words = [getattr(node, field, None) for field in ("id", "attr", "name", "arg", "value")]
        for word in words:
            if isinstance(word, str):
                assert "soak" not in word.lower()
                assert "inject" not in word.lower()


def test_a_variable_of_the_soak_is_no_setting() -> None:
    from worker.errors import SettingsError
    from worker.settings import Settings

    with pytest.raises(SettingsError, match="not a setting"):
        read_settings({"ENDSTOP_SOAK": "1"})
    assert read_settings({"SOAK_S": "1", "SOAK_SEED": "2"}) == Settings(host="127.0.0.1")


def test_the_served_app_has_no_route_of_the_soak() -> None:
    from app import create_app
    from tests.support.engines import new_engine
    from tests.support.gated_runner import GatedRunner
    from worker.settings import Settings

    engine = new_engine(runner=GatedRunner())
    try:
        rules = [str(rule) for rule in create_app(Settings(), engine).url_map.iter_rules()]
    finally:
        assert engine.stop(30)
    assert rules
    assert not [rule for rule in rules if "soak" in rule or "fault" in rule]
