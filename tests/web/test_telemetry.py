"""OpenTelemetry of real servers, under both worker classes: what a collector hears, and one that does not listen."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import Collector, SeenSpan, deaf, nobody
from tests.support.http_server import self_signed
from tests.support.servers import WORKER_CLASSES, RawStream, Server, assert_ended_once, running_server
from worker.settings import ROOT

pytestmark = pytest.mark.slow
both = pytest.mark.parametrize("worker_class", WORKER_CLASSES)

PROMPT = {"prompt": "hello", "max_tokens": 5, "temperature": 0}  # its answer is "abcde"
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


def environment(url: str, **more: str) -> dict[str, str]:
    # Retries go on for as long as a batch may take: longer than these tests wait for anything.
    return {
        "ENDSTOP_OPENTELEMETRY": "on",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
        "ENDSTOP_LOG_FORMAT": "json",
        **more,
    }


def execute(server: Server, parent: str = "", **changed: Any) -> dict[str, Any]:
    with RawStream(server, "POST", "/execute", PROMPT | changed, traceparent=parent) as stream:
        return assert_ended_once(stream.read_all())


def roots(collector: Collector) -> list[SeenSpan]:
    return [span for span in collector.spans if span.kind == 2]


def wait_for_root(server: Server, collector: Collector, is_it: Callable[[SeenSpan], bool]) -> SeenSpan:
    server.wait_for(lambda: any(is_it(span) for span in roots(collector)), "the span")
    [found] = [span for span in roots(collector) if is_it(span)]
    return found


def code_is(code: str) -> Callable[[SeenSpan], bool]:
    return lambda span: span.attributes["endstop.code"] == code


def outcomes(server: Server) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line.get("event") == "outcome"]


@both
def test_a_collector_hears_how_each_request_ended(tmp_path: Path, worker_class: str, collector: Collector) -> None:
    env = environment(collector.url, ENDSTOP_MAX_SLOTS="1", ENDSTOP_QUEUE_TIMEOUT_S="3", OTEL_SERVICE_NAME="stories")
    with running_server(tmp_path, worker_class, env=env) as server:
        server.allow("open")
        end = execute(server, f"00-{TRACE_ID}-{SPAN_ID}-01")
        root = wait_for_root(server, collector, code_is("MAX_TOKENS"))
        assert (root.name, root.trace_id, root.parent_id) == ("text_completion endstop-tiny", TRACE_ID, SPAN_ID)
        assert root.attributes["gen_ai.usage.output_tokens"] == end["usage"]["completion_tokens"]
        assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
        assert root.attributes["http.route"] == "/execute"
        assert root.resource["service.name"] == "stories"
        assert abs(root.end_ns - time.time_ns()) < 60e9
        server.wait_for(lambda: len(collector.spans) == 4, "its parts")
        parts = {span.name: span for span in collector.spans if span is not root}
        assert set(parts) == {"queue", "prefill", "decode"}
        assert {(part.trace_id, part.parent_id) for part in parts.values()} == {(TRACE_ID, root.span_id)}

        # Not recorded by its client: no span, and the log has its trace all the same.
        other = TRACE_ID[::-1]
        execute(server, f"00-{other}-{SPAN_ID}-00", stop="b")

        server.post("/gate/close")
        server.post("/fault/error")
        server.allow(1)
        execute(server)
        failed = wait_for_root(server, collector, code_is("INFERENCE_FAILED"))
        assert (failed.status, failed.attributes["error.type"], failed.parent_id) == (2, "INFERENCE_FAILED", "")

        server.post("/gate/close")
        with RawStream(server, "POST", "/execute", PROMPT, traceparent="rubbish") as first:
            first.read_until(b"started")
            server.wait_for(lambda: server.stats()["running"] == 1, "a slot that is taken")
            execute(server)  # has to wait, and not for long
            late = wait_for_root(server, collector, code_is("QUEUE_TIMEOUT"))
            assert late.attributes["error.type"] == "QUEUE_TIMEOUT"
            assert [span.name for span in collector.spans if span.parent_id == late.span_id] == ["queue"]
        server.wait_for(lambda: server.stats()["wanted"] == 0, "the leave is noticed")
        server.allow("open")
        left = wait_for_root(server, collector, code_is("client"))
        assert (left.status, left.attributes["endstop.outcome"], left.parent_id) == (0, "cancelled", "")
        server.wait_for(lambda: len(outcomes(server)) == 5, "outcomes in the log")

        traces = {line["code"]: line["trace_id"] for line in outcomes(server)}
        assert traces.pop("STOP_SEQUENCE") == other
        assert traces == {span.attributes["endstop.code"]: span.trace_id for span in roots(collector)}

        def number(name: str) -> int:
            return sum(point.count for (one, _), point in list(collector.points.items()) if one == name)

        server.wait_for(lambda: number("gen_ai.server.request.duration") == 5, "numbers")
        assert number("gen_ai.server.time_to_first_token") == number("gen_ai.server.time_per_output_token") == 2
        assert number("gen_ai.client.token.usage") == 10


@both
def test_what_was_said_last_arrives_before_the_end(tmp_path: Path, worker_class: str, collector: Collector) -> None:
    slow = {"OTEL_METRIC_EXPORT_INTERVAL": "3600000", "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with running_server(tmp_path, worker_class, env=environment(collector.url, **slow)) as server:
        server.allow("open")
        execute(server)
        assert collector.spans == []
        server.process.terminate()
        assert server.wait_exit() == 0
    assert [span.attributes["endstop.code"] for span in roots(collector)] == ["MAX_TOKENS"]
    assert len(collector.points) == 5


@both
def test_a_process_that_dies_says_who_died_with_it(tmp_path: Path, worker_class: str, collector: Collector) -> None:
    with running_server(tmp_path, worker_class, env=environment(collector.url)) as server:
        server.post("/fault/fatal")
        server.allow("open")
        assert execute(server)["code"] == "ENGINE_DEAD"
        died = wait_for_root(server, collector, code_is("ENGINE_DEAD"))
        assert died.attributes["error.type"] == "ENGINE_DEAD"


@both
def test_it_goes_over_tls(tmp_path: Path, worker_class: str) -> None:
    """Where gevent has patched `ssl` too."""
    context, certificate = self_signed(tmp_path)
    collector = Collector(context)
    env = environment(collector.url, OTEL_EXPORTER_OTLP_CERTIFICATE=str(certificate))
    try:
        with running_server(tmp_path, worker_class, env=env) as server:
            server.allow("open")
            execute(server)
            wait_for_root(server, collector, code_is("MAX_TOKENS"))
            assert "no traces" not in server.log()
    finally:
        collector.close()


@both
@pytest.mark.parametrize("where", [deaf, nobody])
def test_a_collector_that_does_not_listen_holds_nobody_up(tmp_path: Path, worker_class: str, where: Any) -> None:
    with where() as url:
        env = environment(url, OTEL_BSP_MAX_QUEUE_SIZE="8", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4", ENDSTOP_DRAIN_S="1")
        with running_server(tmp_path, worker_class, env=env) as server:
            server.allow("open")
            for _ in range(5):  # more spans than it may keep
                execute(server)
            server.wait_for(lambda: len(outcomes(server)) == 5, "outcomes in the log")
            if where is nobody:
                server.wait_for(lambda: "no traces to 127.0.0.1: ConnectionRefusedError" in server.log(), "the trouble")
            begun = time.monotonic()
            server.process.terminate()
            assert server.wait_exit() == 0
            assert time.monotonic() - begun < 30  # and not the minute that a batch may take
            assert server.log().count("no traces to") <= 1


IMPORTED = """
import os, sys
import app
from worker.config import read_settings
from worker.observe.telemetry import open_telemetry
open_telemetry(read_settings(os.environ), os.environ)
print(any(name.startswith("opentelemetry.sdk") for name in sys.modules), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("setting", "is_there"), [("off", "False"), ("on", "True")])
def test_nothing_of_it_is_imported_unless_it_is_on(setting: str, is_there: str) -> None:
    environ = os.environ | {"ENDSTOP_OPENTELEMETRY": setting, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == is_there


@both
def test_a_server_that_cannot_tell_does_not_start(tmp_path: Path, worker_class: str) -> None:
    env = environment("http://127.0.0.1:1", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    with running_server(tmp_path, worker_class, wait=False, env=env) as server:
        assert server.wait_exit() == 1
        assert server.log().startswith("endstop: OTEL_EXPORTER_OTLP_PROTOCOL=grpc: must be http/protobuf; point")
        assert len(server.log().splitlines()) == 1
