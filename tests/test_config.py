"""Where settings stand: which place wins, what a file may say, and that nothing wrong is ignored."""

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from worker.config import configure, option_name
from worker.errors import SettingsError
from worker.settings import Settings, variable_name

ConfigFile = Callable[[str], dict[str, str]]


@pytest.fixture
def config_file(tmp_path: Path) -> ConfigFile:
    """Writes a file and returns the environment that names it."""

    def write(text: str) -> dict[str, str]:
        path = tmp_path / "endstop.toml"
        path.write_text(text, encoding="utf-8")
        return {"ENDSTOP_CONFIG": str(path)}

    return write


def refusal(environ: dict[str, str], options: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as error:
        configure(environ, options)
    return str(error.value)


def test_an_option_wins_over_a_variable_and_that_over_a_file(config_file: ConfigFile) -> None:
    environ = config_file("max_slots = 1\nmax_queue = 1\nstep_tokens = 32\n")
    environ |= {"ENDSTOP_MAX_SLOTS": "2", "ENDSTOP_MAX_QUEUE": "2"}
    configuration = configure(environ, {"max_slots": "3"})
    settings = configuration.settings
    assert (settings.max_slots, settings.max_queue, settings.step_tokens, settings.max_context) == (3, 2, 32, 4096)
    assert configuration.origins == {
        "config": "ENDSTOP_CONFIG",
        "max_slots": "--max-slots",
        "max_queue": "ENDSTOP_MAX_QUEUE",
        "step_tokens": environ["ENDSTOP_CONFIG"],
    }


def test_an_option_names_another_file_than_the_environment(config_file: ConfigFile, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("max_slots = 5\n")
    assert configure(config_file("max_slots = 1\n"), {"config": str(tmp_path / "other.toml")}).settings.max_slots == 5


def in_toml(setting: Any) -> str:
    """A value in TOML's own type that differs from the default."""
    default, metadata = setting.default, setting.metadata
    if setting.name in ("api_keys", "key_limits"):
        return '["name:0123456789abcdef"]' if setting.name == "api_keys" else '["name:1:2"]'
    if metadata["choices"]:
        return '["https://one.example"]' if metadata["is_list"] else f'"{metadata["choices"][-1]}"'
    return '"x/y"' if isinstance(default, str) else str(type(default)(default + 1))


@pytest.mark.parametrize(
    "setting",
    [f for f in fields(Settings) if f.name not in ("config", "web_concurrency", "api_keys_file")],
    ids=lambda f: f.name,
)
def test_every_setting_is_a_line_of_a_file_an_option_and_a_variable(setting: Any, config_file: ConfigFile) -> None:
    keys = {} if setting.name == "api_keys" else {"ENDSTOP_API_KEYS": "name:0123456789abcdef"}
    keys = keys if setting.name == "key_limits" else {}
    configuration = configure(config_file(f"{setting.name} = {in_toml(setting)}\n") | keys)
    value = getattr(configuration.settings, setting.name)
    assert value != setting.default
    assert configuration.origins[setting.name].endswith("endstop.toml")
    text = in_toml(setting).strip('[]"')
    assert getattr(configure(keys, {setting.name: text}).settings, setting.name) == value
    assert getattr(configure(keys | {variable_name(setting): text}).settings, setting.name) == value


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("trace = false", "trace", "off"),
        ("prefix_cache = true", "prefix_cache", "on"),
        ("deterministic = true", "deterministic", 1),
        ("drain_s = 5", "drain_s", 5.0),
        ('cors_origins = ["https://one.example", "https://two.example"]', "cors_origins", None),
    ],
)
def test_toml_has_its_own_words_for_some_values(line: str, name: str, value: object, config_file: ConfigFile) -> None:
    expected = "https://one.example,https://two.example" if value is None else value
    assert getattr(configure(config_file(line)).settings, name) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_slot = 4", "max_slot is not a setting; did you mean max_slots?"),
        ("ENDSTOP_MAX_SLOTS = 4", "is not a setting; did you mean max_slots?"),
        ("max_slots = 0", "endstop.toml: max_slots='0': must be at least 1"),
        ('max_slots = "4"', "max_slots: must be a whole number"),
        ("max_slots = 4.5", "max_slots: must be a whole number"),
        ("max_slots = true", "max_slots: must be a whole number"),
        ('drain_s = "4"', "drain_s: must be a number"),
        ("drain_s = inf", "drain_s='inf': not a number"),
        ("model = 4", "model: must be a string"),
        ('model = ["a", "b"]', "model: must be a string"),
        ("api_keys = [4]", "api_keys: must be a string or an array of strings"),
        ("[server]\nport = 1", "[server] is a table"),
        ('config = "other.toml"', "a file names no other one"),
        ("max_slots = four", "is not TOML: Invalid value (at line 1, column 13)"),
        ("max_slots = 1\nmax_slots = 2", "is not TOML: Cannot overwrite a value"),
        ('api_keys = "short"', "api_keys"),
        ('model = ""', "model='': must not be empty"),
        (f"max_slots = {'[' * 5000}", "is not TOML: too many brackets"),
    ],
)
def test_what_a_file_may_not_say_is_named_with_its_place(text: str, says: str, config_file: ConfigFile) -> None:
    environ = config_file(text)
    message = refusal(environ)
    assert environ["ENDSTOP_CONFIG"] in message
    assert says in message


