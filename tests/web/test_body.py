"""Every way in which a WSGI server and Flask can treat a body, in process: clean-up runs exactly once."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask, Response

from app import create_app
from tests.support.engines import loaded_model, wait_until
from tests.support.gated_runner import GatedRunner
from worker.engine.engine import Engine
from worker.events import End, Started, StopReason, Token, Usage
from worker.settings import Settings
from worker.streams.wakeup import new_wakeup
from worker.web.sse import StreamBody

PROMPT = {"prompt": "hello", "max_tokens": 3, "temperature": 0}


class _Closes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def _numbers() -> Iterator[bytes]:
    yield b"1"
    yield b"2"


@pytest.mark.parametrize("num_read", [0, 1, 2, 3])
def test_close_runs_once_however_far_the_body_was_read(num_read: int) -> None:
    closes = _Closes()
    body = StreamBody(_numbers(), closes)
    for _ in range(num_read):
        next(body, None)
    body.close()
    body.close()
    assert closes.count == 1


def test_a_body_that_is_dropped_closes_itself() -> None:
    closes = _Closes()
    body = StreamBody(_numbers(), closes)
    del body
    assert closes.count == 1


def test_close_runs_when_the_stream_raises() -> None:
    def broken() -> Iterator[bytes]:
        yield b"1"
        raise RuntimeError("a bug")

    closes = _Closes()
    body = StreamBody(broken(), closes)
    with pytest.raises(RuntimeError, match="a bug"):
        list(body)
    body.close()
    assert closes.count == 1


def test_the_clean_up_runs_though_the_stream_fails_to_close() -> None:
    def clings() -> Iterator[bytes]:
        try:
            yield b"1"
        finally:
            raise RuntimeError("a bug")

    closes = _Closes()
    body = StreamBody(clings(), closes)
    next(body)
    with pytest.raises(RuntimeError, match="a bug"):
        body.close()
    assert closes.count == 1


def test_a_close_ends_the_stream() -> None:
    ended: list[str] = []

    def numbers() -> Iterator[bytes]:
        try:
            yield b"1"
            yield b"2"
        finally:
            ended.append("ended")

    chunks = numbers()
    body = StreamBody(chunks, _Closes())
    next(body)
    body.close()
    assert ended == ["ended"]


@pytest.fixture
def app() -> Iterator[Flask]:
    settings = replace(Settings(), max_slots=2, max_queue=2, max_context=128)
    runner = GatedRunner()
    wakeup = new_wakeup()
    engine = Engine(settings, wakeup, lambda s, report: runner.adopt(loaded_model(runner, max_context=128)))
    app = create_app(settings, engine)
    app.extensions["runner"] = runner
    engine.start()
    wait_until(lambda: engine.state == "READY")
    yield app
    runner.open()
    assert engine.stop(10)


def _shared(app: Flask) -> Any:
    return app.extensions["endstop"]


def _wait_until_free(app: Flask) -> None:
    app.extensions["runner"].open()
    wait_until(lambda: _shared(app).engine.num_open == 0 and _shared(app).streams.num_open == 0)


def test_a_body_that_is_never_started_frees_its_slot(app: Flask) -> None:
    response = app.test_client().post("/execute", json=PROMPT, buffered=False)
    assert _shared(app).streams.num_open == 1
    response.close()
    assert _shared(app).streams.num_open == 0
    _wait_until_free(app)


def test_a_body_that_a_hook_throws_away_frees_its_slot(app: Flask) -> None:
    kept = []  # as the frames of a traceback do, so that it is not the collector who cleans up

    @app.after_request
    def raises(response: Response) -> Response:
        kept.append(response)
        raise RuntimeError("a hook's bug")

    response = app.test_client().post("/execute", json=PROMPT)
    assert response.status_code == 500
    assert len(kept) == 2, "the stream, and the answer that says that it failed"
    assert _shared(app).streams.num_open == 0
    _wait_until_free(app)


def test_head_of_a_stream_makes_no_reader(app: Flask) -> None:
    """Flask answers it as a GET, and throws the body away without closing it."""
    kept = []

    @app.after_request
    def keep(response: Response) -> Response:
        kept.append(response)  # so that it is not the collector who cleans up
        return response

    url = app.test_client().post("/v1/jobs", json=PROMPT).get_json()["sse_url"]
    assert app.test_client().head(url).mimetype == "text/event-stream"
    assert _shared(app).streams.num_open == 0
    assert [job._num_readers for job in _shared(app).jobs._jobs.values()] == [0]


def test_an_event_that_cannot_be_encoded_ends_the_stream_with_a_code(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.web import native

    payload = native._payload

    def broken(event: Any) -> Any:
        if type(event).__name__ == "Token":
            raise ValueError("a bug")
        return payload(event)

    monkeypatch.setattr(native, "_payload", broken)
    app.extensions["runner"].open()
    body = app.test_client().post("/execute", json=PROMPT).get_data()
    from tests.support.servers import assert_ended_once

    assert assert_ended_once(body)["code"] == "INFERENCE_FAILED"
    _wait_until_free(app)


CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_chat_leaves_nothing_behind(app: Flask, is_stream: bool) -> None:
    """Nobody can ask for it again: OpenAI's API has no resume."""
    app.extensions["runner"].open()
    answer = app.test_client().post("/v1/chat/completions", json=CHAT | {"stream": is_stream})
    assert answer.status_code == 200
    answer.close()
    assert _shared(app).jobs._jobs == {}
    assert _shared(app).streams.num_open == 0


def test_a_whole_answer_that_fails_frees_its_slot(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("worker.web.answers.collect", fail)
    kept = app.test_client().post("/v1/chat/completions", json=CHAT)
    assert kept.status_code == 500
    assert _shared(app).streams.num_open == 0
    assert _shared(app).jobs._jobs == {}
    _wait_until_free(app)


def test_a_whole_answer_whose_client_has_left_is_none(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come until then must not be told as an answer: a client that has closed only its half still reads."""
    monkeypatch.setattr(
        "worker.web.answers.collect", lambda *args: [(0, Started("job", "model", "now")), (0, Token("a", 0))]
    )
    answer = app.test_client().post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 500
    assert answer.get_json()["error"]["code"] == "CANCELLED"


def test_of_several_answers_one_alone_is_not_the_whole(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client left when the first had ended and the second had not."""
    started, end = Started("job", "model", "now"), End(StopReason.EOS, Usage(1, 1), 0.0)
    events = [(0, started), (1, started), (0, Token("a", 0)), (0, end)]
    monkeypatch.setattr("worker.web.answers.collect", lambda *args: events)
    answer = app.test_client().post("/v1/chat/completions", json=CHAT | {"n": 2})
    assert answer.status_code == 500
    assert answer.get_json()["error"]["code"] == "CANCELLED"
