"""Events to bytes, keep-alives, and the proof that every stream ends. The promise of the stream contract lives here.

A response body is a class and not a bare generator: the `finally` of a generator that was never started does not
run, `call_on_close` is skipped on some paths, and both when a hook raises. `StreamBody.close()` runs on all of them
(tests/web/test_body.py has the list).
"""

import errno
import json
import logging
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

from flask import Response, g, request

from worker.engine.endings import failure_event
from worker.engine.engine import Engine
from worker.engine.service_rate import ServiceRate
from worker.errors import InferenceFailed, Overloaded
from worker.events import Event, Likelihood, TokenLogprob, Usage
from worker.job import Job
from worker.streams.native import new_lock
from worker.web.disconnect import DisconnectWatcher

logger = logging.getLogger("endstop")

# ONE newline: a blank line after a comment makes openai-python parse an empty event (JSONDecodeError).
PING = b": ping\n"
DONE = b"data: [DONE]\n\n"
# The promise is a byte at least every `keep_alive_s`; a wake-up and a write take a moment too.
PING_EARLY = 0.9
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def usage_fields(usage: Usage) -> dict[str, Any]:
    """The counts of a request, in OpenAI's names, for every route."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def logprob_fields(logprob: TokenLogprob) -> dict[str, Any]:
    """How likely a token was, and which ones were likelier, in OpenAI's names, for every route."""
    return _likelihood_fields(logprob.drawn) | {"top_logprobs": [_likelihood_fields(one) for one in logprob.top]}


def _likelihood_fields(one: Likelihood) -> dict[str, Any]:
    return {"token": one.token, "logprob": one.logprob, "bytes": list(one.data)}


def encode_data(payload: object) -> bytes:
    """One `data:` line and its blank line. ASCII, because U+2028 splits lines in naive clients."""
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode("ascii") + b"\n\n"


def encode_event(payload: dict[str, Any]) -> bytes:
    """An event that names its own type twice, as clients of some formats need it."""
    kind: str = payload["type"]
    return b"event: " + kind.encode("ascii") + b"\n" + encode_data(payload)


class Translator(Protocol):
    """One wire format.

    Attributes:
        done: What follows the terminal event, in formats where something does.
    """

    done: bytes

    def encode(self, number: int, event: Event) -> bytes:
        """The bytes of one event; empty if the format has nothing for it.

        Args:
            number: Of the event in its job; of the job, if the reader is that of a group.
        """
        ...


class EventReader(Protocol):
    """What a response reads: `JobReader` or `GroupReader`."""

    is_done: bool

    @property
    def is_closed(self) -> bool:
        """Whether it has left."""
        ...

    @property
    def jobs(self) -> list[Job]:
        """Whose events it reads."""
        ...

    def read(self, timeout_s: float) -> list[tuple[int, Event]]:
        """The next events, each with a number, after waiting for the first."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


def stream_job(reader: EventReader, translator: Translator, engine: Engine, keep_alive_s: float) -> Iterator[bytes]:
    """The bytes of a job's stream: events as they come, pings while none do, one terminal, what the format adds.

    This is the generator that a response iterates.

    Raises:
        ConnectionResetError: The client has left. Not an end of the stream: a body that ended well without a terminal
            event would look whole to a client that has closed only its sending half. The server cuts the connection.
    """
    while not reader.is_done:
        batch = reader.read(keep_alive_s * PING_EARLY)
        if reader.is_closed:
            raise ConnectionResetError(errno.ECONNRESET, "the client has left")
        if not batch:
            # Else the client came back with the number of the terminal event.
            if any(job.ended_at is None for job in reader.jobs):
                engine.abandon()  # nothing while it lives; should the watchdog be gone too, the stream ends here
                yield PING
            continue
        try:
            data = b"".join(translator.encode(number, event) for number, event in batch)
        except Exception:  # a bug of ours, after the headers: the client is owed an ending all the same
            job = reader.jobs[0]
            logger.exception("job %s: an event could not be encoded", job.id)
            for one in reader.jobs:
                one.cancel("engine")
            error = InferenceFailed("the answer could not be encoded; the server's log has the details")
            usage = job.status().usage
            yield translator.encode(batch[0][0], failure_event(error, usage)) + translator.done
            return
        yield data or PING  # an event that this format does not show is a sign of life all the same
    if translator.done:
        yield translator.done


class StreamBody:
    """A WSGI response body that cleans up once, on every path: iterated, abandoned, never started."""

    def __init__(self, chunks: Generator[bytes] | Iterator[bytes], on_close: Callable[[], None]) -> None:
        self._chunks = chunks
        self._on_close = on_close
        self._is_closed = False

    def __iter__(self) -> "StreamBody":
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        """Stop and clean up. Idempotent. The WSGI server calls it; so do the teardown hook and the collector."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if isinstance(self._chunks, Generator):
                self._chunks.close()
        finally:
            self._on_close()

    def __del__(self) -> None:
        self.close()


