"""What a collector is told of how a request ended."""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests
from opentelemetry.util.re import parse_env_headers

from tests.support.collector import Collector, SeenSpan, nobody
from tests.support.engines import wait_until
from tests.support.pages import table
from worker.errors import SettingsError
from worker.events import Usage
from worker.observe.log import Outcome
from worker.observe.otlp import MAX_INT, Otlp, _is_not_told_already, _Session
from worker.observe.telemetry import NoTelemetry, check_telemetry, open_telemetry
from worker.origin import Origin, TraceParent
from worker.request import SamplingParams
from worker.settings import Settings

PARENT = TraceParent("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", is_sampled=True)
PARAMS = SamplingParams(max_tokens=7, temperature=0.5, top_p=0.9)
ORIGIN = Origin("order-7", "/v1/chat/completions")
OUTCOME = Outcome(
    "job", "alice", "end", "EOS", Usage(5, 4, 2), 100.0, 300.0, 600.0, 250.0, 1000.0, 0.0, ORIGIN, True, PARAMS
)
SETTINGS = replace(Settings(), opentelemetry="on", worker_id="gpu-7")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    one = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", one.url)
    yield one
    one.close()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Nobody listens where it would be sent to, and nobody tries for long."""
    with nobody() as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.01")
        yield url


def told(collector: Collector, *outcomes: Outcome, environ: dict[str, str] | None = None) -> list[str]:
    """Tell how requests ended, now. Returns what the log would call their traces."""
    telemetry = Otlp(SETTINGS, environ or {})
    traces = [telemetry.note_outcome(replace(outcome, ended_at=time.monotonic())) for outcome in outcomes]
    telemetry.close(10)
    return traces


def tree(spans: list[SeenSpan]) -> tuple[SeenSpan, dict[str, SeenSpan]]:
    """The span of the one request, and its parts by name."""
    [root] = [span for span in spans if span.kind == 2]
    parts = {span.name: span for span in spans if span is not root}
    assert len(parts) == len(spans) - 1
    assert {(part.parent_id, part.trace_id, part.kind) for part in parts.values()} <= {(root.span_id, root.trace_id, 1)}
    return root, parts


def lasted(begin: SeenSpan, part: SeenSpan) -> tuple[float, float]:
    """From when to when, in milliseconds from the beginning of another."""
    return (part.start_ns - begin.start_ns) / 1e6, (part.end_ns - begin.start_ns) / 1e6


# ---- spans


def test_a_request_is_a_span_and_what_it_went_through_its_parts(collector: Collector) -> None:
    [trace_id] = told(collector, OUTCOME)
    root, parts = tree(collector.spans)
    assert (root.name, root.parent_id, root.trace_id) == ("chat endstop-tiny", "", trace_id)
    assert abs(root.end_ns - time.time_ns()) < 30e9
    assert lasted(root, root) == (0, 1000)
    assert {name: lasted(root, part) for name, part in parts.items()} == {
        "queue": (0, 100),
        "prefill": (100, 300),
        "decode": (300, 900),
    }
    assert root.status == 0
    assert root.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "endstop",
        "gen_ai.request.model": "endstop-tiny",
        "gen_ai.response.model": "endstop-tiny",
        "gen_ai.response.id": "job",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "http.route": "/v1/chat/completions",
        "endstop.outcome": "end",
        "endstop.code": "EOS",
        "endstop.x_request_id": "order-7",
    }
    assert root.resource["service.name"] == "endstop"
    assert root.resource["service.instance.id"] == "gpu-7"


@pytest.mark.parametrize(
    ("outcome", "parts"),
    [
        (replace(OUTCOME, outcome="error", detail="QUEUE_TIMEOUT", queue_ms=1000.0, ttft_ms=None), {"queue"}),
        (replace(OUTCOME, outcome="error", detail="VRAM_OOM", ttft_ms=None), {"queue", "prefill"}),
        (replace(OUTCOME, outcome="error", detail="STALLED"), {"queue", "prefill", "decode"}),
    ],
    ids=lambda one: one.detail if isinstance(one, Outcome) else "",
)
def test_a_failure_says_its_code(collector: Collector, outcome: Outcome, parts: set[str]) -> None:
    told(collector, outcome)
    root, found = tree(collector.spans)
    assert set(found) == parts
    assert max(part.end_ns for part in found.values()) <= root.end_ns
    assert (root.status, root.status_text) == (2, outcome.detail)
    assert root.attributes["error.type"] == root.attributes["endstop.code"] == outcome.detail
    assert "gen_ai.response.finish_reasons" not in root.attributes


def test_a_cancel_is_no_error(collector: Collector) -> None:
    told(collector, replace(OUTCOME, outcome="cancelled", detail="client"))
    root, _ = tree(collector.spans)
    assert (root.status, root.attributes["endstop.outcome"]) == (0, "cancelled")
    assert "error.type" not in root.attributes


def test_it_is_a_part_of_what_its_client_says(collector: Collector) -> None:
    [trace_id] = told(collector, replace(OUTCOME, origin=replace(ORIGIN, parent=PARENT)))
    root, _ = tree(collector.spans)
    assert (root.trace_id, root.parent_id) == (PARENT.trace_id, PARENT.span_id)
    assert trace_id == PARENT.trace_id


def test_of_what_its_client_does_not_record_nothing_is_sent_but_numbers(collector: Collector) -> None:
    parent = replace(PARENT, is_sampled=False)
    assert told(collector, replace(OUTCOME, origin=replace(ORIGIN, parent=parent))) == [PARENT.trace_id]
    assert collector.spans == []
    assert len({name for name, _ in collector.points}) == 4


def test_what_was_asked_is_told_where_it_changes_something(collector: Collector) -> None:
    asked = replace(PARAMS, top_k=5, presence_penalty=1.0, frequency_penalty=-1.0, seed=MAX_INT, stop=("secret",))
    told(collector, replace(OUTCOME, is_chat=False, params=asked))
    root, _ = tree(collector.spans)
    assert root.name == "text_completion endstop-tiny"
    found = {name.removeprefix("gen_ai.request."): value for name, value in root.attributes.items()}
    assert (found["top_k"], found["presence_penalty"], found["frequency_penalty"]) == (5.0, 1.0, -1.0)
    assert found["seed"] == MAX_INT
    assert "secret" not in str(root)


def test_a_seed_that_is_too_large_is_left_out(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    told(collector, replace(OUTCOME, params=replace(PARAMS, seed=MAX_INT + 1)))
    root, _ = tree(collector.spans)
    assert "gen_ai.request.seed" not in root.attributes
    assert caplog.records == []


# ---- metrics


def test_numbers_are_those_of_the_conventions(collector: Collector) -> None:
    failed = replace(OUTCOME, outcome="error", detail="STALLED")
    one = replace(OUTCOME, usage=Usage(5, 1, 0), decode_ms=0.0)
    told(collector, OUTCOME, one, failed, replace(OUTCOME, outcome="cancelled", detail="client"))
    common = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "endstop",
        "gen_ai.request.model": "endstop-tiny",
        "gen_ai.response.model": "endstop-tiny",
    }

    def point(name: str, **more: str) -> tuple[int, float]:
        attributes = common | {key.replace("__", "."): value for key, value in more.items()}
        found = collector.points[name, frozenset(attributes.items())]
        assert found.unit == ("{token}" if "usage" in name else "s")
        return found.count, round(found.sum, 6)

    assert point("gen_ai.server.request.duration") == (3, 3.0)
    assert point("gen_ai.server.request.duration", error__type="STALLED") == (1, 1.0)
    assert point("gen_ai.server.time_to_first_token") == (2, 0.6)
    assert point("gen_ai.server.time_per_output_token") == (1, 0.2)
    assert point("gen_ai.client.token.usage", gen_ai__token__type="input") == (4, 20.0)
    assert point("gen_ai.client.token.usage", gen_ai__token__type="output") == (4, 13.0)
    assert len(collector.points) == 6


def test_buckets_are_those_of_the_conventions(collector: Collector) -> None:
    told(collector, OUTCOME)
    bounds = {name: [round(bound, 3) for bound in point.bounds] for (name, _), point in collector.points.items()}
    assert bounds["gen_ai.server.request.duration"] == [
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    ]
    assert bounds["gen_ai.server.time_to_first_token"] == [
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
    ]
    assert bounds["gen_ai.server.time_per_output_token"] == [
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
    ]
    assert bounds["gen_ai.client.token.usage"] == [
        *(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
    ]


# ---- what the page says


def test_the_page_has_what_is_sent_and_nothing_else(collector: Collector) -> None:
    asked = replace(PARAMS, top_k=5, presence_penalty=1.0, frequency_penalty=-1.0, seed=3)
    told(collector, replace(OUTCOME, params=asked), replace(OUTCOME, outcome="error", detail="STALLED"))
    sent = {name for span in collector.spans for name in span.attributes}
    assert set(table("metrics.md", "attribute")) == sent
    points: dict[str, set[str]] = {}
    for (name, attributes), _ in collector.points.items():
        points.setdefault(name, set()).update(key for key, _ in attributes)
    common = {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model"}
    documented = {
        name: set(re.findall(r"`([\w.]+)`", row[1])) | common for name, row in table("metrics.md", "metric").items()
    }
    assert documented == points


# ---- the environment


def test_the_environment_names_the_service(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "stories")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    told(collector, OUTCOME)
    resource = collector.spans[0].resource
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("stories", "test")


def test_one_of_the_two_can_be_left_out(collector: Collector) -> None:
    told(collector, OUTCOME, environ={"OTEL_TRACES_EXPORTER": "none"})
    assert (len(collector.spans), len(collector.points)) == (0, 5)
    collector.points.clear()
    told(collector, OUTCOME, environ={"OTEL_METRICS_EXPORTER": "none"})
    assert (len(collector.spans), len(collector.points)) == (4, 0)


def test_off_is_off() -> None:
    telemetry = open_telemetry(Settings(), {})
    assert isinstance(telemetry, NoTelemetry)
    assert telemetry.note_outcome(OUTCOME) == ""
    assert telemetry.note_outcome(replace(OUTCOME, origin=replace(ORIGIN, parent=PARENT))) == PARENT.trace_id
    check_telemetry(Settings(), {"OTEL_TRACES_EXPORTER": "zipkin"})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "grpc: must be http/protobuf; point OTEL",
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "must be http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER=console: must be otlp or none"),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, "must be otlp or none"),
        ({"OTEL_METRICS_EXEMPLAR_FILTER": "x"}, "OTEL_METRICS_EXEMPLAR_FILTER=x: must be trace_based or always_on"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be a URL with http"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be a URL with http"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:99999"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: must be"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://a b"}, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: must be"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_BSP_MAX_QUEUE_SIZE=-1: must be a whole number, at least 1"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "10"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE (else 512): must be at most"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "1.5"}, "OTEL_BSP_SCHEDULE_DELAY=1.5: must be a whole number, at least 1"),
        ({"OTEL_SPAN_LINK_COUNT_LIMIT": "-1"}, "OTEL_SPAN_LINK_COUNT_LIMIT=-1: must be a whole number, at least 0"),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "0"}, "OTEL_METRIC_EXPORT_INTERVAL=0: must be a number above 0"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "nan"}, "OTEL_EXPORTER_OTLP_TIMEOUT=nan: must be a number above 0"),
    ],
)
def test_what_is_not_there_is_refused_by_name(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        open_telemetry(SETTINGS, environ)


EMPTY = (
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_METRIC_EXPORT_INTERVAL"),
    *("OTEL_METRICS_EXEMPLAR_FILTER", "OTEL_TRACES_SAMPLER"),
)


@pytest.mark.parametrize("name", EMPTY)
def test_a_variable_that_is_empty_is_not_set(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As compose makes one of what its own environment has not."""
    monkeypatch.setenv(name, "")
    open_telemetry(SETTINGS, os.environ).close(10)
    assert caplog.messages == []


