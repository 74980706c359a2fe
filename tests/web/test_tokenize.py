"""Text to tokens and back: what generation would read, within what it would take, in vLLM's shapes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.apps import app_in_process
from worker.engine.admission import EngineState
from worker.engine.tokenizer import Tokenizer
from worker.jobs import Jobs

CHAT = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture(scope="module")
def app() -> Iterator[Flask]:
    with app_in_process() as app:
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def tokenizer_of(app: Flask) -> Tokenizer:
    tokenizer: Tokenizer = app.extensions["endstop"].engine.model.tokenizer
    return tokenizer


def jobs_of(app: Flask) -> Jobs:
    jobs: Jobs = app.extensions["endstop"].jobs
    return jobs


def refused_field(client: FlaskClient, path: str, body: dict[str, Any]) -> tuple[str, str]:
    """The field that a refusal names, and what it says of it."""
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.get_json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("INVALID_REQUEST", "context_length_exceeded")
    return error["param"], error["message"]


def test_the_tokens_of_a_text(app: Flask, client: FlaskClient) -> None:
    expected = tokenizer_of(app).encode("the fox")
    answer = client.post("/tokenize", json={"prompt": "the fox"})
    assert answer.status_code == 200
    assert answer.get_json() == {
        "count": len(expected),
        "max_model_len": 128,
        "tokens": expected,
        "token_strs": None,
    }


def test_tokens_as_the_vocabulary_writes_them(client: FlaskClient) -> None:
    answer = client.post("/tokenize", json={"prompt": "a b é", "return_token_strs": True}).get_json()
    assert len(answer["token_strs"]) == answer["count"]
    assert "".join(answer["token_strs"]) == "aĠbĠÃ©"


def test_a_row_without_a_token_has_an_empty_name(app: Flask) -> None:
    tokenizer = tokenizer_of(app)
    assert tokenizer.tokens_of([0, 10**6]) == ["<|endoftext|>", ""]


@pytest.mark.parametrize("body", [{"prompt": "the fox"}, {"messages": CHAT}])
def test_the_count_is_what_generation_reads(app: Flask, client: FlaskClient, body: dict[str, Any]) -> None:
    app.extensions["runner"].open()
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    usage = client.post(path, json={**body, "max_tokens": 1}).get_json()["usage"]
    assert client.post("/tokenize", json=body).get_json()["count"] == usage["prompt_tokens"]


def test_the_assistants_turn_is_begun_unless_it_is_not_wanted(client: FlaskClient) -> None:
    tokens = client.post("/tokenize", json={"messages": CHAT}).get_json()["tokens"]
    without = client.post("/tokenize", json={"messages": CHAT, "add_generation_prompt": False}).get_json()["tokens"]
    assert tokens[: len(without)] == without
    rest = client.post("/detokenize", json={"tokens": tokens[len(without) :]}).get_json()["prompt"]
    assert rest == "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "x"}, [True]),
        ({"prompt": "x", "add_special_tokens": True}, [True]),
        ({"prompt": "x", "add_special_tokens": False}, [False]),
        ({"messages": CHAT}, [False]),  # the template writes them
        ({"messages": CHAT, "add_special_tokens": True}, [True]),
        ({"messages": CHAT, "add_special_tokens": False}, [False]),
    ],
)
def test_special_tokens_are_added_as_for_generation_or_as_asked(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], expected: list[bool]
) -> None:
    seen: list[bool] = []
    tokenizer = tokenizer_of(app)
    encode = tokenizer._encode

    def encode_and_note(text: str, add_special_tokens: bool) -> list[int]:
        seen.append(add_special_tokens)
        return encode(text, add_special_tokens)

    monkeypatch.setattr(tokenizer, "_encode", encode_and_note)
    assert client.post("/tokenize", json=body).status_code == 200
    assert seen == expected


def test_there_and_back(client: FlaskClient) -> None:
    text = "the quick brown fox, 語🙂"
    tokens = client.post("/tokenize", json={"prompt": text}).get_json()["tokens"]
    answer = client.post("/detokenize", json={"tokens": tokens})
    assert (answer.status_code, answer.get_json()) == (200, {"prompt": text})
    assert client.post("/detokenize", json={"tokens": []}).get_json() == {"prompt": ""}


# ---- bounds


def test_what_could_not_be_generated_from_is_refused(client: FlaskClient) -> None:
    assert client.post("/tokenize", json={"prompt": "é" * 63}).get_json()["count"] == 126
    for body in ({"prompt": "é" * 64}, {"messages": [{"role": "user", "content": "é" * 64}]}):
        field, message = refused_field(client, "/tokenize", body)
        assert field in body
        assert "send at most 127" in message


def test_a_text_that_cannot_fit_is_not_encoded(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_of(app), "_encode", lambda *args: pytest.fail("it was encoded"))
    for body in ({"prompt": "x" * 50_000}, {"messages": [{"role": "user", "content": "x" * 50_000}]}):
        assert "at least" in refused_field(client, "/tokenize", body)[1]


def test_a_long_text_is_encoded_aside(app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []
    aside = jobs_of(app)._encoder._aside
    run = aside.run

    def run_and_note(work: Callable[[], Any]) -> Any:
        places.append("aside")
        return run(work)

    monkeypatch.setattr(aside, "run", run_and_note)
    monkeypatch.setattr(tokenizer_of(app), "min_tokens", lambda text: 1)
    client.post("/tokenize", json={"prompt": "x" * 4096})
    assert places == []
    client.post("/tokenize", json={"prompt": "x" * 4097})
    assert places == ["aside"]


def test_too_many_tokens_are_refused(client: FlaskClient) -> None:
    assert client.post("/detokenize", json={"tokens": [5] * 128}).status_code == 200
    field, message = refused_field(client, "/detokenize", {"tokens": [5] * 129})
    assert field == "tokens"
    assert "at most 128" in message


@pytest.mark.parametrize(
    ("tokens", "field"), [([5, 10**9], "tokens"), ([5, 10**30], "tokens"), ([-1], "tokens.0"), (["5"], "tokens.0")]
)
def test_tokens_that_the_model_has_not_are_named(client: FlaskClient, tokens: list[Any], field: str) -> None:
    assert refused_field(client, "/detokenize", {"tokens": tokens})[0] == field


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "body", "prompt or messages"),
        ({"prompt": "x", "messages": CHAT}, "body", "prompt or messages"),
        ({"prompt": "x", "add_generation_prompt": True}, "body", "add_generation_prompt"),
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": [5]}, "prompt", "string"),
        ({"messages": CHAT, "continue_final_message": True}, "continue_final_message", "not supported"),
    ],
)
def test_what_does_not_go_is_named(client: FlaskClient, body: dict[str, Any], field: str, words: str) -> None:
    named, message = refused_field(client, "/tokenize", body)
    assert named == field
    assert words in message


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [5]})])
def test_another_model_and_one_that_is_not_there(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    assert client.post(path, json={**body, "model": "endstop-tiny"}).status_code == 200
    answer = client.post(path, json={**body, "model": "another"})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "model_not_found")
    monkeypatch.setattr(app.extensions["endstop"].engine._admission, "state", EngineState.LOADING)
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "LOADING")
    assert answer.headers["Retry-After"]


def test_tools_are_counted_as_generation_reads_them() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    asked = {"messages": [{"role": "user", "content": "a"}], "tools": tools}
    with app_in_process(max_context=4096) as app:
        client = app.test_client()
        counted = client.post("/tokenize", json=asked).get_json()["count"]
        assert counted > client.post("/tokenize", json=asked | {"tools": None}).get_json()["count"]
        app.extensions["runner"].open()
        answer = client.post("/v1/chat/completions", json=asked | {"max_tokens": 1})
        assert answer.get_json()["usage"]["prompt_tokens"] == counted
        assert refused_field(client, "/tokenize", {"prompt": "a", "tools": tools})[0] == "body"
