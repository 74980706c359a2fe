"""Heroku: what app.json asks for, what the build's hooks say, and that a slug has all that a server needs."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import assert_ended_once, events_of, running_server
from worker.keys import ApiKeys
from worker.settings import ROOT, Settings, variable_name

APP: dict[str, Any] = json.loads((ROOT / "app.json").read_text())
PIP = {"PIP_EXTRA_INDEX_URL"}  # the one config variable that the buildpack hands on to pip


def test_app_json_asks_for_settings_that_there_are() -> None:
    assert set(APP["env"]) - PIP <= {variable_name(setting) for setting in fields(Settings)}
    for name, variable in APP["env"].items():
        assert variable["description"], name
        assert variable.keys() <= {"description", "value", "required"}, name
        assert ("value" in variable) != variable.get("required", False), name  # it has one, or whoever deploys says it


def test_app_json_has_the_shape_that_heroku_reads() -> None:
    assert set(APP) <= {"name", "description", "keywords", "stack", "buildpacks", "formation", "env"}
    assert APP["buildpacks"] == [{"url": "heroku/python"}]
    assert APP["formation"].keys() == {"web"}  # the only process of the Procfile
    assert (ROOT / "Procfile").read_text().startswith("web: ")


def test_nobody_deploys_without_keys_by_mistake() -> None:
    """Heroku's own generator makes a key without a name, which the settings refuse: so whoever deploys says it."""
    assert APP["env"]["ENDSTOP_API_KEYS"]["required"] is True
    with pytest.raises(ValueError, match="is not name:key"):
        ApiKeys.parse("0123456789abcdef" * 4)


def test_the_python_is_one_that_the_project_runs_on() -> None:
    version = (ROOT / ".python-version").read_text().strip()
    assert f'target-version = "py{version.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()


def pre_compile(**variables: str) -> "subprocess.CompletedProcess[str]":
    hook = ROOT / "bin" / "pre_compile"
    assert os.access(hook, os.X_OK)
    return subprocess.run([str(hook)], env={"PATH": os.environ["PATH"], **variables}, capture_output=True, text=True)


def test_a_build_that_cannot_work_is_refused_at_once() -> None:
    works = {
        "PIP_EXTRA_INDEX_URL": "https://index.example/cpu",
        "WEB_CONCURRENCY": APP["env"]["WEB_CONCURRENCY"]["value"],
    }
    assert pre_compile(**works).returncode == 0
    for name in works:
        done = pre_compile(**{other: value for other, value in works.items() if other != name})
        assert done.returncode == 1
        assert f"Set {name}" in done.stderr
    assert pre_compile(**works | {"WEB_CONCURRENCY": "2"}).returncode == 1


def start(**variables: str) -> "subprocess.CompletedProcess[str]":
    """gunicorn as far as its settings; `--check-config` does not load the app's engine."""
    line = (ROOT / "Procfile").read_text().removeprefix("web: ").split()
    assert line[0] == "gunicorn"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ENDSTOP_")}
    command = [sys.executable, "-m", *line[:-1], "--check-config", "tests.support.no_app:app"]
    return subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_what_heroku_sets_by_itself_is_refused_and_what_app_json_sets_is_not() -> None:
    """The buildpack sets WEB_CONCURRENCY by the size of the dyno, unless there is one."""
    refused = start(PORT="21000", WEB_CONCURRENCY="2")
    assert refused.returncode != 0
    assert "WEB_CONCURRENCY=2: must be 1" in refused.stderr
    done = start(PORT="21000", WEB_CONCURRENCY=APP["env"]["WEB_CONCURRENCY"]["value"])
    assert done.returncode == 0, done.stderr


def slug_files() -> list[str]:
    """What git has and .slugignore leaves; its patterns are git's, but for the ones with `!`."""
    patterns = (ROOT / ".slugignore").read_text().split()
    assert not any(pattern.startswith(("!", "#")) for pattern in patterns)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--ignored", "--exclude-from=.slugignore"]
    left_out = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for pattern in patterns:
        assert any(f"/{name}".startswith(pattern) for name in left_out), f"{pattern} leaves nothing out"
    return [name for name in tracked.stdout.split("\0") if name and name not in left_out]


@pytest.mark.slow
def test_what_the_slug_has_serves(tmp_path: Path) -> None:
    slug = tmp_path / "app"
    files = slug_files()
    assert {"requirements.txt", "Procfile", ".python-version", "bin/pre_compile", "bin/post_compile"} <= set(files)
    for name in files:
        (slug / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, slug / name)
    env = {"ENDSTOP_MODEL": "models/endstop-tiny"}
    with running_server(tmp_path, app="wsgi:app", env=env, root=slug) as server:
        body = server.post("/execute", {"prompt": "a", "max_tokens": 4, "temperature": 0}).content
        assert assert_ended_once(body)["stop_reason"] in ("MAX_TOKENS", "EOS")
        assert events_of(body)[0]["model"] == "endstop-tiny"
        for path in ("/", "/docs", "/openapi.json", "/metrics"):
            assert server.get(path).status_code == 200, path


def test_the_size_that_the_docs_tell_is_below_the_limit() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    (size_mb,) = [int(word) for word in text.split("a slug of some ")[1].split(" MB")[:1]]
    assert size_mb < 500
