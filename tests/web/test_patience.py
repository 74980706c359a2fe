"""Clients that are slow to speak or slow to listen cost their own connection and nobody else anything."""

import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from tests.support.processes import cpu_s, num_threads, workers_of
from tests.support.servers import WORKER_CLASSES, RawStream, Server, assert_ended_once, events_of, running_server
from worker.web.gthread_worker import MAX_UPLOADS, EndstopThreadWorker

pytestmark = pytest.mark.slow

PROMPT = {"prompt": "hello", "max_tokens": 5, "temperature": 0}
HALF_A_HEAD = b"POST /execute HTTP/1.1\r\nHost: te"
HALF_A_LONG_HEAD = HALF_A_HEAD + b"st\r\n" + b"".join(b"A%d: %s\r\n" % (n, b"a" * 7000) for n in range(12)) + b"B: "
NO_BODY = b"POST /execute HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n"
CHUNKS = b"POST /execute HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
EXPECTING = b"POST /execute HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
HALF_A_PROBE = b"GET /health HTTP/1.1\r\nHost: test\r\n"
SLOW_S = 3.0
PROBE_S = 4.0  # a bound for a busy machine; below every limit that would free a thread here


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def slow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives bodies a minute, and readers three seconds; 20 threads under gthread."""
    limits = {
        "ENDSTOP_MAX_SLOTS": "2",
        "ENDSTOP_MAX_QUEUE": "2",
        "ENDSTOP_KEEP_ALIVE_S": "0.2",
        "ENDSTOP_MAX_CONTEXT": "65536",
        "ENDSTOP_BODY_TIMEOUT_S": "60",
        "ENDSTOP_SLOW_CONSUMER_S": str(SLOW_S),
    }
    folder: Path = tmp_path_factory.mktemp("server")
    with running_server(folder, request.param, env=limits) as server:
        yield server


@contextlib.contextmanager
def crowd(server: Server, size: int, says: bytes) -> Iterator[list[socket.socket]]:
    """Connections that say this much and no more."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(size):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            client.sendall(says)
            clients.append(client)
        yield clients


def probes_answer(server: Server) -> None:
    for path, status in (("/health", 200), ("/ready", 503)):
        began = time.monotonic()
        assert requests.get(server.url + path, timeout=30).status_code == status
        assert time.monotonic() - began < PROBE_S, f"{path} had to wait for somebody else"


def test_probes_are_answered_with_every_slot_place_and_thread_taken(slow: Server) -> None:
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(RawStream(slow, "POST", "/execute", PROMPT)) for _ in range(4)]
        for stream in streams:
            stream.read_until(b"started")
        with crowd(slow, 60, NO_BODY), crowd(slow, 60, HALF_A_HEAD), crowd(slow, 60, b""):
            probes_answer(slow)
        slow.allow(100)
        for stream in streams:
            assert assert_ended_once(stream.read_all())["type"] == "end"
    slow.post("/gate/close")


def test_a_crowd_that_says_nothing_takes_no_thread(slow: Server) -> None:
    before = num_threads(slow)
    with crowd(slow, 60, b""):
        slow.allow(100)
        with RawStream(slow, "POST", "/execute", PROMPT) as stream:
            assert_ended_once(stream.read_all())
        assert num_threads(slow) <= before + 2


def answers_in_time(server: Server, method: str, path: str, status: int) -> None:
    began = time.monotonic()
    assert requests.request(method, server.url + path, timeout=30).status_code == status
    assert time.monotonic() - began < PROBE_S, f"{method} {path} had to wait for somebody else"


