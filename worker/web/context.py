"""What the routes share: one object per app, made by `create_app`, how a body is read, and how a job begins."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from flask import Response, current_app, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from worker.body import Body, parse_body
from worker.engine.engine import Engine
from worker.errors import (
    BodyTimeout,
    BodyTooLarge,
    FieldError,
    InvalidRequest,
    KeyReused,
    NotReady,
    Overloaded,
    RateLimited,
)
from worker.job import Job, OnDisconnect
from worker.jobs import Jobs
from worker.observe.history import History
from worker.observe.log import RecordWriter
from worker.observe.metrics import Metrics
from worker.observe.telemetry import Telemetry
from worker.request import GenerateRequest
from worker.settings import Settings
from worker.streams.aside import Aside, new_aside
from worker.web.auth import client
from worker.web.patience import body_within
from worker.web.request_id import origin
from worker.web.sse import OpenStreams

Result = TypeVar("Result")

EXTENSION = "endstop"
KEY_HEADER = "Idempotency-Key"
MAX_KEY_CHARACTERS = 255
IDEMPOTENCY_KEY = {
    "name": KEY_HEADER,
    "in": "header",
    "description": (
        "Names the request: sent again with the same key and body it gets the job that the first one made. A UUID is "
        "good."
    ),
    "schema": {"type": "string", "maxLength": MAX_KEY_CHARACTERS, "pattern": "^[ -+\\--~]+$"},
}
# What `start_jobs` raises, and no place among the streams.
OF_A_JOB = (KeyReused, Overloaded, RateLimited, NotReady)
# Of a body that is there already, a greenlet would read all and parse all before anybody else gets a turn: 15 ms for
# each of 2 MB, and two dozen may come at once.
PIECE_BYTES = 131_072
TURN_S = 0.001


@dataclass(frozen=True, slots=True)
class Context:
    """The rooms that the web side reaches."""

    settings: Settings
    engine: Engine
    jobs: Jobs
    streams: OpenStreams
    records: RecordWriter
    metrics: Metrics
    history: History
    telemetry: Telemetry
    housekeeper: threading.Thread
    aside: Aside = field(default_factory=new_aside)  # where large bodies are parsed


def context() -> Context:
    """The context of the app that handles the current request."""
    found: Context = current_app.extensions[EXTENSION]
    return found


def count_response(response: Response) -> Response:
    """Count an answer, by the route as the app has it."""
    route = request.url_rule.rule if request.url_rule is not None else "(none)"
    context().metrics.note_response(route, response.status_code)
    return response


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
            body = _read_in_turns(limit)
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
    g.body = body
    return _beside(len(body), partial(parse_body, schema, body))


def _beside(num_bytes: int, work: Callable[[], Result]) -> Result:
    """Do what takes as long as a body is large; aside, where it is so large that others would wait for it."""
    return work() if num_bytes <= PIECE_BYTES else context().aside.run(work)


def _read_in_turns(limit: int) -> bytes:
    pieces: list[bytes] = []
    num_left = limit
    while num_left and (piece := request.stream.read(min(PIECE_BYTES, num_left))):
        pieces.append(piece)
        num_left -= len(piece)
        if len(piece) == PIECE_BYTES:
            time.sleep(TURN_S)
    return b"".join(pieces)


def _asked_in(body: bytes) -> str:
    """What a body asks for, whatever the order of its fields.

    Those that are no part of a request to generate tell two bodies apart too. How an answer is read does not.
    """
    fields = {name: value for name, value in json.loads(body).items() if name not in ("stream", "stream_options")}
    return json.dumps(fields, sort_keys=True)


def start_jobs(
    requests: list[GenerateRequest],
    on_disconnect: OnDisconnect,
    *,
    num_choices: int = 1,
    default_max_tokens: int | None = None,
) -> tuple[list[Job], dict[str, str]]:
    """The jobs that the current request asks for, and headers that say if an earlier one has made them.

    Raises:
        KeyReused, NotReady, Overloaded, RateLimited, InvalidRequest: As `Jobs.start_once`.
    """
    jobs = context().jobs
    key = request.headers.get(KEY_HEADER)
    asked: Any = {
        "client": client(),
        "origin": origin(),
        "num_choices": num_choices,
        "default_max_tokens": default_max_tokens,
    }
    g.is_generating = True  # its answer says what the client has left
    if key is None:
        return jobs.start(requests, on_disconnect, **asked), {}
    # Two headers come as one with a comma between.
    if not (0 < len(key) <= MAX_KEY_CHARACTERS and key.isascii() and key.isprintable()) or "," in key:
        message = (
            f"must be one, of 1 to {MAX_KEY_CHARACTERS} printable ASCII characters without a comma; a UUID is good"
        )
        raise InvalidRequest([FieldError(KEY_HEADER, "format", message)])
    body = _beside(len(g.body), partial(_asked_in, g.body))
    # Who names a key means to come back: leaving must not cancel what the next try will ask for.
    found, are_known = jobs.start_once(key, requests, "continue", body=body, **asked)
    if not are_known:
        return found, {}
    context().metrics.note_replay()
    return found, {"Idempotent-Replayed": "true"}
