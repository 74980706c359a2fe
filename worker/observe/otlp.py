"""Tells an OpenTelemetry collector how requests ended, by OTLP over HTTP. docs/metrics.md lists what is told.

Everything is made afterwards, of outcomes (log.py): the spans of a request have the times that its outcome has. Names
and buckets are those of the GenAI semantic conventions, which are in development still: the names are written here and
not taken from the package of conventions, which calls them deprecated since they have moved.

Law: nothing here runs on the generation thread, and no collector is waited for: the SDK's own threads (greenlets under
gevent) send, what does not fit their queue is dropped, and the end of the process waits for `close` only, within its
limit. Nothing becomes global: libraries that look for a tracer find none of ours.
"""

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_trace_id,
    set_span_in_context,
)
from requests.adapters import HTTPAdapter

from worker.errors import one_line
from worker.observe.heartbeat import worker_name
from worker.observe.log import Outcome
from worker.origin import TraceParent
from worker.settings import Settings

logger = logging.getLogger("endstop")

NAME = "endstop"
# Sooner than the SDK's five seconds: a process that dies of a fault lingers for one (worker/process.py), and its last
# spans are the ones that will be looked for.
SPAN_DELAY_MS = 500
# The conventions'.
_DURATION_BOUNDS_S = [0.01 * 2**i for i in range(14)]
_TTFT_BOUNDS_S = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_TOKEN_BOUNDS_S = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
_USAGE_BOUNDS = [4**i for i in range(14)]
_FINISH_REASONS = {"EOS": "stop", "STOP_SEQUENCE": "stop", "MAX_TOKENS": "length"}
MAX_INT = 2**63 - 1  # that OTLP has


