"""The routes of OpenAI's responses: answer, find again, go on, cancel, forget. No logic of its own."""

from typing import Any

from flask import Blueprint, Response, jsonify, request

from worker.body import shorten
from worker.errors import FieldError, InvalidRequest, Overloaded, UnknownJob
from worker.job import Job
from worker.message import MAX_MESSAGES, Message
from worker.web.answers import OF_AN_ANSWER, check_model, failure_of, naming, respond
from worker.web.auth import client
from worker.web.context import IDEMPOTENCY_KEY, context, read_body, start_jobs
from worker.web.description import describes, path_parameter
from worker.web.responses_answers import DeletedResponse, ResponseEvent, ResponseObject
from worker.web.responses_request import INPUT_ITEMS, ResponseRequest, messages_of, name_of
from worker.web.responses_translator import ID_PREFIX, Asked, ResponseTranslator
from worker.web.sse import HEADERS, event_stream_response, stream_job

blueprint = Blueprint("responses", __name__)

# A cancelled job ends within one step. Who asks for that is told of the end, not that it is near.
CANCEL_WAIT_S = 1.0

RESPONSE_ID = path_parameter("response_id", "The response, as `POST /v1/responses` has named it.")
QUERY = (
    {
        "name": "stream",
        "in": "query",
        "description": "Whether its events are wanted.",
        "schema": {"enum": ["true", "false"], "default": "false"},
    },
    {
        "name": "starting_after",
        "in": "query",
        "description": "The `sequence_number` of the last event that the client has. Only with `stream=true`.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
    },
    {
        "name": "include_obfuscation",
        "in": "query",
        "description": "Events are never padded.",
        "schema": {"const": "false"},
    },
)


@blueprint.post("/v1/responses")
@describes(
    "OpenAI",
    body=ResponseRequest,
    answers={200: ResponseObject},
    events=ResponseEvent,
    raises=OF_AN_ANSWER,
    parameters=(IDEMPOTENCY_KEY,),
    example={"input": "What is the capital of France?", "max_output_tokens": 16, "temperature": 0},
)
def create_response() -> Response:
    """Answer a conversation."""
    body = read_body(ResponseRequest)
    check_model(body.model)
    asked = Asked(body, [*_said_before(body.previous_response_id), *messages_of(body.input)])
    if len(asked.conversation) > MAX_MESSAGES:
        message = f"makes a conversation of {len(asked.conversation)} messages; it may have {MAX_MESSAGES}"
        raise InvalidRequest([FieldError("previous_response_id", "too_long", message)])
    generate = body.to_generate(asked.conversation)

    def translator_for(jobs: list[Job]) -> ResponseTranslator:
        [job] = jobs
        job.is_detached = body.background
        if body.store:
            job.keep(asked, asked.num_bytes)
        # Of two requests with one idempotency key, the first has made the job.
        return ResponseTranslator(job, job.note if isinstance(job.note, Asked) else asked)

    with naming(name_of):
        if body.background and not body.stream:
            jobs, headers = start_jobs([generate], "continue")
            response = jsonify(translator_for(jobs).response("queued"))
            response.headers.update(headers)
            return response
        return respond(
            [generate],
            translator_for,
            is_streamed=body.stream,
            on_disconnect="continue" if body.background else "cancel",
            is_kept=body.store,
        )


def _said_before(response_id: str | None) -> list[Message]:
    """The conversation up to an earlier response, and that response."""
    if response_id is None:
        return []
    try:
        job, asked = _find(response_id)
    except UnknownJob as error:
        raise _refuse_previous("unknown", error.message) from None
    terminal = job.status().terminal
    if terminal is None:
        raise _refuse_previous("running", "has not ended; wait for its end")
    if failure_of(terminal) is not None:
        raise _refuse_previous("failed", "has no answer, it failed or was cancelled; send its input again")
    output = _response_of(job, asked)["output"]
    # A call that was cut off has nothing to be answered with.
    complete = [item for item in output if item["type"] != "function_call" or item["status"] == "completed"]
    return [*asked.conversation, *messages_of(INPUT_ITEMS.validate_python(complete))]


def _refuse_previous(constraint: str, message: str) -> InvalidRequest:
    return InvalidRequest([FieldError("previous_response_id", constraint, message)])


