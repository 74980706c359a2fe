"""What gunicorn refuses before the app sees it is answered in the shape of every other refusal."""

import json
import socket

import pytest

from tests.support.servers import Server

pytestmark = pytest.mark.slow

HOST = b"Host: test\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "URI_TOO_LONG"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 9000 + b"\r\n\r\n", 431, "REQUEST_HEADER_FIELDS_TOO_LARGE"),
        (b"POST /execute HTTP/1.1\r\n" + HOST + b"Expect: miracles\r\n\r\n", 417, "EXPECTATION_FAILED"),
        (b"not a request\r\n\r\n", 400, "BAD_REQUEST"),
        (
            b"POST /execute HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "BAD_REQUEST",
        ),
    ],
)
def test_what_is_no_request_is_told_why(gated: Server, sent: bytes, status: int, code: str) -> None:
    with socket.create_connection(("127.0.0.1", gated.port), timeout=30) as client:
        client.sendall(sent)
        received = b""
        while data := client.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["type"] == "error"
    error = json.loads(body)["error"]
    assert error["code"] == code
    assert error["message"]
