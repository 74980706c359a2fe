"""Every answer has the name of its request, and a name can be nothing that would break a log."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from tests.support.apps import app_in_process
from tests.support.engines import wait_until
from worker.engine.sequence import Sequence
from worker.keys import ApiKeys
from worker.origin import Origin, TraceParent
from worker.web.request_id import trace_parent

KEY = "open-sesame-open-sesame"
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def app() -> Iterator[Flask]:
    with app_in_process(api_keys=ApiKeys.parse(f"alice:{KEY}"), cors_origins="https://one.example") as app:
        app.extensions["runner"].open()
        app.add_url_rule("/bug", view_func=_fail)
        yield app


def _fail() -> str:
    raise RuntimeError("a bug")


def ask(app: Flask, method: str, path: str, name: str | None = None, **asked: Any) -> Any:
    headers = {"Authorization": f"Bearer {KEY}"} | asked.pop("headers", {})
    if name is not None:
        headers["X-Request-Id"] = name
    return app.test_client().open(path, method=method, headers=headers, **asked)


ANSWERS = [
    ("GET", "/health", {}, 200),
    ("HEAD", "/health", {}, 200),
    ("GET", "/nope", {}, 404),
    ("PUT", "/health", {}, 405),
    ("GET", "/v1/models", {"headers": {"Authorization": "none"}}, 401),
    ("POST", "/v1/chat/completions", {"json": {}}, 400),
    ("POST", "/v1/chat/completions", {"json": CHAT}, 200),
    ("POST", "/v1/chat/completions", {"json": CHAT | {"stream": True}}, 200),
    ("POST", "/v1/messages", {"json": {}}, 400),
    ("GET", "/bug", {}, 500),
    (
        "OPTIONS",
        "/execute",
        {"headers": {"Origin": "https://one.example", "Access-Control-Request-Method": "POST"}},
        204,
    ),
]


@pytest.mark.parametrize(("method", "path", "asked", "status"), ANSWERS)
def test_every_answer_has_the_name_of_its_request(
    app: Flask, method: str, path: str, asked: dict[str, Any], status: int
) -> None:
    answer = ask(app, method, path, "order-7", **dict(asked))
    assert (answer.status_code, answer.headers.getlist("X-Request-Id")) == (status, ["order-7"])
    answer.close()
    made = {ask(app, method, path, **dict(asked)).headers["X-Request-Id"] for _ in range(2)}
    assert len(made) == 2
    assert "order-7" not in made


def test_anthropics_clients_find_it_where_they_look(app: Flask) -> None:
    assert ask(app, "POST", "/v1/messages", "order-7", json={}).headers["request-id"] == "order-7"
    assert "request-id" not in ask(app, "GET", "/health", "order-7").headers


@pytest.mark.parametrize("name", ["a" * 200, "00-0af7651916cd43dd-b7ad6b7169203331-01", "a.b_c~d:e/f+g=h@i|j-k"])
def test_names_that_others_make_are_taken(app: Flask, name: str) -> None:
    assert ask(app, "GET", "/health", name).headers["X-Request-Id"] == name


@pytest.mark.parametrize("name", ["", "a" * 201, "a b", "a,b", "a{b}", 'a"b', "a\tb", "ü", "a;b", "%0a"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/execute", "/v1/messages"])
def test_what_is_no_name_is_refused_by_name(app: Flask, name: str, path: str) -> None:
    answer = ask(app, "POST", path, name, json=CHAT)
    assert answer.status_code == 400
    assert "X-Request-Id" in answer.text
    assert answer.headers["X-Request-Id"] not in ("", name)


TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", True),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-brings", True),
    ],
)
def test_a_request_says_which_span_it_is_a_part_of(app: Flask, header: str, is_sampled: bool) -> None:
    with app.test_request_context("/health", headers={"traceparent": header}):
        assert trace_parent() == TraceParent(TRACE_ID, SPAN_ID, is_sampled)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "rubbish",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01,00-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
    ],
)
def test_what_names_no_span_is_let_through_without(app: Flask, header: str) -> None:
    with app.test_request_context("/health", headers={"traceparent": header}):
        assert trace_parent() is None
    assert ask(app, "GET", "/health", headers={"traceparent": header}).status_code == 200


def test_a_job_knows_where_it_comes_from(app: Flask) -> None:
    engine = app.extensions["endstop"].engine
    found: list[Sequence] = []
    submit = engine.submit

    def note_and_submit(*made: Sequence) -> None:
        found.extend(made)
        submit(*made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "submit", note_and_submit)
        parent = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
        ask(app, "POST", "/v1/chat/completions", "order-9", json=CHAT, headers=parent)
        ask(app, "POST", "/v1/completions", "order-9", json={"prompt": "a", "max_tokens": 2})
    span = TraceParent(TRACE_ID, SPAN_ID, is_sampled=True)
    assert [one.origin for one in found] == [
        Origin("order-9", "/v1/chat/completions", span),
        Origin("order-9", "/v1/completions"),
    ]
    assert [one.is_chat for one in found] == [True, False]


def test_an_error_is_logged_with_it(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    ask(app, "GET", "/bug", "order-7")
    [record] = [one for one in caplog.records if one.exc_info]
    assert record.getMessage() == "GET /bug failed x_request_id=order-7"
    assert vars(record)["fields"] == {"x_request_id": "order-7", "method": "GET", "path": "/bug"}


def test_each_job_of_a_request_has_it(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "endstop")
    for asked in ({"json": CHAT | {"n": 2}}, {"json": CHAT, "headers": {"Idempotency-Key": "k"}}):
        ask(app, "POST", "/v1/chat/completions", "order-8", **asked)
    wait_until(lambda: caplog.text.count("x_request_id=order-8 key=alice outcome=end") == 3)


def test_metrics_need_a_key_where_there_are_keys(app: Flask) -> None:
    assert app.test_client().get("/metrics").status_code == 401
    assert ask(app, "GET", "/metrics").status_code == 200
