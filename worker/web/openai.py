"""OpenAI's chat completions and completions. A translation and no logic of its own.

Source: OpenAI's API reference, "Chat" and "Completions", and the types of openai-python, against which
tests/web/test_openai_client.py holds every chunk.
"""

import time
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, jsonify, request

from worker.errors import GenerationFailed, InvalidRequest, UnknownModel
from worker.events import End, Event, Failure, Metrics, Narration, Started, StopReason, Token, Usage
from worker.job import Job
from worker.request import ChatCompletionRequest, CompletionRequest
from worker.web.context import KEY_HEADER, Context, context, read_body, start_job
from worker.web.refusals import openai_error, openai_kind
from worker.web.sse import collect, encode_data, event_stream_response, stream_job, usage_fields

blueprint = Blueprint("openai", __name__)

DEFAULT_MAX_TOKENS = 16  # OpenAI's, on /v1/completions alone

_FINISH_REASONS = {
    StopReason.EOS: "stop",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.MAX_TOKENS: "length",
}


class _Chat:
    """The shapes of `/v1/chat/completions`."""

    id_prefix = "chatcmpl-"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def chunk_choice(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        delta = {} if text is None else {"content": text}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def first_choice(self) -> dict[str, Any] | None:
        role = {"role": "assistant", "content": "", "refusal": None}
        return {"index": 0, "delta": role, "logprobs": None, "finish_reason": None}

    def whole_choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}


class _Text:
    """The shapes of `/v1/completions`."""

    id_prefix = "cmpl-"
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def chunk_choice(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish_reason}

    def first_choice(self) -> dict[str, Any] | None:
        return self.chunk_choice("", None)  # headers and a first event leave before the first token

    def whole_choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        return self.chunk_choice(text, finish_reason)


class OpenAITranslator:
    """Events as chunks. No ids, no events of our own: clients parse every event as a chunk."""

    def __init__(self, shapes: _Chat | _Text, job_id: str, model: str, include_usage: bool) -> None:
        self._shapes = shapes
        self._include_usage = include_usage
        self._head = {
            "id": shapes.id_prefix + job_id,
            "object": shapes.chunk_object,
            "created": int(time.time()),
            "model": model,
        }

    def encode(self, number: int, event: Event) -> bytes:
        match event:
            case Started():
                choice = self._shapes.first_choice()
                return self._chunk([choice]) if choice is not None else b""
            case Token():
                return self._chunk([self._shapes.chunk_choice(event.text, None)])
            case End() if event.stop_reason in _FINISH_REASONS:
                last = self._chunk([self._shapes.chunk_choice(None, _FINISH_REASONS[event.stop_reason])])
                return last + self._chunk([], event.usage) if self._include_usage else last
            case End() | Failure():
                error = _failure(event)
                chunk = openai_error(error.message, openai_kind(error.status), error.code)
                if self._include_usage:  # beside the error, where every chunk has it; clients look no further
                    chunk["usage"] = usage_fields(event.usage)
                return encode_data(chunk)
            case Narration() | Metrics():
                return b""

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        chunk = self._head | {"choices": choices}
        if self._include_usage:  # null on every chunk but the last
            chunk["usage"] = usage_fields(usage) if usage is not None else None
        return encode_data(chunk)


def _failure(terminal: End | Failure) -> GenerationFailed:
    """A terminal that OpenAI's API has no finish reason for, as an error."""
    if isinstance(terminal, End):
        error = GenerationFailed("the request was cancelled", terminal.stop_reason.value)
    else:
        error = GenerationFailed(terminal.message, terminal.code)
        error.status = terminal.status
    return error


@blueprint.post("/v1/chat/completions")
def chat_completions() -> Response:
    """Answer a conversation."""
    return _complete(read_body(ChatCompletionRequest), _Chat())


@blueprint.post("/v1/completions")
def completions() -> Response:
    """Continue a text."""
    return _complete(read_body(CompletionRequest), _Text())


@blueprint.get("/v1/models")
def models() -> Response:
    """The one model that is served."""
    return jsonify(object="list", data=[_model(context())])


def _model(shared: Context) -> dict[str, Any]:
    created = int(time.time() - (time.monotonic() - shared.engine.started_at))
    return {"id": shared.settings.model_name, "object": "model", "created": created, "owned_by": "endstop"}


def _complete(body: ChatCompletionRequest | CompletionRequest, shapes: _Chat | _Text) -> Response:
    shared = context()
    name = shared.settings.model_name
    if body.model is not None and body.model != name:
        raise UnknownModel(f"the model {body.model!r} is not served here; this server has {name!r} (leave model out)")
    with shared.streams.reserve() as place:  # as in `native.execute`
        job, headers = _start(body)
        is_kept = KEY_HEADER in request.headers
        reader = job.read()
        place.take(reader)

        def close() -> None:
            place.close()
            if not is_kept:  # nobody can ask for it again: OpenAI's API has no resume
                shared.jobs.forget_unread(job)

        if not body.stream:
            try:
                events = collect(reader, shared.engine, shared.settings.keep_alive_s)
            finally:
                close()
            response = _whole(events, job, shapes, name)
        else:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            translator = OpenAITranslator(shapes, job.id, name, include_usage)
            chunks = stream_job(reader, translator, shared.engine, shared.settings.keep_alive_s)
            response = event_stream_response(chunks, close)
    response.headers.update(headers)
    return response


def _start(body: ChatCompletionRequest | CompletionRequest) -> tuple[Job, dict[str, str]]:
    """The job of a request. An error names the limit as the client has named it."""
    default_max_tokens = DEFAULT_MAX_TOKENS if isinstance(body, CompletionRequest) else None
    try:
        return start_job(body.to_generate(), "cancel", default_max_tokens)
    except InvalidRequest as refusal:
        if isinstance(body, CompletionRequest) or body.max_completion_tokens is None:
            raise
        renamed = [
            replace(error, field="max_completion_tokens") if error.field == "max_tokens" else error
            for error in refusal.errors
        ]
        raise InvalidRequest(renamed) from refusal


def _whole(events: list[Event], job: Job, shapes: _Chat | _Text, model: str) -> Response:
    """The answer to a request that did not ask for a stream."""
    terminal = events[-1]
    if not isinstance(terminal, End | Failure):
        raise GenerationFailed("the client left before the answer was complete", "CANCELLED")
    if isinstance(terminal, Failure) or terminal.stop_reason not in _FINISH_REASONS:
        raise _failure(terminal)
    text = "".join(event.text for event in events if isinstance(event, Token))
    return jsonify(
        id=shapes.id_prefix + job.id,
        object=shapes.whole_object,
        created=int(time.time()),
        model=model,
        choices=[shapes.whole_choice(text, _FINISH_REASONS[terminal.stop_reason])],
        usage=usage_fields(terminal.usage),
    )
