"""Answers in the form that a request asks for, on every route, streamed and whole; forms that nobody can keep to."""

import json
import re
import threading
import time
from typing import Any, Literal

import jsonschema
import openai
import pytest
import requests
from pydantic import BaseModel

from tests.engine.test_constraints import HOSTILE
from tests.support.servers import ANSWER_S, RawStream, Server, assert_ended_once, events_of

pytestmark = pytest.mark.slow

MESSAGES: Any = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "sky": {"enum": ["grey", "blue"]},
        "stars": {"type": "integer", "minimum": 0, "maximum": 99},
        "wet": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["sky", "stars", "wet"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "regex": ({"regex": "[a-d]{3}/x"}, "[a-d]{3}/x"),
    "choice": ({"choice": ["yes", "no/a?", "語"]}, r"yes|no/a\?|語"),
    "grammar": ({"grammar": 'start: "<" NAME ">"\nNAME: /[a-z]{2,5}/'}, "<[a-z]{2,5}>"),
    # what the model writes, were it left alone, fits too
    "the model's own": ({"regex": "[a-z]{5}", "temperature": 0}, "abcde"),
}


def text_of(answer: dict[str, Any]) -> str:
    """The text of a whole answer, which must have ended by itself."""
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "stop"
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_an_answer_has_its_form_whole_and_streamed(gated: Server, route: str, form: str) -> None:
    fields, pattern = FORMS[form]
    asked = {"messages": MESSAGES} if "chat" in route else {"prompt": "hello"}
    asked |= {"max_tokens": 60, "seed": 1, **fields}
    gated.allow(500)
    whole = text_of(gated.post(route, asked).json())
    assert re.fullmatch(pattern, whole)
    with RawStream(gated, "POST", route, {**asked, "stream": True}) as stream:
        events = events_of(stream.read_all())
    assert events[-1] == "[DONE]"
    choices = [event["choices"][0] for event in events[:-1]]
    assert choices[-1]["finish_reason"] == "stop"
    assert "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in choices) == whole


@pytest.mark.parametrize("form", sorted(FORMS))
def test_native_answers_have_it_too(gated: Server, form: str) -> None:
    fields, pattern = FORMS[form]
    gated.allow(500)
    with RawStream(gated, "POST", "/execute", {"prompt": "hello", "max_tokens": 60, **fields}) as stream:
        body = stream.read_all()
    assert assert_ended_once(body)["stop_reason"] == "EOS"
    text = "".join(event["t"] for event in events_of(body)[:-1] if event["type"] == "token")
    assert re.fullmatch(pattern, text)


def test_a_job_may_have_a_form(gated: Server) -> None:
    gated.allow(500)
    job = gated.post("/v1/jobs", {"prompt": "hello", "response_format": FORMAT, "max_tokens": 200}).json()
    with RawStream(gated, "GET", job["sse_url"]) as stream:
        body = stream.read_all()
    assert assert_ended_once(body)["stop_reason"] == "EOS"
    text = "".join(event["t"] for event in events_of(body)[:-1] if event["type"] == "token")
    jsonschema.validate(json.loads(text), SCHEMA)


def test_each_of_several_answers_is_in_the_grammar_by_itself(gated: Server) -> None:
    gated.allow(1000)
    asked = {"messages": MESSAGES, "n": 3, "seed": 1, "max_tokens": 200, "response_format": FORMAT}
    choices = gated.post("/v1/chat/completions", asked).json()["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


class Weather(BaseModel):
    """What the openai client parses answers to."""

    sky: Literal["grey", "blue"]
    wet: bool


def test_the_openai_client_parses_answers_to_its_users_types(gated: Server) -> None:
    gated.allow(1000)
    with openai.OpenAI(base_url=gated.url + "/v1", api_key="none", max_retries=0, timeout=30) as client:
        answer = client.chat.completions.parse(
            model="endstop-tiny", messages=MESSAGES, response_format=Weather, max_tokens=200
        )
        parsed = answer.choices[0].message.parsed
        assert parsed is not None
        assert parsed.sky in ("grey", "blue")
        with client.chat.completions.stream(
            model="endstop-tiny", messages=MESSAGES, response_format=Weather, max_tokens=200
        ) as stream:
            assert stream.get_final_completion().choices[0].message.parsed is not None


def test_any_object_is_json(gated: Server) -> None:
    gated.allow(500)
    asked = {"messages": MESSAGES, "response_format": {"type": "json_object"}, "max_tokens": 100, "seed": 3}
    choice = gated.post("/v1/chat/completions", asked).json()["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["message"]["content"].startswith("{")


def test_an_answer_that_is_cut_reads_length(gated: Server) -> None:
    gated.allow(500)
    answer = gated.post("/v1/completions", {"prompt": "hello", "regex": "[a-z]{40}", "max_tokens": 7}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert re.fullmatch("[a-z]{7,39}", answer["choices"][0]["text"])


def test_with_several_prompts_each_answer_has_the_form(gated: Server) -> None:
    gated.allow(500)
    asked = {"prompt": ["hello", "there"], "n": 2, "choice": ["yes", "no"]}
    choices = gated.post("/v1/completions", asked).json()["choices"]
    assert [choice["text"] in ("yes", "no") for choice in choices] == [True] * 4


def test_a_form_that_nobody_can_keep_to_is_refused_in_the_routes_own_shape(gated: Server) -> None:
    schema = {"allOf": [{"type": "string"}, {"type": "integer"}]}
    asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    refused = gated.post("/v1/chat/completions", {"messages": MESSAGES, **asked})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["type"]) == ("response_format.json_schema.schema", "invalid_request_error")
    assert "Unsatisfiable" in error["message"]
    refused = gated.post("/execute", {"prompt": "hello", **asked})
    assert refused.status_code == 400
    [native] = refused.json()["errors"]
    assert (native["field"], native["constraint"]) == ("response_format.json_schema.schema", "structure")
    assert gated.stats()["open"] == 0


def test_a_key_belongs_to_the_form_too(gated: Server) -> None:
    gated.allow(500)
    with_key = {"Idempotency-Key": "form"}
    asked = {"prompt": "hello", "response_format": FORMAT, "max_tokens": 200}

    def post(fields: dict[str, Any]) -> requests.Response:
        return requests.post(gated.url + "/v1/completions", json=fields, headers=with_key, timeout=ANSWER_S)

    first = text_of(post(asked).json())
    assert text_of(post(asked).json()) == first
    other = json.loads(json.dumps(FORMAT).replace("grey", "red"))
    assert post(asked | {"response_format": other}).status_code == 422


def test_while_hostile_grammars_are_tried_everybody_else_is_served(gated: Server) -> None:
    grammars = [grammar for grammar, _ in HOSTILE.values() if len(grammar) < 20_000]
    answers: list[requests.Response] = []

    def send() -> None:
        for grammar in grammars:
            answers.append(gated.post("/v1/completions", {"prompt": "hello", "grammar": grammar}))

    sender = threading.Thread(target=send)
    sender.start()
    longest_s = 0.0
    while sender.is_alive():
        started_at = time.monotonic()
        assert gated.get("/health").status_code == 200
        longest_s = max(longest_s, time.monotonic() - started_at)
        sender.join(0.02)
    assert [answer.status_code for answer in answers] == [400] * len(grammars)
    assert all(answer.json()["error"]["param"] == "grammar" for answer in answers)
    assert longest_s < ANSWER_S / 10
    gated.allow(100)
    assert text_of(gated.post("/v1/completions", {"prompt": "hello", "choice": ["a"]}).json()) == "a"