def test_what_is_in_a_bad_address_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as refusal:
        check_telemetry(SETTINGS, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:canary@[::1"})
    assert "canary" not in str(refusal.value)


@pytest.mark.parametrize("name", ["HEADERS", "TRACES_HEADERS", "METRICS_HEADERS"])
@pytest.mark.parametrize(
    "entry",
    [
        "Authorization: Bearer canary",
        "canary",
        "=canary",
        "a%3Ab=canary",
        'key="canary"',
        "key=canary;",
        "key=canary\x7f",
        "key=canary%0A",
        "key=canary-ü",
    ],
)
def test_headers_that_would_stand_in_the_log_are_refused_and_not_repeated(name: str, entry: str) -> None:
    variable = f"OTEL_EXPORTER_OTLP_{name}"
    with pytest.raises(SettingsError, match=f"{variable}: entry 2 is not name=value") as refusal:
        check_telemetry(SETTINGS, {variable: f"one=1,, {entry}"})
    assert "canary" not in str(refusal.value)


@pytest.mark.parametrize(
    "headers", ["", "a=b", " a=b , c-d = e=f==,", "authorization=Bearer x:y", "Authorization=Bearer%20%C3%BC%2C"]
)
def test_headers_that_the_exporters_take_are_no_trouble(headers: str, caplog: pytest.LogCaptureFixture) -> None:
    check_telemetry(SETTINGS, {"OTEL_EXPORTER_OTLP_HEADERS": headers})
    parse_env_headers(headers, liberal=True)
    assert not caplog.records


@pytest.mark.parametrize("missing", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"])
def test_what_is_not_installed_is_refused_with_the_remedy(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> Any:
        if name == missing:
            raise ModuleNotFoundError(name)
        return object()

    monkeypatch.setattr("worker.observe.telemetry.find_spec", find)
    with pytest.raises(SettingsError, match=r"pip install -r requirements-otel\.txt"):
        check_telemetry(SETTINGS, {})


# ---- trouble


def test_trouble_is_told_once_until_it_changes(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "endstop")
    session = _Session("traces")
    for status in (503, 503, 500, 200, 200):
        collector.status = status
        session.post(collector.url + "/v1/traces?key=secret", data=b"", timeout=30)
    lines = [record.getMessage() for record in caplog.records if record.name == "endstop"]
    assert lines == [
        "no traces to 127.0.0.1: it answered 503; what does not arrive in time is lost",
        "no traces to 127.0.0.1: it answered 500; what does not arrive in time is lost",
        "traces to 127.0.0.1 arrive again",
    ]


def test_a_collector_that_is_not_there_is_one_line_of_the_log(quiet: str, caplog: pytest.LogCaptureFixture) -> None:
    session = _Session("metrics")
    for _ in range(3):
        with pytest.raises(requests.ConnectionError):
            session.post(quiet + "/v1/metrics", timeout=30)
    assert len(caplog.records) == 1
    assert "Connection refused" in caplog.text


@pytest.mark.usefixtures("quiet")
def test_the_exporters_say_nothing_of_it_themselves(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Otlp(SETTINGS, {})
    telemetry.note_outcome(replace(OUTCOME, ended_at=time.monotonic()))
    telemetry.close(10)
    assert {record.name for record in caplog.records} == {"endstop"}


def test_other_lines_of_the_exporters_are_told() -> None:
    record = logging.LogRecord("opentelemetry", logging.ERROR, "", 0, "Failed to encode span batch: %s", ("x",), None)
    assert _is_not_told_already(record)


def test_the_end_waits_for_no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes and never answers. Its threads end with the process."""
    release, asked = threading.Event(), threading.Event()

    def hang(*args: Any, **more: Any) -> Any:
        asked.set()
        release.wait(60)
        raise requests.ConnectionError("gone")

    monkeypatch.setattr(requests.Session, "request", hang)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.01")
    telemetry = Otlp(SETTINGS, {})
    try:
        telemetry.note_outcome(replace(OUTCOME, ended_at=time.monotonic()))
        begun = time.monotonic()
        telemetry.close(0.2)
        assert time.monotonic() - begun < 5
        assert asked.is_set()
    finally:
        release.set()
    wait_until(lambda: not [one for one in threading.enumerate() if one.name.startswith(("Otel", "telemetry"))])
