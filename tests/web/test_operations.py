"""How the server is doing, for the page: what is true of it, and nothing of what is asked."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from tests.support.apps import app_in_process
from tests.support.engines import wait_until
from worker.keys import ApiKeys

ANN, BEN = "ann-ann-ann-ann-ann", "ben-ben-ben-ben-ben"
SECRET = "what nobody else may read"


@pytest.fixture
def app() -> Iterator[Flask]:
    with app_in_process(api_keys=ApiKeys.parse(f"ann:{ANN}\nben:{BEN}"), max_queue=1) as app:
        yield app


def seen_by(app: Flask, key: str) -> dict[str, Any]:
    found: dict[str, Any] = app.test_client().get("/v1/operations", headers=bearer(key)).get_json()
    return found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def start(app: Flask, key: str, **fields: Any) -> str:
    body = {"prompt": SECRET, "max_tokens": 3, **fields}
    job_id: str = app.test_client().post("/v1/jobs", json=body, headers=bearer(key)).get_json()["job_id"]
    return job_id


def test_who_runs_and_who_waits_is_shown_and_to_whom_it_is_the_own_job(app: Flask) -> None:
    ids = [start(app, ANN), start(app, BEN), start(app, ANN)]
    runner = app.extensions["runner"]
    wait_until(lambda: runner.is_at_gate)
    runner.allow(2)  # the first's token; then that of both
    wait_until(lambda: runner.num_steps >= 2 and runner.is_at_gate)
    found = seen_by(app, ANN)
    assert (found["state"], found["reason"], found["model"]) == ("READY", "", "endstop-tiny")
    assert (found["slots"], found["queue"]) == ({"used": 2, "total": 2}, {"used": 1, "total": 1})
    assert [one["state"] for one in found["streams"]] == ["DECODING", "DECODING", "QUEUED"]
    assert [one.get("job_id") for one in found["streams"]] == [ids[0], None, ids[2]]
    assert [one.get("job_id") for one in seen_by(app, BEN)["streams"]] == [None, ids[1], None]
    assert all(one["age_s"] >= 0 for one in found["streams"])
    assert found["streams"][0]["tokens"] >= 1
    assert found["streams"][2]["quiet_s"] is None
    assert 0 < found["cache"]["used"] < 1


def test_what_has_ended_is_counted_and_timed(app: Flask) -> None:
    app.extensions["runner"].open()
    for key in (ANN, BEN):
        start(app, key)
        wait_until(lambda: not seen_by(app, ANN)["streams"])
    cancelled = start(app, BEN, max_tokens=100)
    app.test_client().delete(f"/v1/jobs/{cancelled}", headers=bearer(BEN))
    wait_until(lambda: len(seen_by(app, ANN)["ended"]) == 3)
    found = seen_by(app, ANN)
    assert sum(one["count"] for one in found["outcomes"]) == 3
    assert {"outcome": "end", "code": "MAX_TOKENS", "count": 2} in found["outcomes"]
    first = found["ended"][0]
    assert (first["outcome"], first["code"], first["tokens"]) == ("end", "MAX_TOKENS", 3)
    assert 0 <= first["ttft_ms"] <= first["total_ms"]
    assert first["ended_ago_s"] >= found["ended"][-1]["ended_ago_s"] >= 0
    # The second prompt is the first one's: what was computed of it is not again.
    assert found["prefix"]["looked_for"] > found["prefix"]["found"] > 0
    assert found["cache"]["remembered"] > 0


def test_the_last_minutes_are_looked_back_on(app: Flask) -> None:
    history = app.extensions["endstop"].history
    history.sample(history._sampled_at + 2)
    found = seen_by(app, ANN)
    assert found["history"][-1]["running"] == 0
    assert set(found["history"][-1]) == {"ago_s", "tokens_per_s", "running", "waiting", "cache_used"}


def test_nothing_of_a_request_is_told(app: Flask) -> None:
    app.extensions["runner"].open()
    start(app, BEN)
    wait_until(lambda: len(seen_by(app, ANN)["ended"]) == 1)
    shown = json.dumps(seen_by(app, ANN))
    for secret in (SECRET, "ben", BEN, ANN):
        assert secret not in shown


def test_an_engine_that_does_not_live_is_said_to_be_dead(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.extensions["endstop"].engine, "liveness", lambda: "stuck")
    assert {name: seen_by(app, ANN)[name] for name in ("state", "reason")} == {"state": "DEAD", "reason": "stuck"}