class OpenStreams:
    """The readers that wait for tokens in this process: watched for clients that leave, and counted.

    Under gthread each holds a thread of the pool; one too many would starve `/health`, so it is refused here.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._watcher = DisconnectWatcher()
        self._lock = new_lock()
        self._num_open = 0
        self._service_rate = ServiceRate()  # of places here; requests leave at a rate of their own

    @property
    def num_open(self) -> int:
        """Places that are taken now."""
        return self._num_open

    def check_room(self) -> None:
        """Say whether `reserve` would refuse.

        Raises:
            Overloaded: As `reserve`.
        """
        with self._lock:
            self._check_room()

    def reserve(self) -> "Place":
        """Take a place for a reader, before there is anything to read: who is refused here has started nothing.

        Raises:
            Overloaded: Too many are open.
        """
        with self._lock:
            self._check_room()
            self._num_open += 1
            self._service_rate.came(time.monotonic())
        return Place(self, self._watcher)

    def _check_room(self) -> None:
        if self._num_open >= self._limit:
            too_many = 1 + self._num_open - self._limit
            raise Overloaded(
                f"{self._num_open} streams are being read, the limit (ENDSTOP_MAX_SLOTS and ENDSTOP_MAX_QUEUE); try "
                "again later",
                self._service_rate.retry_after_s(time.monotonic(), too_many, 0),
            )

    def leave(self, place: "Place") -> bool:
        """Free a place. Once: says whether it was the first time."""
        with self._lock:
            if place.is_free:
                return False
            place.is_free = True
            self._num_open -= 1
            self._service_rate.left(time.monotonic(), 0)
            return True


class Place:
    """A reader's place among the open streams. Free it with `close`, on every path; `with` does when the block fails.

    Attributes:
        is_free: set by OpenStreams.
    """

    def __init__(self, streams: OpenStreams, watcher: DisconnectWatcher) -> None:
        self.is_free = False
        self._streams = streams
        self._watcher = watcher
        self._reader: EventReader | None = None
        self._fd = -1

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, kind: type[BaseException] | None, *args: object) -> None:
        if kind is not None:
            self.close()

    def take(self, reader: EventReader) -> None:
        """Give the place to `reader`, and watch the current request's connection on its behalf."""
        self._reader = reader
        sock = request.environ.get("gunicorn.socket")  # absent in Flask's test client
        if sock is not None:
            self._fd = self._watcher.watch(sock, reader.close)

    def close(self) -> None:
        """Stop watching, end the reader and free the place. Idempotent."""
        if self._streams.leave(self) and self._reader is not None:
            # First the watch, then the job: afterwards the descriptor is the server's to use again.
            if self._fd >= 0:
                self._watcher.unwatch(self._fd)
            self._reader.close()


def event_stream_response(chunks: Iterator[bytes], on_close: Callable[[], None]) -> Response:
    """A streaming response. If a hook or an error handler throws it away, the teardown closes its body."""
    body = StreamBody(chunks, on_close)
    g.setdefault("open_bodies", []).append(body)
    return Response(body, mimetype="text/event-stream", headers=HEADERS)


def close_lost_bodies(error: BaseException | None) -> None:
    """Teardown of a request: when it failed, nobody will ever iterate the bodies that it made."""
    if error is not None:
        for body in g.pop("open_bodies", ()):
            body.close()


def collect(reader: EventReader, engine: Engine, keep_alive_s: float) -> list[tuple[int, Event]]:
    """All events, for an answer that is not streamed. Ends early, without a terminal, if the client left."""
    events: list[tuple[int, Event]] = []
    while not (reader.is_done or reader.is_closed):
        batch = reader.read(keep_alive_s)
        events += batch
        if not batch and not reader.is_done:
            engine.abandon()  # as in `stream_job`
    return events
