"""The name of a request, by which client, log and whoever is between find the same one: `X-Request-Id`.

Beside it the trace that it is a part of, if its client or a proxy says so in W3C's `traceparent`.

Every answer of the app has one: the client's, or ours if it sent none. It goes with the request into the line of the
log that says how it ended, and into what is logged of errors. What gunicorn refuses by itself has none: no line of the
log would.
"""

import re
import uuid

from flask import Flask, Response, g, request

from worker.errors import FieldError, InvalidRequest
from worker.origin import Origin, TraceParent

HEADER = "X-Request-Id"
# The longest that Heroku's router lets through; a UUID has 36. Nothing that could end a word or a line of a log.
MAX_CHARACTERS = 200
PATTERN = rf"[A-Za-z0-9._~:/+=@|-]{{1,{MAX_CHARACTERS}}}"
_NAME = re.compile(PATTERN)
# For /openapi.json: on every route, both ways.
PARAMETER = {
    "name": HEADER,
    "in": "header",
    "description": "Names the request in the log, and comes back; without it the server makes a name.",
    "schema": {"type": "string", "maxLength": MAX_CHARACTERS, "pattern": f"^{PATTERN}$"},
}
# https://www.w3.org/TR/trace-context/: of a version that is not known yet the beginning is read.
_TRACE_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def install(app: Flask) -> None:
    """Name every request. Ahead of all other hooks: what they refuse has a name too."""
    app.before_request(_take)
    app.after_request(_tell)


def request_id() -> str:
    """The name of the current request."""
    name: str = g.get("request_id", "")
    return name


def trace_parent() -> TraceParent | None:
    """The span that the current request is a part of. What is no such header is none, as its standard has it."""
    found = _TRACE_PARENT.fullmatch(request.headers.get("traceparent", ""))
    if found is None or (found[1] == "00" and found[5]):
        return None
    return TraceParent(found[2], found[3], is_sampled=bool(int(found[4], 16) & 1))


def origin() -> Origin:
    """The current request, as its jobs know it."""
    route = request.url_rule.rule if request.url_rule is not None else ""
    return Origin(request_id(), route, trace_parent())


def _take() -> None:
    sent = request.headers.get(HEADER)
    g.request_id = sent if sent is not None and _NAME.fullmatch(sent) else uuid.uuid4().hex
    if sent is not None and g.request_id != sent:
        message = (
            f"must be one, of 1 to {MAX_CHARACTERS} of A-Z a-z 0-9 . _ ~ : / + = @ | -; a UUID is good; without the "
            "header the server makes one"
        )
        raise InvalidRequest([FieldError(HEADER, "format", message)])


def _tell(response: Response) -> Response:
    response.headers[HEADER] = request_id()
    if request.path.startswith("/v1/messages"):
        response.headers["request-id"] = request_id()  # where Anthropic's clients look
    return response
