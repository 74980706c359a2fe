"""Where a job comes from, for logs and traces. Plain data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The span of somebody else that a request is a part of: W3C's header `traceparent`.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 of them.
        is_sampled: Whether that span is recorded.
    """

    trace_id: str
    span_id: str
    is_sampled: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """The HTTP request that made a job. It may have made several.

    Attributes:
        x_request_id: What its client calls it, or we do; empty if nobody does.
        route: As the app has it, not as the client wrote it.
        parent: The span that it is a part of, if its client says one.
    """

    x_request_id: str = ""
    route: str = ""
    parent: TraceParent | None = None


NO_ORIGIN = Origin()  # of a job that no request has made
