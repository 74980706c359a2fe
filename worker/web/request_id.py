"""The name of a request, by which client, log and whoever is between find the same one: `X-Request-Id`.

Every answer of the app has one: the client's, or ours if it sent none. It goes with the request into the line of the
log that says how it ended, and into what is logged of errors. What gunicorn refuses by itself has none: no line of the
log would.
"""

import re
import uuid

from flask import Flask, Response, g, request

from worker.errors import FieldError, InvalidRequest

HEADER = "X-Request-Id"
# The longest that Heroku's router lets through; a UUID has 36. Nothing that could end a word or a line of a log.
MAX_CHARACTERS = 200
_NAME = re.compile(rf"[A-Za-z0-9._~:/+=@|-]{{1,{MAX_CHARACTERS}}}")


def install(app: Flask) -> None:
    """Name every request. Ahead of all other hooks: what they refuse has a name too."""
    app.before_request(_take)
    app.after_request(_tell)


def request_id() -> str:
    """The name of the current request."""
    name: str = g.get("request_id", "")
    return name


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
