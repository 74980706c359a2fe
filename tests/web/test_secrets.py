"""Nothing that is secret leaves a real server: not a key, not a prompt, not where the model lies."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.support.servers import WORKER_CLASSES, RawStream, Server, assert_ended_once, free_port, running_server
from worker.client import Client, Unauthorized, UnknownJob
from worker.settings import EMBEDDED_MODEL, ROOT

pytestmark = pytest.mark.slow

KEY, OTHER, HASHED = "canary-key-of-alice", "canary-key-of-bob00", "canary-key-of-carol"
PROMPT = "canaryprompt"
BODY = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("canary-folder")
    shutil.copytree(EMBEDDED_MODEL, folder / "endstop-tiny")
    (folder / "keys").write_text(f"bob:{OTHER}\ncarol:sha256:{hashlib.sha256(HASHED.encode()).hexdigest()}\n")
    env = {
        "ENDSTOP_MODEL": str(folder / "endstop-tiny"),
        "ENDSTOP_API_KEYS": f"alice:{KEY}",
        "ENDSTOP_API_KEYS_FILE": str(folder / "keys"),
        "ENDSTOP_LOG_LEVEL": "debug",
        "ENDSTOP_KEEP_ALIVE_S": "0.2",
    }
    with running_server(folder, request.param, app="wsgi:app", env=env, key=KEY) as server:
        yield server


def raw(server: Server, sent: bytes) -> bytes:
    """What comes back for these bytes, until the server closes."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while data := client.recv(65536):
            received += data
    return received


def everything(server: Server) -> str:
    """The heads and bodies of every kind of answer."""
    answers: list[str] = []

    def ask(method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
        answer = requests.request(method, server.url + path, data=data, headers=server.headers | headers, timeout=30)
        answers.append(f"{answer.headers} {answer.text}")
        return answer

    for path in ("/health", "/ready", "/v1/ready", "/v1/models", "/v1/models/x", "/v1/loading/progress", "/nope"):
        ask("GET", path)
        ask("POST", path, b"{}")
    made = ask("POST", "/v1/jobs", BODY).json()
    ask("GET", made["sse_url"])
    ask("GET", f"/v1/jobs/{made['job_id']}")
    ask("DELETE", f"/v1/jobs/{made['job_id']}")
    ask("GET", made["sse_url"], **{"Last-Event-ID": "99"})
    for path, body in (("/execute", BODY), ("/v1/chat/completions", CHAT), ("/v1/completions", BODY)):
        for changed in ({}, {"stream": True}, {"max_tokens": 10**6}, {"temperature": 9}, {"nope": 1}):
            ask("POST", path, body | changed)
        ask("POST", path, b"{")
        ask("POST", path, body, **{"Idempotency-Key": "a,b"})
        ask("POST", path, body, Authorization="Bearer wrong")
        ask("POST", path, body, Authorization=f"Bearer {KEY}x")
    # Bytes that are no request: a body whose length nobody knows, half a head, a header that is none.
    head = f"Host: a\r\nAuthorization: Bearer {KEY}\r\n".encode()
    raw(server, b"POST /execute HTTP/1.1\r\n" + head + b"\r\n" + json.dumps(BODY).encode() + b"\r\n\r\n")
    raw(server, b"POST /execute HTTP/1.1\r\n" + head + b"bad header " + PROMPT.encode() + b"\r\n\r\n")
    raw(server, b"POST /execute HTTP/1.1\r\nHost: a\r\nAuthorization : Bearer " + KEY.encode() + b"\r\n\r\n")
    chunked = b"POST /execute HTTP/1.1\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\n"
    raw(server, chunked + PROMPT.encode() + b"\r\n\r\n")
    return "\n".join(answers)


def test_no_log_and_no_answer_has_a_key_a_prompt_or_a_path(server: Server) -> None:
    told = everything(server)
    server.wait_for(lambda: server.log().count("outcome=") >= 6, "the outcomes")
    log = server.log()
    assert "key=alice" in log
    assert "Invalid request from ip=127.0.0.1: what it sent is not shown" in log, "else nothing was tried here"
    for secret in (KEY, OTHER, HASHED, *(hashlib.sha256(k.encode()).hexdigest() for k in (KEY, OTHER, HASHED))):
        assert secret not in log
        assert secret not in told
    assert PROMPT not in log
    assert "canary-folder" not in told
    assert str(ROOT) not in told


def test_no_process_of_the_server_hands_on_a_key() -> None:
    """Its children get what its `environ` says. What it was started with is in /proc for its own user, as ever."""
    script = "import os, runpy; runpy.run_path('gunicorn.conf.py'); print(os.environ['ENDSTOP_API_KEYS'])"
    env = {"PATH": os.environ["PATH"], "ENDSTOP_API_KEYS": f"alice:{KEY}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert KEY not in done.stdout
    assert done.stdout.strip() == f"alice:sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"


@pytest.mark.parametrize("key", [KEY, OTHER, HASHED])
def test_clients_with_a_key_are_served(server: Server, key: str) -> None:
    with Client(server.url, api_key=key) as client:
        assert client.generate(prompt="hello", max_tokens=3, temperature=0).text
        job_id = client.submit(prompt="hello", max_tokens=3)
        assert client.status(job_id).job_id == job_id
    with openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=30) as sdk:
        messages: Any = CHAT["messages"]
        answer = sdk.chat.completions.create(model="endstop-tiny", messages=messages, max_tokens=3, temperature=0)
        assert answer.choices[0].finish_reason == "length"
        assert [one.id for one in sdk.models.list()] == ["endstop-tiny"]
    with Client(server.url, api_key=KEY if key != KEY else OTHER) as other, pytest.raises(UnknownJob):
        other.status(job_id)


def test_clients_without_one_are_told_so(server: Server) -> None:
    with Client(server.url, api_key="wrong") as client, pytest.raises(Unauthorized, match="not known here"):
        client.generate(prompt="hello")
    with (
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0, timeout=30) as sdk,
        pytest.raises(openai.AuthenticationError) as refusal,
    ):
        sdk.completions.create(model="endstop-tiny", prompt="hello")
    assert refusal.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    "headers", [{"Content_Length": "50000000"}, {"Content_Length": "", "Transfer_Encoding": "chunked"}]
)
def test_a_body_of_somebody_unknown_is_not_waited_for(server: Server, headers: dict[str, str]) -> None:
    with RawStream(server, "POST", "/execute", b"", **headers) as stream:
        assert stream.head()[0] == 401
        assert "WWW-Authenticate: Bearer" in stream.head()[1]
    with RawStream(server, "POST", "/execute", BODY, Authorization=f"Bearer {KEY}") as stream:
        assert assert_ended_once(stream.read_all())["type"] == "end"


