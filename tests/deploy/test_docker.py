"""The Dockerfile's claims: what it copies is there and nothing else comes along, who runs it, and its own probe."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import assert_ended_once, free_port, running_server
from worker.settings import ROOT

# Instructions in order, with continued lines joined and comments left out.
TEXT = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
INSTRUCTIONS = [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in TEXT.splitlines() if line)]
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]


def values(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def copied_from_here() -> list[str]:
    found = [rest.split() for rest in values("COPY") if not rest.startswith("--from=")]
    return [source for *sources, _ in found for source in sources]


def is_let_through(path: str) -> bool:
    """What Docker does with the few forms that .dockerignore has; `*` comes first."""
    if "/__pycache__" in path or path.startswith("worker/engine/native/build"):
        return False
    return any(path == name or path.startswith(name + "/") for name in (one[1:] for one in IGNORED if one[0] == "!"))


def test_the_ignore_file_has_only_forms_that_this_test_knows() -> None:
    assert IGNORED[0] == "*"
    rest = [one for one in IGNORED[1:] if one[0] != "!"]
    assert rest == ["**/__pycache__", "worker/engine/native/build"]


def test_all_that_is_copied_is_there_and_is_let_into_the_build() -> None:
    assert copied_from_here()
    for source in copied_from_here():
        assert (ROOT / source).exists(), source
        assert is_let_through(source), source


def test_no_key_and_no_history_comes_along() -> None:
    for path in (".git/config", ".env", "deploy/secrets/api_keys", "endstop.toml", ".venv/bin/python", "tests/x.py"):
        assert not is_let_through(path), path
    let_in = {path.name for path in ROOT.iterdir() if is_let_through(path.name)}
    assert let_in == {"requirements.txt", "app.py", "wsgi.py", "gunicorn.conf.py", "worker"}


def test_it_does_not_run_as_root() -> None:
    """By number: Kubernetes' runAsNonRoot cannot look a name up."""
    assert values("USER") == ["10001:10001"]
    before = INSTRUCTIONS[: [name for name, _ in INSTRUCTIONS].index("USER")]
    assert any("useradd" in rest and "--uid 10001" in rest for name, rest in before if name == "RUN")


def test_it_is_started_as_the_procfile_says_and_has_its_signals_itself() -> None:
    (command,) = values("CMD")
    assert json.loads(command) == (ROOT / "Procfile").read_text().removeprefix("web: ").split()
    assert values("STOPSIGNAL") == ["SIGTERM"]
    assert not values("ENTRYPOINT")


@pytest.mark.parametrize(("index", "asked"), [("", []), ("https://index.example/cpu", ["--index-url"])])
def test_the_argument_says_where_torch_comes_from(tmp_path: Path, index: str, asked: list[str]) -> None:
    (command,) = [rest for name, rest in INSTRUCTIONS if name == "RUN" and "TORCH_INDEX" in rest]
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    pip.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH_INDEX": index}
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    (pin,) = re.findall(r"^torch==[^ ]*", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert first == " ".join(["install", *asked, *[index] * bool(index), pin])
    assert second == "install -r requirements.txt"


def probe(port: int) -> int:
    (line,) = values("HEALTHCHECK")
    command = json.loads(line.partition("CMD ")[2])
    assert command[0] == "python"
    environment = {"PORT": str(port), "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, timeout=30).returncode


@pytest.mark.slow
def test_what_the_image_has_serves_and_its_probe_tells_life_from_death(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.mkdir()
    for source in copied_from_here():
        target = image / source
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__", "build"))
        else:
            shutil.copy2(ROOT / source, target)
    port = free_port()
    assert probe(port) != 0
    env = {"ENDSTOP_MODEL": "models/endstop-tiny"}
    with running_server(tmp_path, app="wsgi:app", env=env, root=image) as server:
        body = server.post("/execute", {"prompt": "a", "max_tokens": 4, "temperature": 0}).content
        assert_ended_once(body)
        assert probe(server.port) == 0
    dead = {"ENDSTOP_MODEL": str(tmp_path / "missing"), "ENDSTOP_DEAD_LINGER_S": "30"}
    with running_server(tmp_path, app="wsgi:app", env=dead, root=image, wait=False) as server:
        server.wait_for(lambda: "CRITICAL" in server.log(), "the failure")
        assert server.get("/health").status_code == 503
        assert probe(server.port) != 0


def test_the_linter_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(linter), str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
