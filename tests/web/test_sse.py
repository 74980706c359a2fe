"""The bytes of a stream, from readers and engines that only follow a script."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from tests.support.engines import wait_until
from worker.errors import Overloaded
from worker.events import End, StopReason, Token, Usage
from worker.job import JobStatus
from worker.web.sse import DONE, PING, OpenStreams, collect, stream_job

KEEP_ALIVE_S = 10.0
TOKEN = (1, Token("a", 0))
END = (2, End(StopReason.EOS, Usage(1, 1), 0.0))


class FakeJob:
    """Notes who cancels."""

    id = "job"
    ended_at: float | None = None

    def __init__(self) -> None:
        self.cancelled_by: list[str] = []

    def cancel(self, by: str) -> None:
        self.cancelled_by.append(by)

    def status(self) -> JobStatus:
        return JobStatus("RUNNING", Usage(1, 1), None)


class FakeReader:
    """Gives out batches: an empty one is a time that was over, None a client that has left."""

    def __init__(self, *batches: Any) -> None:
        self.job = FakeJob()
        self.jobs = [self.job]
        self.is_done = False
        self.is_closed = False
        self.timeouts: list[float] = []
        self._batches = list(batches)

    def read(self, timeout_s: float) -> list[Any]:
        self.timeouts.append(timeout_s)
        assert self._batches, "read behind the end"
        batch = self._batches.pop(0)
        self.is_closed = batch is None
        self.is_done = batch is not None and any(isinstance(event, End) for _, event in batch)
        return batch or []

    def close(self) -> None:
        self.is_closed = True


class FakeEngine:
    """Counts how often it is asked whether it lives."""

    num_looks = 0

    def abandon(self) -> None:
        self.num_looks += 1


class Numbers:
    """A wire format of event numbers. Has nothing for those in `silent`, and fails for those in `broken`."""

    done = DONE

    def __init__(self, silent: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> None:
        self._silent = silent
        self._broken = broken

    def encode(self, number: int, event: Any) -> bytes:
        if number in self._broken and not hasattr(event, "code"):
            raise ValueError("a bug")
        return b"" if number in self._silent else b"%d%s\n\n" % (number, getattr(event, "code", "").encode())


def stream(reader: Any, translator: Numbers | None = None, engine: Any = None) -> Iterator[bytes]:
    looked_at: Any = engine or FakeEngine()
    return stream_job(reader, translator or Numbers(), looked_at, KEEP_ALIVE_S)


def test_the_end_is_followed_by_done_and_by_nothing() -> None:
    assert list(stream(FakeReader([TOKEN], [END]))) == [b"1\n\n", b"2\n\n", DONE]


def test_a_ping_is_one_line() -> None:
    assert PING.startswith(b":")
    assert PING.count(b"\n") == 1
    assert PING.endswith(b"\n")


def test_a_ping_comes_before_the_promise_is_broken() -> None:
    """The wake-up and the write take a moment too."""
    reader = FakeReader([], [END])
    assert list(stream(reader)) == [PING, b"2\n\n", DONE]
    assert all(timeout_s < KEEP_ALIVE_S for timeout_s in reader.timeouts)


def test_each_ping_looks_whether_the_engine_lives() -> None:
    """Should the watchdog be gone with the engine, the stream ends all the same."""
    engine: Any = FakeEngine()
    list(stream(FakeReader([TOKEN], [], [], [END]), engine=engine))
    assert engine.num_looks == 2


def test_who_has_had_the_end_gets_no_ping() -> None:
    reader = FakeReader([], [END])
    reader.job.ended_at = 1.0
    assert PING not in list(stream(reader))


def test_a_client_that_has_left_is_cut_and_not_told_an_end() -> None:
    chunks = stream(FakeReader([TOKEN], None))
    assert next(chunks) == b"1\n\n"
    with pytest.raises(ConnectionResetError):
        next(chunks)


def test_an_event_that_the_format_does_not_show_is_a_sign_of_life() -> None:
    assert list(stream(FakeReader([TOKEN], [END]), Numbers(silent=(1,)))) == [PING, b"2\n\n", DONE]


def test_an_event_that_cannot_be_encoded_ends_the_stream_and_the_work() -> None:
    reader = FakeReader([TOKEN], [END])
    assert list(stream(reader, Numbers(broken=(1,)))) == [b"1INFERENCE_FAILED\n\n" + DONE]
    assert reader.job.cancelled_by == ["engine"]


def test_who_waits_for_the_whole_looks_whether_the_engine_lives() -> None:
    engine: Any = FakeEngine()
    reader: Any = FakeReader([TOKEN], [], [END])
    assert collect(reader, engine, KEEP_ALIVE_S) == [TOKEN, END]
    assert engine.num_looks == 1


def test_who_has_left_does_not_wait_for_the_whole() -> None:
    engine: Any = FakeEngine()
    reader: Any = FakeReader([TOKEN], None)
    assert collect(reader, engine, KEEP_ALIVE_S) == [TOKEN]


# ---- the readers that are open


class Connection:
    """A request over a real socket, for those who look at it."""

    def __init__(self) -> None:
        self.ours, self.peer = socket.socketpair()
        self._context = Flask("test").test_request_context(environ_overrides={"gunicorn.socket": self.ours})

    def __enter__(self) -> "Connection":
        self._context.push()
        return self

    def __exit__(self, *args: object) -> None:
        self._context.pop()
        self.ours.close()
        self.peer.close()


def test_places_are_bounded_in_number() -> None:
    streams = OpenStreams(1)
    place = streams.reserve()
    for ask in (streams.reserve, streams.check_room):
        with pytest.raises(Overloaded, match="ENDSTOP_MAX_SLOTS") as refusal:
            ask()
        assert refusal.value.retry_after_s
    assert streams.num_open == 1
    place.close()
    assert streams.num_open == 0
    streams.check_room()


def test_when_to_come_back_is_how_long_a_place_has_lately_been_taken() -> None:
    streams = OpenStreams(1)
    streams.reserve()
    streams._service_rate._working_since = time.monotonic() - 30
    with pytest.raises(Overloaded) as refusal:
        streams.reserve()
    assert refusal.value.retry_after_s in (30, 31)


def test_who_fails_to_read_frees_its_place() -> None:
    streams = OpenStreams(1)
    with pytest.raises(ValueError, match="no job"), streams.reserve():
        raise ValueError("no job")
    assert streams.num_open == 0
    with streams.reserve() as place:
        pass
    assert streams.num_open == 1, "the answer is still to be read"
    place.close()


def test_a_reader_is_counted_out_once() -> None:
    streams = OpenStreams(2)
    one: Any = FakeReader()
    other: Any = FakeReader()
    place, other_place = streams.reserve(), streams.reserve()
    with Connection(), Connection():
        place.take(one)
        other_place.take(other)
        place.close()
        place.close()
        assert (streams.num_open, one.is_closed, other.is_closed) == (1, True, False)
        other_place.close()
        assert streams.num_open == 0


def test_the_watch_ends_before_the_reader_does() -> None:
    """Behind the reader's end the descriptor is the server's, which may give it to another client."""
    streams = OpenStreams(1)
    watched: list[bool] = []

    class Looking(FakeReader):
        def close(self) -> None:
            watched.append(fd in streams._watcher._callbacks)

    with Connection() as connection:
        fd = connection.ours.fileno()
        reader: Any = Looking()
        place = streams.reserve()
        place.take(reader)
        assert fd in streams._watcher._callbacks
        place.close()
    assert watched == [False]


def test_a_client_that_leaves_closes_its_reader() -> None:
    streams = OpenStreams(1)
    reader: Any = FakeReader()
    with Connection() as connection:
        place = streams.reserve()
        place.take(reader)
        connection.peer.close()
        wait_until(lambda: bool(reader.is_closed))
        place.close()
    assert streams.num_open == 0