def test_a_file_repeats_no_secret_in_an_error(config_file: ConfigFile) -> None:
    assert "hunter2" not in refusal(config_file('api_keys = "me:hunter2"'))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    environ = {"ENDSTOP_CONFIG": str(tmp_path / "none.toml")}
    assert "none.toml' cannot be read: No such file" in refusal(environ)
    assert "--config=" in refusal({}, {"config": str(tmp_path / "none.toml")})
    os.mkfifo(tmp_path / "pipe")
    for once_only in (str(tmp_path / "pipe"), "/dev/null"):  # `<(...)` of a shell is a pipe
        assert "can be read once only" in refusal({"ENDSTOP_CONFIG": once_only})
    (tmp_path / "none.toml").write_bytes(b"\xff\xfe")
    assert "is not TOML: not UTF-8" in refusal(environ)


def test_a_file_may_begin_with_a_byte_order_mark(config_file: ConfigFile, tmp_path: Path) -> None:
    """Editors of Windows write one."""
    (tmp_path / "keys").write_text("\ufeffname:0123456789abcdef\n", encoding="utf-8")
    settings = configure(config_file('\ufeffmax_slots = 5\napi_keys_file = "keys"\n')).settings
    assert (settings.max_slots, settings.api_keys.names) == (5, ["name"])


def test_problems_of_all_places_are_named_at_once(config_file: ConfigFile) -> None:
    message = refusal(config_file("max_queue = -1\ncolour = 1\n") | {"ENDSTOP_HUE": "1"}, {"max_slots": "0"})
    for name in ("endstop.toml: max_queue", "endstop.toml: colour", "ENDSTOP_HUE", "--max-slots='0'"):
        assert name in message


def test_a_value_that_is_overruled_must_be_right_only_where_it_counts(config_file: ConfigFile) -> None:
    """As with variables: what is not used is not judged, but a name that is none is nobody's wish."""
    assert configure(config_file("max_slots = 0"), {"max_slots": "2"}).settings.max_slots == 2


def test_a_path_in_a_file_is_seen_from_the_file(config_file: ConfigFile, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "keys").write_text("name:0123456789abcdef\n")
    settings = configure(config_file('model = "mine"\napi_keys_file = "keys"\n')).settings
    assert settings.model == str(tmp_path / "mine")
    assert settings.api_keys.names == ["name"]
    assert configure(config_file('model = "someone/else"\n')).settings.model == "someone/else"


@pytest.mark.parametrize("place", ["option", "file"])
def test_only_a_platforms_port_opens_a_server_with_keys(place: str, config_file: ConfigFile) -> None:
    keys = {"ENDSTOP_API_KEYS": "name:0123456789abcdef"}
    if place == "option":
        settings = configure(keys, {"port": "9000"}).settings
    else:
        settings = configure(keys | config_file("port = 9000\n")).settings
    assert (settings.port, settings.host) == (9000, "127.0.0.1")
    assert configure(keys | {"PORT": "9000"}).settings.host == "0.0.0.0"


def test_names_of_options() -> None:
    assert option_name("max_slots") == "--max-slots"
