"""The `serve` command: every setting as an option, what is in effect and why, and then: become gunicorn."""

import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any

import click

from worker.config import Configuration, configure, option_name
from worker.errors import ModelLoadError, SettingsError
from worker.settings import ROOT, SECTIONS, Settings, variable_name

if TYPE_CHECKING:
    from rich.console import Console

# Only one value is possible: the variable is read because platforms set it.
_NO_OPTIONS = {"web_concurrency"}
_OPTIONS = [setting for setting in fields(Settings) if setting.name not in _NO_OPTIONS]


class ServeCommand(click.Command):
    """A command with an option for each setting, listed in the settings' own sections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [_option(setting) for setting in _OPTIONS] + self.params

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a part for each section."""
        rows: dict[str, list[tuple[str, str]]] = {}
        section = ""
        for param in self.get_params(ctx):
            section = SECTIONS.get(param.name or "", section) if param.name in Settings.__slots__ else "Other"
            if record := param.get_help_record(ctx):
                rows.setdefault(section, []).append(record)
        for title, records in rows.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)


def given_options(values: Mapping[str, Any]) -> dict[str, str]:
    """The settings among the options that were given."""
    return {setting.name: values[setting.name] for setting in _OPTIONS if values.get(setting.name) is not None}


def serve(options: Mapping[str, str], *, is_printing: bool) -> None:
    """Print the configuration, or replace this process by gunicorn.

    Args:
        options: Settings that the command line gives, by name.
        is_printing: Only show what is in effect.

    Raises:
        click.ClickException: A setting is wrong, or names what is not there.
    """
    try:
        configuration = configure(os.environ, options)
    except SettingsError as error:
        raise click.ClickException(error.as_lines()) from error
    if is_printing:
        from rich.console import Console

        print_config(configuration, Console(highlight=False, soft_wrap=True))
        return
    _check_model(configuration.settings)
    _check_port(configuration.settings)
    # The environment carries the options to gunicorn, which knows nothing of them, and to every worker it starts.
    environ = os.environ | {
        variable_name(setting): options[setting.name] for setting in _OPTIONS if setting.name in options
    }
    is_of_file = configuration.origins.get("host") == configuration.settings.config
    if configure(environ).settings.host != configuration.settings.host or ("port" in options and not is_of_file):
        # Of --port it cannot see that no platform has set it: with keys, which the file may have one day, it would open
        # the server to all. A host of the file is left to the file, for a reload.
        environ["ENDSTOP_HOST"] = configuration.settings.host
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "wsgi:app"]
    os.execve(sys.executable, command, environ)


def _check_model(settings: Settings) -> None:
    """The server would say the same when torch is imported, which takes seconds."""
    from worker.engine.download import is_folder

    try:
        is_folder(settings.model)
    except ModelLoadError as error:
        raise click.ClickException(str(error)) from error


def _check_port(settings: Settings) -> None:
    """gunicorn would try for five seconds and name no remedy."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn does
            door.bind((settings.host, settings.port))
    except (OSError, ValueError) as error:  # the second: what can be no name at all
        why = (error.strerror if isinstance(error, OSError) else None) or error
        reason = f"{settings.host}:{settings.port} cannot be bound: {why}"
        raise click.ClickException(f"{reason}; set --port (or PORT), or --host") from error


def print_config(configuration: Configuration, console: "Console") -> None:
    """All settings as a TOML file that would have the same effect, with where each came from. Shows no secret."""
    from rich.text import Text

    section = ""
    for setting in _OPTIONS:
        if setting.name == "config":
            continue  # a file names no other one
        if (title := SECTIONS.get(setting.name, section)) != section:
            section = title
            console.print(Text(f"\n# {section}" if setting.name != "model" else f"# {section}", style="bold"))
        origin = configuration.origins.get(setting.name, "")
        value = getattr(configuration.settings, setting.name)
        line = f"{setting.name} = {_toml(value)}"
        if setting.metadata["is_secret"]:
            line = f"# {setting.name} = {_outline(value)}"
        text = Text(f"{line:<44}  # {_toml(origin)[1:-1] or 'default'}")
        text.stylize("green" if origin else "dim")
        console.print(text)


def _toml(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    # TOML's basic strings have JSON's escapes, but no DEL; what comes behind it are controls of a terminal too.
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(str(value), ensure_ascii=False))


def _outline(value: Any) -> str:
    if not value:
        return "(empty)"
    return "(set)" if isinstance(value, str) else str(value)


def _option(setting: "Field[Any]") -> click.Option:
    metadata = setting.metadata
    default = "the small model that comes along" if setting.name == "model" else str(setting.default)
    notes = [f"default: {default}"] if default else []
    low, high = metadata["minimum"], metadata["maximum"]
    if low is not None and high is not None:
        notes.append(f"{low:g} to {high:g}")
    elif low is not None and low > 0.01:  # the smallest time says nothing
        notes.append(f"at least {low:g}")
    text = metadata["help"]
    if not text.split()[0].endswith(":"):  # else it begins with a value
        text = text[0].upper() + text[1:]
    help = f"{text}. [{'; '.join(notes)}]" if notes else f"{text}."
    return click.Option([option_name(setting.name), setting.name], metavar=_metavar(setting), help=help)


def _metavar(setting: "Field[Any]") -> str:
    choices = [choice for choice in setting.metadata["choices"] if choice]
    if choices and not setting.metadata["pattern"]:
        return "|".join(choices)
    if isinstance(setting.default, int) and setting.metadata["maximum"] == 1:
        return "0|1"
    kind = type(setting.default)
    names = {"config": "FILE", "model": "FOLDER|ID", "api_keys_file": "FILE", "device": "cpu|cuda|cuda:N|auto"}
    return names.get(setting.name, {int: "N", float: "SECONDS"}.get(kind, "TEXT"))
