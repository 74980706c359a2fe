"""The last words about a sequence: its terminal event, its metrics, its outcome. No torch."""

import time

from worker.engine.sequence import Sequence
from worker.errors import GenerationFailed, Incomplete
from worker.events import End, Failure, Metrics, StopReason, Terminal, Usage
from worker.observe.log import Outcome


def failure_event(error: GenerationFailed, usage: Usage) -> Failure:
    """The terminal event of a failure."""
    return Failure(error.code, error.message, usage, error.status)


# What a stream ends with if its sender is dropped without a close.
INCOMPLETE = failure_event(Incomplete("the generation went away without saying why"), Usage(0, 0))


def end_event(sequence: Sequence, reason: StopReason) -> End:
    """The terminal event of a sequence that did not fail."""
    return End(reason, sequence.usage, round(_decode_s(sequence) * 1e3, 3), sequence.stop_strings.matched)


def overdue_event(sequence: Sequence, now: float) -> Terminal | None:
    """The terminal event of a sequence of which one wait has lasted too long. Notes who cancels it, if that is how."""
    overdue = sequence.overdue(now)
    if isinstance(overdue, GenerationFailed):
        return failure_event(overdue, sequence.usage)
    if overdue is not None:
        sequence.cancelled_by = sequence.cancelled_by or overdue
        return end_event(sequence, StopReason.CANCELLED)
    return None


def metrics_event(sequence: Sequence, outcome: Outcome, vram_bytes: int) -> Metrics:
    """How the request went. The rate is that of decoding: the first token belongs to the prompt."""
    decode_s = _decode_s(sequence)
    rate = (len(sequence.output_ids) - 1) / decode_s if decode_s > 0 else 0.0
    return Metrics(round(rate, 2), vram_bytes, outcome.queue_ms, outcome.ttft_ms)


def outcome_of(sequence: Sequence, terminal: Terminal) -> Outcome:
    """The one record of how a request ended."""
    now = time.monotonic()
    scheduled_at = sequence.scheduled_at if sequence.scheduled_at is not None else now
    ttft_ms = None
    if sequence.first_token_at is not None:
        ttft_ms = _ms(sequence.first_token_at - sequence.submitted_at)
    if isinstance(terminal, Failure):
        kind, detail = "error", terminal.code
    elif terminal.stop_reason is StopReason.CANCELLED:
        kind, detail = "cancelled", sequence.cancelled_by or "engine"
    else:
        kind, detail = "end", terminal.stop_reason.value
    return Outcome(
        sequence.request_id,
        sequence.client,
        kind,
        detail,
        sequence.usage,
        queue_ms=_ms(scheduled_at - sequence.submitted_at),
        ttft_ms=ttft_ms,
        decode_ms=_ms(_decode_s(sequence)),
        longest_gap_ms=None if sequence.longest_gap_s is None else _ms(sequence.longest_gap_s),
        total_ms=_ms(now - sequence.submitted_at),
        ended_at=now,
        origin=sequence.origin,
        is_chat=sequence.is_chat,
        params=sequence.params,
    )


def _decode_s(sequence: Sequence) -> float:
    if sequence.first_token_at is None or sequence.last_token_at is None:
        return 0.0
    return sequence.last_token_at - sequence.first_token_at


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
