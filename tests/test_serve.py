"""`serve`: every setting is an option, the server obeys, and `--print-config` shows what is in effect."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gunicorn
import pytest
from click.testing import CliRunner, Result

from tests.support.servers import Server, free_port
from worker.__main__ import cli
from worker.config import configure, option_name
from worker.settings import ROOT, SECTIONS, Settings

OPTIONS = [setting for setting in fields(Settings) if setting.name != "web_concurrency"]


def serve(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner(env={"COLUMNS": "200"} | (env or {})).invoke(cli, ["serve", *arguments])


def test_the_help_has_every_setting_in_its_section() -> None:
    text = serve("--help").output
    for setting in OPTIONS:
        assert f"  {option_name(setting.name)} " in text
    positions = [text.index(f"\n{title}:\n") for title in SECTIONS.values()]
    assert positions == sorted(positions)
    assert text.index("\n  --model ") < text.index("How much at once:") < text.index("\n  --max-slots ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--max-slot", "3"], "--max-slots"),
        (["serv"], "Did you mean 'serve'?"),
        (["serve", "--max-slots", "0"], "--max-slots='0': must be at least 1"),
        (["serve", "--worker-class", "gevnt"], "--worker-class='gevnt': must be one of gevent, gthread"),
        (["serve", "--config", "/nowhere/endstop.toml"], "cannot be read"),
    ],
)
def test_a_typo_stops_the_start_and_names_the_remedy(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code != 0
    assert says in result.output


def test_the_versions_are_those_that_run() -> None:
    lines = CliRunner().invoke(cli, ["--version"]).output.splitlines()
    assert re.fullmatch(r"endstop \d+\.\d+\.\d+\S*", lines[0])
    assert f"gunicorn {gunicorn.__version__}" in lines
    assert f"torch {version('torch')}" in lines


def test_what_is_not_installed_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("worker.__main__.version", missing)
    assert "torch is not installed" in CliRunner().invoke(cli, ["--version"]).output


def test_several_problems_stand_below_each_other() -> None:
    result = serve("--max-slots", "0", "--port", "x")
    assert result.output == (
        "Error: the settings are wrong:\n  --max-slots='0': must be at least 1\n  --port='x': not a whole number\n"
    )


def test_print_config_is_a_file_that_has_the_same_effect(tmp_path: Path) -> None:
    source = tmp_path / "end\nstop\x7f.toml"
    source.write_text('served_model_name = "a \\"b\\" \\\\ ü"\nmax_queue = 7\n', encoding="utf-8")
    worker_id = "".join(map(chr, range(1, 256))) + "\u2028"
    env = {"ENDSTOP_MAX_CONTEXT": "512", "ENDSTOP_CONFIG": str(source), "ENDSTOP_WORKER_ID": worker_id}
    result = serve("--max-slots", "3", "--print-config", env=env)
    assert result.exit_code == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(result.output, encoding="utf-8")
    given = {"max_slots": "3"}
    again = configure({"ENDSTOP_CONFIG": str(printed)}).settings
    before = configure(env, given).settings
    differing = {f.name for f in fields(Settings) if getattr(again, f.name) != getattr(before, f.name)}
    assert differing == {"config"}
    assert set(tomllib.loads(result.output)) == {f.name for f in OPTIONS if not f.metadata["is_secret"]} - {"config"}
    lines = {line.split(" = ")[0]: line for line in result.output.splitlines() if " = " in line}
    assert lines["max_slots"].endswith("# --max-slots")
    assert lines["max_context"].endswith("# ENDSTOP_MAX_CONTEXT")
    assert lines["max_queue"].endswith(r"/end\nstop\u007f.toml")
    assert lines["step_tokens"].endswith("# default")


def test_print_config_shows_no_secret() -> None:
    env = {"ENDSTOP_API_KEYS": "alice:0123456789abcdef", "ENDSTOP_HEARTBEAT_URL": "http://one.example/?key=hunter22"}
    output = serve("--print-config", env=env).output
    assert "0123456789abcdef" not in output
    assert "hunter22" not in output
    assert "# api_keys = alice" in output
    assert "# heartbeat_url = (set)" in output
    assert "api_keys" not in tomllib.loads(output)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], {"PORT": "21999", "ENDSTOP_MODEL": "m"}),
        (["--port", "9000", "--model", "org/name"], {"PORT": "9000", "ENDSTOP_MODEL": "org/name"}),
    ],
)
def test_it_becomes_gunicorn(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: dict[str, str]
) -> None:
    became: list[Any] = []
    monkeypatch.setenv("PORT", "21999")
    monkeypatch.setenv("ENDSTOP_MODEL", "m")
    monkeypatch.setattr("os.execve", lambda *given: became.append(given))
    assert CliRunner().invoke(cli, ["serve", *arguments]).exit_code == 0
    ((program, argv, env),) = became
    assert program == sys.executable
    assert argv == [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "wsgi:app"]
    assert {name: env[name] for name in environment} == environment


@pytest.mark.parametrize(("model", "says"), [("./no/such", "does not exist"), ("", "has no config.json")])
def test_a_folder_without_a_model_is_said_at_once(
    model: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.execve", lambda *given: pytest.fail("it began to serve"))
    result = serve("--model", model or str(tmp_path))
    assert result.exit_code == 1
    assert says in result.output


KEYS = {"ENDSTOP_API_KEYS": "alice:0123456789abcdef"}


def became(monkeypatch: pytest.MonkeyPatch, *arguments: str, env: dict[str, str] | None = None) -> dict[str, str]:
    """The environment that gunicorn is given."""
    given: list[dict[str, str]] = []
    monkeypatch.setattr("os.execve", lambda program, argv, environ: given.append(environ))
    assert serve(*arguments, env=env).exit_code == 0
    return given[0]


@pytest.mark.parametrize("said", [{}, {"ENDSTOP_HOST": ""}], ids=["nothing of a host", "an empty host"])
def test_an_option_for_the_port_does_not_open_the_server(monkeypatch: pytest.MonkeyPatch, said: dict[str, str]) -> None:
    environ = became(monkeypatch, "--port", str(free_port()), env=KEYS | said)
    assert configure(environ).settings.host == "127.0.0.1"


def test_keys_that_come_with_a_reload_do_not_open_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "endstop.toml").write_text("max_slots = 2\n")
    environ = became(monkeypatch, "--config", str(tmp_path / "endstop.toml"), "--port", str(free_port()))
    (tmp_path / "endstop.toml").write_text(f'api_keys = "{KEYS["ENDSTOP_API_KEYS"]}"\n')
    assert configure(environ).settings.host == "127.0.0.1"


def test_a_host_in_the_file_is_read_from_there_again_for_a_reload(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "endstop.toml").write_text('host = "127.0.0.1"\n')
    environ = became(monkeypatch, "--config", str(tmp_path / "endstop.toml"), "--port", str(free_port()), env=KEYS)
    (tmp_path / "endstop.toml").write_text('host = "127.0.0.2"\n')
    assert configure(environ).settings.host == "127.0.0.2"


def test_a_port_that_is_taken_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.execve", lambda *given: pytest.fail("it began to serve"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = serve("--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert "Address already in use; set --port" in result.output
    assert "set --port (or PORT), or --host" in serve("--host", "203.0.113.1").output


@pytest.mark.parametrize("host", ["x" * 300, "a\0b", "no such host"])
def test_a_host_that_can_be_none_is_one_line(host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.execve", lambda *given: pytest.fail("it began to serve"))
    (tmp_path / "endstop.toml").write_text(f"host = {json.dumps(host)}\n")
    result = serve("--config", str(tmp_path / "endstop.toml"))
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert "cannot be bound: " in line


@pytest.mark.slow
def test_the_server_has_what_options_variables_and_the_file_say(tmp_path: Path) -> None:
    """From another folder, too: names are seen from where the user is."""
    (tmp_path / "mine").symlink_to(ROOT / "models" / "endstop-tiny")
    (tmp_path / "endstop.toml").write_text("max_queue = 5\nmax_slots = 9\n")
    (tmp_path / "keys").write_text("alice:0123456789abcdef\n")
    for name in ("app.py", "wsgi.py"):  # of somebody else
        (tmp_path / name).write_text("raise SystemExit('this is not Endstop')\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    arguments = ["--model", "mine", "--port", str(port), "--config", "endstop.toml", "--max-slots", "2"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "serve", *arguments, "--api-keys-file", "keys"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, tmp_path / "log", "0123456789abcdef")
    try:
        server.wait_ready()
        text = server.get("/metrics").text
        assert 'endstop_limit{model_name="mine",what="slots"} 2.0' in text
        assert 'endstop_limit{model_name="mine",what="streams"} 7.0' in text
        # A port on the command line is no platform's wish to reach us, though there are keys.
        listening = Path("/proc/net/tcp").read_text()
        assert f" 0100007F:{port:04X} 00000000:0000 0A " in listening
        assert f" 00000000:{port:04X} 00000000:0000 0A " not in listening
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
