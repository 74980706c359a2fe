"""What the routes share: one object per app, made by `create_app`."""

from dataclasses import dataclass

from flask import current_app, request
from werkzeug.exceptions import RequestEntityTooLarge

from worker.engine.engine import Engine
from worker.errors import BodyTimeout, BodyTooLarge, FieldError, InvalidRequest
from worker.jobs import Jobs
from worker.observe.log import RecordWriter
from worker.request import Body, parse_body
from worker.settings import Settings
from worker.web.patience import body_within
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


def limit_writes() -> None:
    """Cut the connection of the current request when one write of the answer cannot be finished for too long.

    A client that has stopped reading would otherwise tie up a thread or a greenlet for ever. The engine ends its
    stream with SLOW_CONSUMER after half of the time; a client that comes back until then still reads that.
    A timeout of the socket object limits the whole of a write under both worker classes. SO_SNDTIMEO does nothing
    under gevent, and TCP_USER_TIMEOUT (worker/process.py) does nothing to a client that reads a byte now and then.
    """
    sock = request.environ.get("gunicorn.socket")  # absent in Flask's test client
    if sock is not None:
        sock.settimeout(2 * context().settings.slow_consumer_s)


def read_body(schema: type[Body]) -> Body:
    """The validated body of the current request.

    Raises:
        InvalidRequest: Names every bad field.
        BodyTooLarge, BodyTimeout: Name the limit.
    """
    settings = context().settings
    limit = settings.max_body_bytes
    try:
        with body_within(request.environ, settings.body_timeout_s):
            body = request.stream.read(limit)
            # Of a chunked body werkzeug gives the beginning, and the error only when asked for more.
            request.stream.read(1)
    except RequestEntityTooLarge:
        message = f"the body is larger than {limit} bytes; send less (ENDSTOP_MAX_BODY_BYTES)"
        raise BodyTooLarge(message) from None
    except Exception as error:  # the server's reader of bodies has many names for bytes that are not one
        if isinstance(error.__context__, TimeoutError):  # werkzeug says "disconnected" instead
            message = f"the body did not come within {settings.body_timeout_s:g} s; send it faster"
            raise BodyTimeout(message) from None
        message = f"the body could not be read ({type(error).__name__}); check Content-Length and the chunks"
        raise InvalidRequest([FieldError("body", "transfer", message)]) from error
    finally:
        limit_writes()
    if request.content_length is not None and len(body) < request.content_length:
        message = f"{request.content_length} bytes were announced and {len(body)} came; send the whole body"
        raise InvalidRequest([FieldError("body", "transfer", message)])
    return parse_body(schema, body)