class Otlp:
    """Makes spans and metrics of outcomes, and has them sent."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        """Start to send. In the process that serves, after any fork.

        Args:
            settings: Whose server it is.
            environ: Which of the two is wanted. Everything else of `OTEL_` the SDK reads.
        """
        self._model_name = settings.model_name
        # By the standard what is empty is not set. The SDK complains of some of them, and ends the process for one.
        for name in [name for name, value in os.environ.items() if name.startswith("OTEL_") and not value]:
            del os.environ[name]
        own = {"service.name": NAME, "service.instance.id": worker_name(settings)}
        resource = Resource.create(own).merge(OTELResourceDetector().detect())  # what the environment says wins
        for name in ("trace_exporter", "metric_exporter"):
            logging.getLogger(f"opentelemetry.exporter.otlp.proto.http.{name}").addFilter(_is_not_told_already)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        if environ.get("OTEL_TRACES_EXPORTER") != "none":
            exporter = OTLPSpanExporter(session=_Session("traces"))
            delay_ms = None if environ.get("OTEL_BSP_SCHEDULE_DELAY") else SPAN_DELAY_MS
            self._tracers.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=delay_ms))
        readers: list[MetricReader] = []
        if environ.get("OTEL_METRICS_EXPORTER") != "none":
            readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(session=_Session("metrics"))))
        self._meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self._tracer = self._tracers.get_tracer(NAME)
        histogram = self._histogram
        self._duration_s = histogram(
            "gen_ai.server.request.duration", "s", "From acceptance to the end.", _DURATION_BOUNDS_S
        )
        self._ttft_s = histogram(
            "gen_ai.server.time_to_first_token", "s", "From acceptance to the first token.", _TTFT_BOUNDS_S
        )
        self._per_token_s = histogram(
            "gen_ai.server.time_per_output_token", "s", "Per token behind the first.", _TOKEN_BOUNDS_S
        )
        self._usage = histogram("gen_ai.client.token.usage", "{token}", "Tokens of prompts and answers.", _USAGE_BOUNDS)

    def _histogram(self, name: str, unit: str, about: str, bounds: list[float]) -> Histogram:
        meter = self._meters.get_meter(NAME)
        return meter.create_histogram(name, unit, about, explicit_bucket_boundaries_advisory=bounds)

    def note_outcome(self, outcome: Outcome) -> str:
        """Tell how a request ended. Waits for nobody. Thread: the housekeeper.

        Returns:
            The id of its trace, or nothing.
        """
        common = {
            "gen_ai.operation.name": "chat" if outcome.is_chat else "text_completion",
            "gen_ai.provider.name": NAME,
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.model": self._model_name,
        }
        self._count(outcome, common)
        return self._trace(outcome, common)

    def _count(self, outcome: Outcome, common: dict[str, str]) -> None:
        error = {"error.type": outcome.detail} if outcome.outcome == "error" else {}
        self._duration_s.record(outcome.total_ms / 1e3, {**common, **error})
        self._usage.record(outcome.usage.prompt_tokens, {**common, "gen_ai.token.type": "input"})
        self._usage.record(outcome.usage.completion_tokens, {**common, "gen_ai.token.type": "output"})
        if outcome.outcome == "end" and outcome.ttft_ms is not None:
            self._ttft_s.record(outcome.ttft_ms / 1e3, common)
            if (num_behind := outcome.usage.completion_tokens - 1) > 0:
                self._per_token_s.record(outcome.decode_ms / 1e3 / num_behind, common)

    def _trace(self, outcome: Outcome, common: dict[str, str]) -> str:
        # The clock of the outcome is monotonic, that of spans is Unix time in nanoseconds.
        end_ns = time.time_ns() - round((time.monotonic() - outcome.ended_at) * 1e9)
        start_ns = end_ns - _ns(outcome.total_ms)
        span = self._tracer.start_span(
            f"{common['gen_ai.operation.name']} {self._model_name}",
            _context_of(outcome.origin.parent),
            SpanKind.SERVER,
            {**common, **_attributes_of(outcome)},
            start_time=start_ns,
        )
        if outcome.outcome == "error":
            span.set_status(Status(StatusCode.ERROR, outcome.detail))
        if span.is_recording():
            within = set_span_in_context(span, Context())
            for name, begin_ms, finish_ms in _phases(outcome):
                part = self._tracer.start_span(name, within, start_time=start_ns + _ns(begin_ms))
                part.end(start_ns + _ns(finish_ms))
        span.end(end_ns)
        trace_id = span.get_span_context().trace_id
        return format_trace_id(trace_id) if trace_id else ""

    def close(self, limit_s: float) -> None:
        """Send what has not been sent, and nothing more after that. Waits for at most `limit_s`."""
        deadline = time.monotonic() + limit_s
        ends: tuple[Callable[[], Any], ...] = self._tracers.shutdown, self._meters.shutdown
        threads = [threading.Thread(target=end, name="telemetry", daemon=True) for end in ends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _context_of(parent: TraceParent | None) -> Context:
    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if parent.is_sampled else TraceFlags.DEFAULT)
    there = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(there), Context())


def _attributes_of(outcome: Outcome) -> dict[str, Any]:
    """What is told of a request beside its model. No prompt and no answer, as in the log; no stop string either."""
    found: dict[str, Any] = {
        "gen_ai.response.id": outcome.request_id,
        "gen_ai.usage.input_tokens": outcome.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": outcome.usage.cached_tokens,
        "endstop.outcome": outcome.outcome,
        "endstop.code": outcome.detail,
        "endstop.x_request_id": outcome.origin.x_request_id,
        "http.route": outcome.origin.route,
    }
    if outcome.outcome == "end":
        found["gen_ai.response.finish_reasons"] = [_FINISH_REASONS[outcome.detail]]
    elif outcome.outcome == "error":
        found["error.type"] = outcome.detail
    if (params := outcome.params) is not None:
        found["gen_ai.request.max_tokens"] = params.max_tokens
        found["gen_ai.request.temperature"] = params.temperature
        found["gen_ai.request.top_p"] = params.top_p
        asked = {
            "gen_ai.request.top_k": float(params.top_k),  # a number with a fraction, by the conventions
            "gen_ai.request.presence_penalty": params.presence_penalty,
            "gen_ai.request.frequency_penalty": params.frequency_penalty,
        }
        found |= {name: value for name, value in asked.items() if value}
        if params.seed is not None and params.seed <= MAX_INT:  # a larger one is an error in the log
            found["gen_ai.request.seed"] = params.seed
    return found


def _phases(outcome: Outcome) -> list[tuple[str, float, float]]:
    """What a request went through: names, begins and ends, in milliseconds from its acceptance."""
    queued_ms, first_ms = outcome.queue_ms, outcome.ttft_ms
    found = [("queue", 0.0, queued_ms)]
    if first_ms is not None:
        found += [("prefill", queued_ms, first_ms), ("decode", first_ms, first_ms + outcome.decode_ms)]
    elif queued_ms < outcome.total_ms:
        found.append(("prefill", queued_ms, outcome.total_ms))
    return found


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


class _Session(requests.Session):
    """Sends, and says once in the log what is wrong with that until it changes."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.mount("https://", _TlsAdapter())
        self._what = what
        self._trouble = ""

    def request(self, method: Any, url: Any, *args: Any, **asked: Any) -> requests.Response:
        """As requests has it. Failures go on to the SDK, which tries again."""
        asked["verify"] = self.verify  # else REQUESTS_CA_BUNDLE would win over OTEL_EXPORTER_OTLP_CERTIFICATE
        try:
            answer = super().request(method, url, *args, **asked)
        except Exception as error:
            self._note(url, one_line(_root_of(error)))
            raise
        self._note(url, "" if answer.ok else f"it answered {answer.status_code}")
        return answer

    def _note(self, url: str, trouble: str) -> None:
        host = urlsplit(url).hostname or url
        if trouble and trouble != self._trouble:
            logger.warning("no %s to %s: %s; what does not arrive in time is lost", self._what, host, trouble)
        elif self._trouble and not trouble:
            logger.info("%s to %s arrive again", self._what, host)
        self._trouble = trouble


class _TlsAdapter(HTTPAdapter):
    """gevent patches `ssl` after urllib3 has taken its classes from there, and these then call themselves without end.

    A context that is made now is of gevent's kind.
    """

    def init_poolmanager(self, *args: Any, **asked: Any) -> None:
        super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), **asked)


def _root_of(error: BaseException) -> BaseException:
    """The first of several errors. What requests and urllib3 make of it names an address in memory."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _is_not_told_already(record: logging.LogRecord) -> bool:
    """A filter of the exporters' own lines: four for each batch that does not arrive, for as long as it does not."""
    return not str(record.msg).startswith(("Failed to export %s", "Transient error", "Shutdown in progress"))
