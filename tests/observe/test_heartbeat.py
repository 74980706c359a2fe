"""Heartbeats: what is posted, when, and that no trouble with them is anybody else's."""

import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engines import wait_until
from tests.support.orchestrator import Orchestrator
from worker.observe import heartbeat
from worker.observe.heartbeat import Heartbeat


@pytest.fixture
def orchestrator() -> Iterator[Orchestrator]:
    one = Orchestrator()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(heartbeat, "TICK_S", 0.005)
    caplog.set_level("INFO", "endstop")


class Beating:
    """A heartbeat in a thread of its own, for a block."""

    def __init__(self, url: str, interval_s: float, status: Any) -> None:
        self.heart = Heartbeat(url, interval_s, status)
        self._thread = threading.Thread(target=self.heart.run)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self.heart

    def __exit__(self, *args: object) -> None:
        self.heart.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_says_how_the_server_is(orchestrator: Orchestrator) -> None:
    status = {"state": "READY", "load": {"running": 2}, "reason": "ü"}
    with Beating(orchestrator.url + "/beat?key=1", 3600, lambda: status):
        wait_until(lambda: bool(orchestrator.beats))
    assert orchestrator.beats == [status]
    assert orchestrator.heads == [("POST", "/beat?key=1", "application/json")]


def test_it_beats_again_and_again(orchestrator: Orchestrator) -> None:
    with Beating(orchestrator.url, 0.02, lambda: {"state": "READY"}):
        wait_until(lambda: len(orchestrator.beats) >= 3)


def test_a_change_of_state_is_told_at_once(orchestrator: Orchestrator) -> None:
    status = {"state": "LOADING"}
    with Beating(orchestrator.url, 3600, lambda: dict(status)):
        for state in ("READY", "DRAINING"):
            wait_until(lambda: bool(orchestrator.beats) and orchestrator.beats[-1] == status)
            status["state"] = state
        wait_until(lambda: orchestrator.beats[-1] == status)
    assert [beat["state"] for beat in orchestrator.beats] == ["LOADING", "READY", "DRAINING"]


def test_trouble_is_told_once_until_it_changes(orchestrator: Orchestrator, caplog: pytest.LogCaptureFixture) -> None:
    def after(num_beats: int) -> None:
        seen = len(orchestrator.beats)
        wait_until(lambda: len(orchestrator.beats) >= seen + num_beats)

    states = itertools.count()  # each is told at once, and has more time than to the next of quick beats
    orchestrator.status = 503
    with Beating(orchestrator.url + "/secret-path", 3600, lambda: {"state": str(next(states))}):
        after(4)
        orchestrator.status = 500
        after(4)
        orchestrator.status = 200
        wait_until(lambda: "arrive again" in caplog.text)
        after(2)
    told = warnings(caplog)
    assert len(told) == 2
    assert "it answered 503" in told[0]
    assert "it answered 500" in told[1]
    assert caplog.text.count("arrive again") == 1
    assert "secret-path" not in caplog.text


def test_nobody_there_is_trouble_and_not_an_end(orchestrator: Orchestrator, caplog: pytest.LogCaptureFixture) -> None:
    url = orchestrator.url
    orchestrator.close()
    with Beating(url, 0.02, lambda: {"state": "READY"}):
        wait_until(lambda: bool(warnings(caplog)))
    assert len(warnings(caplog)) == 1
    assert "refused" in warnings(caplog)[0]
    orchestrator.__init__()  # type: ignore[misc]  # for the fixture to close


def test_a_redirect_is_not_followed(orchestrator: Orchestrator, caplog: pytest.LogCaptureFixture) -> None:
    """As a GET without its body the beat would be lost, and look as if it had arrived."""
    orchestrator.status, orchestrator.location = 302, orchestrator.url + "/elsewhere"
    with Beating(orchestrator.url, 3600, lambda: {"state": "READY"}):
        wait_until(lambda: bool(warnings(caplog)))
    assert "it answered 302" in warnings(caplog)[0]
    assert [method for method, _, _ in orchestrator.heads] == ["POST"]


def test_a_bug_in_the_status_does_not_end_the_beats(
    orchestrator: Orchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([RuntimeError("a bug"), {"state": "READY"}])

    def status() -> Any:
        answer = next(answers, {"state": "READY"})
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Beating(orchestrator.url, 3600, status):
        wait_until(lambda: bool(orchestrator.beats))
    assert "heartbeat failed; going on" in caplog.text


@pytest.mark.parametrize("interval_s", [0.05, 3600])
def test_a_post_has_a_time_limit(interval_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An orchestrator that accepts and never answers must not keep a beat for ever."""
    limits: list[float] = []

    class Opener:
        def open(self, request: Any, timeout: float) -> Any:
            limits.append(timeout)
            raise TimeoutError("timed out")

    heart = Heartbeat("http://127.0.0.1:1", interval_s, lambda: {"state": "READY"})
    monkeypatch.setattr(heart, "_opener", Opener())
    assert "timed out" in heart._post({"state": "READY"})
    assert limits == [min(interval_s, heartbeat.POST_LIMIT_S)]
