"""What the routes share: one object per app, made by `create_app`."""

from dataclasses import dataclass

from flask import current_app, request
from werkzeug.exceptions import RequestEntityTooLarge

from worker.engine.engine import Engine
from worker.errors import BodyTooLarge
from worker.jobs import Jobs
from worker.observe.log import RecordWriter
from worker.request import Body, parse_body
from worker.settings import Settings
from worker.web.sse import OpenStreams

EXTENSION = "endstop"


@dataclass(frozen=True, slots=True)
class Context:
    """The rooms that the web side reaches."""

    settings: Settings
    engine: Engine
    jobs: Jobs
    streams: OpenStreams
    records: RecordWriter


def context() -> Context:
    """The context of the app that handles the current request."""
    found: Context = current_app.extensions[EXTENSION]
    return found


def read_body(schema: type[Body]) -> Body:
    """The validated body of the current request.

    Raises:
        InvalidRequest: Names every bad field.
        BodyTooLarge: Names the limit.
    """
    limit = context().settings.max_body_bytes
    try:
        body = request.stream.read(limit)
        request.stream.read(1)  # of a chunked body werkzeug gives the beginning, and the error only when asked for more
    except RequestEntityTooLarge:
        raise BodyTooLarge(f"the body is larger than {limit} bytes; send less (ENDSTOP_MAX_BODY_BYTES)") from None
    return parse_body(schema, body)
