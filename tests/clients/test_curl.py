"""curl, as the README has it and as a shell script would use it."""

import json
import shutil
import subprocess

import pytest

from tests.clients.conftest import ANSWER, MODEL, QUESTION
from tests.support.servers import Server, events_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")]

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}


def curl(server: Server, path: str, body: object, *options: str) -> "subprocess.CompletedProcess[bytes]":
    command = ["curl", "-sS", "--max-time", "60", *options, server.url + path, "--json", json.dumps(body)]
    return subprocess.run(command, capture_output=True, timeout=90, check=False)


def test_a_whole_answer(served: Server) -> None:
    done = curl(served, "/v1/chat/completions", ASKED, "--fail-with-body")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == ANSWER


def test_a_stream_ends_and_so_does_curl(served: Server) -> None:
    done = curl(served, "/v1/chat/completions", ASKED | {"stream": True}, "-N")
    assert done.returncode == 0, done.stderr
    *chunks, last = events_of(done.stdout)
    assert last == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == ANSWER


def test_a_refusal_fails_with_its_body(served: Server) -> None:
    done = curl(served, "/v1/chat/completions", ASKED | {"top_k": -1}, "--fail-with-body")
    assert done.returncode == 22, "the exit code for an HTTP error"
    assert json.loads(done.stdout)["error"]["param"] == "top_k"


def test_a_body_is_sent_without_waiting_for_100_continue(served: Server) -> None:
    """Above 1 MB curl asks first, and waits a second for the answer."""
    long = ASKED | {"messages": [{"role": "user", "content": "x" * 1_100_000}]}
    command = ["curl", "-sS", "--max-time", "60", "-w", "%{http_code}", "-o", "/dev/null", "--json", "@-"]
    done = subprocess.run(
        [*command, served.url + "/v1/chat/completions"],
        input=json.dumps(long).encode(),
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"400"), done.stderr
