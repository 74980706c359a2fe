"""For those who run the server: is it alive, is it ready, how far is loading."""

import time
from collections.abc import Iterator
from typing import Annotated, Literal, NotRequired

from flask import Blueprint, Response, jsonify
from pydantic import Field
from typing_extensions import TypedDict

from worker.engine.admission import EngineState
from worker.engine.engine import Engine
from worker.errors import SHUTTING_DOWN, NotReady, Overloaded
from worker.observe.metrics import CONTENT_TYPE
from worker.web.context import context
from worker.web.description import describes
from worker.web.refusals import RETRY_FAILED_S
from worker.web.sse import DONE, PING, encode_data, event_stream_response

blueprint = Blueprint("ops", __name__)

PROGRESS_TICK_S = 0.1


class Alive(TypedDict):
    """The server lives."""

    status: Literal["ok"]


class Dead(TypedDict):
    """The generation thread does not come back."""

    status: Literal["dead"]
    reason: str


class Ready(TypedDict):
    """A request would be accepted now."""

    state: Literal["READY"]
    model: str


class Unready(TypedDict):
    """A request would be refused now."""

    state: Literal["LOADING", "FULL", "DRAINING", "DEAD"]
    reason: str


class Loading(TypedDict):
    """How far loading is; in the last event, how it ended."""

    state: Literal["LOADING", "READY", "DRAINING", "DEAD"]
    phase: NotRequired[str]
    fraction: NotRequired[Annotated[float, Field(description="From 0 to 1 over all phases.")]]
    done_bytes: NotRequired[Annotated[int, Field(description="Of this phase, if it is one of bytes.")]]
    total_bytes: NotRequired[Annotated[int, Field(description="The same, in all.")]]
    reason: NotRequired[Annotated[str, Field(description="Why there is no model.")]]


@blueprint.get("/health")
@describes("Server", answers={200: Alive, 503: Dead})
def health() -> tuple[Response, int]:
    """Liveness: 200 while the generation thread makes progress, is idle or loads."""
    reason = context().engine.liveness()
    if reason:
        return jsonify(status="dead", reason=reason), 503
    return jsonify(status="ok"), 200


@blueprint.get("/ready")
@blueprint.get("/v1/ready")
@describes("Server", answers={200: Ready, 503: Unready})
def ready() -> tuple[Response, int] | tuple[Response, int, dict[str, str]]:
    """Readiness: 200 only when a request would be accepted now."""
    shared = context()
    try:  # what a request would be asked
        if reason := shared.engine.liveness():
            raise NotReady(EngineState.DEAD.value, reason, RETRY_FAILED_S)
        shared.engine.check_room()
        shared.streams.check_room()
    except (NotReady, Overloaded) as refusal:
        state = refusal.code if isinstance(refusal, NotReady) else "FULL"
        retry_after = {"Retry-After": str(refusal.retry_after_s)}
        return jsonify(state=state, reason=refusal.message), 503, retry_after
    return jsonify(state=EngineState.READY.value, model=shared.settings.model_name), 200


@blueprint.get("/metrics")
@describes("Server", answers={200: "text/plain"})
def metrics() -> Response:
    """Counts and times for Prometheus, in its text format."""
    return Response(context().metrics.exposition(), content_type=CONTENT_TYPE)


@blueprint.get("/v1/loading/progress")
@describes("Server", events=Loading, raises=(Overloaded,))
def loading_progress() -> Response:
    """Server-Sent Events while the model loads. Ends by itself when it is ready or cannot be loaded."""
    shared = context()
    chunks = _progress(shared.engine, shared.settings.keep_alive_s)
    return event_stream_response(chunks, lambda: None)


def _progress(engine: Engine, keep_alive_s: float) -> Iterator[bytes]:
    shown = None
    shown_at = 0.0
    # A load cannot be interrupted, and while it lasts the engine does not see that its worker is leaving.
    while engine.state is EngineState.LOADING and not (engine.liveness() or engine.should_drain()):
        now = time.monotonic()
        if engine.progress is not shown and engine.progress is not None:
            shown, shown_at = engine.progress, now
            how = {"state": "LOADING", "phase": shown.phase, "fraction": round(shown.fraction, 3)}
            if shown.total_bytes is not None:
                how |= {"done_bytes": shown.done_bytes, "total_bytes": shown.total_bytes}
            yield encode_data(how)
        elif now - shown_at >= keep_alive_s:
            shown_at = now
            yield PING
        time.sleep(PROGRESS_TICK_S)
    if engine.state is EngineState.LOADING and (fault := engine.liveness()):
        yield encode_data({"state": EngineState.DEAD.value, "reason": fault})
    elif engine.state is EngineState.LOADING:
        yield encode_data({"state": EngineState.DRAINING.value, "reason": SHUTTING_DOWN})
    else:
        is_loaded = engine.state is EngineState.READY
        how = {"fraction": 1.0} if is_loaded else {"reason": engine.reason}
        yield encode_data({"state": engine.state.value} | how)
    yield DONE
