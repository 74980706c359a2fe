"""HTTP answers to what never reaches the app: bytes that are no request, and requests that no thread is spared for.

In the shape of every other refusal (worker.web.refusals). Whether the route would have been one of OpenAI's or of
Anthropic's is not known yet, or not worth the look, so the object has the fields of all. Imports no Flask: gunicorn
imports this before gevent has patched anything.
"""

import json
from http import HTTPStatus
from typing import Any

from worker.errors import RequestError


def encode_answer(status: int, reason: str, code: str, message: str, retry_after_s: int | None = None) -> bytes:
    """Head and body. The connection is closed behind it."""
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    error = {"code": code, "message": message, "type": kind, "param": None}
    body = json.dumps({"type": "error", "error": error}).encode("ascii") + b"\n"
    head = [f"HTTP/1.1 {status} {reason}", "Connection: close", "Content-Type: application/json"]
    if retry_after_s is not None:
        head.append(f"Retry-After: {retry_after_s}")
    head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def encode_refusal(error: RequestError) -> bytes:
    """The answer to a request that is refused for this reason."""
    return encode_answer(error.status, HTTPStatus(error.status).phrase, error.code, error.message, error.retry_after_s)


def write_error(sock: Any, status: int, reason: str, message: str) -> None:
    """In place of `gunicorn.util.write_error`, whose answers are HTML.

    Like that one, it does not wait for a client that does not read.
    """
    code = reason.upper().replace(" ", "_")
    timeout_s = sock.gettimeout()
    sock.settimeout(0)
    try:
        sock.sendall(encode_answer(status, reason, code, message or "the server failed; its log has the details"))
    finally:
        sock.settimeout(timeout_s)
