"""Who may ask what: API keys, the jobs of others, and limits of each key. In this process."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from tests.support.apps import app_in_process
from tests.support.engines import wait_until
from worker.keys import ApiKeys, KeyLimits
from worker.web import page

ALICE, BOB = "alice-has-this-key", "bob-has-another-one"
KEYS = ApiKeys.parse(f"alice:{ALICE},bob:{BOB}")
PROMPT = {"prompt": "hello", "max_tokens": 3, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
COMPLETION = {"prompt": "hello", "max_tokens": 3}
GENERATING = [
    ("/v1/jobs", PROMPT),
    ("/execute", PROMPT),
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", COMPLETION),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 3}),
    ("/v1/messages", {"model": "endstop-tiny", "max_tokens": 3, "messages": CHAT["messages"]}),
]


@pytest.fixture
def app() -> Iterator[Flask]:
    with app_in_process(api_keys=KEYS) as app:
        yield app


@pytest.fixture(scope="module")
def idle() -> Iterator[Flask]:
    """One for tests that start nothing."""
    with app_in_process(api_keys=KEYS) as app:
        yield app


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def shared(app: Flask) -> Any:
    return app.extensions["endstop"]


# ---- keys


OPEN = ["/health", "/ready", "/v1/ready", "/docs", "/openapi.json", *page.PATHS]


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_the_description_need_no_key(idle: Flask, path: str) -> None:
    assert idle.test_client().get(path).status_code == 200
    assert idle.test_client().head(path).status_code == 200


def test_everything_else_needs_one(idle: Flask) -> None:
    """Every rule that there is, by every method, what does not exist, and a path that only looks like a probe's."""
    asked = [
        (method, rule.rule.replace("<job_id>", "x").replace("<path:name>", "x"))
        for rule in idle.url_map.iter_rules()
        for method in rule.methods or ()
        if rule.rule not in OPEN
    ]
    assert len(asked) > 20
    lookalikes = ("/nope", "/metrics", "/health/", "/%2Fv1/models", "/page/", "/page/nope.js", "/page/../v1/models")
    for method, path in [*asked, *(("GET", path) for path in lookalikes)]:
        answer = idle.test_client().open(path, method=method)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (bearer(""), 401),
        (bearer("wrong"), 401),
        ({"Authorization": ALICE}, 401),
        ({"Authorization": f"Basic {ALICE}"}, 401),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": ""}, 401),
        (bearer(ALICE) | {"x-api-key": BOB}, 401),
        (bearer(ALICE) | {"x-api-key": ""}, 401),
        (bearer(ALICE), 200),
        ({"Authorization": f"bearer {ALICE}"}, 200),
        ({"x-api-key": BOB}, 200),
        (bearer(ALICE) | {"x-api-key": ALICE}, 200),
        ({"Authorization": "Basic something", "x-api-key": ALICE}, 200),
    ],
)
def test_a_key_comes_in_either_header(idle: Flask, headers: dict[str, str], status: int) -> None:
    answer = idle.test_client().get("/v1/models", headers=headers)
    assert answer.status_code == status
    assert ALICE not in answer.get_data(as_text=True)


def test_each_route_says_so_in_its_own_shape(idle: Flask) -> None:
    client = idle.test_client()
    openai = client.post("/v1/chat/completions", json=CHAT, headers=bearer("wrong")).get_json()
    assert openai["error"].pop("message").startswith("the API key is not known")
    assert openai == {"error": {"type": "invalid_request_error", "param": None, "code": "invalid_api_key"}}
    anthropic = client.post("/v1/messages", json=CHAT, headers={"x-api-key": "wrong"}).get_json()
    assert anthropic["error"].pop("message").startswith("the API key is not known")
    details = {"error_code": "INVALID_API_KEY"}
    assert anthropic == {"type": "error", "error": {"type": "authentication_error", "details": details}}
    native = client.post("/execute", json=PROMPT).get_json()
    assert native["error"].pop("message").startswith("there is no API key; send it as")
    assert native == {"error": {"code": "INVALID_API_KEY"}}


@pytest.mark.parametrize("path", ["/execute", "/v1/chat/completions", "/health", "/nope"])
def test_the_body_of_who_is_not_known_is_not_read(idle: Flask, path: str) -> None:
    class Body:
        def read(self, *args: int) -> bytes:
            raise AssertionError("it was read")

        readline = read

    answer = idle.test_client().post(
        path, environ_overrides={"wsgi.input": Body(), "CONTENT_LENGTH": "50000000", "wsgi.input_terminated": True}
    )
    assert answer.status_code == (405 if path == "/health" else 401)


