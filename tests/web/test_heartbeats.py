"""Heartbeats of real servers, under both worker classes, also over TLS."""

import socket
from pathlib import Path

import pytest

from tests.support.http_server import self_signed
from tests.support.orchestrator import Orchestrator
from tests.support.servers import WORKER_CLASSES, RawStream, running_server

pytestmark = pytest.mark.slow

PROMPT = {"prompt": "hello", "max_tokens": 5, "temperature": 0}


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_an_orchestrator_hears_how_a_server_is_from_its_begin_to_its_end(tmp_path: Path, worker_class: str) -> None:
    orchestrator = Orchestrator()
    env = {
        "ENDSTOP_HEARTBEAT_URL": orchestrator.url + "/beat",
        "ENDSTOP_HEARTBEAT_S": "0.1",
        "ENDSTOP_WORKER_ID": "gpu-7",
        "ENDSTOP_MAX_SLOTS": "2",
        "ENDSTOP_MAX_QUEUE": "3",
        "GATED_LOAD_S": "300",
    }
    try:
        with running_server(tmp_path, worker_class, wait=False, env=env) as server:
            beats = orchestrator.beats
            server.wait_for(lambda: bool(beats), "the first beat")
            assert beats[0]["state"] == "LOADING"
            server.allow("loaded")
            server.wait_for(lambda: beats[-1]["state"] == "READY", "a server that is ready")
            assert {name: beats[-1][name] for name in ("worker_id", "model", "device", "reason")} == {
                "worker_id": "gpu-7",
                "model": "endstop-tiny",
                "device": "cpu",
                "reason": "",
            }
            with RawStream(server, "POST", "/execute", PROMPT) as stream:
                server.allow(2)
                stream.read_until(b'b",')  # perhaps with the token before it
                server.wait_for(lambda: beats[-1]["load"]["generated_tokens"] == 2, "a beat behind the second token")
                load = beats[-1]["load"]
                assert (load["running"], load["streams"], load["max_slots"], load["max_streams"]) == (1, 1, 2, 5)
                server.process.terminate()
                server.wait_for(lambda: beats[-1]["state"] == "DRAINING", "the drain")
                assert "shutting down" in beats[-1]["reason"]
            server.wait_exit()
        states = list(dict.fromkeys(beat["state"] for beat in beats))
        assert states == ["LOADING", "READY", "DRAINING"]
    finally:
        orchestrator.close()


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_heartbeats_go_over_tls(tmp_path: Path, worker_class: str) -> None:
    """Where gevent has patched `ssl` too, and streams go on meanwhile."""
    context, certificate = self_signed(tmp_path)
    orchestrator = Orchestrator(context)
    # One has as long as it is to the next, and a busy machine may need more than a moment.
    env = {"ENDSTOP_HEARTBEAT_URL": orchestrator.url, "ENDSTOP_HEARTBEAT_S": "3600", "SSL_CERT_FILE": str(certificate)}
    try:
        with running_server(tmp_path, worker_class, wait=False, env=env | {"GATED_LOAD_S": "300"}) as server:
            server.wait_for(lambda: len(orchestrator.beats) == 1, "a beat")
            server.allow("loaded")
            server.wait_for(lambda: len(orchestrator.beats) == 2, "another")
            assert "no heartbeat" not in server.log()
    finally:
        orchestrator.close()


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_an_orchestrator_that_never_answers_holds_nobody_up(tmp_path: Path, worker_class: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        env = {"ENDSTOP_HEARTBEAT_URL": url, "ENDSTOP_HEARTBEAT_S": "3600", "ENDSTOP_DRAIN_S": "1"}
        with running_server(tmp_path, worker_class, env=env) as server:
            deaf.settimeout(30)
            connection, _ = deaf.accept()
            server.allow("open")
            with connection, RawStream(server, "POST", "/execute", PROMPT) as stream:
                assert b'"type":"end"' in stream.read_all()
                server.process.terminate()
                assert server.wait_exit() == 0
