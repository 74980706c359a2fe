"""`python -m bench.endings`: how soon a stream begins, a leave is noticed and a probe is answered, over HTTP.

A real server with the embedded model, two slots and a queue of eight, under each worker class. A leave is timed from
the client's close to the first answer that says CANCELLED, and so includes one round trip. One JSON line last.
"""

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests

from worker.spawn import spawned_server

WORKER_CLASSES = ("gevent", "gthread")
NUM_TIMES = 30
LONG = {"prompt": "To be, or not to be", "max_tokens": 900, "temperature": 0}
LONG_PROMPT = {"prompt": "word " * 800, "max_tokens": 100, "temperature": 0}
HALF_A_BODY = b"POST /execute HTTP/1.1\r\nHost: bench\r\nContent-Length: 100\r\n\r\n"
LIMITS = {"ENDSTOP_MAX_SLOTS": "2", "ENDSTOP_MAX_QUEUE": "8", "ENDSTOP_LOG_LEVEL": "warning"}


class Stream:
    """One `/execute`, over a socket of its own."""

    def __init__(self, url: str, fields: dict[str, Any]) -> None:
        body = json.dumps(fields).encode()
        host = urlsplit(url)
        self.socket = socket.create_connection((host.hostname or "", host.port or 80), timeout=60)
        head = f"POST /execute HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self.sent_at = time.perf_counter()
        self.socket.sendall(head + body)
        self.received = b""
        self.read_until(b"job_id")
        self.first_event_s = time.perf_counter() - self.sent_at
        self.read_until(b"\n\n\r\n")
        self.job_id = json.loads(self.received.split(b"data: ")[1].split(b"\n")[0])["job_id"]

    def read_until(self, text: bytes) -> None:
        while text not in self.received:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError(f"the stream ended before {text!r}: {self.received[-300:]!r}")
            self.received += data

    def close(self) -> None:
        self.socket.close()


def main() -> None:
    """Run and print."""
    os.environ.update(LIMITS)
    result: dict[str, Any] = {"bench": "endings", "times": NUM_TIMES}
    for worker_class in WORKER_CLASSES:
        with spawned_server(worker_class) as server:
            result[worker_class] = {name: _times(measure, server.url) for name, measure in MEASURES.items()}
        for name, times in result[worker_class].items():
            print(f"{worker_class:8} {name:40} {times}", file=sys.stderr)
    print(json.dumps(result))


def _times(measure: Callable[[str], Iterator[float]], url: str) -> dict[str, float]:
    times_ms = sorted(seconds * 1e3 for seconds in measure(url))
    p95 = times_ms[int(len(times_ms) * 0.95)]
    return {"p50_ms": round(statistics.median(times_ms), 1), "p95_ms": round(p95, 1), "max_ms": round(times_ms[-1], 1)}


def _first_events(url: str) -> Iterator[float]:
    for _ in range(NUM_TIMES):
        stream = Stream(url, LONG | {"max_tokens": 4})
        yield stream.first_event_s
        stream.read_until(b"[DONE]")
        stream.close()


def _first_events_when_full(url: str) -> Iterator[float]:
    with _occupied(url, 2):
        for _ in range(NUM_TIMES):
            stream = Stream(url, LONG)
            yield stream.first_event_s
            _leave(url, stream)


def _leave(url: str, stream: Stream) -> float:
    """Close the connection; the time until the server says that the job is over."""
    with requests.Session() as session:
        session.get(f"{url}/health", timeout=60)  # a connection that is open already
        left_at = time.perf_counter()
        stream.close()
        while True:
            state = session.get(f"{url}/v1/jobs/{stream.job_id}", timeout=60).json()["state"]
            if state not in ("QUEUED", "RUNNING"):
                assert state == "CANCELLED", state
                return time.perf_counter() - left_at


def _leaves_decoding(url: str) -> Iterator[float]:
    for _ in range(NUM_TIMES):
        stream = Stream(url, LONG)
        stream.read_until(b'"i":5')
        yield _leave(url, stream)


def _leaves_prefilling(url: str) -> Iterator[float]:
    for _ in range(NUM_TIMES):
        yield _leave(url, Stream(url, LONG_PROMPT))


def _leaves_queued(url: str) -> Iterator[float]:
    for _ in range(NUM_TIMES):
        with _occupied(url, 2):
            yield _leave(url, Stream(url, LONG))


@contextmanager
def _occupied(url: str, num_streams: int) -> Iterator[None]:
    """So many long streams are open, and are left at the end."""
    with ExitStack() as stack:
        for _ in range(num_streams):
            stream = Stream(url, LONG)
            stack.callback(_leave, url, stream)
        yield


@contextmanager
def _crowd(url: str, size: int) -> Iterator[None]:
    host = urlsplit(url)
    with ExitStack() as stack:
        for _ in range(size):
            client = socket.create_connection((host.hostname or "", host.port or 80), timeout=60)
            stack.callback(client.close)
            client.sendall(HALF_A_BODY)
        yield


def _probes(path: str) -> Callable[[str], Iterator[float]]:
    def measure(url: str) -> Iterator[float]:
        for _ in range(NUM_TIMES):
            with ExitStack() as stack:
                streams = [Stream(url, LONG) for _ in range(10)]
                for stream in streams:
                    stack.callback(stream.close)
                stack.enter_context(_crowd(url, 60))
                began = time.perf_counter()
                requests.get(url + path, timeout=60)
                yield time.perf_counter() - began
            for stream in streams:
                _leave(url, stream)

    return measure


MEASURES: dict[str, Callable[[str], Iterator[float]]] = {
    "first event, idle": _first_events,
    "first event, every slot taken": _first_events_when_full,
    "a leave while decoding": _leaves_decoding,
    "a leave in a prefill of 800 tokens": _leaves_prefilling,
    "a leave from the queue": _leaves_queued,
    "/health with everything taken": _probes("/health"),
    "/ready with everything taken": _probes("/ready"),
}


if __name__ == "__main__":
    main()