@pytest.mark.parametrize("command", [["check", "--only", "answers,ids,cancel", "--api-key"], ["chat", "--api-key"]])
def test_the_command_line_sends_its_key(server: Server, command: list[str]) -> None:
    for key, is_fine in ((KEY, True), ("wrong", False)):
        name, *options = command
        done = subprocess.run(
            [sys.executable, "-m", "worker", name, server.url, *options, key],
            cwd=ROOT,
            input="hello\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        output = done.stdout + done.stderr
        refused = {"check": "it answered 401; the key of --api-key is not accepted", "chat": "not known here"}[name]
        assert (refused not in output) == is_fine, output
        assert (done.returncode == 0) == is_fine, output


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_model_that_is_not_there_is_not_said_where(tmp_path: Path, worker_class: str) -> None:
    """Probes need no key, and say why the process is dead."""
    env = {"ENDSTOP_MODEL": str(tmp_path / "canary folder" / "m"), "ENDSTOP_DEAD_LINGER_S": "60"}
    with running_server(tmp_path, worker_class, app="wsgi:app", wait=False, env=env) as server:
        server.wait_for(lambda: "does not exist" in server.log(), "the end of the load")
        ready = server.get("/ready")
        assert (ready.status_code, ready.json()["state"]) == (503, "DEAD")
        assert ready.json()["reason"].startswith("model folder ... does not exist; set ENDSTOP_MODEL")
        texts = [server.get(path).text for path in ("/health", "/v1/loading/progress")]
        texts += [ready.text, server.post("/execute", BODY).text]
        assert "canary" not in "".join(texts)
        assert "canary folder" in server.log(), "whoever runs it is told"


@pytest.mark.parametrize(
    ("env", "bound", "says"),
    [
        ({}, "127.0.0.1", r"WARNING endstop no API keys .* bound to 127.0.0.1 only"),
        ({"ENDSTOP_HOST": "0.0.0.0"}, "0.0.0.0", r"WARNING endstop no API keys .* everyone who reaches 0.0.0.0 may"),
        ({"ENDSTOP_API_KEYS": f"alice:{KEY}"}, "0.0.0.0", r"INFO    endstop API keys are needed; known: alice"),
    ],
)
def test_who_can_reach_the_server_is_in_the_log(tmp_path: Path, env: dict[str, str], bound: str, says: str) -> None:
    """By the settings of a platform: PORT and nothing else. It is never started: the line comes before the model."""
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "tests.support.gated_wsgi:app"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PORT": str(port), **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        server = Server(process, port, log, KEY)
        server.wait_for(lambda: "Endstop serves" in log.read_text() and "API keys" in log.read_text(), "the start")
        assert re.search(says, log.read_text()), log.read_text()
        listening = Path("/proc/net/tcp").read_text()
        address = {"127.0.0.1": "0100007F", "0.0.0.0": "00000000"}[bound]
        assert f" {address}:{port:04X} 00000000:0000 0A" in listening
    finally:
        process.terminate()
        process.wait(60)
