"""Whether OpenTelemetry is told how requests ended. What it is told is the matter of otlp.py.

Law: nothing of OpenTelemetry is imported here, nor anywhere else unless `ENDSTOP_OPENTELEMETRY` is on: it is no
part of requirements.txt. Nothing of it runs on the generation thread; the housekeeper tells it what the log is told.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Protocol
from urllib.parse import unquote

from worker.errors import SettingsError
from worker.observe.log import Outcome
from worker.settings import Settings

# What the exporters need, and the package that brings it.
_NEEDED = {
    "opentelemetry.sdk.trace": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
}
# Variables of the standard that the SDK's classes do not read by themselves, and what is possible here.
_CHOICES = {
    "OTEL_TRACES_EXPORTER": ("otlp", "none"),
    "OTEL_METRICS_EXPORTER": ("otlp", "none"),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("http/protobuf",),
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": ("http/protobuf",),
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": ("http/protobuf",),
}
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS")
# What the SDK takes, with blanks in values as it does: it leaves out other entries, and puts them into the log. Source:
# https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables
_HEADER = re.compile(r"[A-Za-z0-9!#$&'*+.^_`|~-]+[ \t]*=[ \t]*[ !#-+\--:<-\[\]-~]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # `requests` refuses to send one, and repeats the value


class Telemetry(Protocol):
    """Where outcomes go to."""

    def note_outcome(self, outcome: Outcome) -> str: ...
    def close(self, limit_s: float) -> None: ...


class NoTelemetry:
    """Tells nobody."""

    def note_outcome(self, outcome: Outcome) -> str:
        """The id of the trace that the client says the request is a part of; empty if it says none."""
        return outcome.origin.parent.trace_id if outcome.origin.parent is not None else ""

    def close(self, limit_s: float) -> None:
        """Nothing waits."""


def check_telemetry(settings: Settings, environ: Mapping[str, str]) -> None:
    """See that what the settings ask for can be done. In the arbiter, before anything is bound.

    Raises:
        SettingsError: Something is not installed, or an OTEL_ variable asks for what is not there; names all of it.
    """
    if settings.opentelemetry == "off":
        return
    problems = [
        f"{name}={environ[name]}: must be {' or '.join(choices)}" + _HINTS.get(environ[name], "")
        for name, choices in _CHOICES.items()
        if environ.get(name, "") not in ("", *choices)
    ]
    problems += [
        f"{name}: entry {number} is not name=value, where a value has a comma as %2C and no control characters"
        for name in _HEADERS
        for number, entry in enumerate(filter(None, map(str.strip, environ.get(name, "").split(","))), 1)
        if not _HEADER.fullmatch(entry) or _CONTROL.search(unquote(entry))
    ]
    if missing := [package for module, package in _NEEDED.items() if not _is_there(module)]:
        problems.append(
            f"ENDSTOP_OPENTELEMETRY=on: not installed: {', '.join(missing)}; "
            "run `python -m pip install -r requirements-otel.txt`, or leave it off"
        )
    if problems:
        raise SettingsError(*problems)


_HINTS = {"grpc": "; point OTEL_EXPORTER_OTLP_ENDPOINT at the collector's port for HTTP, which is usually 4318"}


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def open_telemetry(settings: Settings, environ: Mapping[str, str]) -> Telemetry:
    """Begin to tell OpenTelemetry, if it is switched on. In the process that serves: it starts threads.

    Raises:
        SettingsError: As `check_telemetry`.
    """
    check_telemetry(settings, environ)
    if settings.opentelemetry == "off":
        return NoTelemetry()
    from worker.observe.otlp import Otlp

    return Otlp(settings, environ)
