"""Jobs: from submit to their end."""

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from tests.client.conftest import COUNTS, Serve, cut_chunked
from tests.scripted_server import (
    END,
    ERROR,
    HELLO,
    USAGE,
    WAIT_S,
    Peer,
    Script,
    says,
    sse,
    token,
)
from worker import client as client_module
from worker.client import (
    Client,
    ConnectionFailed,
    End,
    GenerationError,
    IncompleteStream,
    JobStatus,
    ProtocolError,
    UnknownJob,
)


def test_a_job_from_submit_to_its_events(serve: Serve) -> None:
    submitted = []

    def accept(peer: Peer) -> None:
        submitted.append(peer.request.fields)
        peer.json({"job_id": "job/1", "sse_url": "/v1/jobs/job%2F1/stream"}, 202)

    client = serve(scripts={"POST /v1/jobs": accept, "GET /v1/jobs/job%2F1/stream": says(HELLO)})
    job_id = client.submit(prompt="Hi", max_tokens=3)
    assert submitted == [{"prompt": "Hi", "max_tokens": 3}]
    assert isinstance(list(client.events(job_id))[-1], End)


def test_a_lost_stream_can_be_taken_up_by_hand(serve: Serve) -> None:
    asked_for = []

    def script(peer: Peer) -> None:
        last = peer.request.headers.get("last-event-id")
        asked_for.append(last)
        if last is None:
            cut_chunked(peer)
        else:
            says(HELLO[int(last) + 1 :])(peer)

    client = serve(scripts={"GET /v1/jobs/job-1/stream": script})
    events = []
    last_event_id = None
    while True:
        try:
            for event in client.events("job-1", last_event_id):
                events.append(event)
            break
        except IncompleteStream as cut:
            last_event_id = cut.last_event_id
    assert asked_for == [None, "1"]
    assert [event.id for event in events] == ["0", "1", "2", "3", "4"]


def test_a_resumed_stream_that_is_cut_at_once_is_resumed_at_the_same_place(serve: Serve) -> None:
    with pytest.raises(IncompleteStream) as caught:
        list(serve(scripts={"GET /v1/jobs/job-1/stream": says([])}).events("job-1", 3))
    assert caught.value.last_event_id == "3"


def test_an_event_without_an_id_has_the_place_of_the_one_before_it(serve: Serve) -> None:
    client = serve(scripts={"GET /v1/jobs/job-1/stream": says([sse(END), sse("[DONE]")])})
    assert [event.id for event in client.events("job-1", 3)] == ["3"]


def job(state: str, outcome: dict[str, Any] | None = None) -> Script:
    body = {"job_id": "job-1", "state": state, "usage": USAGE, "outcome": outcome}
    return lambda peer: peer.json(body)


@pytest.mark.parametrize(
    ("state", "outcome", "ends"),
    [
        ("ENDED", END, None),
        ("CANCELLED", {**END, "stop_reason": "CANCELLED"}, None),
        ("FAILED", ERROR, GenerationError),
        ("RUNNING", None, IncompleteStream),
    ],
)
def test_nothing_comes_behind_the_last_event(
    serve: Serve, state: str, outcome: dict[str, Any] | None, ends: type[Exception] | None
) -> None:
    """That the place was the last is the job's word, not that of a stream that says nothing but `[DONE]`."""
    stream = says([sse("[DONE]")])
    client = serve(scripts={"GET /v1/jobs/job-1/stream": stream, "GET /v1/jobs/job-1": job(state, outcome)})
    with pytest.raises(ends) if ends else nullcontext():
        assert list(client.events("job-1", 3)) == []


def test_a_job_that_does_not_say_whether_it_is_over_is_asked_again(serve: Serve) -> None:
    answers = [lambda peer: peer.json({"state": "LOADING"}, 503), lambda peer: peer.reset(), job("ENDED", END)]
    client = serve(
        scripts={
            "GET /v1/jobs/job-1/stream": says([sse("[DONE]")]),
            "GET /v1/jobs/job-1": lambda peer: answers.pop(0)(peer),
        },
        max_resumes=2,
        sleep=lambda _: None,
    )
    assert list(client.events("job-1", 3)) == []
    assert answers == []


