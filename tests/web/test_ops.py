"""Probes and the progress of loading, when the engine is not well."""

import itertools
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from tests.support.apps import app_in_process
from worker.engine.admission import EngineState
from worker.errors import SHUTTING_DOWN, NotReady, Overloaded, RequestError
from worker.web import ops
from worker.web.sse import DONE


@pytest.fixture(scope="module")
def app() -> Iterator[Flask]:
    with app_in_process() as app:
        yield app


def test_probes_say_that_a_step_does_not_come_back(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the watchdog has drawn its conclusions."""
    client = app.test_client()
    assert (client.get("/health").status_code, client.get("/ready").status_code) == (200, 200)
    monkeypatch.setattr(app.extensions["endstop"].engine, "liveness", lambda: "stuck")
    health, ready = client.get("/health"), client.get("/ready")
    assert (health.status_code, ready.status_code) == (503, 503)
    assert health.get_json()["reason"] == ready.get_json()["reason"] == "stuck"
    assert ready.get_json()["state"] == "DEAD"
    assert ready.headers["Retry-After"]


def test_readiness_ends_where_requests_are_refused(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = app.extensions["endstop"].engine
    monkeypatch.setattr(engine._admission, "_open", set(range(app.extensions["endstop"].settings.max_streams)))
    answer = app.test_client().get("/ready")
    assert (answer.status_code, answer.get_json()["state"]) == (503, "FULL")


@pytest.mark.parametrize(
    ("refusal", "state"), [(NotReady("DRAINING", "leaving", 7), "DRAINING"), (Overloaded("too many tokens", 7), "FULL")]
)
def test_readiness_is_what_a_request_would_be_told(
    app: Flask, monkeypatch: pytest.MonkeyPatch, refusal: RequestError, state: str
) -> None:
    def check_room() -> None:
        raise refusal

    monkeypatch.setattr(app.extensions["endstop"].engine, "check_room", check_room)
    answer = app.test_client().get("/ready")
    assert (answer.status_code, answer.get_json()) == (503, {"state": state, "reason": refusal.message})
    assert answer.headers["Retry-After"] == "7"


def test_readiness_ends_where_no_stream_can_be_read(app: Flask) -> None:
    streams = app.extensions["endstop"].streams
    places = [streams.reserve() for _ in range(app.extensions["endstop"].settings.max_streams)]
    answer = app.test_client().get("/ready")
    assert (answer.status_code, answer.get_json()["state"]) == (503, "FULL")
    for place in places:
        place.close()
    assert app.test_client().get("/ready").status_code == 200


def test_the_progress_of_a_load_that_hangs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        state = EngineState.LOADING
        progress = None
        reasons = iter(["", "", "still loading"])

        def liveness(self) -> str:
            return next(self.reasons, "still loading")

        def should_drain(self) -> bool:
            return False

    monkeypatch.setattr(ops, "PROGRESS_TICK_S", 0.0)
    engine: Any = Engine()
    *_, last, done = ops._progress(engine, keep_alive_s=100.0)
    assert json.loads(last.removeprefix(b"data: ")) == {"state": "DEAD", "reason": "still loading"}
    assert done == DONE


def test_the_progress_of_a_load_ends_when_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not when the worker has waited for what is idle and goes."""

    class Engine:
        state = EngineState.LOADING
        progress = None

        def liveness(self) -> str:
            return ""

        def should_drain(self) -> bool:
            return True

    monkeypatch.setattr(ops, "PROGRESS_TICK_S", 0.0)
    engine: Any = Engine()
    first, done = itertools.islice(ops._progress(engine, keep_alive_s=0.0), 2)
    assert json.loads(first.removeprefix(b"data: ")) == {"state": "DRAINING", "reason": SHUTTING_DOWN}
    assert done == DONE


@pytest.mark.parametrize("state", ["DEAD", "DRAINING"])
def test_a_load_that_came_to_nothing_is_not_said_to_be_whole(state: str) -> None:
    engine: Any = SimpleNamespace(state=EngineState(state), reason="why")
    first, done = ops._progress(engine, keep_alive_s=0.0)
    assert json.loads(first.removeprefix(b"data: ")) == {"state": state, "reason": "why"}
    assert done == DONE
