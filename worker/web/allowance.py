"""What a client has left, in OpenAI's headers, on every answer to a request to generate, refusals included.

OpenAI counts requests per minute; here it is requests that are open (worker/engine/limits.py).

Source: OpenAI's guide, "Rate limits", "Rate limits in headers". Times are written as Go writes durations.
"""

from flask import Flask, Response, g

from worker.web.auth import client
from worker.web.context import context


def install(app: Flask) -> None:
    """Add the headers where there is a limit."""
    app.after_request(_tell)


def _tell(response: Response) -> Response:
    if not g.get("is_generating", False):
        return response
    left = context().engine.allowance(client())
    if left.requests is not None:
        response.headers["x-ratelimit-limit-requests"] = str(left.limit.concurrency)
        response.headers["x-ratelimit-remaining-requests"] = str(left.requests)
        response.headers["x-ratelimit-reset-requests"] = f"{left.requests_reset_s:.3f}s"
    if left.tokens is not None:
        response.headers["x-ratelimit-limit-tokens"] = str(left.limit.tokens_per_minute)
        response.headers["x-ratelimit-remaining-tokens"] = str(left.tokens)
        response.headers["x-ratelimit-reset-tokens"] = f"{left.tokens_reset_s:.3f}s"
    return response