@pytest.mark.parametrize("says", [NO_BODY, CHUNKS, EXPECTING, HALF_A_PROBE], ids=["body", "chunks", "expect", "probe"])
def test_a_crowd_in_the_middle_of_a_request_holds_up_nobody(slow: Server, says: bytes) -> None:
    job = slow.post("/v1/jobs", PROMPT).json()["job_id"]
    with crowd(slow, 40, says):
        answers_in_time(slow, "GET", "/health", 200)
        answers_in_time(slow, "HEAD", "/health", 200)
        answers_in_time(slow, "GET", f"/v1/jobs/{job}", 200)
        answers_in_time(slow, "DELETE", f"/v1/jobs/{job}", 200)
        answers_in_time(slow, "POST", "/v1/jobs", 400)


def test_bodies_that_only_a_thread_can_read_are_limited(tmp_path: Path) -> None:
    """And whoever is refused is told so, in a way that every client understands."""
    with running_server(tmp_path, "gthread") as server, crowd(server, MAX_UPLOADS, CHUNKS) as uploads:
        server.wait_for(lambda: num_threads(server) > MAX_UPLOADS, "their threads")
        with crowd(server, 1, CHUNKS) as (client,):
            answer = b""
            while data := client.recv(65536):
                answer += data
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"Retry-After: " in answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "OVERLOADED"
        for client in uploads:  # as long as they wait for the answer they are no uploads any more
            client.sendall(b"2\r\n{}\r\n0\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
        with crowd(server, 1, CHUNKS + b"2\r\n{}\r\n0\r\n\r\n") as (client,):
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_a_stream_is_no_upload_any_more(tmp_path: Path) -> None:
    body = json.dumps(PROMPT).encode()
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    with running_server(tmp_path, "gthread") as server, crowd(server, MAX_UPLOADS + 1, CHUNKS + chunks) as clients:
        for client in clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_bodies_that_come_all_at_once_are_none_too_many(slow: Server) -> None:
    """In two pieces each, as most clients send them, and one with a body that the loop does not wait for."""
    large = b'{"prompt": "' + b"a" * 200_000 + b'", "nope": 1}'
    with crowd(slow, 60, NO_BODY.replace(b"100", b"2")) as clients, socket.socket() as one:
        one.connect(("127.0.0.1", slow.port))
        one.sendall(NO_BODY.replace(b"100", b"%d" % len(large)))
        one.sendall(large)
        for client in clients:
            client.sendall(b"{}")
        for client in [*clients, one]:
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_more_half_sent_bodies_than_connections(slow: Server) -> None:
    with crowd(slow, 1050, NO_BODY):
        for _ in range(3):
            answers_in_time(slow, "GET", "/health", 200)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_process_without_a_free_descriptor_keeps_its_streams(tmp_path: Path, worker_class: str) -> None:
    with (
        running_server(tmp_path, worker_class) as server,
        RawStream(server, "POST", "/execute", PROMPT | {"max_tokens": 60}) as stream,
    ):
        server.allow("pace/50")
        stream.read_until(b'"type":"token"')
        (worker,) = workers_of(server)
        descriptors = Path(f"/proc/{worker}/fd")
        before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        num_open = max(int(entry.name) for entry in descriptors.iterdir()) + 1
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (num_open + 2, before[1]))
        with crowd(server, 12, b""):
            began_s = cpu_s(worker)
            assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
            assert cpu_s(worker) - began_s < 2.0, "it is busy with not accepting"
        resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
        answers_in_time(server, "GET", "/health", 200)
        assert workers_of(server) == [worker]
        if worker_class == "gthread":
            assert server.log().count("a connection has to wait") == 1


@pytest.mark.parametrize("says", [HALF_A_HEAD, HALF_A_LONG_HEAD], ids=["short", "long"])
def test_a_head_that_does_not_come_is_given_up(slow: Server, says: bytes) -> None:
    """Also when a byte of it comes now and then."""
    with crowd(slow, 1, says) as (client,):
        client.settimeout(0.5)
        began = time.monotonic()
        while True:
            assert time.monotonic() - began < 30, "it is still waited for"
            try:
                client.sendall(b"s")
                if client.recv(1000) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break


