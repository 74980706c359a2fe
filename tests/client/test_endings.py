"""Streams that end badly never look like one that ended well."""

import threading
from typing import Any

import pytest

from tests.client.conftest import COUNTS, Serve, cut_chunked
from tests.scripted_server import (
    END,
    ERROR,
    HELLO,
    METRICS,
    STARTED,
    WAIT_S,
    Peer,
    Script,
    numbered,
    says,
    sse,
    token,
)
from worker.client import (
    ConnectionFailed,
    End,
    EndstopError,
    GenerationError,
    IdleTimeout,
    IncompleteStream,
    ProtocolError,
    Started,
    Token,
)


def test_an_error_event_is_raised(serve: Serve) -> None:
    stream = serve(says(numbered([STARTED, token("a", 0), ERROR]))).stream(prompt="Hi")
    assert isinstance(next(stream), Started)
    assert isinstance(next(stream), Token)
    with pytest.raises(GenerationError, match="STALLED: no token for 60 s") as caught:
        next(stream)
    assert (caught.value.code, caught.value.message, caught.value.usage) == ("STALLED", "no token for 60 s", COUNTS)


@pytest.mark.parametrize("frames", [HELLO[:2], numbered([STARTED, ERROR])], ids=["incomplete", "error"])
def test_what_went_wrong_has_the_name_of_its_request(serve: Serve, frames: list[bytes]) -> None:
    def script(peer: Peer) -> None:
        peer.head(X_Request_Id="req-7")
        peer.chunk(b"".join(frames))
        peer.last_chunk()

    with pytest.raises(EndstopError) as caught:
        serve(script).generate(prompt="Hi")
    assert caught.value.request_id == "req-7"


@pytest.mark.parametrize(
    "event", [{"type": "error"}, {"type": "error", "code": "VRAM_OOM", "message": None, "usage": None}]
)
def test_an_error_with_missing_fields_is_still_that_error(serve: Serve, event: dict[str, Any]) -> None:
    with pytest.raises(GenerationError) as caught:
        serve(says(numbered([STARTED, event]))).generate(prompt="Hi")
    assert caught.value.code == event.get("code", "UNKNOWN")
    assert caught.value.usage is None


def cut_inside_a_chunk(peer: Peer) -> None:
    cut_chunked(peer)
    peer.send(b"40\r\n" + HELLO[2][:9])


def cut_inside_a_chunk_size(peer: Peer) -> None:
    cut_chunked(peer)
    peer.send(b"4")


def clean_eof(peer: Peer) -> None:
    cut_chunked(peer)
    peer.last_chunk()


def clean_eof_inside_an_event(peer: Peer) -> None:
    cut_chunked(peer)
    peer.chunk(sse(END, 2).rstrip(b"\n"))  # its blank line is missing, so the standard discards it
    peer.last_chunk()


def done_without_terminal(peer: Peer) -> None:
    cut_chunked(peer)
    peer.chunk(sse("[DONE]"))
    peer.last_chunk()


