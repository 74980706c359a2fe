"""The client against a server that says exactly what each test needs, good and bad."""

import ast
import re
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripted_server import (
    END,
    ERROR,
    HELLO,
    METRICS,
    STARTED,
    USAGE,
    WAIT_S,
    Peer,
    Script,
    ScriptedServer,
    numbered,
    says,
    sse,
    token,
)
from worker import client as client_module
from worker.client import (
    Client,
    ConnectionFailed,
    End,
    EndstopError,
    Event,
    FieldError,
    GenerationError,
    IdleTimeout,
    IncompleteStream,
    InvalidRequest,
    Metrics,
    Narration,
    NotReady,
    Overloaded,
    ProtocolError,
    Readiness,
    RequestRefused,
    ServerSentEvent,
    SSEParser,
    Started,
    Token,
    TooLarge,
    Unauthorized,
    Unknown,
    UnknownJob,
    why_unanswered,
)

Serve = Callable[..., Client]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a scripted server and a client of it: serve(script) plays the script for POST /execute."""
    opened: list[tuple[ScriptedServer, Client]] = []

    def start(script: Script | None = None, *, scripts: dict[str, Script] | None = None, **options: Any) -> Client:
        server = ScriptedServer(scripts or {"POST /execute": script or says(HELLO)})
        server.__enter__()
        client = Client(server.url, **{"idle_timeout_s": WAIT_S, **options})
        opened.append((server, client))
        return client

    yield start
    for server, client in opened:
        client.close()
        server.__exit__()


# --- The parser: the standard's rules ---


def parse(*chunks: bytes) -> list[ServerSentEvent]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.push(chunk)]


def data_of(*chunks: bytes) -> list[str]:
    return [event.data for event in parse(*chunks)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"data: a\n\n", ["a"], id="line feed"),
        pytest.param(b"data: a\r\n\r\n", ["a"], id="carriage return and line feed"),
        pytest.param(b"data: a\r\r", ["a"], id="carriage return"),
        pytest.param(b"data: a\r\n\rdata: b\n\r\n", ["a", "b"], id="mixed line ends"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", ["a"], id="byte order mark at the start"),
        pytest.param(b"\n\xef\xbb\xbfdata: a\n\n", [], id="byte order mark elsewhere makes the field unknown"),
        pytest.param(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", [], id="only one byte order mark is taken off"),
        pytest.param(b": ping\n: ping\ndata: a\n\n", ["a"], id="comments in front of an event"),
        pytest.param(b"data: a\n: ping\ndata: b\n\n", ["a\nb"], id="a comment inside an event"),
        pytest.param(b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"], id="data lines are joined"),
        pytest.param(b"data\n\ndata\ndata\n\ndata:", ["", "\n"], id="data without a colon (an example of the spec)"),
        pytest.param(b"data:test\n\ndata: test\n\n", ["test", "test"], id="the space after the colon is optional"),
        pytest.param(b"data:  a\n\n", [" a"], id="only one space is taken off"),
        pytest.param(b"data: a:b: c\n\n", ["a:b: c"], id="colons in the value"),
        pytest.param(b"data: a\x0bb\x0cc\xe2\x80\xa8d\n\n", ["a\x0bb\x0cc\u2028d"], id="other separators are text"),
        pytest.param(b"Data: a\n\nnews: b\n\n", [], id="unknown fields are ignored"),
        pytest.param(b"data: a\n", [], id="an event without its blank line is discarded"),
        pytest.param(b"data: a\n\ndata: b", ["a"], id="... also behind a whole one"),
        pytest.param(b"event: x\n\n\n\n", [], id="no data, no event"),
        pytest.param("data: héllo 😀\n\n".encode(), ["héllo 😀"], id="utf-8"),
        pytest.param(b"data: \xff\xf0\x9f\n\n", ["\ufffd\ufffd"], id="broken utf-8 is replaced"),
    ],
)
def test_the_standards_rules(body: bytes, expected: list[str]) -> None:
    assert data_of(body) == expected


def test_the_event_type_holds_for_one_event() -> None:
    events = parse(b"event: add\ndata: 1\n\ndata: 2\n\nevent: lost\n\ndata: 3\n\n")
    assert [event.event for event in events] == ["add", "message", "message"]


def test_an_id_is_inherited_until_the_next_one() -> None:
    events = parse(b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\nid: x\x00y\ndata: d\n\n")
    assert [event.id for event in events] == ["1", None, "", None]
    assert [event.last_event_id for event in events] == ["1", "1", "", ""]


def test_an_id_without_data_counts_for_later_events() -> None:
    assert [(e.id, e.last_event_id) for e in parse(b"id: 7\n\ndata: a\n\n")] == [(None, "7")]


@pytest.mark.parametrize(
    ("line", "retry_ms"), [(b"retry: 3000", 3000), (b"retry: 3s", None), (b"retry: \xc2\xb2", None)]
)
def test_retry_takes_ascii_digits_only(line: bytes, retry_ms: int | None) -> None:
    parser = SSEParser()
    assert parser.push(line + b"\n\n") == []
    assert parser.retry_ms == retry_ms


def test_our_keep_alive_is_no_event_and_hides_none() -> None:
    assert data_of(b": ping\n", b": ping\n", b"data: a\n\n: ping\n") == ["a"]


def test_an_event_is_returned_by_the_push_that_ends_it() -> None:
    parser = SSEParser()
    assert parser.push(b"data: a\r\n") == []
    assert [e.data for e in parser.push(b"\r")] == ["a"]  # without waiting for a line feed that may never come
    assert parser.push(b"\n") == []  # and when it comes it is no second blank line
    assert [e.data for e in parser.push(b"data: b\n\n")] == ["b"]


def test_an_empty_push_does_not_forget_a_carriage_return() -> None:
    assert data_of(b"data: a\r", b"", b"\ndata: b\n\n") == ["a\nb"]


@pytest.mark.parametrize(
    "body", [b"data: 1234567890\n\n", b"data: 12345\ndata: 6789\n\n", b"data: 12345\ndata:", b"1234567890123456"]
)
def test_an_endless_event_is_refused(body: bytes) -> None:
    parser = SSEParser(max_event_bytes=15)
    with pytest.raises(ProtocolError, match="larger than 15 bytes"):
        parser.push(body)


def test_the_size_limit_is_for_one_event_and_not_for_comments() -> None:
    parser = SSEParser(max_event_bytes=15)
    for _ in range(10):
        assert len(parser.push(b": ping\n: ping\n: ping\ndata: 123456789\n\n")) == 1


def parse_by_the_book(body: bytes) -> list[ServerSentEvent]:
    """The standard's algorithm on a whole body: decode, cut into lines, interpret. Slow and plain: the oracle."""
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    lines = re.split("\r\n|\r|\n", text)[:-1]  # what follows the last line end is no line
    events = []
    data: list[str] = []
    event_type, own_id, last_event_id = "", None, ""
    for line in lines:
        if line == "":
            if data:
                events.append(ServerSentEvent("\n".join(data), event_type or "message", own_id, last_event_id))
            data, event_type, own_id = [], "", None
            continue
        if line.startswith(":"):
            continue
        field, value = line.split(":", 1) if ":" in line else (line, "")
        value = value[1:] if value.startswith(" ") else value
        if field == "data":
            data.append(value)
        elif field == "event":
            event_type = value
        elif field == "id" and "\0" not in value:
            own_id = last_event_id = value
    return events