def test_a_body_that_trickles_is_given_up(tmp_path: Path) -> None:
    """Each piece comes quickly, and the whole never."""
    for worker_class in WORKER_CLASSES:
        with (
            running_server(tmp_path, worker_class, env={"ENDSTOP_BODY_TIMEOUT_S": "2"}) as server,
            crowd(server, 1, NO_BODY) as (client,),
        ):
            client.settimeout(0.2)
            answer = b""
            for _ in range(60):
                try:
                    client.sendall(b" ")
                    answer += client.recv(1000)
                except TimeoutError:
                    continue
                if answer:
                    break
            while not answer.endswith(b"}\n"):
                answer += client.recv(1000)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "BODY_TIMEOUT"


class Deaf(RawStream):
    """A client that does not read, with little room in its own kernel."""

    def __init__(self, server: Server, method: str, path: str, body: object = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", server.port))
        head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(data)}\r\n\r\n"
        self.socket.sendall(head.encode() + data)
        self.is_eof = self.is_complete = False
        self._deadline = time.monotonic() + 60
        self._head = None
        self._received = self._body = b""


# At a millisecond per token: some seconds until the kernels' buffers are full, and enough left for the limit to pass.
LONG = {"prompt": "hello", "max_tokens": 60_000, "temperature": 0}


def num_slow(server: Server) -> int:
    count: int = server.stats()["outcomes"].get("error{SLOW_CONSUMER}", 0)
    return count


def test_a_client_that_stops_reading_frees_its_slot_and_may_still_read_its_ending(slow: Server) -> None:
    before = num_slow(slow)
    with Deaf(slow, "POST", "/execute", LONG) as deaf:
        slow.allow("pace/1")
        slow.wait_for(lambda: num_slow(slow) == before + 1, "the end of the slow consumer")
        assert slow.stats()["running"] == 0
        terminal = assert_ended_once(deaf.read_all())
        assert terminal["code"] == "SLOW_CONSUMER"
        assert deaf.is_complete
        tokens = [event for event in events_of(deaf._body)[:-1] if event["type"] == "token"]
        text = "".join(token["t"] for token in tokens)
        letters = "abcdefghijklmnopqrstuvwxyz"
        assert text == (letters * (len(text) // 26 + 1))[: len(text)], "nothing was dropped, nothing reordered"
        assert terminal["usage"]["completion_tokens"] >= len(text)
        assert any(token.get("n", 1) > 100 for token in tokens), "what waited was merged"
    slow.post("/gate/close")


@pytest.mark.parametrize("kind", ["execute", "job"])
def test_a_client_that_never_reads_again_is_cut(slow: Server, kind: str) -> None:
    """It ties up a thread or a greenlet for twice the limit, its slot for once, and a job of its own goes on."""
    slow.allow("pace/1" if kind == "execute" else "open")
    if kind == "execute":
        deaf = Deaf(slow, "POST", "/execute", LONG)
    else:
        job = slow.post("/v1/jobs", LONG).json()
        deaf = Deaf(slow, "GET", job["sse_url"])
    with deaf:
        slow.wait_for(lambda: slow.stats()["streams"] == 1, "the stream")
        slow.wait_for(lambda: slow.stats()["streams"] == 0, "the end of the connection")
        if kind == "job":
            slow.wait_for(lambda: slow.get(f"/v1/jobs/{job['job_id']}").json()["state"] == "ENDED", "the job's end")
        deaf.read_all()
        assert not deaf.is_complete, "a body that was cut must not look whole"
    assert "Traceback" not in slow.log()
    slow.post("/gate/close")


def test_a_worker_that_leaves_does_not_wait_for_a_first_byte() -> None:
    """Whoever has not said anything yet is as idle as one between two requests."""
    worker: Any = object.__new__(EndstopThreadWorker)
    worker.keepalived_conns = []
    worker.arriving = [SimpleNamespace(timeout=100.0), SimpleNamespace(timeout=1.0)]
    worker._cap_keepalive(5.0)
    assert [conn.timeout for conn in worker.arriving] == [5.0, 1.0]
