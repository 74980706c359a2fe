"""Streams that are lost and taken up again: no event is lost, none comes twice, and every wait has an end."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.client.conftest import Serve
from tests.scripted_server import END, ERROR, HELLO, STARTED, WAIT_S, Peer, Script, numbered, says, sse, token
from worker import client as client_module
from worker.client import (
    Client,
    GenerationError,
    IncompleteStream,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    Started,
    TokenLogprob,
    UnknownJob,
)

STREAM = "GET /v1/jobs/job-1/stream"
CANCEL = "DELETE /v1/jobs/job-1"
FRAMES = numbered([STARTED, *(token(f"{n}é ", n) for n in range(6)), END])
TEXT = "".join(f"{n}é " for n in range(6))
IDS = [str(n) for n in range(8)]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class CutJob:
    """A job whose connections are cut behind so many bytes of the body, one number for each; then no more.

    A negative number cuts the head.
    """

    def __init__(self, *cuts: int, frames: list[bytes] = FRAMES) -> None:
        self.cuts = list(cuts)
        self.frames = frames
        self.asked_for: list[str | None] = []  # the Last-Event-ID of each connection

    def __call__(self, peer: Peer) -> None:
        last = peer.request.headers.get("last-event-id")
        self.asked_for.append(last)
        body = b"".join(self.frames[0 if last is None else int(last) + 1 :])
        num_bytes = self.cuts.pop(0) if self.cuts else None
        head = HEAD + b"%x\r\n" % len(body)
        if num_bytes is None:
            peer.send(head + body + b"\r\n0\r\n\r\n")
        elif num_bytes < 0:
            peer.send(head[:num_bytes])
        else:
            peer.send(head + body[:num_bytes])


def no_pause(_: float) -> None:
    pass


def resuming(serve: Serve, script: Script, **options: Any) -> Client:
    scripts = {"POST /execute": script, STREAM: script} | options.pop("scripts", {})
    return serve(scripts=scripts, **({"max_retries": 2, "max_resumes": 3, "sleep": no_pause} | options))


# --- Nothing is lost and nothing doubled ---


@pytest.mark.slow
def test_a_cut_behind_any_byte_makes_no_difference(serve: Serve) -> None:
    for num_bytes in range(-len(HEAD), len(b"".join(FRAMES)) + 1):
        job = CutJob(num_bytes)
        client = resuming(serve, job)
        events = list(client.run(prompt="Hi"))
        assert [event.id for event in events] == IDS, num_bytes
        assert "".join(getattr(event, "text", "") for event in events) == TEXT
        client.close()


def test_a_job_is_read_to_its_end_over_many_connections(serve: Serve) -> None:
    longest = max(map(len, FRAMES))
    job = CutJob(*[longest] * 20)
    assert [event.id for event in resuming(serve, job, max_resumes=1).events("job-1")] == IDS
    assert job.asked_for == [None, "1", "4", "6"]  # more often than max_resumes: a new event begins the count again


def test_a_job_is_taken_up_behind_the_place_that_the_caller_names(serve: Serve) -> None:
    job = CutJob(0, 0)
    assert [event.id for event in resuming(serve, job).events("job-1", 3)] == IDS[4:]
    assert job.asked_for == ["3", "3", "3"]


def test_the_whole_answer_comes_over_many_connections(serve: Serve) -> None:
    answer = resuming(serve, CutJob(200, 150, 100)).generate(prompt="Hi")
    assert (answer.text, answer.job_id, answer.stop_reason) == (TEXT, "job-1", "EOS")


@pytest.mark.slow
def test_a_silent_connection_is_replaced(serve: Serve) -> None:
    job = CutJob()

    def script(peer: Peer) -> None:
        if peer.request.method == "GET":
            job(peer)
        else:
            peer.head()
            peer.chunk(b"".join(FRAMES[:3]))
            assert peer.wait_until_left()

    client = resuming(serve, script, idle_timeout_s=1.0)
    assert [event.id for event in client.run(prompt="Hi")] == IDS
    assert job.asked_for == ["2"]


def test_a_cut_behind_the_end_is_no_loss(serve: Serve) -> None:
    job = CutJob(len(b"".join(FRAMES[:-1])))
    assert [event.id for event in resuming(serve, job).run(prompt="Hi")] == IDS
    assert len(job.asked_for) == 1


def test_a_failed_job_is_not_asked_for_again(serve: Serve) -> None:
    job = CutJob(frames=numbered([STARTED, ERROR]))
    with pytest.raises(GenerationError, match="STALLED"):
        resuming(serve, job, sleep=pytest.fail).generate(prompt="Hi")
    assert len(job.asked_for) == 1


def test_a_proxy_that_loses_the_place_doubles_nothing(serve: Serve) -> None:
    cut = CutJob(200)

    def script(peer: Peer) -> None:
        (cut if peer.request.method == "POST" else says(FRAMES))(peer)

    with pytest.raises(ProtocolError, match=r"event 0 came where \d was due"):
        resuming(serve, script).generate(prompt="Hi")


def test_a_stream_without_numbers_is_not_taken_up(serve: Serve) -> None:
    """Nobody knows where it broke."""
    unnumbered = [sse(event) for event in (STARTED, token("a", 0), END)]
    job = CutJob(len(unnumbered[0]) + len(unnumbered[1]), frames=unnumbered)
    with pytest.raises(IncompleteStream) as caught:
        resuming(serve, job, sleep=pytest.fail).generate(prompt="Hi")
    assert (caught.value.job_id, caught.value.last_event_id) == ("job-1", None)


def test_a_job_of_any_name_and_place_is_taken_up(serve: Serve) -> None:
    """Neither is ours; it is the server's, and what JSON and a stream can carry it gets back."""
    started = sse({**STARTED, "job_id": "ж\ud800"}).replace(b"data", "id: место\ndata".encode(), 1)
    places: list[str | None] = []

    def rest(peer: Peer) -> None:
        places.append(peer.request.headers["last-event-id"].encode("latin-1").decode())
        says([sse(token("x", 0)), sse(END), sse("[DONE]")])(peer)

    client = serve(
        scripts={
            "POST /execute": lambda peer: (peer.head(), peer.chunk(started))[0],
            "GET /v1/jobs/%D0%B6%ED%A0%80/stream": rest,
        },
        max_resumes=1,
        sleep=lambda _: None,
    )
    assert client.generate(prompt="Hi").text == "x"
    assert places == ["место"]


