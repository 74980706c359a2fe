"""A hub id as the model: downloaded by a child, loaded, served; or refused with the reason."""

import os
import signal
from pathlib import Path

import pytest
import requests

from tests.support.fake_hub import fake_hub
from tests.support.processes import descendants_of, is_running
from tests.support.random_models import save_random_model
from tests.support.servers import (
    WORKER_CLASSES,
    RawStream,
    Server,
    assert_ended_once,
    events_of,
    running_server,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_model_is_downloaded_and_served(tmp_path: Path, worker_class: str) -> None:
    folder = save_random_model(tmp_path / "source")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights once more")
    with fake_hub("someone/random-llama", folder) as (endpoint, asked):
        env = {
            "ENDSTOP_MODEL": "someone/random-llama",
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "cache"),
        }
        with running_server(tmp_path, worker_class, "wsgi:app", env=env) as server:
            assert server.get("/v1/models").json()["data"][0]["id"] == "random-llama"
            body = {"prompt": "the quick brown", "max_tokens": 5, "temperature": 0}
            with RawStream(server, "POST", "/execute", body) as stream:
                assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"
    assert any(path.endswith("/model.safetensors") for path in asked)
    assert not any(path.endswith(".bin") for path in asked)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_model_that_the_hub_does_not_have(tmp_path: Path, worker_class: str) -> None:
    folder = save_random_model(tmp_path / "source")
    with fake_hub("someone/random-llama", folder) as (endpoint, _):
        env = {"ENDSTOP_MODEL": "someone/else", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
        with running_server(tmp_path, worker_class, "wsgi:app", wait=False, env=env) as server:
            server.wait_for(lambda: "the hub has no such model" in server.log(), "the reason in the log")
            assert server.get("/ready").json()["state"] == "DEAD"
            assert server.wait_exit() == 3


def test_a_name_that_the_hub_cannot_have(tmp_path: Path) -> None:
    env = {"ENDSTOP_MODEL": "a--b/c", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    with running_server(tmp_path, "gevent", "wsgi:app", wait=False, env=env) as server:
        server.wait_for(lambda: "nor can it be downloaded: " in server.log(), "the reason in the log")
        assert "Cannot have -- or .. in repo_id" in server.log()
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_download_ends_with_its_server(tmp_path: Path, worker_class: str) -> None:
    folder = save_random_model(tmp_path / "source")
    (folder / "notes.txt").write_bytes(os.urandom(4_000_000))
    with fake_hub("someone/random-llama", folder, bytes_per_s=50_000) as (endpoint, asked):
        env = {
            "ENDSTOP_MODEL": "someone/random-llama",
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "cache"),
        }
        with running_server(tmp_path, worker_class, "wsgi:app", wait=False, env=env) as server:
            server.wait_for(lambda: any("/resolve/" in path for path in asked), "the download")
            children = descendants_of(server.process.pid)
            assert len(children) == 2  # the worker and the download
            server.signal(signal.SIGTERM)
            server.wait_exit()
            server.wait_for(lambda: not any(map(is_running, children)), "their end")
            assert "Traceback" not in server.log()


def test_whoever_watches_sees_the_bytes_of_a_download_and_of_the_weights(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path / "source")
    (folder / "notes.txt").write_bytes(os.urandom(4_000_000))
    with fake_hub("someone/random-llama", folder, bytes_per_s=1_000_000) as (endpoint, _):
        env = {
            "ENDSTOP_MODEL": "someone/random-llama",
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "cache"),
            "ENDSTOP_LOG_LEVEL": "info",
        }
        with running_server(tmp_path, "gevent", "wsgi:app", wait=False, env=env) as server:
            server.wait_for(lambda: _answers(server), "its first answer")
            with RawStream(server, "GET", "/v1/loading/progress") as stream:
                events = events_of(stream.read_all())
    seen = [event for event in events if event != "[DONE]" and "total_bytes" in event]
    download = [event for event in seen if event["phase"] == "download"]
    total = sum(file.stat().st_size for file in folder.iterdir())
    assert {event["total_bytes"] for event in download} == {total}
    done = [event["done_bytes"] for event in download]
    assert done == sorted(done)
    assert len(done) >= 3
    fractions = [event["fraction"] for event in events if event != "[DONE]"]
    assert fractions == sorted(fractions)
    assert events[-2]["state"] == "READY"


def _answers(server: Server) -> bool:
    try:
        return server.get("/health").ok
    except requests.RequestException:
        return False