def test_without_keys_none_is_looked_at() -> None:
    with app_in_process() as app:
        for headers in ({}, bearer("none"), {"x-api-key": "x"}):
            assert app.test_client().get("/v1/models", headers=headers).status_code == 200


# ---- the jobs of others


def test_a_job_of_somebody_else_is_not_known(app: Flask) -> None:
    client = app.test_client()
    made = client.post("/v1/jobs", json=PROMPT, headers=bearer(ALICE)).get_json()
    job_id = made["job_id"]
    for prefix in ("/v1/jobs", "/v1/inference"):
        for method, path in (("GET", ""), ("HEAD", "/stream"), ("GET", "/stream"), ("DELETE", "")):
            theirs, nobodys = (
                client.open(f"{prefix}/{name}{path}", method=method, headers=bearer(BOB)) for name in (job_id, "0" * 32)
            )
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.get_data().replace(job_id.encode(), b"0" * 32) == nobodys.get_data()
            assert theirs.headers.get("Content-Type") == nobodys.headers.get("Content-Type")
    assert client.get(f"/v1/jobs/{job_id}", headers=bearer(ALICE)).get_json()["state"] in ("QUEUED", "RUNNING")
    app.extensions["runner"].open()
    stream = client.get(made["sse_url"], headers=bearer(ALICE)).get_data()
    assert b'"MAX_TOKENS"' in stream
    assert client.delete(f"/v1/jobs/{job_id}", headers=bearer(ALICE)).status_code == 200


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_an_idempotency_key_belongs_to_a_client(app: Flask, path: str, body: Any) -> None:
    """Another's job is not heard of, neither as its answer nor as a refusal."""
    client, once = app.test_client(), {"Idempotency-Key": "key"}
    app.extensions["runner"].open()
    for key in (ALICE, BOB):
        limit = "max_output_tokens" if "max_output_tokens" in body else "max_tokens"
        asked = body | {limit: 3 if key == ALICE else 2}
        answer = client.post(path, json=asked, headers=bearer(key) | once)
        assert answer.status_code in (200, 202)
        assert "Idempotent-Replayed" not in answer.headers
        answer.close()
        again = client.post(path, json=asked, headers=bearer(key) | once)
        assert again.headers["Idempotent-Replayed"] == "true"
        again.close()
    assert sorted(job.client for job in shared(app).jobs._jobs.values()) == ["alice", "bob"]


def test_the_outcome_names_the_key_and_not_what_it_is(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "endstop")
    app.extensions["runner"].open()
    app.test_client().post("/v1/completions", json=COMPLETION, headers=bearer(ALICE))
    wait_until(lambda: "outcome=" in caplog.text)
    assert "key=alice outcome=end{MAX_TOKENS}" in caplog.text
    assert ALICE not in caplog.text


# ---- limits


@pytest.fixture
def limited() -> Iterator[Flask]:
    own = KeyLimits.parse("bob:0:0")
    with app_in_process(
        api_keys=KEYS, max_slots=8, max_queue=8, key_concurrency=2, key_tokens_per_minute=100, key_limits=own
    ) as app:
        yield app


def start(app: Flask, key: str = ALICE, **changed: Any) -> TestResponse:
    return app.test_client().post("/v1/jobs", json=PROMPT | changed, headers=bearer(key))


def test_one_request_too_many_is_told_when_to_come_back(limited: Flask) -> None:
    assert [start(limited).status_code for _ in range(3)] == [202, 202, 429]
    refused = start(limited)
    assert refused.get_json()["error"]["code"] == "RATE_LIMITED"
    assert int(refused.headers["Retry-After"]) >= 1
    assert start(limited, BOB).status_code == 202, "it has a limit of its own: none"
    chat = limited.test_client().post("/v1/chat/completions", json=CHAT, headers=bearer(ALICE))
    assert chat.status_code == 429
    assert chat.get_json()["error"]["code"] == "rate_limit_exceeded"
    assert chat.get_json()["error"]["type"] == "rate_limit_error"
    assert shared(limited).engine.num_open == 3
    limited.extensions["runner"].open()
    wait_until(lambda: shared(limited).engine.num_open == 0)
    assert start(limited).status_code == 202