def too_few_bytes(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n")
    peer.send(HELLO[0] + HELLO[1])


def closed_without_length(peer: Peer) -> None:
    peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    peer.send(HELLO[0] + HELLO[1])


@pytest.mark.parametrize(
    "script",
    [
        cut_chunked,
        cut_inside_a_chunk,
        cut_inside_a_chunk_size,
        clean_eof,
        clean_eof_inside_an_event,
        done_without_terminal,
        too_few_bytes,
        closed_without_length,
    ],
)
def test_a_stream_without_a_terminal_event_is_incomplete(serve: Serve, script: Script) -> None:
    stream = serve(script).stream(prompt="Hi")
    assert [type(next(stream)), type(next(stream))] == [Started, Token]  # what came is handed on before
    with pytest.raises(IncompleteStream) as caught:
        next(stream)
    assert caught.value.last_event_id == "1"


def test_a_reset_connection_is_an_incomplete_stream(serve: Serve) -> None:
    seen = threading.Event()

    def script(peer: Peer) -> None:
        cut_chunked(peer)
        assert seen.wait(WAIT_S)  # a reset may overtake what was sent before it
        peer.reset()

    stream = serve(script).stream(prompt="Hi")
    assert [type(next(stream)), type(next(stream))] == [Started, Token]
    seen.set()
    with pytest.raises(IncompleteStream) as caught:
        next(stream)
    assert caught.value.last_event_id == "1"


def test_a_whole_text_or_none(serve: Serve) -> None:
    with pytest.raises(IncompleteStream):
        serve(cut_chunked).generate(prompt="Hi")


def test_an_empty_stream_is_incomplete(serve: Serve) -> None:
    with pytest.raises(IncompleteStream) as caught:
        serve(says([])).generate(prompt="Hi")
    assert caught.value.last_event_id is None


@pytest.mark.slow
def test_silence_reaches_the_idle_timeout(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        cut_chunked(peer)
        assert peer.wait_until_left()

    with pytest.raises(IdleTimeout) as caught:
        list(serve(script, idle_timeout_s=1.0).stream(prompt="Hi"))
    assert caught.value.last_event_id == "1"
    assert isinstance(caught.value, IncompleteStream)  # so that code which resumes needs to know only one


@pytest.mark.slow
def test_silence_instead_of_an_answer_reaches_the_idle_timeout(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        assert peer.wait_until_left()

    with pytest.raises(ConnectionFailed, match=r"no answer within 0\.3 s"):
        serve(script, idle_timeout_s=0.3).generate(prompt="Hi")


@pytest.mark.parametrize("after", [token("x", 2), END, ERROR, METRICS], ids=["token", "end", "error", "metrics"])
@pytest.mark.parametrize("is_after_done", [False, True], ids=["before [DONE]", "after [DONE]"])
def test_whatever_follows_the_end_is_an_error(serve: Serve, after: dict[str, Any], is_after_done: bool) -> None:
    frames = list(HELLO)
    frames.insert(6 if is_after_done else 5, sse(after, 5))
    stream = serve(says([b"".join(frames)])).stream(prompt="Hi")
    assert isinstance([next(stream) for _ in range(5)][-1], End)
    with pytest.raises(ProtocolError, match="went on after its ending"):
        next(stream)


def test_a_second_done_is_an_error(serve: Serve) -> None:
    with pytest.raises(ProtocolError, match="went on after its ending"):
        serve(says([b"".join([*HELLO, HELLO[-1]])])).generate(prompt="Hi")


def test_a_lost_done_does_not_undo_the_end(serve: Serve) -> None:
    def cut_behind_the_end(peer: Peer) -> None:
        peer.head()
        peer.chunk(b"".join(HELLO[:-1]))

    assert serve(cut_behind_the_end).generate(prompt="Hi").text == "Hello"
    assert serve(says(HELLO[:-1])).generate(prompt="Hi").text == "Hello"


def test_iteration_stops_at_done_and_does_not_wait_for_the_close(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(b"".join(HELLO))
        assert peer.wait_until_left()

    assert serve(script).generate(prompt="Hi").text == "Hello"


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        ("not json", "not a JSON object with a type"),
        ("[1]", "not a JSON object with a type"),
        ("[" * 5000, "not a JSON object with a type"),
        ({"t": "x"}, "not a JSON object with a type"),
        ({"type": 7}, "not a JSON object with a type"),
        ("", "not a JSON object with a type"),
        ({"type": "token", "i": 0}, "'t' of a 'token' event is missing"),
        ({"type": "token", "t": None, "i": 0}, "'t' of a 'token' event is None"),
        ({"type": "token", "t": "x", "i": True}, "'i' of a 'token' event is True"),
        ({"type": "token", "t": "x", "i": 0, "n": "2"}, "'n' of a 'token' event is '2'"),
        ({"type": "metrics"}, "'tokens_per_sec' of a 'metrics' event is missing"),
        ({"type": "started", "job_id": "j"}, "'model' of a 'started' event is missing"),
        ({"type": "narration"}, "'actor' of a 'narration' event is missing"),
        ({k: v for k, v in END.items() if k != "usage"}, "'usage' of a 'end' event is missing"),
        ({**END, "usage": {"prompt_tokens": 1}}, "'completion_tokens' of a usage is missing"),
        ({**token("x", 0), "logprobs": [-0.5]}, "log-probabilities are [-0.5]"),
        ({**token("x", 0), "logprobs": [{"token": "x"}]}, "'logprob' of a log-probability is missing"),
        ({**token("x", 0), "logprobs": [{"token": "x", "logprob": -1, "bytes": [256]}]}, "the bytes of a log-prob"),
        ({**END, "stop_reason": None}, "'stop_reason' of a 'end' event is None"),
        ({**END, "tokens_out": 1.5}, "'tokens_out' of a 'end' event is 1.5"),
    ],
)
def test_an_event_that_the_contract_forbids(serve: Serve, frame: object, complaint: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        serve(says(numbered([STARTED, frame, END]))).generate(prompt="Hi")
    assert complaint in str(caught.value)


def test_a_page_instead_of_a_stream(serve: Serve) -> None:
    with pytest.raises(ProtocolError, match="'text/html', not with an event stream"):
        serve(lambda peer: peer.answer(b"<html>", content_type="text/html")).generate(prompt="Hi")


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ([0, 1, 3], "event 3 came where 2 was due"),
        ([0, 1, 1], "event 1 came where 2 was due"),
        ([4], "where 0 was due"),
    ],
)
def test_events_are_numbered_without_gaps(serve: Serve, numbers: list[int], complaint: str) -> None:
    """One that is missing, or comes twice, is text that is missing or comes twice."""
    with pytest.raises(ProtocolError, match=complaint):
        serve(says([sse(STARTED, n) for n in numbers])).generate(prompt="Hi")


def test_a_server_that_numbers_nothing_can_be_read(serve: Serve) -> None:
    frames = [sse(event) for event in (STARTED, token("a", 0), token("b", 1), END, "[DONE]")]
    assert serve(says(frames)).generate(prompt="Hi").text == "ab"


def test_the_answer_of_a_cancelled_job_is_no_answer(serve: Serve) -> None:
    frames = numbered([STARTED, token("a", 0), {**END, "stop_reason": "CANCELLED"}])
    with pytest.raises(GenerationError, match="cancelled before the answer was complete") as caught:
        serve(says(frames)).generate(prompt="Hi")
    assert (caught.value.code, caught.value.usage) == ("CANCELLED", COUNTS)
