"""Failures before the first byte, as HTTP answers: in OpenAI's shape on its routes, in ours on all others."""

import logging
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from worker.errors import BodyTimeout, BodyTooLarge, GenerationFailed, InvalidRequest, RequestError, Unauthorized

logger = logging.getLogger("endstop")

# After a failure that is not the request's fault: long enough for a new worker with a small model to be ready.
RETRY_FAILED_S = 10

# Where OpenAI's API has a code of its own, which its clients look at.
_OPENAI_CODES = {"INVALID_API_KEY": "invalid_api_key", "RATE_LIMITED": "rate_limit_exceeded"}

# The routes that exist because OpenAI's API has them.
OPENAI_PREFIXES = ("/v1/chat/", "/v1/completions", "/v1/models")


def openai_error(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object, for answers and for events."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def openai_kind(status: int) -> str:
    """OpenAI's `type` for a status."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


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
    response = _answer(status, (error.name or "error").upper().replace(" ", "_"), error.description or "", [])
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def _refuse_bug(error: Exception) -> Response:
    logger.exception("%s %s failed", request.method, request.path)
    return _answer(500, "INTERNAL", "the server failed; its log has the details", [])


def _answer(status: int, code: str, message: str, fields: list[Any]) -> Response:
    body: dict[str, Any]
    if request.path.startswith(OPENAI_PREFIXES):
        param = fields[0].field if fields else None
        body = openai_error(message, openai_kind(status), _OPENAI_CODES.get(code, code), param)
    elif fields:
        body = {"errors": [{"field": f.field, "constraint": f.constraint, "message": f.message} for f in fields]}
    else:
        body = {"error": {"code": code, "message": message}}
    response = jsonify(body)
    response.status_code = status
    return response
