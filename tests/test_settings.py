"""Settings are read once, wholly or not at all."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from worker.config import read_settings
from worker.errors import SettingsError
from worker.keys import ApiKeys, KeyLimits
from worker.settings import EMBEDDED_MODEL, Settings, variable_name

DEFAULTS = read_settings({})
KEY = "name:0123456789abcdef"


def refusal(**environ: str) -> str:
    with pytest.raises(SettingsError) as error:
        read_settings(environ)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_defaults() -> None:
    assert dataclasses.replace(Settings(), host="127.0.0.1") == DEFAULTS
    assert DEFAULTS.model == str(EMBEDDED_MODEL)
    assert DEFAULTS.model_name == "endstop-tiny"
    assert DEFAULTS.max_streams == DEFAULTS.max_slots + DEFAULTS.max_queue


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULTS.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_every_setting_has_a_word_of_help_and_a_default_that_is_allowed(field: "dataclasses.Field[object]") -> None:
    metadata = field.metadata
    assert metadata["help"]
    if metadata["choices"]:
        assert field.default in metadata["choices"]
    for limit, sign in ((metadata["minimum"], 1), (metadata["maximum"], -1)):
        if limit is not None:
            assert isinstance(field.default, int | float)
            assert sign * field.default >= sign * limit
    # A list of keys that came out empty must not open the server.
    text = KEY if field.name == "api_keys" else str(field.default)
    assert read_settings({variable_name(field): text}) is not None


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_every_setting_is_read_from_its_variable(field: "dataclasses.Field[object]", tmp_path: Path) -> None:
    if field.name == "web_concurrency":
        return
    default, metadata = field.default, field.metadata
    value: Any
    text, others = "", dict[str, str]()
    if field.name == "api_keys":
        value, text = ApiKeys.parse(KEY), KEY
    elif field.name == "api_keys_file":
        value = text = str(tmp_path / "keys")
        (tmp_path / "keys").write_text(KEY)
    elif field.name == "key_limits":
        text, others = "name:1:2", {"ENDSTOP_API_KEYS": KEY}
        value = KeyLimits.parse(text)
    elif field.name == "config":
        value = text = str(tmp_path / "endstop.toml")
        (tmp_path / "endstop.toml").write_text("")
    elif metadata["choices"]:
        value = metadata["choices"][-1]
    elif isinstance(default, str):
        value = "something/else"
    else:
        assert isinstance(default, int | float)
        value = type(default)(default + 1)
    settings = read_settings({variable_name(field): text or str(value), **others})
    assert getattr(settings, field.name) == value
    expected = dataclasses.replace(DEFAULTS, **{"api_keys": settings.api_keys, field.name: value})
    assert dataclasses.replace(settings, host="") == dataclasses.replace(expected, host="") or field.name == "host"


def test_variables_of_others_are_left_alone() -> None:
    environ = {"PATH": "/bin", "HOME": "/root", "MODEL": "x", "endstop_model": "x", "XENDSTOP_MODEL": "x"}
    assert read_settings(environ) == DEFAULTS


def test_an_unknown_setting_is_refused_with_the_nearest_one() -> None:
    text = refusal(ENDSTOP_MAX_SLOT="4")
    assert "ENDSTOP_MAX_SLOT is not a setting" in text
    assert "ENDSTOP_MAX_SLOTS" in text
    assert "did you mean" not in refusal(ENDSTOP_QQQQQQQQQQQQQQQQ="")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ENDSTOP_MAX_SLOTS", "0", "at least 1"),
        ("ENDSTOP_MAX_SLOTS", "513", "at most 512"),
        ("ENDSTOP_CPU_THREADS", "1025", "at most 1024"),
        ("ENDSTOP_CPU_THREADS", "100000", "at most 1024"),
        ("ENDSTOP_MAX_SLOTS", "many", "whole number"),
        ("ENDSTOP_MAX_SLOTS", "1.5", "whole number"),
        ("ENDSTOP_MAX_SLOTS", "", "whole number"),
        ("ENDSTOP_TOKEN_TIMEOUT_S", "soon", "number"),
        ("ENDSTOP_TOKEN_TIMEOUT_S", "nan", "at least"),
        ("ENDSTOP_TOKEN_TIMEOUT_S", "-1", "at least"),
        ("ENDSTOP_KEEP_ALIVE_S", "51", "at most 50"),
        ("ENDSTOP_DEVICE", "tpu", "auto, cuda, cuda:0"),
        ("ENDSTOP_DEVICE", "cuda:", "cuda:0, cuda:1"),
        ("ENDSTOP_DEVICE", "cuda:-1", "cuda:0, cuda:1"),
        ("ENDSTOP_WORKER_CLASS", "sync", "gevent, gthread"),
        ("ENDSTOP_MODEL", "", "must not be empty"),
        ("ENDSTOP_MODEL", " ", "must not be empty"),
        ("ENDSTOP_CORS_ORIGINS", "one.example", "https://one.example"),
        ("ENDSTOP_CORS_ORIGINS", "https://one.example/", "https://one.example"),
        ("ENDSTOP_CORS_ORIGINS", "https://*.example", "https://one.example"),
        ("ENDSTOP_CORS_ORIGINS", "*,https://one.example", "https://one.example"),
        ("PORT", "0", "at least 1"),
        ("PORT", "65536", "at most 65535"),
        ("PORT", "http", "whole number"),
        ("WEB_CONCURRENCY", "4", "must be 1"),
        ("WEB_CONCURRENCY", "0", "must be 1"),
        ("WEB_CONCURRENCY", "two", "whole number"),
    ],
)
def test_what_is_refused_names_variable_value_and_limit(name: str, value: str, says: str) -> None:
    text = refusal(**{name: value})
    assert name in text
    assert value in text
    assert says in text


@pytest.mark.parametrize(
    "url",
    [
        "ftp://one.example/beat",
        "https://user:canary@one.example/beat",
        "http:///canary",
        "http://[abc/canary",
        "http://[abc]/canary",
        "http://one.example:canary/beat",
        "http://one.example:99999/canary",
        "http://one.example/canary beat",
        "http://one.example/canary\x7f",
        "http://one.example/canary\x85",
        "http://one.example/canary\n",
        "http://one.example/canary-ü",
    ],
)
def test_a_url_that_cannot_be_asked_is_refused_and_not_repeated(url: str) -> None:
    """It may hold a secret, and whoever fails with it at the first beat would put it into the log."""
    text = refusal(ENDSTOP_HEARTBEAT_URL=url)
    assert "ENDSTOP_HEARTBEAT_URL: must " in text
    assert "canary" not in text


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000",
        "https://one.example/beat?key=a%20b#c@d",
        "http://[::1]:80/beat",
        "http://[fe80::1%eth0]/",
        "http://my_host?key",
    ],
)
def test_a_url_that_can_be_asked_is_taken(url: str) -> None:
    assert read_settings({"ENDSTOP_HEARTBEAT_URL": url}).heartbeat_url == url


@pytest.mark.parametrize("name", ["ENDSTOP_DRAIN_S", "ENDSTOP_SLOW_CONSUMER_S", "ENDSTOP_TOTAL_TIMEOUT_S"])
def test_a_wait_without_an_end_is_refused(name: str) -> None:
    """Every wait has a deadline; and `int(inf)` in gunicorn.conf.py would be a traceback instead of a sentence."""
    assert name in refusal(**{name: "inf"})


def test_all_problems_are_named_at_once() -> None:
    text = refusal(ENDSTOP_MAX_SLOTS="0", ENDSTOP_COLOUR="red", PORT="x", WEB_CONCURRENCY="3")
    for name in ("ENDSTOP_MAX_SLOTS", "ENDSTOP_COLOUR", "PORT", "WEB_CONCURRENCY"):
        assert name in text


@pytest.mark.parametrize(
    ("environ", "host"),
    [
        ({}, "127.0.0.1"),
        ({"PORT": "5000"}, "127.0.0.1"),
        ({"PORT": "5000", "ENDSTOP_API_KEYS": KEY}, "0.0.0.0"),
        ({"ENDSTOP_API_KEYS": KEY}, "127.0.0.1"),
        ({"PORT": "5000", "ENDSTOP_HOST": "::1"}, "::1"),
        ({"ENDSTOP_HOST": "0.0.0.0"}, "0.0.0.0"),
        ({"ENDSTOP_HOST": ""}, "127.0.0.1"),
    ],
)
def test_a_platform_reaches_a_server_with_keys_and_nobody_else_need_reach_it(
    environ: dict[str, str], host: str
) -> None:
    assert read_settings(environ).host == host


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"ENDSTOP_MODEL": "/srv/models/big"}, "big"),
        ({"ENDSTOP_MODEL": "/srv/models/big/"}, "big"),
        ({"ENDSTOP_MODEL": "org/model"}, "model"),
        ({"ENDSTOP_MODEL": "org/model", "ENDSTOP_SERVED_MODEL_NAME": "mine"}, "mine"),
    ],
)
def test_the_name_on_the_wire_is_never_a_path(environ: dict[str, str], name: str) -> None:
    assert read_settings(environ).model_name == name
