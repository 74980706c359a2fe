"""Where the settings come from: options of `serve`, environment variables, a TOML file, defaults; the first one wins.

Read once at start, wholly or not at all: all problems are named at once, each under the name that it was given with,
and a name that is none with the nearest one. Pure Python, any thread.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from worker.errors import SettingsError
from worker.keys import ApiKeys, KeyLimits
from worker.settings import PREFIX, Settings, parse, variable_name

_FIELDS: dict[str, "Field[Any]"] = {setting.name: setting for setting in fields(Settings)}
_BY_VARIABLE = {variable_name(setting): name for name, setting in _FIELDS.items()}
# What a TOML file may have in the place of a text, for each type of default.
_KINDS: dict[type, tuple[type | tuple[type, ...], str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a string"),
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings, and who said so.

    Attributes:
        settings: All of them.
        origins: Of each one that was set, by its name: `--max-slots`, `ENDSTOP_MAX_SLOTS` or the path of the file.
    """

    settings: Settings
    origins: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Given:
    text: str
    name: str  # under which it was given, for a person
    origin: str


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings that an environment makes. Raises what `configure` raises."""
    return configure(environ).settings


def configure(environ: Mapping[str, str], options: Mapping[str, str] | None = None) -> Configuration:
    """Put the settings together.

    Args:
        environ: Of the process.
        options: Of the command line, by the names of the settings.

    Raises:
        SettingsError: Unknown names or bad values; all of them at once.
    """
    problems: list[str] = []
    given = _of_environment(environ, problems)
    given |= {name: _Given(text, option_name(name), option_name(name)) for name, text in (options or {}).items()}
    if "config" in given and given["config"].text:
        given = _of_file(given["config"], problems) | given
    values: dict[str, Any] = {}
    for name in (name for name in _FIELDS if name in given):
        try:
            values[name] = parse(_FIELDS[name], given[name].text)
        except ValueError as error:
            problems.append(f"{_shown(given[name], _FIELDS[name])}: {error}")
    _check_together(values, given, problems)
    if problems:
        raise SettingsError(*problems)
    if not values.get("host"):
        # A platform sets the variable; whoever writes a port down for himself has said nothing of other machines.
        is_platform = "port" in given and given["port"].origin == variable_name(_FIELDS["port"])
        values["host"] = "0.0.0.0" if is_platform and values.get("api_keys") else "127.0.0.1"
    return Configuration(Settings(**values), {name: given[name].origin for name in _FIELDS if name in given})


def option_name(name: str) -> str:
    """The option of `serve` that gives this setting."""
    return "--" + name.replace("_", "-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A half sentence with the nearest known name; empty when none is near."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _of_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, _Given]:
    given = {}
    for variable in sorted(n for n in environ if n.startswith(PREFIX) or n in _BY_VARIABLE):
        if variable in _BY_VARIABLE:
            given[_BY_VARIABLE[variable]] = _Given(environ[variable], variable, variable)
        else:
            problems.append(f"{variable} is not a setting{did_you_mean(variable, _BY_VARIABLE)}")
    return given


def _of_file(config: _Given, problems: list[str]) -> dict[str, _Given]:
    path = Path(config.text)
    if path.is_fifo() or path.is_char_device():
        problems.append(f"{_shown(config)} can be read once only, and is read again for a reload; name a file")
        return {}
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))  # editors of Windows begin a file with a mark
    except OSError as error:
        problems.append(f"{_shown(config)} cannot be read: {error.strerror}")
        return {}
    except ValueError as error:  # also bytes that are no text, of which the message repeats one
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        problems.append(f"{_shown(config)} is not TOML: {reason}")
        return {}
    except RecursionError:
        problems.append(f"{_shown(config)} is not TOML: too many brackets in one another")
        return {}
    given = {}
    for name, value in content.items():
        place = f"{config.text}: {name}"
        if isinstance(value, dict):
            problems.append(
                f"{config.text}: [{name}] is a table; every setting is a line of its own, outside of tables"
            )
        elif name not in _FIELDS:
            problems.append(f"{place} is not a setting{did_you_mean(name.lower(), _FIELDS)}")
        elif name == "config":
            problems.append(f"{place}: a file names no other one")
        else:
            try:
                text = _text_of(_FIELDS[name], value)
            except ValueError as error:
                problems.append(f"{place}: {error}")
            else:
                given[name] = _Given(_from_folder(path.parent, name, text), place, config.text)
    return given


def _text_of(setting: "Field[Any]", value: Any) -> str:
    """What the same setting would be as an environment variable."""
    metadata = setting.metadata
    if metadata["is_list"] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, bool) and "on" in metadata["choices"]:
        return "on" if value else "off"
    if isinstance(value, bool) and metadata["maximum"] == 1:
        return str(int(value))
    kinds, what = _KINDS.get(type(setting.default), _KINDS[str])
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"must be {what}{' or an array of strings' if metadata['is_list'] else ''}")
    return str(value)


def _from_folder(folder: Path, name: str, text: str) -> str:
    """A path in a file is seen from the file; a model that is no folder there may be a hub id."""
    is_path = name == "api_keys_file" or (name == "model" and (folder / text).is_dir())
    return str(folder / text) if text and is_path else text


def _shown(given: _Given, setting: "Field[Any] | None" = None) -> str:
    # Limits hold no secret, unless somebody has taken them for the list of keys.
    is_secret = setting is not None and (setting.metadata["is_secret"] or setting.name == "key_limits")
    return given.name if is_secret else f"{given.name}={given.text!r}"


def _check_together(values: dict[str, Any], given: dict[str, _Given], problems: list[str]) -> None:
    """What no setting shows alone. Adds the keys of the file to `values`."""
    if values.get("web_concurrency", 1) != 1:
        problems.append(
            f"{given['web_concurrency'].name}={values['web_concurrency']}: must be 1, because every worker process "
            "would load the model again; one worker serves many streams (set ENDSTOP_MAX_SLOTS), and more machines "
            "serve more"
        )
    if path := values.get("api_keys_file"):
        shown = _shown(given["api_keys_file"])
        try:
            values["api_keys"] = values.get("api_keys", ApiKeys()) + ApiKeys.parse(Path(path).read_text("utf-8-sig"))
        except OSError as error:
            problems.append(f"{shown} cannot be read: {error.strerror}")
        except ValueError as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
            problems.append(f"{shown}: {reason}")
    keys = values.get("api_keys", ApiKeys())
    for number, (name, _) in enumerate(values.get("key_limits", KeyLimits()).limits, 1):
        if name not in keys.names:
            problems.append(f"{given['key_limits'].name}: entry {number} names no API key; there are {keys or 'none'}")