def test_who_has_too_many_open_is_refused_before_the_work_of_encoding(
    limited: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        start(limited)
    monkeypatch.setattr(shared(limited).jobs._encoder, "encode", lambda *_: pytest.fail("it was encoded"))
    assert start(limited).status_code == 429


def test_more_answers_than_a_key_may_ever_have_are_a_bad_request(limited: Flask) -> None:
    answer = limited.test_client().post("/v1/chat/completions", json=CHAT | {"n": 3}, headers=bearer(ALICE))
    assert answer.status_code == 400
    assert answer.get_json()["error"]["param"] == "n"
    assert shared(limited).engine.num_open == 0


def test_answers_to_one_request_are_accepted_together_or_not_at_all(limited: Flask) -> None:
    start(limited)
    answer = limited.test_client().post("/v1/chat/completions", json=CHAT | {"n": 2}, headers=bearer(ALICE))
    assert answer.status_code == 429
    assert shared(limited).engine.num_open == 1
    assert len(shared(limited).jobs._jobs) == 1
    assert not shared(limited).records.outcomes


def test_tokens_are_charged_and_what_was_not_used_comes_back(limited: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.admission.time.monotonic", lambda: 1000.0)
    first = start(limited, max_tokens=90, stop="b")
    assert first.status_code == 202
    cost = 100 - int(first.headers["x-ratelimit-remaining-tokens"])
    assert cost > 90
    refused = start(limited, max_tokens=50)
    assert refused.status_code == 429
    assert "up to" in refused.get_json()["error"]["message"]
    assert refused.headers["x-ratelimit-remaining-tokens"] == str(100 - cost)
    limited.extensions["runner"].open()
    wait_until(lambda: shared(limited).engine.num_open == 0)
    assert shared(limited).engine.allowance("alice").tokens == 100 - (cost - 90) - len("ab")


def test_an_answer_that_a_minute_cannot_hold_is_a_bad_request(limited: Flask) -> None:
    answer = start(limited, max_tokens=110)
    assert answer.status_code == 400
    assert answer.get_json()["errors"][0]["field"] == "max_tokens"


def test_who_never_had_a_slot_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.admission.time.monotonic", lambda: 1000.0)
    with app_in_process(api_keys=KEYS, max_slots=1, key_tokens_per_minute=100) as app:
        start(app, BOB)
        wait_until(lambda: shared(app).engine.num_running == 1)
        job_id = start(app).get_json()["job_id"]
        assert shared(app).engine.allowance("alice").tokens < 100
        app.test_client().delete(f"/v1/jobs/{job_id}", headers=bearer(ALICE))
        app.extensions["runner"].open()
        wait_until(lambda: shared(app).engine.num_open == 0)
        assert shared(app).engine.allowance("alice").tokens == 100


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_every_answer_says_what_is_left(limited: Flask, path: str, body: Any) -> None:
    limited.extensions["runner"].open()
    answer = limited.test_client().post(path, json=body, headers=bearer(ALICE))
    told = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}
    answer.close()
    assert told["x-ratelimit-limit-requests"] == "2"
    assert told["x-ratelimit-remaining-requests"] in ("1", "2")
    assert told["x-ratelimit-limit-tokens"] == "100"
    assert 0 < int(told["x-ratelimit-remaining-tokens"]) < 100
    assert 0 <= float(told["x-ratelimit-reset-tokens"].removesuffix("s")) <= 60
    assert told["x-ratelimit-reset-requests"].endswith("s")


def test_nothing_is_said_where_there_is_no_limit(limited: Flask) -> None:
    answers = [start(limited, BOB), limited.test_client().get("/v1/models", headers=bearer(ALICE))]
    assert not [name for answer in answers for name, _ in answer.headers if "ratelimit" in name.lower()]


def test_without_keys_all_clients_are_one() -> None:
    with app_in_process(key_concurrency=1) as app:
        assert [app.test_client().post("/v1/jobs", json=PROMPT).status_code for _ in range(2)] == [202, 429]


def test_of_many_who_come_at_once_exactly_so_many_are_let_in(limited: Flask) -> None:
    begin, statuses = threading.Barrier(12), list[int]()

    def ask() -> None:
        begin.wait(30)
        statuses.append(start(limited).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(statuses) == [202] * 2 + [429] * 10
    assert shared(limited).engine.num_open == 2


def test_a_conversation_has_so_many_messages(idle: Flask) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "a"}] * 2049}
    answer = idle.test_client().post("/v1/chat/completions", data=json.dumps(body), headers=bearer(ALICE))
    assert answer.status_code == 400
    assert answer.get_json()["error"]["param"] == "messages"
    assert "at most 2048" in answer.get_json()["error"]["message"]
