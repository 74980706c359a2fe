"""Answers that are no stream: refusals, and no answer at all."""

import socket
from typing import Any

import pytest
import requests

from tests.client.conftest import Serve
from tests.scripted_server import (
    Peer,
    Script,
)
from worker.client import (
    Client,
    ConnectionFailed,
    FieldError,
    InvalidRequest,
    NotReady,
    Overloaded,
    Readiness,
    RequestRefused,
    TooLarge,
    Unauthorized,
    why_unanswered,
)


def refuses(status: int, body: object, **headers: str) -> Script:
    return lambda peer: peer.json(body, status, **headers)


def test_a_refusal_has_the_name_of_its_request(serve: Serve) -> None:
    with pytest.raises(Overloaded) as caught:
        serve(refuses(429, {}, X_Request_Id="req-7")).generate(prompt="Hi")
    assert caught.value.request_id == "req-7"


def test_an_invalid_request_names_every_field(serve: Serve) -> None:
    errors = [
        {"field": "top_p", "constraint": "(0, 1]", "message": "must be at most 1"},
        {"field": "seed", "constraint": "u64", "message": "must not be negative"},
    ]
    with pytest.raises(InvalidRequest) as caught:
        serve(refuses(400, {"errors": errors})).generate(prompt="Hi", top_p=2, seed=-1)
    assert caught.value.errors == [
        FieldError("top_p", "(0, 1]", "must be at most 1"),
        FieldError("seed", "u64", "must not be negative"),
    ]
    assert str(caught.value) == "400: top_p: must be at most 1; seed: must not be negative"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidRequest), (401, Unauthorized), (413, TooLarge), (429, Overloaded), (503, NotReady)],
)
@pytest.mark.parametrize("body", [{}, {"error": {"message": "no"}}, {"message": "no"}, {"error": "no"}, [1]])
def test_each_status_has_its_error_whatever_the_body(
    serve: Serve, status: int, kind: type[RequestRefused], body: object
) -> None:
    with pytest.raises(kind) as caught:
        serve(refuses(status, body)).generate(prompt="Hi")
    assert caught.value.status == status
    assert str(caught.value) == f"{status}: {'no' if isinstance(body, dict) and body else 'Refused'}"


@pytest.mark.parametrize("status", [301, 307, 404, 405, 500, 502])
def test_any_other_status_is_refused_too(serve: Serve, status: int) -> None:
    with pytest.raises(RequestRefused) as caught:
        serve(lambda peer: peer.answer(b"<html>", status, "text/html", Location="/elsewhere")).generate(prompt="Hi")
    assert (type(caught.value), caught.value.status, caught.value.body) == (RequestRefused, status, {})


@pytest.mark.parametrize(
    ("header", "retry_after_s"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({}, None),
        ({"Retry_After": "soon"}, None),
        ({"Retry_After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
        ({"Retry_After": "Fri, 31 Dec 1999 23:59:59 -0000"}, 0.0),
        ({"Retry_After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({"Retry_After": "Mon, 01 Jan 2026 00:00:00 +99999999999999999999"}, None),
    ],
)
def test_when_to_come_back(serve: Serve, header: dict[str, str], retry_after_s: float | None) -> None:
    with pytest.raises(Overloaded) as caught:
        serve(refuses(429, {"message": "full"}, **header)).generate(prompt="Hi")
    assert caught.value.retry_after_s == retry_after_s


def test_a_refusal_that_is_cut_keeps_its_status(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        peer.head(503, "application/json", Retry_After="2")
        peer.send(b'40\r\n{"state"')

    with pytest.raises(NotReady) as caught:
        serve(script).generate(prompt="Hi")
    assert (caught.value.state, caught.value.retry_after_s) == ("", 2.0)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(url, max_retries=0) as client, pytest.raises(ConnectionFailed) as caught:
        client.generate(prompt="Hi")
    assert str(caught.value) == f"{url}: Connection refused"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (requests.exceptions.ConnectTimeout("x"), "no connection within 1 s"),
        (requests.exceptions.ReadTimeout("x"), "no answer within 2.5 s"),
        (requests.exceptions.InvalidURL("no host"), "no host"),
    ],
)
def test_why_there_was_no_answer(error: requests.exceptions.RequestException, why: str) -> None:
    assert why_unanswered(error, 1.0, 2.5) == why


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("http://[::1", {}, "Failed to parse"),
        ("http://one.example\ud800", {}, "Failed to parse"),
        ("http://127.0.0.1:1", {"api_key": "ключ"}, "characters that cannot be sent"),
        ("http://127.0.0.1:1", {"api_key": "canary\n"}, "characters that cannot be sent"),
    ],
)
def test_what_cannot_be_sent_is_said_once(url: str, options: dict[str, Any], says: str) -> None:
    pauses: list[float] = []
    with Client(url, sleep=pauses.append, **options) as client, pytest.raises(ConnectionFailed) as caught:
        client.generate(prompt="Hi")
    assert says in str(caught.value)
    assert "canary" not in str(caught.value)
    assert pauses == []


def test_a_connection_lost_before_the_answer(serve: Serve) -> None:
    with pytest.raises(ConnectionFailed):
        serve(lambda peer: peer.reset()).generate(prompt="Hi")


# --- Readiness and health ---


def test_ready_and_healthy(serve: Serve) -> None:
    ok: Script = lambda peer: peer.answer(b"ok", content_type="text/plain")
    client = serve(scripts={"GET /ready": ok, "GET /health": ok})
    assert client.ready() == Readiness(True, "READY")
    assert client.health() is True


def test_not_ready_and_not_healthy(serve: Serve) -> None:
    client = serve(
        scripts={
            "GET /ready": refuses(503, {"state": "LOADING"}, Retry_After="5"),
            "GET /health": refuses(503, {"state": "DEAD"}),
        }
    )
    assert client.ready() == Readiness(False, "LOADING", 5.0)
    assert not client.ready()
    assert client.health() is False
