"""The document says what the app does: every route, what it takes, and what it answers."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from werkzeug.test import TestResponse

from tests.support.apps import app_in_process
from tests.support.servers import RawStream, Server
from tests.test_request import ACCEPTED, REFUSED
from worker.body import parse_body
from worker.errors import InvalidRequest
from worker.keys import ApiKeys
from worker.request import GenerateRequest
from worker.schema import TAG_PREFIX, StrictModel
from worker.web.chat_completions import ChatCompletionRequest
from worker.web.completions import CompletionRequest
from worker.web.description import description_of
from worker.web.messages_request import CountRequest, MessagesRequest
from worker.web.openapi import document
from worker.web.responses_request import ResponseRequest
from worker.web.tokenization import DetokenizeRequest, TokenizeRequest

HELLO = [{"role": "user", "content": "hello"}]
PROMPT = {"prompt": "hello", "max_tokens": 3, "temperature": 0}
KEY = "open-sesame-open-sesame"
CHAT = {"messages": HELLO, "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def app() -> Iterator[Flask]:
    with app_in_process(max_body_bytes=20_000) as app:
        app.extensions["runner"].open()
        yield app


@pytest.fixture(scope="module")
def doc(app: Flask) -> dict[str, Any]:
    found: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
    return found


def operations(doc: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation) for path, methods in doc["paths"].items() for method, operation in methods.items()
    ]


def problems(doc: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    """What a schema of the document has against a value."""
    validator = Draft202012Validator({**schema, "components": doc["components"]})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def path_template(doc: dict[str, Any], path: str) -> str:
    """The path of the document that a path is one of."""
    bare = path.partition("?")[0]
    if bare in doc["paths"]:
        return bare
    for template in doc["paths"]:
        if re.fullmatch(re.sub(r"\{\w+\}", ".+", template.replace(".", r"\.")), bare):
            found: str = template
            if found.count("/") == bare.count("/"):
                return found
    raise AssertionError(f"{path} is not in the document")


def assert_documented(doc: dict[str, Any], method: str, path: str, answer: TestResponse) -> None:
    """The answer is one that the document has: status, media type, body, and each event of a stream."""
    operation = doc["paths"][path_template(doc, path)][method]
    documented = operation["responses"].get(str(answer.status_code))
    assert documented is not None, f"{answer.status_code} of {path} is not documented: {answer.text}"
    media = documented["content"].get(answer.mimetype)
    assert media is not None, f"{answer.mimetype} of {path} is not documented"
    required = {name for name, header in documented.get("headers", {}).items() if header["required"]}
    assert set(answer.headers.keys()) >= required
    if answer.mimetype == "text/event-stream":
        events = re.findall(r"^data: (.*)$", answer.text, re.MULTILINE)
        if not path.startswith(("/v1/responses", "/v1/messages")):
            assert events.pop() == "[DONE]"
        assert events
        [data, last] = media["schema"]["properties"]["data"]["anyOf"]
        assert last == {"const": "[DONE]"}
        for event in events:
            assert problems(doc, data["contentSchema"], json.loads(event)) == []
    elif answer.mimetype == "application/json":
        assert problems(doc, media["schema"], answer.get_json()) == []


# ---- the document


def test_it_is_openapi(doc: dict[str, Any]) -> None:
    assert doc["openapi"].startswith("3.1.")
    validate(doc)


def test_every_route_is_in_it(app: Flask, doc: dict[str, Any]) -> None:
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "page.file"  # parts of the page
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations(doc)} == routes


def test_a_route_that_says_nothing_of_itself_is_left_out() -> None:
    app = Flask("test", static_folder=None)
    app.add_url_rule("/gate", view_func=lambda: "")
    assert description_of(app.view_functions["<lambda>"]) is None
    assert document(app)["paths"] == {}


def test_everything_is_described(doc: dict[str, Any]) -> None:
    for path, _, operation in operations(doc):
        assert operation["summary"], path
        for parameter in operation["parameters"]:
            assert parameter["description"], (path, parameter)
        declared = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))
        for status, answer in operation["responses"].items():
            assert answer["description"], (path, status)
        if "requestBody" in operation:
            schema = doc["components"]["schemas"][body_name(operation)]
            for name, field in schema["properties"].items():
                assert field.get("description"), f"{name} of {path}"


def test_every_request_may_have_a_name_and_every_answer_has_one(doc: dict[str, Any]) -> None:
    for path, _, operation in operations(doc):
        [sent] = [one for one in operation["parameters"] if one["name"] == "X-Request-Id"]
        assert sent["in"] == "header", path
        assert not sent.get("required"), path
        for name in ("a" * 200, "00-af-01", "a.b_c~d:e/f+g=h@i|j-k"):
            assert problems(doc, sent["schema"], name) == []
        for name in ("", "a" * 201, "a b", "a,b", "ü", "a;b"):
            assert problems(doc, sent["schema"], name) != []
        for status, answer in operation["responses"].items():
            # What is refused ahead of the app has none.
            assert answer["headers"]["X-Request-Id"]["required"] == (int(status) < 400), (path, status)


def test_no_two_operations_have_one_name(doc: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(doc)]
    assert sorted(set(names)) == sorted(names)


def test_names_are_those_of_the_code_and_no_tags_of_unions(doc: dict[str, Any]) -> None:
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", name) for name in doc["components"]["schemas"])
    for schema in doc["components"]["schemas"].values():
        assert f'"{TAG_PREFIX}' not in json.dumps(schema)
        assert "discriminator" not in json.dumps(schema)


def test_every_schema_is_used(doc: dict[str, Any]) -> None:
    text = json.dumps(doc)
    assert [name for name in doc["components"]["schemas"] if f'/{name}"' not in text] == []


def test_a_schema_of_an_answer_is_closed(doc: dict[str, Any]) -> None:
    """Else a field that the document has not would pass every test here."""
    error = {"error": {"code": "x", "message": "y"}}
    assert not problems(doc, {"$ref": "#/components/schemas/Refusal"}, error)
    assert problems(doc, {"$ref": "#/components/schemas/Refusal"}, {**error, "more": 1})


# ---- what is taken

BODIES: dict[str, type[StrictModel]] = {
    "GenerateRequest": GenerateRequest,
    "ChatCompletionRequest": ChatCompletionRequest,
    "CompletionRequest": CompletionRequest,
    "ResponseRequest": ResponseRequest,
    "MessagesRequest": MessagesRequest,
    "CountRequest": CountRequest,
    "TokenizeRequest": TokenizeRequest,
    "DetokenizeRequest": DetokenizeRequest,
}


def body_name(operation: dict[str, Any]) -> str:
    name: str = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return name


def is_accepted(body: type[StrictModel], value: Any) -> bool:
    try:
        parse_body(body, json.dumps(value).encode())
    except InvalidRequest:
        return False
    return True


def is_valid(doc: dict[str, Any], name: str, value: Any) -> bool:
    return not problems(doc, {"$ref": f"#/components/schemas/{name}"}, value)


def test_these_are_all_bodies(doc: dict[str, Any]) -> None:
    assert {body_name(operation) for _, _, operation in operations(doc) if "requestBody" in operation} == set(BODIES)


@pytest.mark.parametrize("name", ["GenerateRequest", "ChatCompletionRequest", "CompletionRequest"])
def test_the_schema_of_a_body_says_what_parsing_it_says(doc: dict[str, Any], name: str) -> None:
    """On every value that the tests of parsing try, and on null."""
    body = BODIES[name]
    input_field = "messages" if name == "ChatCompletionRequest" else "prompt"
    tried = [(field, value) for field, values in (*ACCEPTED, *REFUSED) for value in [*values, None]]
    num_compared = 0
    for field, value in tried:
        # JSON has no NaN, and its schemas hold 1.0 to be an integer.
        is_comparable = not isinstance(value, float) or (math.isfinite(value) and not value.is_integer())
        if field in body.model_fields and is_comparable:
            base = {} if field in ("prompt", "messages") else {input_field: HELLO if input_field == "messages" else "x"}
            request = {**base, field: value}
            if body.conflicts({key: one for key, one in request.items() if one is not None}):
                continue  # most of what does not go together is said in words only
            assert is_valid(doc, name, request) == is_accepted(body, request), request
            num_compared += 1
    assert num_compared > 90


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GenerateRequest", {}),
        ("GenerateRequest", {"prompt": "x", "messages": HELLO}),
        ("GenerateRequest", {"prompt": None, "messages": HELLO}),
        ("GenerateRequest", {"prompt": None, "messages": None}),
        ("GenerateRequest", {"prompt": "x", "colour": None}),
        ("GenerateRequest", {"prompt": "x", "stop": "END"}),
        ("GenerateRequest", {"prompt": "x", "stop": ["a", "b", "c", "d", "e"]}),
        ("GenerateRequest", {"prompt": "x", "logit_bias": {"5": 1}}),
        ("GenerateRequest", {"prompt": "x", "logit_bias": {"five": 1}}),
        ("CompletionRequest", {"prompt": ["x", "y"]}),
        ("CompletionRequest", {"prompt": [[5], [6]]}),
        ("CompletionRequest", {"prompt": [5, 6]}),
        ("CompletionRequest", {"prompt": [5, "x"]}),
        ("CompletionRequest", {"prompt": []}),
        ("CompletionRequest", {"prompt": None}),
        ("CompletionRequest", {"prompt": "x", "stream": True, "stream_options": {"include_usage": None}}),
        ("ChatCompletionRequest", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
        ("ChatCompletionRequest", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
        ("TokenizeRequest", {"messages": HELLO, "prompt": None}),
        ("TokenizeRequest", {"prompt": "x", "return_token_strs": None}),
        ("TokenizeRequest", {}),
        ("DetokenizeRequest", {"tokens": []}),
        ("DetokenizeRequest", {"tokens": [-1]}),
        ("DetokenizeRequest", {"tokens": None}),
    ],
)
def test_the_schema_says_what_parsing_says_of(doc: dict[str, Any], name: str, value: Any) -> None:
    assert is_valid(doc, name, value) == is_accepted(BODIES[name], value)


# ---- what is answered


def test_every_example_works(app: Flask, doc: dict[str, Any]) -> None:
    for path, method, operation in operations(doc):
        if "requestBody" in operation:
            example = operation["requestBody"]["content"]["application/json"]["example"]
            answer = app.test_client().open(path, method=method, json=example)
            assert answer.status_code in (200, 202), answer.text
            assert_documented(doc, method, path, answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"n": 2}),
        ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", CHAT | {"stream": True, "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 3}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 3, "stream": True}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 3, "background": True}),
        ("/v1/messages", {**CHAT, "model": "endstop-tiny"}),
        ("/v1/messages", {**CHAT, "model": "endstop-tiny", "stream": True}),
        ("/v1/completions", PROMPT | {"logprobs": 2}),
        ("/v1/completions", PROMPT | {"stream": True, "logprobs": 2}),
        ("/v1/completions", PROMPT | {"stream": True, "stream_options": {"include_usage": True}, "stop": "c"}),
        ("/execute", PROMPT | {"logprobs": 2, "narrate": True}),
        ("/execute", PROMPT | {"stop": "c"}),
        ("/v1/jobs", PROMPT),
        ("/v1/inference", PROMPT),
        ("/tokenize", {"messages": HELLO, "return_token_strs": True}),
    ],
)
def test_answers_are_what_the_document_says(app: Flask, doc: dict[str, Any], path: str, body: Any) -> None:
    answer = app.test_client().post(path, json=body)
    assert answer.status_code in (200, 202), answer.text
    assert_documented(doc, "post", path, answer)


def test_jobs_are_what_the_document_says(app: Flask, doc: dict[str, Any]) -> None:
    client = app.test_client()
    job = client.post("/v1/jobs", json=PROMPT).get_json()
    state = f"/v1/jobs/{job['job_id']}"
    for method, path in (("get", state), ("get", job["sse_url"]), ("get", state), ("delete", state)):
        assert_documented(doc, method, path, client.open(path, method=method))
    assert client.get(state).get_json()["state"] == "ENDED"


def test_what_has_no_body_is_what_the_document_says(app: Flask, doc: dict[str, Any]) -> None:
    client = app.test_client()
    for path, method, _ in operations(doc):
        if method == "get" and "{" not in path:
            assert_documented(doc, method, path, client.get(path))
    assert_documented(doc, "get", "/v1/models/endstop-tiny", client.get("/v1/models/endstop-tiny"))


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/execute"])
def test_failures_are_what_the_document_says(app: Flask, doc: dict[str, Any], path: str, is_streamed: bool) -> None:
    body: dict[str, Any] = dict(CHAT if "chat" in path else PROMPT)
    if path != "/execute":
        body["stream"] = is_streamed
        if is_streamed:
            body["stream_options"] = {"include_usage": True}
    app.extensions["runner"].fault = RuntimeError("a bug")
    answer = app.test_client().post(path, json=body)
    assert (answer.status_code == 500) == (path != "/execute" and not is_streamed)
    assert "INFERENCE_FAILED" in answer.text
    assert_documented(doc, "post", path, answer)


def test_refusals_are_what_the_document_says(app: Flask, doc: dict[str, Any]) -> None:
    """On every route that has them, in its own shape."""
    client = app.test_client()
    for path, method, operation in operations(doc):
        real = re.sub(r"\{\w+\}", "nothing", path)
        if "requestBody" in operation:
            for body, status in (("{", 400), ('{"colour": "red"}', 400), (" " * 20_001, 413)):
                answer = client.open(real, method=method, data=body)
                assert answer.status_code == status
                assert_documented(doc, method, path, answer)
            example = operation["requestBody"]["content"]["application/json"]["example"]
            if "model" in BODIES[body_name(operation)].model_fields:
                answer = client.open(real, method=method, json={**example, "model": "another"})
                assert answer.status_code == 404
                assert_documented(doc, method, path, answer)
        if "{" in path:
            answer = client.open(real, method=method)
            assert answer.status_code == 404
            assert_documented(doc, method, path, answer)
        answer = client.open(real, method="patch")
        assert answer.status_code == 405
        assert_documented(doc, method, path, answer)


def test_refusals_of_a_key_and_of_an_event_are_what_the_document_says(app: Flask, doc: dict[str, Any]) -> None:
    client = app.test_client()
    for path, body in (("/v1/jobs", PROMPT), ("/execute", PROMPT), ("/v1/completions", PROMPT)):
        for prompt, status in (("a", None), ("b", 422)):
            answer = client.post(path, json=body | {"prompt": prompt}, headers={"Idempotency-Key": path})
            assert status in (None, answer.status_code)
            assert_documented(doc, "post", path, answer)
        answer = client.post(path, json=body, headers={"Idempotency-Key": "a,b"})
        assert answer.status_code == 400
        assert_documented(doc, "post", path, answer)
    job = client.post("/v1/jobs", json=PROMPT).get_json()
    for headers in ({}, {"Last-Event-ID": "0"}):
        answer = client.get(job["sse_url"] + "?last_event_id=x", headers=headers)
        assert answer.status_code == 400
        assert_documented(doc, "get", job["sse_url"], answer)


def test_no_room_is_what_the_document_says(app: Flask, doc: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shared = app.extensions["endstop"]
    monkeypatch.setattr(shared.engine._admission, "_open", set(range(shared.settings.max_streams)))
    client = app.test_client()
    for path, body in (("/v1/jobs", PROMPT), ("/execute", PROMPT), ("/v1/chat/completions", CHAT)):
        answer = client.post(path, json=body)
        assert answer.status_code == 429
        assert_documented(doc, "post", path, answer)
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert_documented(doc, "get", "/ready", answer)
    monkeypatch.setattr(shared.engine, "liveness", lambda: "stuck")
    answer = client.get("/health")
    assert answer.status_code == 503
    assert_documented(doc, "get", "/health", answer)


def test_how_the_server_is_doing_is_what_the_document_says(app: Flask, doc: dict[str, Any]) -> None:
    shared, client = app.extensions["endstop"], app.test_client()
    assert client.post("/execute", json=PROMPT).text
    shared.history.sample(shared.history._sampled_at + 2)
    app.extensions["runner"].close()
    for _ in range(3):
        assert client.post("/v1/jobs", json=PROMPT).status_code == 202
    answer = client.get("/v1/operations")
    app.extensions["runner"].open()
    assert all(answer.get_json()[name] for name in ("streams", "outcomes", "ended", "history"))
    assert_documented(doc, "get", "/v1/operations", answer)


def test_a_server_with_keys_says_so_and_what_who_has_none_is_told() -> None:
    with app_in_process(api_keys=ApiKeys.parse(f"someone:{KEY}")) as app:
        app.extensions["runner"].open()
        client = app.test_client()
        doc = client.get("/openapi.json").get_json()  # which is open, as the page that shows it
        validate(doc)
        assert client.get("/docs").status_code == 200
        assert set(doc["components"]["securitySchemes"]) == {"bearer", "apiKey"}
        for path, method, operation in operations(doc):
            real = re.sub(r"\{\w+\}", "nothing", path)
            answer = client.open(real, method=method)
            assert (answer.status_code == 401) == ("security" in operation), path
            assert_documented(doc, method, path, answer)
            for headers in ({"Authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
                assert client.open(real, method=method, headers=headers).status_code != 401


def test_a_server_without_keys_asks_for_none(doc: dict[str, Any]) -> None:
    for _, _, operation in operations(doc):
        assert "security" not in operation
        assert "401" not in operation["responses"]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_what_the_server_refuses_by_itself_is_what_the_document_says(
    gated: Server, doc: dict[str, Any], path: str
) -> None:
    """Before it knows the route: its own shape has the fields of every route's."""
    for query, headers, status in (
        ("?" + "x" * 5000, {}, 414),
        ("", {"X": "x" * 10_000}, 431),
        ("", {"X\0": "x"}, 400),
    ):
        with RawStream(gated, "GET", path + query, **headers) as stream:
            assert stream.head()[0] == status
            body = json.loads(stream.read_until(b"}\n"))
        schema = doc["paths"][path]["get"]["responses"][str(status)]["content"]["application/json"]["schema"]
        assert problems(doc, schema, body) == []
