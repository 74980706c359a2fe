"""`/v1/operations`: how the server is doing, for the page's operations view. Says nothing of what is asked or answered.

Everybody with a key may see it, so it names nobody: of a stream of somebody else it has neither the key's name nor the
job's id. The numbers are those of `/metrics`, which is what to keep watch with.
"""

import time
from typing import Annotated, Literal, NotRequired

from flask import Blueprint, Response, jsonify
from pydantic import Field
from typing_extensions import TypedDict

from worker.engine.sequence import Sequence, SequenceState
from worker.observe.history import Sample
from worker.observe.log import Outcome
from worker.web.auth import client
from worker.web.context import context
from worker.web.description import describes

blueprint = Blueprint("operations", __name__)

# A page draws a line for each; more than so many nobody reads.
MAX_LISTED = 200


class Places(TypedDict):
    """Places that are taken, of all that there are."""

    used: int
    total: int


class CacheUse(TypedDict):
    """The KV cache, in shares from 0 to 1."""

    used: Annotated[float, Field(description="Owned by those who run.")]
    remembered: Annotated[float, Field(description="Free, and known to hold what some prompt may begin with.")]


class PrefixUse(TypedDict):
    """Tokens of prompts since the start."""

    looked_for: int
    found: Annotated[int, Field(description="Computed for an earlier request, and not again.")]


class LiveStream(TypedDict):
    """A request that has not ended."""

    state: Literal["QUEUED", "PREFILLING", "DECODING"]
    age_s: float
    prompt_tokens: int
    tokens: int
    quiet_s: Annotated[float | None, Field(description="Since its newest token; null before the first.")]
    unread_events: Annotated[int, Field(description="What waits for its reader.")]
    job_id: NotRequired[Annotated[str, Field(description="If it is the asker's own.")]]


class OutcomeCount(TypedDict):
    """How many requests ended so since the start."""

    outcome: Annotated[str, Field(description="`end`, `error` or `cancelled`.")]
    code: Annotated[str, Field(description="The stop reason, the error code, or who cancelled.")]
    count: int


class EndedRequest(TypedDict):
    """A request that has ended."""

    ended_ago_s: float
    outcome: Annotated[str, Field(description="`end`, `error` or `cancelled`.")]
    code: str
    prompt_tokens: int
    tokens: int
    queue_ms: float
    ttft_ms: Annotated[float | None, Field(description="Time to the first token.")]
    longest_gap_ms: Annotated[float | None, Field(description="Between two tokens.")]
    total_ms: float


class Moment(TypedDict):
    """The server at one moment of the last minutes."""

    ago_s: float
    tokens_per_s: float
    running: int
    waiting: int
    cache_used: float


class Operations(TypedDict):
    """How the server is doing."""

    model: str
    device: str
    state: Literal["LOADING", "READY", "DRAINING", "DEAD"]
    reason: Annotated[str, Field(description="Why it is not READY, or empty.")]
    uptime_s: float
    slots: Places
    queue: Places
    cache: CacheUse
    prefix: PrefixUse
    streams: Annotated[list[LiveStream], Field(description="The oldest first, and no more than 200.")]
    outcomes: list[OutcomeCount]
    ended: Annotated[list[EndedRequest], Field(description="The last 200, the newest last.")]
    history: Annotated[list[Moment], Field(description="Five minutes, every two seconds, the newest last.")]


@blueprint.get("/v1/operations")
@describes("Server", answers={200: Operations})
def operations() -> Response:
    """How the server is doing: what runs, what waits, the last minutes, and how requests ended."""
    shared, now = context(), time.monotonic()
    settings, numbers = shared.settings, shared.engine.numbers()
    reason = shared.engine.liveness() or shared.engine.reason
    live = sorted(shared.engine.open_sequences(), key=lambda sequence: sequence.submitted_at)
    found: Operations = {
        "model": settings.model_name,
        "device": numbers.device,
        "state": "DEAD" if shared.engine.liveness() else shared.engine.state.value,
        "reason": reason,
        "uptime_s": numbers.uptime_s,
        "slots": {"used": numbers.num_running, "total": settings.max_slots},
        "queue": {"used": numbers.num_waiting, "total": settings.max_queue},
        "cache": {"used": numbers.cache_usage, "remembered": numbers.cache_remembered},
        "prefix": {"looked_for": numbers.num_prefix_tokens, "found": numbers.num_prefix_hits},
        "streams": [_stream(sequence, now) for sequence in live[:MAX_LISTED]],
        "outcomes": [
            {"outcome": outcome, "code": code, "count": count}
            for (outcome, code), count in sorted(shared.records.outcomes.copy().items())
        ],
        "ended": [_ended(outcome, now - at) for at, outcome in shared.history.ended],
        "history": [_moment(sample, now) for sample in shared.history.samples],
    }
    return jsonify(found)


def _stream(sequence: Sequence, now: float) -> LiveStream:
    last_token_at = sequence.last_token_at
    found: LiveStream = {
        "state": _state(sequence),
        "age_s": round(now - sequence.submitted_at, 3),
        "prompt_tokens": len(sequence.prompt_ids),
        "tokens": len(sequence.output_ids),
        "quiet_s": None if last_token_at is None else round(max(0.0, now - last_token_at), 3),
        "unread_events": sequence.sender.statistics().num_waiting,
    }
    if sequence.client == client():
        found["job_id"] = sequence.request_id
    return found


def _state(sequence: Sequence) -> Literal["QUEUED", "PREFILLING", "DECODING"]:
    if sequence.state is SequenceState.WAITING:
        return "QUEUED"
    return "PREFILLING" if sequence.last_token_at is None else "DECODING"


def _ended(outcome: Outcome, ago_s: float) -> EndedRequest:
    return {
        "ended_ago_s": round(ago_s, 1),
        "outcome": outcome.outcome,
        "code": outcome.detail,
        "prompt_tokens": outcome.usage.prompt_tokens,
        "tokens": outcome.usage.completion_tokens,
        "queue_ms": outcome.queue_ms,
        "ttft_ms": outcome.ttft_ms,
        "longest_gap_ms": outcome.longest_gap_ms,
        "total_ms": outcome.total_ms,
    }


def _moment(sample: Sample, now: float) -> Moment:
    return {
        "ago_s": round(now - sample.at, 1),
        "tokens_per_s": round(sample.tokens_per_s, 2),
        "running": sample.num_running,
        "waiting": sample.num_waiting,
        "cache_used": round(sample.cache_usage, 4),
    }
