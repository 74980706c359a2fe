"""An OpenTelemetry collector that keeps what it is sent: OTLP over HTTP, in protobuf."""

import gzip
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.http_server import HTTPServer, QuietHandler


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """A span as it came. Times are in nanoseconds of Unix time, ids hexadecimal, no parent is an empty one."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    status: int
    status_text: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SeenPoint:
    """A histogram as it came, of one set of attributes."""

    name: str
    unit: str
    count: int
    sum: float
    bounds: list[float]
    attributes: dict[str, Any]


class Collector(HTTPServer):
    """Listens on a port of its own.

    Attributes:
        status: What it answers.
        spans: What has come, the oldest first.
        points: The newest of each histogram and its attributes.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        """Begin to listen; with TLS if there is a context."""
        self.status = 200
        self.spans: list[SeenSpan] = []
        self.points: dict[tuple[str, frozenset[tuple[str, Any]]], SeenPoint] = {}
        outer = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                if outer.status == 200:
                    outer._keep(self.path.partition("?")[0], body)
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        super().__init__(Handler, context)

    def _keep(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            self.spans += spans_in(body)
        else:
            assert path == "/v1/metrics", path
            # All at once: a test may look at any time, and what was sent together has to be seen together.
            self.points |= {(point.name, frozenset(point.attributes.items())): point for point in points_in(body)}


@contextmanager
def nobody() -> Iterator[str]:
    """A URL at which every connection is refused, and which nobody else can take meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def deaf() -> Iterator[str]:
    """A URL at which connections are taken and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def spans_in(body: bytes) -> list[SeenSpan]:
    """What a POST to /v1/traces has in it."""
    return [
        SeenSpan(
            span.name,
            span.kind,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            span.status.code,
            span.status.message,
            _values(span.attributes),
            _values(group.resource.attributes),
        )
        for group in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def points_in(body: bytes) -> list[SeenPoint]:
    """What a POST to /v1/metrics has in it."""
    return [
        SeenPoint(
            metric.name,
            metric.unit,
            point.count,
            point.sum,
            list(point.explicit_bounds),
            _values(point.attributes),
        )
        for group in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in group.scope_metrics
        for metric in scope.metrics
        for point in metric.histogram.data_points
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