# Pieces that matter to a parser, in any order, so that Hypothesis soon finds the odd combinations.
PIECES = [b"\n", b"\r", b"\r\n", b":", b": ping\n", b" ", b"data", b"data: ", b"id: ", b"id", b"event: ", b"retry: "]
PIECES += [b"1", b"a", b"\x00", b"\xef\xbb\xbf", "é😀\u2028".encode(), b"\xff", b"\xf0\x9f", b"data: x\n\n", b"[DONE]"]
bodies = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=30).map(b"".join)


def split_at(body: bytes, places: list[int]) -> list[bytes]:
    cuts = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in pairwise(cuts)]


@pytest.mark.slow
@settings(deadline=None, max_examples=1000, derandomize=True)
@given(bodies, st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_gives_the_same_events(body: bytes, places: list[int]) -> None:
    expected = parse_by_the_book(body)
    assert parse(body) == expected
    assert parse(*split_at(body, places)) == expected
    assert parse(*(bytes([byte]) for byte in body)) == expected


# --- Streams that end well ---


def test_a_whole_stream(serve: Serve) -> None:
    assert list(serve(says(HELLO)).stream(prompt="Hi")) == [
        Started("0", "job-1", "tiny", "2031-01-01T00:00:00Z"),
        Token("1", "Hel", 0),
        Token("2", "lo", 1),
        Metrics("3", 50.0, 0, 1, 20),
        End("4", 2, 40, "EOS", None, USAGE),
    ]


def test_the_text(serve: Serve) -> None:
    assert serve(says(HELLO)).text(prompt="Hi") == "Hello"


def test_every_kind_of_event(serve: Serve) -> None:
    narration = {"actor": "queue", "action": "wait", "target": None, "human": "queued at 3", "job_id": "job-1"}
    events: list[dict[str, Any]] = [
        STARTED,
        {"type": "narration", **narration},
        token("a b", 0, n=2, logprobs=[-0.5, -1.5]),
        {"type": "weather", "sun": True},
        {**METRICS, "ttft_ms": None, "tokens_per_sec": 1},
        {**END, "stop_reason": "STOP_SEQUENCE", "stop_sequence_matched": "\n\n"},
    ]
    assert list(serve(says(numbered(events))).stream(prompt="Hi"))[1:] == [
        Narration("1", "queue", "wait", None, "queued at 3", "job-1"),
        Token("2", "a b", 0, 2, [-0.5, -1.5]),
        Unknown("3", "weather", {"type": "weather", "sun": True}),
        Metrics("4", 1, 0, 1, None),
        End("5", 2, 40, "STOP_SEQUENCE", "\n\n", USAGE),
    ]


def test_the_request_on_the_wire(serve: Serve) -> None:
    received = []

    def script(peer: Peer) -> None:
        received.append(peer.request)
        says(HELLO)(peer)

    client = serve(script, api_key="secret", headers={"X-Team": "blue"})
    client.text(messages=[{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0, stop=["\n"], narrate=True)
    (request,) = received
    assert request.fields == {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 8,
        "temperature": 0,
        "stop": ["\n"],
        "narrate": True,
    }
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["x-team"] == "blue"


def test_an_address_without_a_scheme(serve: Serve) -> None:
    address = serve(says(HELLO)).base_url.removeprefix("http://")
    with Client(f"{address}/") as client:
        assert client.text(prompt="Hi") == "Hello"


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert serve(says(HELLO)).text(prompt="Hi") == "Hello"


# --- Immediacy: a token is handed on when its bytes arrive ---


class Gates:
    """The script sends piece n only when the client has shown that it has seen what was in the pieces before."""

    def __init__(self, num_pieces: int) -> None:
        self.seen = [threading.Event() for _ in range(num_pieces)]

    def pieces(self, pieces: list[bytes]) -> Iterator[bytes]:
        for n, piece in enumerate(pieces):
            if n > 0:
                assert self.seen[n - 1].wait(WAIT_S), f"piece {n - 1} was not handed on"
            yield piece

    def collect(self, stream: Iterator[Event]) -> list[Event]:
        events = []
        for n, event in enumerate(stream):
            events.append(event)
            self.seen[n].set()
        return events


def test_each_chunk_is_handed_on_before_the_next_is_sent(serve: Serve) -> None:
    frames = numbered([STARTED, *(token(f"{n} ", n) for n in range(20)), END])
    gates = Gates(len(frames))

    def script(peer: Peer) -> None:
        peer.head()
        for piece in gates.pieces(frames):
            peer.chunk(piece)
        peer.last_chunk()

    events = gates.collect(serve(script).stream(prompt="Hi"))
    assert "".join(event.text for event in events if isinstance(event, Token)) == "".join(f"{n} " for n in range(20))


def test_a_part_of_a_chunk_is_handed_on(serve: Serve) -> None:
    """A proxy may gather many events in one chunk and still pass its bytes on as they come."""
    frames = numbered([STARTED, token("a", 0), END])
    gates = Gates(len(frames))

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"%x\r\n" % sum(map(len, frames)))
        for piece in gates.pieces(frames):
            peer.send(piece)
        peer.send(b"\r\n0\r\n\r\n")

    assert len(gates.collect(serve(script).stream(prompt="Hi"))) == 3


def test_a_body_without_chunks_is_handed_on(serve: Serve) -> None:
    """HTTP/1.0, or a proxy in front: the body lasts until the connection is closed."""
    frames = numbered([STARTED, token("a", 0), END])
    gates = Gates(len(frames))

    def script(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for piece in gates.pieces(frames):
            peer.send(piece)

    assert len(gates.collect(serve(script).stream(prompt="Hi"))) == 3


def test_many_events_in_one_chunk_are_all_handed_on(serve: Serve) -> None:
    stream = serve(says([b"".join(HELLO)])).stream(prompt="Hi")
    assert [type(event).__name__ for event in stream] == ["Started", "Token", "Token", "Metrics", "End"]


def test_events_cut_anywhere_are_put_together(serve: Serve) -> None:
    body = b"".join(numbered([STARTED, token("né😀", 0), END]))

    def script(peer: Peer) -> None:
        peer.head()
        for byte in body:
            peer.chunk(bytes([byte]))
        peer.last_chunk()

    assert serve(script).text(prompt="Hi") == "né😀"


def test_keep_alives_are_not_events(serve: Serve) -> None:
    frames = [HELLO[0], b": ping\n", b": ping\n", *HELLO[1:3], b": ping\n", *HELLO[3:]]
    assert serve(says(frames)).text(prompt="Hi") == "Hello"


def test_a_compressed_stream_is_handed_on_too(serve: Serve) -> None:
    """We ask for none, and some proxies do it all the same."""
    frames = numbered([STARTED, token("a", 0), END])
    gates = Gates(len(frames))

    def script(peer: Peer) -> None:
        gzip = zlib.compressobj(wbits=31)
        peer.head(Content_Encoding="gzip")
        for piece in gates.pieces(frames):
            peer.chunk(gzip.compress(piece) + gzip.flush(zlib.Z_SYNC_FLUSH))
        peer.chunk(gzip.flush())
        peer.last_chunk()

    assert len(gates.collect(serve(script).stream(prompt="Hi"))) == 3


# --- Streams that end badly ---


def test_an_error_event_is_raised(serve: Serve) -> None:
    stream = serve(says(numbered([STARTED, token("a", 0), ERROR]))).stream(prompt="Hi")
    assert isinstance(next(stream), Started)
    assert isinstance(next(stream), Token)
    with pytest.raises(GenerationError, match="STALLED: no token for 60 s") as caught:
        next(stream)
    assert (caught.value.code, caught.value.message, caught.value.usage) == ("STALLED", "no token for 60 s", USAGE)


@pytest.mark.parametrize(
    "event", [{"type": "error"}, {"type": "error", "code": "VRAM_OOM", "message": None, "usage": None}]
)
def test_an_error_with_missing_fields_is_still_that_error(serve: Serve, event: dict[str, Any]) -> None:
    with pytest.raises(GenerationError) as caught:
        serve(says(numbered([STARTED, event]))).text(prompt="Hi")
    assert caught.value.code == event.get("code", "UNKNOWN")
    assert caught.value.usage == {}


def cut_chunked(peer: Peer) -> None:
    peer.head()
    peer.chunk(HELLO[0])
    peer.chunk(HELLO[1])


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
        serve(cut_chunked).text(prompt="Hi")


def test_an_empty_stream_is_incomplete(serve: Serve) -> None:
    with pytest.raises(IncompleteStream) as caught:
        serve(says([])).text(prompt="Hi")
    assert caught.value.last_event_id is None


@pytest.mark.slow
def test_silence_reaches_the_idle_timeout(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        cut_chunked(peer)
        assert peer.wait_until_left()

    with pytest.raises(IdleTimeout) as caught:
        list(serve(script, idle_timeout_s=0.3).stream(prompt="Hi"))
    assert caught.value.last_event_id == "1"
    assert isinstance(caught.value, IncompleteStream)  # so that code which resumes needs to know only one


@pytest.mark.slow
def test_silence_instead_of_an_answer_reaches_the_idle_timeout(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        assert peer.wait_until_left()

    with pytest.raises(ConnectionFailed, match=r"no answer within 0\.3 s"):
        serve(script, idle_timeout_s=0.3).text(prompt="Hi")


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
        serve(says([b"".join([*HELLO, HELLO[-1]])])).text(prompt="Hi")


def test_a_lost_done_does_not_undo_the_end(serve: Serve) -> None:
    def cut_behind_the_end(peer: Peer) -> None:
        peer.head()
        peer.chunk(b"".join(HELLO[:-1]))

    assert serve(cut_behind_the_end).text(prompt="Hi") == "Hello"
    assert serve(says(HELLO[:-1])).text(prompt="Hi") == "Hello"


def test_iteration_stops_at_done_and_does_not_wait_for_the_close(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(b"".join(HELLO))
        assert peer.wait_until_left()

    assert serve(script).text(prompt="Hi") == "Hello"


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
        ({**END, "stop_reason": None}, "'stop_reason' of a 'end' event is None"),
        ({**END, "tokens_out": 1.5}, "'tokens_out' of a 'end' event is 1.5"),
    ],
)
def test_an_event_that_the_contract_forbids(serve: Serve, frame: object, complaint: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        serve(says(numbered([STARTED, frame, END]))).text(prompt="Hi")
    assert complaint in str(caught.value)


def test_a_page_instead_of_a_stream(serve: Serve) -> None:
    with pytest.raises(ProtocolError, match="'text/html', not with an event stream"):
        serve(lambda peer: peer.answer(b"<html>", content_type="text/html")).text(prompt="Hi")


# --- Leaving early ---


def started_then_waits(left: threading.Event) -> Script:
    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0])
        assert peer.wait_until_left()
        left.set()

    return script


def test_closing_the_generator_closes_the_connection(serve: Serve) -> None:
    left = threading.Event()
    with closing(serve(started_then_waits(left)).stream(prompt="Hi")) as stream:
        assert isinstance(next(stream), Started)
        assert not left.is_set()
    assert left.wait(WAIT_S)


def test_leaving_the_loop_closes_the_connection(serve: Serve) -> None:
    left = threading.Event()
    for _ in serve(started_then_waits(left)).stream(prompt="Hi"):
        break
    assert left.wait(WAIT_S)


def test_an_error_in_the_callers_loop_closes_the_connection(serve: Serve) -> None:
    left = threading.Event()

    def read(client: Client) -> None:
        for _ in client.stream(prompt="Hi"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read(serve(started_then_waits(left)))
    assert left.wait(WAIT_S)


def test_a_generator_that_never_started_has_sent_nothing() -> None:
    with ScriptedServer({}) as server, Client(server.url) as client:
        client.stream(prompt="Hi").close()
        assert server.requests == []


def test_the_next_request_works_after_an_early_close(serve: Serve) -> None:
    client = serve(says(HELLO))
    for _ in range(3):
        for _ in client.stream(prompt="Hi"):
            break
    assert client.text(prompt="Hi") == "Hello"


# --- Refusals ---


def refuses(status: int, body: object, **headers: str) -> Script:
    return lambda peer: peer.json(body, status, **headers)


def test_an_invalid_request_names_every_field(serve: Serve) -> None:
    errors = [
        {"field": "top_p", "constraint": "(0, 1]", "message": "must be at most 1"},
        {"field": "seed", "constraint": "u64", "message": "must not be negative"},
    ]
    with pytest.raises(InvalidRequest) as caught:
        serve(refuses(400, {"errors": errors})).text(prompt="Hi", top_p=2, seed=-1)
    assert caught.value.errors == [
        FieldError("top_p", "(0, 1]", "must be at most 1"),
        FieldError("seed", "u64", "must not be negative"),
    ]
    assert str(caught.value) == "400: top_p: must be at most 1; seed: must not be negative"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidRequest), (401, Unauthorized), (413, TooLarge), (429, Overloaded), (503, NotReady)],
)
@pytest.mark.parametrize("body", [{}, {"error": {"message": "no"}}, {"message": "no"}, {"error": "no"}, [1]])
def test_each_status_has_its_error_whatever_the_body(
    serve: Serve, status: int, kind: type[RequestRefused], body: object
) -> None:
    with pytest.raises(kind) as caught:
        serve(refuses(status, body)).text(prompt="Hi")
    assert caught.value.status == status
    assert str(caught.value) == f"{status}: {'no' if isinstance(body, dict) and body else 'Refused'}"


@pytest.mark.parametrize("status", [301, 307, 404, 405, 500, 502])
def test_any_other_status_is_refused_too(serve: Serve, status: int) -> None:
    with pytest.raises(RequestRefused) as caught:
        serve(lambda peer: peer.answer(b"<html>", status, "text/html", Location="/elsewhere")).text(prompt="Hi")
    assert (type(caught.value), caught.value.status, caught.value.body) == (RequestRefused, status, {})


@pytest.mark.parametrize(
    ("header", "retry_after_s"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({}, None),
        ({"Retry_After": "soon"}, None),
        ({"Retry_After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
        ({"Retry_After": "Fri, 31 Dec 1999 23:59:59 -0000"}, 0.0),
    ],
)
def test_when_to_come_back(serve: Serve, header: dict[str, str], retry_after_s: float | None) -> None:
    with pytest.raises(Overloaded) as caught:
        serve(refuses(429, {"message": "full"}, **header)).text(prompt="Hi")
    assert caught.value.retry_after_s == retry_after_s


def test_a_refusal_that_is_cut_keeps_its_status(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.head(503, "application/json", Retry_After="2")
        peer.send(b'40\r\n{"state"')

    with pytest.raises(NotReady) as caught:
        serve(script).text(prompt="Hi")
    assert (caught.value.state, caught.value.retry_after_s) == ("", 2.0)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(url) as client, pytest.raises(ConnectionFailed) as caught:
        client.text(prompt="Hi")
    assert str(caught.value) == f"{url}: Connection refused"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (requests.exceptions.ConnectTimeout("x"), "no connection within 1 s"),
        (requests.exceptions.ReadTimeout("x"), "no answer within 2.5 s"),
        (requests.exceptions.InvalidURL("no host"), "no host"),
    ],
)
def test_why_there_was_no_answer(error: requests.exceptions.RequestException, why: str) -> None:
    assert why_unanswered(error, 1.0, 2.5) == why


def test_a_connection_lost_before_the_answer(serve: Serve) -> None:
    with pytest.raises(ConnectionFailed):
        serve(lambda peer: peer.reset()).text(prompt="Hi")


# --- Jobs ---


def test_a_job_from_submit_to_its_events(serve: Serve) -> None:
    submitted = []

    def accept(peer: Peer) -> None:
        submitted.append(peer.request.fields)
        peer.json({"job_id": "job/1", "sse_url": "/v1/jobs/job%2F1/stream"}, 202)

    client = serve(scripts={"POST /v1/jobs": accept, "GET /v1/jobs/job%2F1/stream": says(HELLO)})
    job_id = client.submit(prompt="Hi", max_tokens=3)
    assert submitted == [{"prompt": "Hi", "max_tokens": 3}]
    assert isinstance(list(client.events(job_id))[-1], End)


def test_a_lost_stream_is_taken_up_where_it_broke(serve: Serve) -> None:
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


def test_status_and_cancel(serve: Serve) -> None:
    client = serve(
        scripts={
            "GET /v1/jobs/job-1": lambda peer: peer.json({"state": "RUNNING"}),
            "DELETE /v1/jobs/job-1": lambda peer: peer.json({"state": "FINISHED"}),
        }
    )
    assert client.status("job-1") == {"state": "RUNNING"}
    assert client.cancel("job-1") == {"state": "FINISHED"}


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


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"\xff", b"[" * 5000], ids=repr)
def test_an_answer_that_is_no_json_object(serve: Serve, body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a JSON object"):
        serve(scripts={"GET /v1/jobs/job-1": lambda peer: peer.answer(body)}).status("job-1")


@pytest.mark.parametrize("body", [{}, {"job_id": 7}, {"job_id": ""}])
def test_a_submit_without_a_job_id(serve: Serve, body: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="no job_id"):
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


def test_a_closed_client_keeps_no_connection(serve: Serve) -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        assert peer.wait_until_left()
        left.set()

    with serve(scripts={"GET /v1/jobs/job-1": script}) as client:
        assert client.status("job-1") == {}
        assert not left.is_set()
    assert left.wait(WAIT_S)


# --- Readiness and health ---


def test_ready_and_healthy(serve: Serve) -> None:
    ok: Script = lambda peer: peer.answer(b"ok", content_type="text/plain")
    client = serve(scripts={"GET /ready": ok, "GET /health": ok})
    assert client.ready() == Readiness(True, "READY")
    assert client.health() is True


def test_not_ready_and_not_healthy(serve: Serve) -> None:
    client = serve(
        scripts={
            "GET /ready": refuses(503, {"state": "LOADING"}, Retry_After="5"),
            "GET /health": refuses(503, {"state": "DEAD"}),
        }
    )
    assert client.ready() == Readiness(False, "LOADING", 5.0)
    assert not client.ready()
    assert client.health() is False


# --- The file itself ---


def test_the_client_needs_nothing_but_requests() -> None:
    tree = ast.parse(Path(client_module.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"requests"}


def test_the_idle_timeout_is_longer_than_the_servers_keep_alive() -> None:
    with Client() as client:
        assert client.idle_timeout_s > 10
        assert client.connect_timeout_s > 0


def test_every_public_error_has_one_root() -> None:
    errors = [e for e in vars(client_module).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert all(issubclass(error, EndstopError) and error.__name__ in client_module.__all__ for error in errors)
