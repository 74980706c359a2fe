"""The native API: jobs with numbered events. A translation and no logic of its own."""

from typing import Any

from flask import Blueprint, Response, jsonify, request

from worker.answer import CallArguments, CallBegun, CallEnded, Part, Reasoning, Text
from worker.answer_parser import AnswerParser
from worker.errors import FieldError, InvalidRequest, Overloaded, UnknownJob
from worker.events import End, Event, Failure, Metrics, Narration, Started, Token
from worker.job import Job, JobReader
from worker.request import GenerateRequest
from worker.web.auth import client
from worker.web.context import IDEMPOTENCY_KEY, OF_A_JOB, context, read_body, start_jobs
from worker.web.description import describes, path_parameter
from worker.web.native_answers import JobCreated, JobEvent, JobState
from worker.web.sse import (
    DONE,
    HEADERS,
    Place,
    encode_data,
    event_stream_response,
    logprob_fields,
    stream_job,
    usage_fields,
)

blueprint = Blueprint("native", __name__)

JOB_ID = path_parameter("job_id", "The job, as `POST /v1/jobs` has named it.")
LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The number of the last event that the client has; the answer begins behind it.",
    "schema": {"type": "string", "pattern": "^[0-9]{0,18}$"},
}
LAST_EVENT_ID_IN_QUERY = LAST_EVENT_ID | {
    "name": "last_event_id",
    "in": "query",
    "description": "The same, for clients that cannot set headers.",
}
EXAMPLE = {"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0}


class NativeTranslator:
    """Events in the words of the stream contract, section 2.

    Where an answer may have reasoning or calls, events say too what of it they decide (`parts`).
    """

    done = DONE

    def __init__(self, job: Job, seen: list[Event]) -> None:
        """Translate the events of `job` for a client that has `seen` those before. What is found depends on all."""
        format = job.answer_format
        self._parser = AnswerParser(format, job.id) if format.reasoning or format.calls else None
        self._seen = seen

    def encode(self, number: int, event: Event) -> bytes:
        # Here and not when the stream is opened: what fails here ends the stream with a code.
        seen, self._seen = self._seen, []
        for one in seen:
            self._parts_of(one)
        return b"id: %d\n" % number + encode_data(_payload(event) | self._parts_of(event))

    def _parts_of(self, event: Event) -> dict[str, Any]:
        """What an event adds to the answer, unless it is its own text and nothing else."""
        if self._parser is None:
            return {}
        match event:
            case Token():
                parts, text = self._parser.push(event), event.text
            case End() | Failure():
                parts, text = self._parser.flush(), ""
            case _:
                return {}
        said = [part.text for part in parts if isinstance(part, Text)]
        if len(said) == len(parts) and "".join(said) == text:
            return {}
        return {"parts": [_part_fields(part) for part in parts]}


def _part_fields(part: Part) -> dict[str, Any]:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Reasoning():
            return {"type": "reasoning", "text": part.text}
        case CallBegun():
            return {"type": "call", "index": part.index, "id": part.call_id, "name": part.name}
        case CallArguments():
            return {"type": "arguments", "index": part.index, "text": part.text}
        case CallEnded():
            return {"type": "call_end", "index": part.index}


def _payload(event: Event) -> dict[str, Any]:
    match event:
        case Started():
            return {
                "type": "started",
                "job_id": event.job_id,
                "model": event.model,
                "started_at": event.started_at,
            }
        case Narration():
            return {
                "type": "narration",
                "actor": event.actor,
                "action": event.action,
                "target": event.target,
                "human": event.human,
                "job_id": event.job_id,
            }
        case Metrics():
            return {
                "type": "metrics",
                "tokens_per_sec": event.tokens_per_sec,
                "vram_bytes": event.vram_bytes,
                "queue_ms": event.queue_ms,
                "ttft_ms": event.ttft_ms,
            }
        case End():
            return {
                "type": "end",
                "tokens_out": event.usage.completion_tokens,
                "decode_time_ms": event.decode_time_ms,
                "stop_reason": event.stop_reason.value,
                "stop_sequence_matched": event.stop_sequence_matched,
                "usage": usage_fields(event.usage),
            }
        case Failure():
            return {"type": "error", "code": event.code, "message": event.message, "usage": usage_fields(event.usage)}
        case _:
            payload: dict[str, Any] = {"type": "token", "t": event.text, "i": event.index}
            if event.count > 1:
                payload["n"] = event.count
            if event.logprobs:
                payload["logprobs"] = [logprob_fields(one) for one in event.logprobs]
            return payload


@blueprint.post("/v1/jobs")
@blueprint.post("/v1/inference")
@describes(
    "Jobs",
    body=GenerateRequest,
    answers={202: JobCreated},
    raises=OF_A_JOB,
    parameters=(IDEMPOTENCY_KEY,),
    example=EXAMPLE,
)
def create_job() -> tuple[Response, int]:
    """Queue a request and say where its events can be read."""
    [job], headers = start_jobs([read_body(GenerateRequest)], "continue")
    response = jsonify(job_id=job.id, sse_url=f"{request.script_root}{request.path}/{job.id}/stream")
    response.headers.update(headers)
    return response, 202


@blueprint.get("/v1/jobs/<job_id>/stream")
@blueprint.get("/v1/inference/<job_id>/stream")
@describes(
    "Jobs",
    events=JobEvent,
    raises=(InvalidRequest, UnknownJob, Overloaded),
    parameters=(JOB_ID, LAST_EVENT_ID, LAST_EVENT_ID_IN_QUERY),
)
def stream_existing(job_id: str) -> Response:
    """The events of a job, from the start or behind the last one that the client has."""
    job = context().jobs.get(job_id, client())
    if request.method == "HEAD":  # Flask adds it to every GET; a reader that nobody reads would be left behind
        return Response(mimetype="text/event-stream", headers=HEADERS)
    with context().streams.reserve() as place:
        last = _last_event_id()
        reader = job.read(last)
        if last >= 0:
            context().metrics.note_resume()
        return _stream(reader, place, job.seen(last))


@blueprint.get("/v1/jobs/<job_id>")
@blueprint.get("/v1/inference/<job_id>")
@describes("Jobs", answers={200: JobState}, raises=(UnknownJob,), parameters=(JOB_ID,))
def show_job(job_id: str) -> Response:
    """State, usage and outcome of a job."""
    return jsonify(_status(context().jobs.get(job_id, client())))


@blueprint.delete("/v1/jobs/<job_id>")
@blueprint.delete("/v1/inference/<job_id>")
@describes("Jobs", answers={200: JobState}, raises=(UnknownJob,), parameters=(JOB_ID,))
def cancel_job(job_id: str) -> Response:
    """Cancel a job. Idempotent: an ended one stays as it ended."""
    job = context().jobs.get(job_id, client())
    job.cancel("delete")
    return jsonify(_status(job))


@blueprint.post("/execute")
@describes(
    "Jobs",
    body=GenerateRequest,
    events=JobEvent,
    raises=OF_A_JOB,
    parameters=(IDEMPOTENCY_KEY,),
    example=EXAMPLE,
)
def execute() -> Response:
    """Create a job and stream it in one call."""
    body = read_body(GenerateRequest)
    with context().streams.reserve() as place:  # who gets no place to read makes no job, and uses up no key
        [job], headers = start_jobs([body], "cancel")
        response = _stream(job.read(), place, [])
    response.headers.update(headers)
    return response


def _stream(reader: JobReader, place: Place, seen: list[Event]) -> Response:
    shared = context()
    place.take(reader)
    chunks = stream_job(reader, NativeTranslator(reader.job, seen), shared.engine, shared.settings.keep_alive_s)
    return event_stream_response(chunks, place.close)


def _last_event_id() -> int:
    """By header or query. A client that has both has reconnected by itself, with the header."""
    found = [text for text in (request.headers.get("Last-Event-ID"), request.args.get("last_event_id")) if text]
    for text in found:
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            message = f"must be the id of an event, not {text[:80]!r}"
            raise InvalidRequest([FieldError("last_event_id", "integer", message)])
    return int(found[0]) if found else -1


def _status(job: Job) -> dict[str, Any]:
    status = job.status()
    outcome = _payload(status.terminal) if status.terminal is not None else None
    return {"job_id": job.id, "state": status.state, "usage": usage_fields(status.usage), "outcome": outcome}