def test_a_job_that_was_not_named_is_not_taken_up(serve: Serve) -> None:
    """There is a key, but what it gets begins with what the caller has."""
    frames = numbered([token("a", 0), END])
    with pytest.raises(IncompleteStream):
        resuming(serve, CutJob(len(frames[0]), frames=frames), sleep=pytest.fail).generate(prompt="Hi")


# --- Every wait has an end ---


@pytest.mark.parametrize("max_resumes", [0, 3])
def test_a_stream_that_stays_lost_is_given_up(serve: Serve, max_resumes: int) -> None:
    pauses: list[float] = []
    job = CutJob(200, 0, 0, 0, 0)
    client = resuming(serve, job, max_resumes=max_resumes, sleep=pauses.append)
    with pytest.raises(IncompleteStream, match="cut in the middle") as caught:
        client.generate(prompt="Hi")
    assert (caught.value.job_id, caught.value.last_event_id) == ("job-1", "1")
    assert len(pauses) == max_resumes
    assert [event.id for event in resuming(serve, CutJob()).events("job-1", caught.value.last_event_id)] == IDS[2:]


def test_a_server_that_goes_away_is_given_up_with_the_place(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        if peer.request.method == "POST":
            CutJob(200)(peer)
        else:
            peer.reset()

    with pytest.raises(IncompleteStream, match="could not be taken up again: http://") as caught:
        resuming(serve, script).generate(prompt="Hi")
    assert (caught.value.job_id, caught.value.last_event_id) == ("job-1", "1")


def test_a_server_without_room_for_readers_is_asked_again_when_it_said(serve: Serve) -> None:
    pauses: list[float] = []
    job, num_refused = CutJob(200), 0

    def script(peer: Peer) -> None:
        nonlocal num_refused
        if peer.request.method == "GET" and num_refused < 2:
            num_refused += 1
            peer.json({"message": "no place"}, 429, Retry_After="7")
        else:
            job(peer)

    assert resuming(serve, script, sleep=pauses.append).generate(prompt="Hi").text == TEXT
    assert pauses[1:] == [7.0, 7.0]


def test_a_server_that_was_replaced_knows_nothing_of_the_job(serve: Serve) -> None:
    job = CutJob(200)
    message = "no job has the id 'job-1'"
    client = resuming(serve, job, scripts={STREAM: lambda peer: peer.json({"message": message}, 404)}, sleep=no_pause)
    with pytest.raises(UnknownJob, match=message):
        client.generate(prompt="Hi")


@pytest.mark.parametrize("status", [400, 429])
def test_who_asks_for_a_job_hears_what_is_wrong_with_that(serve: Serve, status: int) -> None:
    client = resuming(serve, lambda peer: peer.json({}, status, Retry_After="61"))
    with pytest.raises(InvalidRequest if status == 400 else Overloaded):
        list(client.events("job-1", 1000))


# --- Leaving ---


class LeftJob:
    """Sends its beginning and waits to be left, then to be cancelled."""

    def __init__(self) -> None:
        self.was_left = threading.Event()
        self.was_cancelled = threading.Event()
        self.scripts: dict[str, Script] = {"POST /execute": self.send, STREAM: self.send, CANCEL: self.cancel}

    def send(self, peer: Peer) -> None:
        peer.head()
        peer.chunk(b"".join(FRAMES[:3]))
        assert peer.wait_until_left()
        self.was_left.set()

    def cancel(self, peer: Peer) -> None:
        assert self.was_left.wait(WAIT_S)  # the connection goes first: the reader is gone before its job is
        self.was_cancelled.set()
        peer.json({})


def test_closing_a_run_cancels_its_job(serve: Serve) -> None:
    job = LeftJob()
    with closing(serve(scripts=job.scripts).run(prompt="Hi")) as events:
        assert isinstance(next(events), Started)
        assert not job.was_left.is_set()
    assert job.was_cancelled.is_set()


def test_leaving_the_loop_over_a_run_cancels_its_job(serve: Serve) -> None:
    job = LeftJob()
    for _ in serve(scripts=job.scripts).run(prompt="Hi"):
        break
    assert job.was_cancelled.is_set()


def test_an_interrupt_cancels_the_job(serve: Serve) -> None:
    """Ctrl-C while it waits to come back, of somebody who wants the whole answer."""
    job = LeftJob()

    def send_and_cut(peer: Peer) -> None:
        CutJob(200)(peer)
        job.was_left.set()

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    client = serve(scripts=job.scripts | {"POST /execute": send_and_cut}, max_resumes=1, sleep=interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.generate(prompt="Hi")
    assert job.was_cancelled.is_set()


def test_an_interrupt_of_the_caller_cancels_the_job(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two events: a traceback that is kept must not keep the job."""

    class Interrupting(tuple[TokenLogprob, ...]):
        def __iter__(self) -> Iterator[TokenLogprob]:
            raise KeyboardInterrupt

    job = LeftJob()
    monkeypatch.setattr(client_module, "_logprobs", lambda listed: Interrupting())
    with pytest.raises(KeyboardInterrupt) as caught:
        serve(scripts=job.scripts).generate(prompt="Hi")
    assert job.was_cancelled.is_set()
    del caught


def test_who_reads_the_job_of_somebody_else_leaves_it_alone(serve: Serve) -> None:
    job = LeftJob()
    client = serve(scripts=job.scripts | {CANCEL: lambda _: pytest.fail("it was cancelled")})
    with closing(client.events("job-1")) as events:
        assert isinstance(next(events), Started)
    assert job.was_left.wait(WAIT_S)


@pytest.mark.parametrize("frames", [HELLO, numbered([STARTED, ERROR])], ids=["end", "error"])
def test_a_job_that_is_over_is_not_cancelled(serve: Serve, frames: list[bytes]) -> None:
    scripts: dict[str, Script] = {"POST /execute": says(frames), CANCEL: lambda _: pytest.fail("it was cancelled")}
    with closing(serve(scripts=scripts).run(prompt="Hi")) as events:
        try:
            while not isinstance(next(events), client_module.End):
                pass
        except GenerationError:
            pass


@pytest.mark.parametrize("fault", ["reset", "silence", "404"])
def test_a_cancel_that_fails_holds_nobody_up(serve: Serve, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(client_module, "LEAVE_TIMEOUT_S", 0.1)
    was_asked = threading.Event()

    def fail(peer: Peer) -> None:
        was_asked.set()
        if fault == "silence":
            assert peer.wait_until_left()
        elif fault == "404":
            peer.json({}, 404)
        else:
            peer.reset()

    client = serve(scripts=LeftJob().scripts | {CANCEL: fail}, max_retries=2, sleep=pytest.fail)
    events = client.run()
    next(events)
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < WAIT_S / 2
    assert was_asked.wait(WAIT_S)


def test_a_run_that_never_started_has_sent_nothing(serve: Serve) -> None:
    serve(lambda _: pytest.fail("it was sent")).run(prompt="Hi").close()
