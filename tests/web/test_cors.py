"""Which web pages may use the server from a browser."""

from collections.abc import Iterator

import pytest
from flask import Flask

from tests.support.apps import app_in_process
from worker.keys import ApiKeys

KEY = "alice-has-this-key"
PAGE, OTHER = "https://one.example", "https://other.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}
BODY = {"prompt": "hello", "max_tokens": 3}


@pytest.fixture(scope="module", params=[PAGE + ", http://localhost:3000", "*"])
def app(request: pytest.FixtureRequest) -> Iterator[Flask]:
    keys = ApiKeys.parse(f"alice:{KEY}")
    with app_in_process(api_keys=keys, cors_origins=request.param, key_concurrency=1, max_queue=50) as app:
        app.extensions["origins"] = request.param
        app.extensions["runner"].open()
        yield app


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/execute", "/v1/jobs/x", "/health"])
def test_a_browser_asks_without_a_key_whether_it_may_send_one(app: Flask, path: str) -> None:
    answer = app.test_client().options(path, headers={"Origin": PAGE, **PREFLIGHT})
    assert answer.status_code == 204
    is_any = app.extensions["origins"] == "*"
    assert answer.headers["Access-Control-Allow-Origin"] == ("*" if is_any else PAGE)
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))
    assert answer.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert answer.headers["Access-Control-Max-Age"] == "600"
    assert ("Origin" in answer.headers.get("Vary", "")) == (not is_any)
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_page_may_read_answers_and_refusals(app: Flask) -> None:
    client = app.test_client()
    origin = "*" if app.extensions["origins"] == "*" else PAGE
    for headers, status in (({"Authorization": f"Bearer {KEY}"}, 200), ({}, 401)):
        answer = client.post("/execute", json=BODY, headers={"Origin": PAGE, **headers})
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"retry-after", "x-request-id", "x-ratelimit-remaining-tokens"} <= set(exposed)
        assert "Access-Control-Allow-Credentials" not in answer.headers
        answer.close()


@pytest.mark.parametrize("origin", [OTHER, PAGE + ":8443", "http://one.example", "https://one.example.org", "null", ""])
def test_another_page_may_not(app: Flask, origin: str) -> None:
    if app.extensions["origins"] == "*":
        return
    client = app.test_client()
    asked = client.options("/execute", headers={"Origin": origin, **PREFLIGHT})
    assert asked.status_code == 401, "it is any request, and has no key"
    told = client.get("/health", headers={"Origin": origin})
    assert told.status_code == 200
    for answer in (asked, told):
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control-")]
        assert "Origin" in answer.headers["Vary"], "a cache would give this answer to the page that may"


def test_what_is_no_question_of_a_browser_needs_a_key(app: Flask) -> None:
    client = app.test_client()
    assert client.options("/execute", headers={"Origin": PAGE}).status_code == 401
    assert client.options("/execute", headers=PREFLIGHT).status_code == 401
    assert client.post("/execute", json=BODY, headers={"Origin": PAGE, **PREFLIGHT}).status_code == 401


def test_it_is_off_unless_it_is_asked_for() -> None:
    with app_in_process() as app:
        for answer in (
            app.test_client().options("/execute", headers={"Origin": PAGE, **PREFLIGHT}),
            app.test_client().get("/health", headers={"Origin": PAGE}),
        ):
            assert not [name for name, _ in answer.headers if name.startswith("Access-Control-")]
            assert "Vary" not in answer.headers
