"""Bad input over real sockets: a clear 4xx that names the field, the limit and the remedy, and the server goes on."""

import json
import socket
from typing import Any

import pytest
import requests

from tests.support.servers import RawStream, Server, assert_ended_once

pytestmark = pytest.mark.slow

GOOD = {"prompt": "hello", "max_tokens": 3, "temperature": 0}


@pytest.fixture(autouse=True)
def _goes_on(gated: Server) -> Any:
    """After every refusal a good request works."""
    yield
    gated.allow(10)
    with RawStream(gated, "POST", "/execute", GOOD) as stream:
        assert assert_ended_once(stream.read_all())["type"] == "end"


@pytest.mark.parametrize("path", ["/execute", "/v1/jobs", "/v1/inference"])
@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", ["body"]),
        (b"{", ["body"]),
        (b"[]", ["body"]),
        (b"\xff\xfe", ["body"]),
        (b'{"prompt": 3}', ["prompt"]),
        (b'{"prompt": ""}', ["prompt"]),
        (b"{}", ["body"]),
        (b'{"prompt":"a","messages":[{"role":"user","content":"b"}]}', ["body"]),
        (
            b'{"prompt":"a","temperature":3,"top_p":0,"max_tokens":"7","nope":1}',
            ["max_tokens", "nope", "temperature", "top_p"],
        ),
        (b'{"messages":[{"role":"robot","content":1}]}', ["messages.0.content", "messages.0.role"]),
        (b'{"prompt":"a","stop":["","x"]}', ["stop.0"]),
        (b'{"prompt":"a","logprobs":true}', ["logprobs"]),
        (b'{"prompt":"a","deadline_s":100000}', ["deadline_s"]),
    ],
)
def test_native_routes_name_every_bad_field(gated: Server, path: str, body: bytes, fields: list[str]) -> None:
    answer = requests.post(gated.url + path, data=body, timeout=30)
    assert answer.status_code == 400, answer.text
    errors = answer.json()["errors"]
    assert sorted(error["field"] for error in errors) == fields
    assert all(error["constraint"] and error["message"] for error in errors)


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_prompt_longer_than_the_context(gated: Server, field: str) -> None:
    text = "hello " * 500
    body = {"prompt": text} if field == "prompt" else {"messages": [{"role": "user", "content": text}]}
    answer = gated.post("/execute", body)
    assert answer.status_code == 400
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert "256" in error["message"]  # the limit
    assert "at most 255" in error["message"]  # the remedy


def test_a_prompt_and_an_answer_that_never_fit_together(gated: Server) -> None:
    [error] = gated.post("/execute", {"prompt": "hello", "max_tokens": 300}).json()["errors"]
    assert error["field"] == "max_tokens"
    assert "at most" in error["message"]


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("path", ["/execute", "/v1/chat/completions"])
def test_a_body_over_the_limit(gated: Server, path: str, is_chunked: bool) -> None:
    body = b'{"prompt": "' + b"a" * 100_000 + b'"}'
    data: Any = iter([body[:50_000], body[50_000:]]) if is_chunked else body
    answer = requests.post(gated.url + path, data=data, timeout=30)
    assert answer.status_code == 413
    assert "65536" in answer.json()["error"]["message"]


def test_a_body_of_fifty_megabytes_is_refused_and_not_read(gated: Server) -> None:
    with RawStream(gated, "POST", "/execute", b"", Content_Length="50000000") as stream:
        assert stream.head()[0] == 413


@pytest.mark.parametrize("is_chunked", [False, True])
def test_the_limit_itself_is_allowed_and_a_byte_more_is_not(gated: Server, is_chunked: bool) -> None:
    for num_bytes, status in ((65536, 400), (65537, 413)):
        body = json.dumps({"prompt": 1}).encode().ljust(num_bytes)  # wrong, and so answered at once when it is read
        how = {"Content_Length": str(num_bytes)}
        if is_chunked:
            how = {"Content_Length": "", "Transfer_Encoding": "chunked"}
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (num_bytes, body)
        with RawStream(gated, "POST", "/execute", body, **how) as stream:
            assert stream.head()[0] == status


@pytest.mark.parametrize("body", [b"zz\r\n", b'5\r\n{"pro'])
def test_a_chunked_body_that_is_none(gated: Server, body: bytes) -> None:
    with RawStream(gated, "POST", "/execute", body, Transfer_Encoding="chunked", Content_Length="") as stream:
        stream.socket.shutdown(socket.SHUT_WR)
        assert stream.head()[0] == 400


def test_a_body_shorter_than_announced(gated: Server) -> None:
    body = json.dumps(GOOD).encode()
    with RawStream(gated, "POST", "/execute", body, Content_Length=str(len(body) + 10)) as stream:
        stream.socket.shutdown(socket.SHUT_WR)
        assert stream.head()[0] == 400
        assert b"announced" in stream.read_until(b"announced")


def test_a_body_that_does_not_come(gated: Server) -> None:
    with RawStream(gated, "POST", "/execute", b'{"pro', Content_Length="100") as stream:
        assert stream.head()[0] == 408


def test_unknown_things(gated: Server) -> None:
    for answer in (gated.get("/v1/jobs/nope"), gated.get("/v1/jobs/nope/stream"), gated.get("/nope")):
        assert answer.status_code == 404
        assert answer.json()["error"]["message"]
    assert "/docs" in gated.get("/nope").json()["error"]["message"]
    chat = {"model": "gpt-9", "messages": [{"role": "user", "content": "a"}]}
    answer = gated.post("/v1/chat/completions", chat)
    assert answer.status_code == 404
    assert "endstop-tiny" in answer.json()["error"]["message"]
    put = requests.put(gated.url + "/execute", timeout=30)
    assert put.status_code == 405
    assert "POST" in put.headers["Allow"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": []}, "tools"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 129}, "n"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/v1/completions", {"prompt": "a", "stream_options": {"include_usage": True}}, "body"),
    ],
)
def test_openai_routes_answer_in_openais_shape(gated: Server, path: str, body: Any, param: str) -> None:
    answer = gated.post(path, body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


def test_no_answer_tells_a_path_of_this_machine(gated: Server) -> None:
    text = json.dumps([gated.get(path).text for path in ("/ready", "/health", "/v1/models", "/v1/jobs/x")])
    assert "/home" not in text
    assert "/models/" not in text
