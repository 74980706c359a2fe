"""Streams that end well, and that a token is handed on when its bytes arrive."""

import threading
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.client.conftest import COUNTS, Serve
from tests.scripted_server import (
    END,
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
    token,
)
from worker.client import (
    Client,
    End,
    Event,
    Metrics,
    Narration,
    Started,
    Token,
    TokenLogprob,
    Unknown,
    Usage,
)


def test_a_whole_stream(serve: Serve) -> None:
    assert list(serve(says(HELLO)).stream(prompt="Hi")) == [
        Started("0", "job-1", "tiny", "2031-01-01T00:00:00Z"),
        Token("1", "Hel", 0),
        Token("2", "lo", 1),
        Metrics("3", 50.0, 0, 1, 20),
        End("4", 2, 40, "EOS", None, COUNTS),
    ]


def test_the_text(serve: Serve) -> None:
    assert serve(says(HELLO)).generate(prompt="Hi").text == "Hello"


def test_every_kind_of_event(serve: Serve) -> None:
    like = {"token": "a", "logprob": -0.5, "bytes": [97]}
    likely = TokenLogprob("a", -0.5, b"a")
    narration = {"actor": "queue", "action": "wait", "target": None, "human": "queued at 3", "job_id": "job-1"}
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 1}}
    events: list[dict[str, Any]] = [
        STARTED,
        {"type": "narration", **narration},
        token("a b", 0, n=2, logprobs=[like | {"top_logprobs": [like]}, like]),
        {"type": "weather", "sun": True},
        {**METRICS, "ttft_ms": None, "tokens_per_sec": 1},
        {**END, "stop_reason": "STOP_SEQUENCE", "stop_sequence_matched": "\n\n", "usage": usage},
    ]
    assert list(serve(says(numbered(events))).stream(prompt="Hi"))[1:] == [
        Narration("1", "queue", "wait", None, "queued at 3", "job-1"),
        Token("2", "a b", 0, 2, (TokenLogprob("a", -0.5, b"a", (likely,)), likely)),
        Unknown("3", "weather", {"type": "weather", "sun": True}),
        Metrics("4", 1, 0, 1, None),
        End("5", 2, 40, "STOP_SEQUENCE", "\n\n", Usage(3, 2, 5, 1)),
    ]


def test_the_request_on_the_wire(serve: Serve) -> None:
    received = []

    def script(peer: Peer) -> None:
        received.append(peer.request)
        says(HELLO)(peer)

    client = serve(script, api_key="secret", headers={"X-Team": "blue"})
    client.generate(
        messages=[{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0, stop=["\n"], narrate=True
    )
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
        assert client.generate(prompt="Hi").text == "Hello"


def test_a_type_may_be_written_with_capitals(serve: Serve) -> None:
    script: Script = lambda peer: peer.answer(b"".join(HELLO), content_type="Text/Event-Stream; Charset=UTF-8")
    assert serve(script).generate(prompt="Hi").text == "Hello"


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert serve(says(HELLO)).generate(prompt="Hi").text == "Hello"


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

    assert serve(script).generate(prompt="Hi").text == "né😀"


def test_keep_alives_are_not_events(serve: Serve) -> None:
    frames = [HELLO[0], b": ping\n", b": ping\n", *HELLO[1:3], b": ping\n", *HELLO[3:]]
    assert serve(says(frames)).generate(prompt="Hi").text == "Hello"


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
    assert client.generate(prompt="Hi").text == "Hello"
