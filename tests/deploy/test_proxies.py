"""nginx and Caddy with the files that are shipped, in front of real servers: a stream is a stream behind them too."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.proxies import PROXIES, nginx_conf, replaced, running_proxy
from tests.support.servers import (
    ANSWER_S,
    WORKER_CLASSES,
    RawStream,
    Server,
    assert_ended_once,
    running_server,
)
from worker.settings import ROOT, Settings

pytestmark = pytest.mark.slow

PROMPT = {"prompt": "hello", "max_tokens": 5, "temperature": 0}
LONG = PROMPT | {"max_tokens": 200}


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def gated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model computes when the test says so."""
    limits = {"ENDSTOP_KEEP_ALIVE_S": "0.2", "ENDSTOP_MAX_CONTEXT": "256"}
    with running_server(tmp_path_factory.mktemp("server"), request.param, env=limits) as server:
        yield server


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest, gated: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_proxy(tmp_path_factory.mktemp("proxy"), request.param, gated.port) as proxy:
        yield proxy


def test_each_token_and_each_ping_arrives_when_it_is_sent(gated: Server, proxy: Server) -> None:
    with RawStream(proxy, "POST", "/execute", PROMPT, Accept_Encoding="gzip") as stream:
        assert b'"type":"started"' in stream.read_until(b": ping\n: ping\n: ping\n")
        for letter in b"abcd":
            gated.allow(1)
            body = stream.read_until(b'"t":"%c"' % letter)
            assert b'"t":"%c"' % (letter + 1) not in body  # its step is not allowed yet
        gated.allow(1)
        assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"


def test_a_client_that_leaves_is_not_generated_for(gated: Server, proxy: Server) -> None:
    cancelled = gated.stats()["outcomes"].get("cancelled{client}", 0)
    gated.allow("pace/200")  # it would end much later than the leave comes
    with RawStream(proxy, "POST", "/execute", LONG) as stream:
        stream.read_until(b'"type":"token"')
    gated.wait_for(
        lambda: gated.stats()["outcomes"].get("cancelled{client}", 0) == cancelled + 1, "a cancel, not an end"
    )
    gated.allow("close")


def test_a_body_that_is_too_large_is_refused_in_the_servers_words(gated: Server, proxy: Server) -> None:
    limit = Settings().max_body_bytes
    fits, is_too_large = b" " * (limit - 1), b" " * (limit + 1)
    for server in (gated, proxy):
        answer = requests.post(server.url + "/v1/chat/completions", data=fits, timeout=ANSWER_S)
        assert answer.json()["error"]["code"] == "INVALID_REQUEST"
    own, other = (
        requests.post(server.url + "/v1/chat/completions", data=is_too_large, timeout=ANSWER_S)
        for server in (gated, proxy)
    )
    assert own.status_code == other.status_code == 413
    assert other.headers["Content-Type"] == "application/json"
    assert other.json() == own.json()


def test_the_name_of_a_request_passes_both_ways(proxy: Server) -> None:
    answer = requests.get(proxy.url + "/v1/models", headers={"X-Request-Id": "order-7"}, timeout=ANSWER_S)
    assert answer.headers["X-Request-Id"] == "order-7"


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_drain_ends_streams_behind_a_proxy(tmp_path: Path, worker_class: str, name: str) -> None:
    with (
        running_server(tmp_path, worker_class, env={"ENDSTOP_DRAIN_S": "0.5"}) as server,
        running_proxy(tmp_path, name, server.port) as proxy,
        RawStream(proxy, "POST", "/execute", LONG) as stream,
    ):
        server.allow("pace/200")
        stream.read_until(b'"type":"token"')
        server.signal(signal.SIGTERM)
        assert assert_ended_once(stream.read_all())["code"] == "SHUTTING_DOWN"
        assert stream.is_complete


@pytest.mark.parametrize("name", PROXIES)
def test_a_stream_that_breaks_off_is_seen_to(tmp_path: Path, name: str) -> None:
    """A client has to be able to tell an answer that was cut from one that has ended: it has no terminal event."""
    with (
        running_server(tmp_path) as server,
        running_proxy(tmp_path, name, server.port) as proxy,
        RawStream(proxy, "POST", "/execute", LONG) as stream,
    ):
        server.allow(1)
        stream.read_until(b'"type":"token"')
        os.killpg(server.process.pid, signal.SIGKILL)
        assert b"[DONE]" not in stream.read_all()
        assert not stream.is_complete or name == "caddy"  # 2.6 writes the last chunk all the same


@contextmanager
def rude_server() -> Iterator[tuple[int, list[bytes]]]:
    """Answers the first request of a connection, keeps it, and closes it at the next without a word."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                for answer in (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""):
                    head = b""
                    while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                        head += data
                    if head:
                        asked.append(head)
                        if b"/rude" in head:
                            break
                        connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(ANSWER_S)


@pytest.mark.parametrize("name", PROXIES)
def test_a_request_is_sent_once(tmp_path: Path, name: str) -> None:
    with rude_server() as (port, asked), running_proxy(tmp_path, name, port) as proxy:
        for method in ("GET", "POST"):
            assert requests.get(proxy.url + "/kept", timeout=ANSWER_S).status_code == 200
            asked.clear()
            answer = requests.request(
                method, proxy.url + "/rude", headers={"Idempotency-Key": "order-7"}, timeout=ANSWER_S
            )
            assert answer.status_code == 502
            assert len(asked) == 1


def test_nginx_waits_as_long_as_the_server_does() -> None:
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    (wait_s,) = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(wait_s) > Settings().total_timeout_s


def test_nginx_takes_the_file_with_its_certificate(tmp_path: Path) -> None:
    if shutil.which("nginx") is None or shutil.which("openssl") is None:
        pytest.skip("nginx or openssl is not installed")
    certificate, key = tmp_path / "endstop.pem", tmp_path / "endstop.key"
    made = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=endstop.example"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    places = {"/etc/ssl/endstop.pem": str(certificate), "/etc/ssl/private/endstop.key": str(key)}
    text = replaced((ROOT / "deploy" / "nginx.conf").read_text(), **places)
    (tmp_path / "nginx.conf").write_text(nginx_conf(tmp_path, text))
    command = ["nginx", "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


def test_caddy_takes_the_file_as_it_is(tmp_path: Path) -> None:
    if shutil.which("caddy") is None:
        pytest.skip("caddy is not installed")
    file = str(ROOT / "deploy" / "Caddyfile")
    done = subprocess.run(
        ["caddy", "validate", "--adapter", "caddyfile", "--config", file],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert '"level":"warn"' not in done.stderr  # also for a file that is not as `caddy fmt` has it