def _find(response_id: str) -> tuple[Job, Asked]:
    """A response that is kept, by its id.

    Raises:
        UnknownJob: There is none.
    """
    jobs = context().jobs
    try:
        job = jobs.get(response_id.removeprefix(ID_PREFIX), client())
    except UnknownJob:
        job = None
    if job is None or not isinstance(job.note, Asked) or not response_id.startswith(ID_PREFIX):
        raise UnknownJob(
            f"no response has the id {shorten(repr(response_id))}; those that are stored are kept for "
            f"{context().settings.job_ttl_s:g} s after their end, or the server has been replaced since"
        )
    return job, job.note


@blueprint.get("/v1/responses/<response_id>")
@describes(
    "OpenAI",
    answers={200: ResponseObject},
    events=ResponseEvent,
    raises=(InvalidRequest, UnknownJob, Overloaded),
    parameters=(RESPONSE_ID, *QUERY),
)
def show_response(response_id: str) -> Response:
    """A response as it is now, or its events from the start or behind the last one that the client has."""
    job, asked = _find(response_id)
    starting_after = _starting_after()
    if starting_after is None:
        return jsonify(_response_of(job, asked))
    if request.method == "HEAD":  # Flask adds it to every GET; a reader that nobody reads would be left behind
        return Response(mimetype="text/event-stream", headers=HEADERS)
    shared = context()
    with shared.streams.reserve() as place:
        reader = job.read()
        place.take(reader)
        _check_is_there(job, asked, starting_after)
        if starting_after >= 0:
            shared.metrics.note_resume()
        translator = ResponseTranslator(job, asked, starting_after)
        chunks = stream_job(reader, translator, shared.engine, shared.settings.keep_alive_s)
        return event_stream_response(chunks, place.close)


def _starting_after() -> int | None:
    """The number of the last event that the client has, -1 for none. None: it wants the response and not its events.

    Raises:
        InvalidRequest: The query asks for something else.
    """
    asked = {"stream": "false", "starting_after": "-1", "include_obfuscation": "false"} | request.args
    errors = [
        FieldError(shorten(name), "unknown_field", "is not supported; remove it (supported: starting_after, stream)")
        for name in request.args
        if name not in ("stream", "starting_after", "include_obfuscation")
    ]
    if asked["stream"] not in ("true", "false"):
        errors.append(FieldError("stream", "bool", "must be true or false"))
    if asked["include_obfuscation"] != "false":
        errors.append(FieldError("include_obfuscation", "bool", "must be false: events are never padded"))
    text = asked["starting_after"]
    if "starting_after" in request.args:
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            errors.append(FieldError("starting_after", "integer", "must be the sequence_number of an event"))
        elif asked["stream"] == "false":
            errors.append(FieldError("starting_after", "conflict", "is only allowed with stream=true"))
    if errors:
        raise InvalidRequest(errors)
    return int(text) if asked["stream"] == "true" else None


def _check_is_there(job: Job, asked: Asked, number: int) -> None:
    translator = ResponseTranslator(job, asked)
    translator.whole(list(enumerate(job.events())))
    if number >= translator.num_events:
        last = translator.num_events - 1
        message = f"must be between 0 and {last}, the newest event, not {number}"
        raise InvalidRequest([FieldError("starting_after", "range", message)])


@blueprint.post("/v1/responses/<response_id>/cancel")
@describes("OpenAI", answers={200: ResponseObject}, raises=(UnknownJob,), parameters=(RESPONSE_ID,))
def cancel_response(response_id: str) -> Response:
    """Cancel a response. Idempotent: an ended one stays as it ended."""
    job, asked = _find(response_id)
    job.cancel("delete")
    job.wait_end(CANCEL_WAIT_S)
    return jsonify(_response_of(job, asked))


@blueprint.delete("/v1/responses/<response_id>")
@describes("OpenAI", answers={200: DeletedResponse}, raises=(UnknownJob,), parameters=(RESPONSE_ID,))
def delete_response(response_id: str) -> Response:
    """Cancel a response and forget it. Who reads it now is told the end."""
    job, _ = _find(response_id)
    job.cancel("delete")
    job.note = None
    context().jobs.forget_unread(job)
    return jsonify(id=response_id, object="response", deleted=True)


def _response_of(job: Job, asked: Asked) -> dict[str, Any]:
    """What there is of it: all of one that has ended, nothing yet of the output of one that has not."""
    translator = ResponseTranslator(job, asked)
    status = job.status()
    if status.terminal is None:
        return translator.response("queued" if status.state == "QUEUED" else "in_progress")
    return translator.whole(list(enumerate(job.events())))
