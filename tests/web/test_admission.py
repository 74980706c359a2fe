"""What a request is told before its first byte, on both APIs: whether it is accepted, and as which job."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from tokenizers import decoders

from tests.support.apps import app_in_process
from tests.support.engines import wait_until
from tests.support.servers import assert_ended_once, events_of

PROMPT = {"prompt": "hello", "max_tokens": 3, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
COMPLETION = {"prompt": "hello", "max_tokens": 3}
ROUTES = [("/execute", PROMPT), ("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]


@pytest.fixture
def app() -> Iterator[Flask]:
    with app_in_process() as app:
        yield app


def shared(app: Flask) -> Any:
    return app.extensions["endstop"]


# ---- a place to read


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_who_gets_no_place_to_read_makes_no_job_and_uses_up_no_key(app: Flask, path: str, body: Any) -> None:
    """Four readers of one job: the engine has room for a request, and nobody could read its answer."""
    client, key = app.test_client(), {"Idempotency-Key": "key"}
    places = [shared(app).streams.reserve() for _ in range(shared(app).settings.max_streams)]
    for headers in ({}, key):
        refused = client.post(path, json=body, headers=headers)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
    assert shared(app).engine.num_open == 0
    assert shared(app).jobs._jobs == {}
    for place in places:
        place.close()
    app.extensions["runner"].open()
    answer = client.post(path, json=body, headers=key)
    assert answer.status_code == 200
    assert "Idempotent-Replayed" not in answer.headers
    answer.close()
    assert shared(app).streams.num_open == 0


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_who_is_refused_keeps_no_place(app: Flask, path: str, body: Any) -> None:
    for changed in ({"max_tokens": 999}, {"temperature": 9}):
        assert app.test_client().post(path, json=body | changed).status_code == 400
    assert shared(app).streams.num_open == 0


def test_a_reader_from_the_future_keeps_no_place(app: Flask) -> None:
    url = app.test_client().post("/v1/jobs", json=PROMPT).get_json()["sse_url"]
    assert app.test_client().get(url, headers={"Last-Event-ID": "99"}).status_code == 400
    assert shared(app).streams.num_open == 0


# ---- another reader


def test_a_reader_of_a_chat_reads_on_when_its_client_leaves(app: Flask) -> None:
    """It was cut off without an ending."""
    client = app.test_client()
    chat = client.post("/v1/chat/completions", json=CHAT | {"stream": True}, buffered=False)
    (job_id,) = shared(app).jobs._jobs
    other = client.get(f"/v1/jobs/{job_id}/stream", buffered=False)
    chat.close()
    app.extensions["runner"].open()
    assert assert_ended_once(other.get_data())["stop_reason"] == "MAX_TOKENS"
    other.close()
    assert client.get(f"/v1/jobs/{job_id}").get_json()["state"] == "ENDED"


# ---- keys


@pytest.mark.parametrize(("path", "body"), ROUTES[1:])
def test_a_chat_with_a_key_that_is_sent_again_is_one_job(app: Flask, path: str, body: Any) -> None:
    client, key = app.test_client(), {"Idempotency-Key": "key"}
    lost = client.post(path, json=body | {"stream": True}, headers=key, buffered=False)
    lost.close()
    assert shared(app).engine.num_open == 1, "leaving has not cancelled it"
    app.extensions["runner"].open()
    ids = set()
    for _ in range(2):
        again = client.post(path, json=body, headers=key)
        assert again.headers["Idempotent-Replayed"] == "true"
        ids.add(again.get_json()["id"])
    (job_id,) = shared(app).jobs._jobs
    assert [one.rpartition("-")[2] for one in ids] == [job_id]
    assert client.post(path, json=body | {"max_tokens": 2}, headers=key).status_code == 422


RESPONSE = {"input": "hello", "max_output_tokens": 3}


@pytest.mark.parametrize(
    ("path", "body", "more"),
    [
        ("/v1/completions", COMPLETION, {"echo": True}),
        ("/v1/chat/completions", CHAT, {"metadata": {"a": "b"}}),
        ("/v1/responses", RESPONSE, {"metadata": {"a": "b"}}),
        ("/v1/responses", RESPONSE, {"background": True}),
        ("/v1/responses", RESPONSE, {"store": False}),
    ],
)
def test_a_key_belongs_to_all_of_a_body(app: Flask, path: str, body: Any, more: Any) -> None:
    """Also to what the model is not told: the second would be answered as if it had not been there."""
    app.extensions["runner"].open()
    client, key = app.test_client(), {"Idempotency-Key": "key"}
    assert client.post(path, json=body, headers=key).status_code == 200
    assert client.post(path, json=body | more, headers=key).status_code == 422
    assert client.post(path, json=body | {"stream": True, "stream_options": {}}, headers=key).status_code == 200


@pytest.mark.parametrize(("path", "body"), [("/v1/jobs", PROMPT), *ROUTES])
@pytest.mark.parametrize("key", ["", "a,b", "x" * 256])
def test_a_key_that_is_none_or_two_is_refused(app: Flask, path: str, body: Any, key: str) -> None:
    """A server joins two headers of one name with a comma."""
    answer = app.test_client().post(path, json=body, headers={"Idempotency-Key": key})
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.get_data(as_text=True)
    assert shared(app).engine.num_open == 0


# ---- limits


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_is_called_what_the_client_has_called_it(app: Flask, name: str) -> None:
    body = {"messages": CHAT["messages"], name: 999}
    error = app.test_client().post("/v1/chat/completions", json=body).get_json()["error"]
    assert error["param"] == name
    assert error["message"].startswith(f"{name}: is 999")


def test_a_prompt_that_is_too_long_is_called_messages_whatever_the_limit_is_called(app: Flask) -> None:
    body = {"messages": [{"role": "user", "content": "a" * 200}], "max_completion_tokens": 5}
    assert app.test_client().post("/v1/chat/completions", json=body).get_json()["error"]["param"] == "messages"


@pytest.mark.parametrize(("length", "num_tokens"), [(1, 16), (120, 8)])
def test_the_default_limit_of_completions_is_as_much_of_16_as_fits(app: Flask, length: int, num_tokens: int) -> None:
    app.extensions["runner"].open()
    answer = app.test_client().post("/v1/completions", json={"prompt": "a" * length}).get_json()
    assert answer["usage"]["completion_tokens"] == num_tokens
    assert answer["choices"][0]["finish_reason"] == "length"


# ---- usage


@pytest.mark.parametrize(("path", "body"), ROUTES[1:])
@pytest.mark.parametrize("include_usage", [False, True])
def test_an_error_in_mid_stream_has_the_usage_that_was_asked_for(
    app: Flask, path: str, body: Any, include_usage: bool
) -> None:
    asked = {"stream": True, "stream_options": {"include_usage": include_usage}}
    app.extensions["runner"].fault = RuntimeError("injected")
    app.extensions["runner"].open()
    *_, error, done = events_of(app.test_client().post(path, json=body | asked).get_data())
    assert done == "[DONE]"
    assert sorted(error["error"]) == ["code", "message", "param", "type"]
    assert ("usage" in error) == include_usage
    if include_usage:
        assert error["usage"]["prompt_tokens"] > 0
        assert error["usage"]["total_tokens"] == error["usage"]["prompt_tokens"] + error["usage"]["completion_tokens"]


# ---- a tokenizer that fails


@pytest.mark.parametrize(("path", "body"), [("/v1/jobs", PROMPT), *ROUTES])
@pytest.mark.parametrize("is_panic", [False, True])
def test_a_prompt_that_the_tokenizer_fails_at_is_answered_in_the_shape_of_its_route(
    app: Flask, path: str, body: Any, is_panic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panic of the library passes every `except Exception`: there was no answer, or a page of HTML."""

    class Failing:
        def encode_batch(self, *args: object, **kwargs: object) -> Any:
            if is_panic:
                decoders.Strip(" ", 1, 1).decode([" "])
            raise ValueError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(shared(app).engine.model.tokenizer, "_backend", Failing())
        answer = app.test_client().post(path, json=body)
    assert answer.status_code == 500
    assert answer.get_json()["error"]["code"] == "INTERNAL"
    assert shared(app).streams.num_open == 0
    assert app.test_client().post("/v1/jobs", json=PROMPT).status_code == 202


# ---- large bodies


def test_a_large_body_is_read_in_turns_and_parsed_aside(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []
    run = shared(app).aside.run
    turns: list[float] = []

    def run_and_note(work: Callable[[], Any]) -> Any:
        places.append("aside")
        return run(work)

    monkeypatch.setattr(shared(app).aside, "run", run_and_note)
    monkeypatch.setattr("worker.web.context.time.sleep", turns.append)
    client = app.test_client()
    assert client.post("/v1/jobs", json=PROMPT).status_code == 202
    assert (places, turns) == ([], [])
    data = json.dumps(PROMPT | {"prompt": "a" * 1_000_000})
    assert client.post("/v1/jobs", data=data).status_code == 400
    assert places == ["aside"]
    assert len(turns) == len(data) // 131_072
    # With a key it is looked through once more, for what it asks.
    assert client.post("/v1/jobs", data=data, headers={"Idempotency-Key": "long"}).status_code == 400
    assert places == ["aside"] * 3


def test_a_job_that_is_not_known_may_be_one_of_a_server_before(app: Flask) -> None:
    message = app.test_client().get("/v1/jobs/nope").get_json()["error"]["message"]
    assert "or the server has been replaced since" in message
    wait_until(lambda: shared(app).engine.num_open == 0)