@pytest.mark.parametrize("place", [None, "", 0])
def test_done_alone_is_no_ending(serve: Serve, place: int | str | None) -> None:
    """At the beginning of a stream, or behind an event of it, the job's end has yet to be told."""
    stream = says([*(HELLO[1:2] if place == 0 else []), sse("[DONE]")])
    client = serve(scripts={"GET /v1/jobs/job-1/stream": stream, "GET /v1/jobs/job-1": job("ENDED", END)})
    with pytest.raises(IncompleteStream):
        list(client.events("job-1", place))


def test_status_and_cancel(serve: Serve) -> None:
    cancelled = {**END, "stop_reason": "CANCELLED"}
    client = serve(scripts={"GET /v1/jobs/job-1": job("RUNNING"), "DELETE /v1/jobs/job-1": job("CANCELLED", cancelled)})
    assert client.status("job-1") == JobStatus("job-1", "RUNNING", COUNTS, None)
    assert not client.status("job-1").is_over
    status = client.cancel("job-1")
    assert status == JobStatus("job-1", "CANCELLED", COUNTS, End(None, 2, 40, "CANCELLED", None, COUNTS))
    assert status.is_over


def test_the_status_of_a_job_that_failed(serve: Serve) -> None:
    status = serve(scripts={"GET /v1/jobs/job-1": job("FAILED", ERROR)}).status("job-1")
    assert isinstance(status.outcome, GenerationError)
    assert (status.outcome.code, status.outcome.usage, status.is_over) == ("STALLED", COUNTS, True)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({}, "'job_id' of a job is missing"),
        ({"job_id": "job-1", "state": 1}, "'state' of a job is 1"),
        ({"job_id": "job-1", "state": "ENDED", "outcome": token("x", 0)}, "the outcome of a job is"),
        ({"job_id": "job-1", "state": "RUNNING", "outcome": None}, "'usage' of a job is missing"),
        (
            {"job_id": "job-1", "state": "RUNNING", "outcome": None, "usage": {}},
            "'prompt_tokens' of a usage is missing",
        ),
    ],
)
def test_a_status_that_the_contract_forbids(serve: Serve, body: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        serve(scripts={"GET /v1/jobs/job-1": lambda peer: peer.json(body)}).status("job-1")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.status("job-2"),
        lambda client: client.cancel("job-2"),
        lambda client: list(client.events("job-2")),
    ],
    ids=["status", "cancel", "events"],
)
def test_an_unknown_job(serve: Serve, call: Callable[[Client], object]) -> None:
    with pytest.raises(UnknownJob):
        call(serve())


@pytest.mark.parametrize("body", [b"[]", b"<html>", b"\xff", b"[" * 5000], ids=repr)
def test_an_answer_that_is_no_json_object(serve: Serve, body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a JSON object"):
        serve(scripts={"GET /v1/jobs/job-1": lambda peer: peer.answer(body)}).status("job-1")


@pytest.mark.parametrize("body", [{}, {"job_id": 7}])
def test_a_submit_without_a_job_id(serve: Serve, body: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="'job_id' of the answer to POST /v1/jobs"):
        serve(scripts={"POST /v1/jobs": lambda peer: peer.json(body, 202)}).submit(prompt="Hi")


def test_an_endless_answer_is_not_read_to_its_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_BODY_BYTES", 1000)

    def script(peer: Peer) -> None:
        peer.head(content_type="application/json")
        while True:  # ends with the connection
            peer.chunk(b"x" * 100)

    with pytest.raises(ProtocolError, match="not a JSON object"):
        serve(scripts={"GET /v1/jobs/job-1": script}).status("job-1")


def test_an_answer_that_is_cut(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.head(content_type="application/json")
        peer.send(b"40\r\n{")

    with pytest.raises(ConnectionFailed, match="in the middle of an answer"):
        serve(scripts={"GET /v1/jobs/job-1": script}).status("job-1")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Type: app"])
def test_an_answer_whose_head_is_cut(serve: Serve, answer: bytes) -> None:
    with pytest.raises(ConnectionFailed):
        serve(scripts={"GET /v1/jobs/job-1": lambda peer: peer.send(answer)}).status("job-1")


def test_a_closed_client_keeps_no_connection(serve: Serve) -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        body = json.dumps({"job_id": "job-1", "state": "QUEUED", "usage": USAGE, "outcome": None}).encode()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert peer.wait_until_left()
        left.set()

    with serve(scripts={"GET /v1/jobs/job-1": script}) as client:
        assert client.status("job-1").state == "QUEUED"
        assert not left.is_set()
    assert left.wait(WAIT_S)
