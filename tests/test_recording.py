"""Recording: every byte that came, when it came, and how it ended."""

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.scripted_server import HELLO, WAIT_S, Peer, Script, ScriptedServer, says
from worker import recording as recording_module
from worker.client import Client
from worker.recording import Recording, longest_silence_s, record

HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}


def recorded(frames: Iterable[bytes], *, ending: str = "eof", detail: str = "", **changes: Any) -> Recording:
    """A recording of these frames, one read each, 1 ms apart."""
    reads = [(0.001 * n, frame) for n, frame in enumerate(frames, 1)]
    return replace(Recording(200, HEADERS, reads, ending, 0.001 * (len(reads) + 1), detail), **changes)


def recording_of(script: Script, limit_s: float = WAIT_S) -> tuple[Recording, list[str]]:
    shown: list[str] = []
    with ScriptedServer({"POST /execute": script}) as server, Client(server.url) as client:
        recording = record(
            client.session,
            "POST",
            f"{server.url}/execute",
            {"prompt": "Hi"},
            limit_s=limit_s,
            show=lambda event: shown.append(event.data),
        )
    return recording, shown


def test_a_recording_has_every_byte_and_a_clean_end() -> None:
    recording, shown = recording_of(says(HELLO))
    assert (recording.status, recording.headers["content-type"]) == (200, "text/event-stream")
    assert b"".join(data for _, data in recording.reads) == b"".join(HELLO)
    assert (recording.ending, recording.detail) == ("eof", "")
    assert 0 < recording.reads[0][0] <= recording.reads[-1][0] <= recording.ended_at_s < WAIT_S
    assert len(shown) == len(HELLO)


def test_events_are_shown_as_they_come() -> None:
    seen = [threading.Event() for _ in HELLO]

    def script(peer: Peer) -> None:
        peer.head()
        for n, frame in enumerate(HELLO):
            assert n == 0 or seen[n - 1].wait(WAIT_S)
            peer.chunk(frame)
        peer.last_chunk()

    count = iter(seen)
    with ScriptedServer({"POST /execute": script}) as server, Client(server.url) as client:
        url = f"{server.url}/execute"
        recording = record(client.session, "POST", url, {}, limit_s=WAIT_S, show=lambda _: next(count).set())
    assert recording.ending == "eof"
    assert len({at_s for at_s, _ in recording.reads}) == len(HELLO)


def test_a_cut_stream_is_recorded_as_cut() -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0])

    recording, _ = recording_of(script)
    assert (recording.ending, recording.detail) == ("cut", "the connection was cut in the middle of the stream")
    assert [data for _, data in recording.reads] == [HELLO[0]]


def test_a_refusal_is_recorded_with_its_body() -> None:
    recording, _ = recording_of(lambda peer: peer.json({"state": "LOADING"}, 503))
    assert recording.status == 503
    assert recording.reads[0][1] == b'{"state": "LOADING"}'


def test_nobody_listens() -> None:
    with ScriptedServer({}) as server:
        url = server.url
    with Client(url) as client:
        recording = record(client.session, "POST", url, {}, limit_s=WAIT_S)
    assert (recording.status, recording.detail) == (None, "Connection refused")


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2"])
def test_the_limit_holds_wherever_the_server_stops(first: bytes) -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(first)
        assert peer.wait_until_left()  # the checker does not leave its connection behind
        left.set()

    recording, _ = recording_of(script, limit_s=0.3)
    assert (recording.ending, recording.ended_at_s) == ("stopped", 0.3) or recording.status is None
    assert recording.detail in ("it had not ended within 0.3 s", "no answer within 0.3 s")
    assert left.is_set()


@pytest.mark.slow
def test_the_limit_holds_while_the_server_talks() -> None:
    enough = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        while not enough.is_set():
            peer.chunk(b": ping\n")

    recording, _ = recording_of(script, limit_s=0.3)
    enough.set()
    assert (recording.ending, recording.ended_at_s) == ("stopped", 0.3)
    assert recording.reads[-1][0] <= 0.3


def test_the_checker_leaves_when_it_has_seen_enough() -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0])
        peer.chunk(HELLO[1])
        assert peer.wait_until_left()
        left.set()

    with ScriptedServer({"POST /execute": script}) as server, Client(server.url) as client:
        url = f"{server.url}/execute"
        recording = record(client.session, "POST", url, {}, limit_s=WAIT_S, leave_at=lambda event: "Hel" in event.data)
    assert (recording.ending, recording.detail) == ("left", "the checker left it")
    assert b"".join(data for _, data in recording.reads) == HELLO[0] + HELLO[1]
    assert left.is_set()


def test_a_request_may_be_no_json() -> None:
    with ScriptedServer({"POST /execute": lambda peer: peer.json({})}) as server, Client(server.url) as client:
        headers = {"Last-Event-ID": "7"}
        record(client.session, "POST", f"{server.url}/execute", body=b'{"a"', headers=headers, limit_s=WAIT_S)
        (request,) = server.requests
    assert request.body == b'{"a"'
    assert request.headers["last-event-id"] == "7"


def test_a_flood_is_not_recorded_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "MAX_RECORDED_BYTES", 1000)

    def script(peer: Peer) -> None:
        peer.head()
        while True:  # ends with the connection
            peer.chunk(b"data: xxxxxxxxxxxxxxxxxxxx\n\n")

    recording, _ = recording_of(script)
    assert (recording.ending, recording.detail) == ("stopped", "it is longer than 1000 bytes")


def test_a_stopped_checker_leaves_no_connection_behind() -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0])
        assert peer.wait_until_left()
        left.set()

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with ScriptedServer({"POST /execute": script}) as server, Client(server.url) as client:
        url = f"{server.url}/execute"
        with pytest.raises(KeyboardInterrupt):
            record(client.session, "POST", url, {}, limit_s=WAIT_S, show=interrupt)
    assert left.is_set()


def test_silence_is_measured_from_the_request_to_the_end() -> None:
    reads = [(3.0, b"x"), (4.0, b"x")]
    assert longest_silence_s(recorded([], reads=reads, ended_at_s=6.0)) == 3.0
    assert longest_silence_s(recorded([], reads=reads, ended_at_s=8.0)) == 4.0
    assert longest_silence_s(recorded([], reads=[], ended_at_s=2.0)) == 2.0
