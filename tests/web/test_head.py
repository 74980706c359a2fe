"""How much of a request is on its way, as far as its head tells."""

import pytest

from worker.web.head import Head, parse_head

POST = b"POST /execute?a=b HTTP/1.1\r\nHost: test\r\n"


def test_a_head_is_there_with_its_blank_line() -> None:
    whole = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
    assert [parse_head(whole[:n]) for n in range(len(whole))] == [None] * len(whole)
    assert parse_head(whole + b"rest") == Head(b"GET", b"/health", len(whole), 0)


@pytest.mark.parametrize(
    ("headers", "body_bytes"),
    [
        (b"", 0),
        (b"content-LENGTH: 12\r\n", 12),
        (b"Content-Length: x\r\n", 0),
        (b"Transfer-Encoding: chunked\r\n", None),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 12\r\n", None),
        (b"Content-Length: 12\r\nExpect: 100-continue\r\n", None),
    ],
)
def test_how_much_follows(headers: bytes, body_bytes: int | None) -> None:
    head = parse_head(POST + headers + b"\r\n")
    assert head is not None
    assert (head.method, head.path, head.body_bytes) == (b"POST", b"/execute", body_bytes)


@pytest.mark.parametrize("received", [b"\r\n\r\n", b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"\r\n:\r\n\r\n"])
def test_what_is_no_request_is_for_gunicorn_to_refuse(received: bytes) -> None:
    assert parse_head(received) is not None
