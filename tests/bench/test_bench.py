"""The benchmark measures what it says: streams read off the wire, and medians that tell when not to trust them."""

import json
import threading
from dataclasses import replace
from socket import create_server
from typing import Any

import pytest

from bench.report import Measurement, doubts, markdown, medians
from worker.load import LoadFailed, Stream, drive

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def chunk(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(content: str, finish_reason: str | None = None) -> bytes:
    return chunk({"choices": [{"delta": {"content": content}, "finish_reason": finish_reason}]})


ANSWER = HEAD + delta("") + delta("a") + delta("b") + delta("", "length") + chunk({"usage": {"completion_tokens": 2}})


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answer_is_read_however_it_is_cut(size: int) -> None:
    stream = Stream(socket=None, sent_at=0.0)  # type: ignore[arg-type]
    for i in range(0, len(ANSWER), size):
        stream.feed(ANSWER[i : i + size], now=1.0 + i)
    assert len(stream.text_at) == 2
    assert stream.text_at[0] < stream.text_at[1] or size == 1000
    assert (stream.num_tokens, stream.finish_reason) == (2, "length")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 503 SERVICE UNAVAILABLE\r\n\r\n", "503"),
        (HEAD + chunk({"error": {"message": "no memory"}}), "no memory"),
        (HEAD + delta("a"), "without a finish_reason"),
        (HEAD + delta("a", "length") + chunk({"usage": {"completion_tokens": 3}}), "has 3 tokens"),
        (HEAD + delta("a", "stop") + chunk({"usage": {"completion_tokens": 2}}), "ended with 'stop'"),
    ],
)
def test_an_answer_that_is_not_whole_is_no_measurement(answer: bytes, says: str) -> None:
    with create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        try:
            with pytest.raises(LoadFailed, match=says):
                drive(f"http://127.0.0.1:{listener.getsockname()[1]}", [{}], num_tokens=2, limit_s=10)
        finally:
            server.join()


ONE = Measurement("m", "endstop-gevent", 4, 0, 100.0, 1.0, 2.0, 3.0, 4.0, 1.0, 50.0, 0.0)


def test_medians_and_ratios_are_of_the_same_load() -> None:
    rounds = [replace(ONE, tokens_per_s=rate, round=i) for i, rate in enumerate((90.0, 100.0, 110.0))]
    table = medians([*rounds, replace(ONE, server="naive", tokens_per_s=50.0), replace(ONE, num_streams=1)])
    assert table["m", 4, "endstop-gevent"]["tokens_per_s"] == 100
    assert "| 2.00x |" in markdown(table)
    assert doubts(table) == []


def test_a_noisy_run_says_so() -> None:
    spread = [replace(ONE, tokens_per_s=rate) for rate in (100.0, 140.0)]
    assert "differ by a factor of 1.4" in doubts(medians(spread))[0]
    assert "others took 0.5 cores" in doubts(medians([replace(ONE, foreign=0.5)]))[0]
