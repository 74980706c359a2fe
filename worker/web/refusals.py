"""Failures before the first byte, as HTTP answers: in the shape of OpenAI, of Anthropic or our own, by the route."""

import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NotRequired

from flask import Flask, Response, jsonify, request
from pydantic import Field
from typing_extensions import TypedDict
from werkzeug.exceptions import HTTPException

from worker.errors import (
    BodyTimeout,
    BodyTooLarge,
    FieldError,
    GenerationFailed,
    InvalidRequest,
    RequestError,
    Unauthorized,
)
from worker.web.context import context
from worker.web.openai_answers import OpenAIError
from worker.web.request_id import request_id, trace_parent

logger = logging.getLogger("endstop")

# After a failure that is not the request's fault: long enough for a new worker with a small model to be ready.
RETRY_FAILED_S = 10

# Where OpenAI's API has a code of its own, which its clients look at.
_OPENAI_CODES = {
    "INVALID_API_KEY": "invalid_api_key",
    "RATE_LIMITED": "rate_limit_exceeded",
    "UNKNOWN_MODEL": "model_not_found",
}
# By this one, or by the words of the message, clients know that a conversation has to be made shorter.
_TOO_LONG = {"context_length": "context_length_exceeded"}


# Anthropic's code where a conversation cannot be kept on the server. Its clients then send all of it, as ever; the
# `tool_runner` of its Python SDK asks first.
_NO_THREADS = "thread_unsupported_request"


class AnthropicDetails(TypedDict):
    """The cause."""

    error_code: str


class AnthropicErrorFields(TypedDict):
    """What is wrong, in Anthropic's words."""

    type: str
    message: str
    details: NotRequired[Annotated[AnthropicDetails, Field(description="Unless the route is not known yet.")]]
    code: NotRequired[Annotated[str, Field(description="The cause, if the route is not known yet.")]]
    param: NotRequired[None]


class AnthropicError(TypedDict):
    """A refusal or a failure in Anthropic's shape, also as an event."""

    type: Literal["error"]
    error: AnthropicErrorFields


class WrongField(TypedDict):
    """A bad field of a request: where, which rule it broke, and what to do."""

    field: str
    constraint: str
    message: str


class WrongFields(TypedDict):
    """Every bad field of a request."""

    errors: list[WrongField]


class RefusalFields(TypedDict):
    """What is wrong. The server refuses some requests before it knows their route; those have the last two too."""

    code: str
    message: str
    type: NotRequired[str]
    param: NotRequired[None]


class Refusal(TypedDict):
    """A refusal or a failure that is no single field's fault."""

    type: NotRequired[Literal["error"]]
    error: RefusalFields


def openai_error(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object, for answers and for events."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def openai_kind(status: int) -> str:
    """OpenAI's `type` for a status."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


# What is not here is the client's fault below 500 and ours above.
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(message: str, status: int, code: str) -> dict[str, Any]:
    """Anthropic's error object, for answers and for events. Its clients read `details.error_code` for the cause."""
    kind = _ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message, "details": {"error_code": code}}}


Shape = Callable[[int, str, str, Sequence[FieldError]], dict[str, Any]]


def _in_openai_shape(status: int, code: str, message: str, fields: Sequence[FieldError]) -> dict[str, Any]:
    param = fields[0].field if fields else None
    codes = [_TOO_LONG[field.constraint] for field in fields if field.constraint in _TOO_LONG]
    return openai_error(message, openai_kind(status), codes[0] if codes else _OPENAI_CODES.get(code, code), param)


def _in_anthropic_shape(status: int, code: str, message: str, fields: Sequence[FieldError]) -> dict[str, Any]:
    if any(error.field == "thread" for error in fields):
        code = _NO_THREADS
    return anthropic_error(message, status, code)


def _in_our_shape(status: int, code: str, message: str, fields: Sequence[FieldError]) -> dict[str, Any]:
    if fields:
        return {"errors": [{"field": f.field, "constraint": f.constraint, "message": f.message} for f in fields]}
    return {"error": {"code": code, "message": message}}


# By path and not by blueprint: a path that no route has is refused in the shape of its neighbours.
_SHAPES: tuple[tuple[str, Shape], ...] = (
    ("/v1/chat/", _in_openai_shape),
    ("/v1/completions", _in_openai_shape),
    ("/v1/models", _in_openai_shape),
    ("/v1/responses", _in_openai_shape),
    ("/tokenize", _in_openai_shape),  # vLLM's, which answers as OpenAI does
    ("/detokenize", _in_openai_shape),
    ("/v1/messages", _in_anthropic_shape),
)


def _shape_of(path: str) -> Shape:
    return next((shape for prefix, shape in _SHAPES if path.startswith(prefix)), _in_our_shape)


def refusal_body(path: str, status: int) -> Any:
    """The type of what `_answer` answers, for /openapi.json."""
    shape = _shape_of(path)
    if shape is _in_our_shape:
        return WrongFields | Refusal if status == 400 else Refusal
    return OpenAIError if shape is _in_openai_shape else AnthropicError


def install(app: Flask) -> None:
    """Answer every error that leaves a route."""
    app.register_error_handler(RequestError, _refuse_request)
    app.register_error_handler(GenerationFailed, _refuse_generation)
    app.register_error_handler(HTTPException, _refuse_http)
    app.register_error_handler(Exception, _refuse_bug)


def _refuse_request(error: RequestError) -> Response:
    fields = error.errors if isinstance(error, InvalidRequest) else []
    response = _answer(error.status, error.code, error.message, fields)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge | BodyTimeout):
        response.headers["Connection"] = "close"  # the rest of the body will not be read
    return response


def _refuse_generation(error: GenerationFailed) -> Response:
    response = _answer(error.status, error.code, error.message, [])
    if error.status == 503:
        response.headers["Retry-After"] = str(RETRY_FAILED_S)
    return response


def _refuse_http(error: HTTPException) -> Response:
    status = error.code or 500
    message = "there is no such path here; /docs lists all" if status == 404 else error.description or ""
    response = _answer(status, (error.name or "error").upper().replace(" ", "_"), message, [])
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def _refuse_bug(error: Exception) -> Response:
    fields = {"x_request_id": request_id(), "method": request.method, "path": request.path}
    if (parent := trace_parent()) is not None:
        fields["trace_id"] = parent.trace_id
    logger.exception(
        "%s %s failed x_request_id=%s", request.method, request.path, request_id(), extra={"fields": fields}
    )
    return _answer(500, "INTERNAL", "the server failed; its log has the details", [])


def _answer(status: int, code: str, message: str, fields: Sequence[FieldError]) -> Response:
    context().metrics.note_refusal(code)
    response = jsonify(_shape_of(request.path)(status, code, message, fields))
    response.status_code = status
    return response
