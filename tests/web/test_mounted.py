"""The app below a path of another one, as docs/embed.md has it."""

from collections.abc import Iterator

import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.support.apps import app_in_process


@pytest.fixture(scope="module")
def site() -> Iterator[Flask]:
    site = Flask("site")
    site.add_url_rule("/", view_func=lambda: "home")
    with app_in_process() as app:
        app.extensions["runner"].open()
        site.wsgi_app = DispatcherMiddleware(site.wsgi_app, {"/llm": app})  # type: ignore[method-assign]
        yield site


def test_both_answer(site: Flask) -> None:
    client = site.test_client()
    assert client.get("/").text == "home"
    assert client.get("/ready").status_code == 404
    assert client.get("/llm/ready").get_json()["state"] == "READY"


def test_a_job_says_where_it_is_read(site: Flask) -> None:
    client = site.test_client()
    url = client.post("/llm/v1/jobs", json={"prompt": "a", "max_tokens": 2}).get_json()["sse_url"]
    assert url.startswith("/llm/v1/jobs/")
    assert client.get(url).text.endswith("data: [DONE]\n\n")


def test_a_refusal_has_the_shape_of_its_route(site: Flask) -> None:
    refusal = site.test_client().post("/llm/v1/messages", json={}).get_json()
    assert refusal["type"] == "error"
