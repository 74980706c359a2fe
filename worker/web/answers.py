"""From a validated request to its response, streamed or whole, for every API whose answer is one response."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from flask import Response, jsonify, request

from worker.errors import (
    DeadlineExceeded,
    GenerationFailed,
    InferenceFailed,
    InvalidRequest,
    OutOfMemory,
    UnknownModel,
)
from worker.events import End, Event, Failure
from worker.job import Job, OnDisconnect, is_failure
from worker.request import GenerateRequest
from worker.web.context import KEY_HEADER, OF_A_JOB, context, start_jobs
from worker.web.sse import EventReader, Translator, collect, event_stream_response, stream_job

# What `respond` and `check_model` raise.
OF_AN_ANSWER = (UnknownModel, *OF_A_JOB, InferenceFailed, OutOfMemory, DeadlineExceeded)


class AnswerTranslator(Translator, Protocol):
    """A wire format for answers, in pieces and whole."""

    def whole(self, events: Sequence[tuple[int, Event]]) -> dict[str, Any]:
        """The body of an answer that is not streamed. No event is a failure."""
        ...


def check_model(name: str | None) -> None:
    """See that a request means the model that is served.

    Raises:
        UnknownModel: It names another.
    """
    served = context().settings.model_name
    if name is not None and name != served:
        raise UnknownModel(f"the model {name!r} is not served here; this server has {served!r} (leave model out)")


@contextmanager
def naming(name_of: Callable[[str], str]) -> Iterator[None]:
    """Refusals in this block name their fields as the client knows them.

    Args:
        name_of: From the name of a field in the internal vocabulary to that in the route's.
    """
    try:
        yield
    except InvalidRequest as refusal:
        renamed = [replace(error, field=name_of(error.field)) for error in refusal.errors]
        raise InvalidRequest(renamed) from refusal


def respond(
    requests: list[GenerateRequest],
    translator_for: Callable[[list[Job]], AnswerTranslator],
    *,
    is_streamed: bool,
    num_choices: int = 1,
    default_max_tokens: int | None = None,
    on_disconnect: OnDisconnect = "cancel",
    is_kept: bool = False,
) -> Response:
    """Start the jobs of a request and answer with what they produce.

    Args:
        requests: In the internal vocabulary; each gets `num_choices` answers.
        translator_for: Makes the translator for the jobs, which are in the order of `Jobs.start`.
        on_disconnect: What the client's leaving does.
        is_kept: Whether the jobs can be asked for again.

    Raises:
        KeyReused, NotReady, Overloaded, InvalidRequest: Before the first byte.
        GenerationFailed: There is no whole answer.
    """
    shared = context()
    with shared.streams.reserve() as place:  # who gets no place to read makes no job, and uses up no key
        jobs, headers = start_jobs(
            requests, on_disconnect, num_choices=num_choices, default_max_tokens=default_max_tokens
        )
        can_come_back = is_kept or KEY_HEADER in request.headers
        reader = shared.jobs.read(jobs)
        place.take(reader)

        def close() -> None:
            place.close()
            if not can_come_back:  # nobody can ask for it again: these APIs have no resume
                for job in jobs:
                    shared.jobs.forget_unread(job)

        translator = translator_for(jobs)
        if not is_streamed:
            try:
                events = collect(reader, shared.engine, shared.settings.keep_alive_s)
            finally:
                close()
            _check_whole(reader, events)
            response = jsonify(translator.whole(events))
        else:
            chunks = stream_job(reader, translator, shared.engine, shared.settings.keep_alive_s)
            response = event_stream_response(chunks, close)
    response.headers.update(headers)
    return response


def _check_whole(reader: EventReader, events: Sequence[tuple[int, Event]]) -> None:
    if not reader.is_done:  # the last event may be the end of one answer of several
        raise GenerationFailed("the client left before the answer was complete", "CANCELLED")
    last = events[-1][1]
    assert isinstance(last, End | Failure)
    error = failure_of(last)
    if error is not None:
        raise error


def failure_of(terminal: End | Failure) -> GenerationFailed | None:
    """Why there is no whole answer; None if there is."""
    if isinstance(terminal, Failure):
        error = GenerationFailed(terminal.message, terminal.code)
        error.status = terminal.status
        return error
    if is_failure(terminal):
        return GenerationFailed("the request was cancelled", terminal.stop_reason.value)
    return None
