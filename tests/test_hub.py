"""A hub id as the model: downloaded by a child, loaded, served; or refused with the reason."""

from pathlib import Path

import pytest

from tests.support.fake_hub import fake_hub
from tests.support.random_models import save_random_model
from tests.support.servers import WORKER_CLASSES, RawStream, assert_ended_once, running_server

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
