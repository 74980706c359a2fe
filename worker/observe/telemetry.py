"""Whether OpenTelemetry is told how requests ended. What it is told is the matter of otlp.py.

Law: nothing of OpenTelemetry is imported here, nor anywhere else unless `ENDSTOP_OPENTELEMETRY` is on: it is no
part of requirements.txt. Nothing of it runs on the generation thread; the housekeeper tells it what the log is told.
"""

import math
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Protocol
from urllib.parse import unquote

from worker.errors import SettingsError
from worker.observe.log import Outcome
from worker.settings import WEB_ADDRESS, Settings, is_web_address

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
    "OTEL_METRICS_EXEMPLAR_FILTER": ("trace_based", "always_on", "always_off"),
}
# What the SDK does with a bad one depends on which it is: a traceback, silence, or a default of its own.
_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
_QUEUE, _BATCH = ("OTEL_BSP_MAX_QUEUE_SIZE", 2048), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)
_AT_LEAST_1 = ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", _QUEUE[0], _BATCH[0])
_AT_LEAST_0 = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
_ABOVE_0 = (
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
)
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
    # Without its value: a URL may have a password in it.
    problems += [
        f"{name}: must be {WEB_ADDRESS}"
        for name in _ENDPOINTS
        if environ.get(name) and not is_web_address(environ[name])
    ]
    problems += _wrong_numbers(environ)
    if missing := [package for module, package in _NEEDED.items() if not _is_there(module)]:
        problems.append(
            f"ENDSTOP_OPENTELEMETRY=on: not installed: {', '.join(missing)}; "
            "run `python -m pip install -r requirements-otel.txt`, or leave it off"
        )
    if problems:
        raise SettingsError(*problems)


def _wrong_numbers(environ: Mapping[str, str]) -> list[str]:
    limits: tuple[tuple[tuple[str, ...], type[int] | type[float], Callable[[float], bool], str], ...] = (
        (_AT_LEAST_1, int, lambda value: value >= 1, "a whole number, at least 1"),
        (_AT_LEAST_0, int, lambda value: value >= 0, "a whole number, at least 0"),
        (_ABOVE_0, float, lambda value: 0 < value < math.inf, "a number above 0"),
    )
    problems = []
    for names, kind, is_within, what in limits:
        for name in names:
            try:
                is_fine = not environ.get(name) or is_within(kind(environ[name]))
            except ValueError:
                is_fine = False
            if not is_fine:
                problems.append(f"{name}={environ[name]}: must be {what}")
    (queue, queue_default), (batch, batch_default) = _QUEUE, _BATCH
    if not problems and int(environ.get(batch) or batch_default) > int(environ.get(queue) or queue_default):
        problems.append(f"{batch} (else {batch_default}): must be at most {queue} (else {queue_default})")
    return problems


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
