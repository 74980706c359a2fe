"""Each example does what it says, against a real server with the embedded model."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.cut_proxy import cut_proxy
from tests.support.servers import ANSWER_S, Server, free_port, running_server
from worker.client import Token
from worker.settings import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "examples"
EXPECTED = {
    "whole_answer": r"The capital of France is Paris\.\n\[EOS: \d+ \+ \d+ tokens\]\n",
    "stream": r"\w.{100,}\n\[\d+ tokens/s, the first after \d+ ms\]\n\[\w+: \d+ tokens\]\n",
    "job_resume": r".+\[cut\].+\n.+\[left\].+\n",
    "cancel": r"'.{40,}': CANCELLED\n\d+ tokens: CANCELLED\n",
    "retry": r"(The capital of Spain is Madrid\.)\none job\n\1\n",
    "openai_client": r"The capital of Spain is Madrid\.\nweather {'city': '\w+'}\ncountry='\w+' is_capital=\w+\n",
}
APP = "embed_in_flask"  # serves until it is stopped


def run(name: str, url: str) -> str:
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", url], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_example_is_left_out() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*EXPECTED, APP}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example(served: Server, name: str) -> None:
    output = run(name, served.url)
    assert re.fullmatch(EXPECTED[name], output, re.DOTALL if name == "stream" else 0), output


def test_the_example_of_a_lost_connection_loses_it_and_no_token(served: Server) -> None:
    with cut_proxy(served.port) as network:
        cut, left = run("job_resume", network.url).splitlines()
        assert b"".join(network.requests).count(b"Last-Event-ID: ") == 2
    assert cut.replace("[cut]", "") == left.replace("[left]", "")


# --- In an app that was there before ---

BY_ITSELF = (sys.executable, f"{APP}.py")
BY_GUNICORN = (sys.executable, "-m", "gunicorn", "--threads", "8", "--bind", "127.0.0.1", f"{APP}:app")


@pytest.fixture(scope="module", params=[BY_ITSELF, BY_GUNICORN], ids=["flask", "gunicorn"])
def app(request: pytest.FixtureRequest, served: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app(request.param, served.url, tmp_path_factory.mktemp("app")) as url:
        yield url


@contextmanager
def running_app(command: tuple[str, ...], model_url: str, folder: Path) -> Iterator[str]:
    port = free_port()
    command = tuple(f"127.0.0.1:{port}" if part == "127.0.0.1" else part for part in command)
    environ = {"MODEL_URL": model_url, "PORT": str(port), "PYTHONPATH": str(ROOT)}
    with (folder / "app.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=FOLDER, env=environ, stdout=log, stderr=subprocess.STDOUT)
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=requests.adapters.Retry(8, backoff_factor=0.1)))
    try:
        assert session.get(f"http://127.0.0.1:{port}/", timeout=ANSWER_S).text == "what this app did before"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(ANSWER_S)


def test_a_stream_through_the_app_ends(app: str) -> None:
    with requests.post(
        f"{app}/ask", {"question": "What is the capital of France?"}, stream=True, timeout=ANSWER_S
    ) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        events = response.text.split("\n\n")
    assert events[-2:] == ['event: end\ndata: "EOS"', ""]
    texts = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]  # tokens that waited are one
    assert "".join(texts) == "The capital of France is Paris."


def test_what_goes_wrong_before_the_first_event_is_a_status(app: str) -> None:
    answer = requests.post(f"{app}/ask", {"question": "word " * 2000}, timeout=ANSWER_S)
    assert answer.status_code == 400
    assert "messages" in answer.text


def test_a_model_that_is_not_there_is_a_bad_gateway(tmp_path: Path) -> None:
    with running_app(BY_ITSELF, "http://127.0.0.1:1", tmp_path) as url:
        answer = requests.post(f"{url}/ask", {"question": "Hi"}, timeout=ANSWER_S)
    assert (answer.status_code, answer.text) == (502, "http://127.0.0.1:1: Connection refused\n")


@pytest.mark.parametrize("command", [BY_ITSELF, BY_GUNICORN], ids=["flask", "gunicorn"])
def test_a_browser_that_leaves_stops_the_model(tmp_path: Path, command: tuple[str, ...]) -> None:
    question = b"question=Tell+me+a+story"
    with (
        running_server(tmp_path) as model,
        running_app(command, model.url, tmp_path) as app,
        socket.create_connection(("127.0.0.1", int(app.rpartition(":")[2])), ANSWER_S) as browser,
    ):
        model.allow("pace/50")  # slower than any app hears that its browser has left
        browser.sendall(
            b"POST /ask HTTP/1.1\r\nHost: test\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            b"Content-Length: %d\r\n\r\n" % len(question) + question
        )
        received = b""
        while received.count(b"data:") < 3:
            received += browser.recv(1000)
        browser.close()
        model.wait_for(lambda: " outcome=" in model.log(), "the outcome")
        assert " outcome=cancelled{client} " in model.log()


# --- In the documentation ---


def test_the_code_in_the_documentation_runs(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """One block after the other, as they are printed: those of this client."""
    page = (ROOT / "docs/client.md").read_text().partition("\n## Other clients\n")[0]
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    job_ids = []
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", served.url), names)
        job_ids.append(names.get("job_id"))
    assert re.search(r"\w+ after \d+ tokens\n", capsys.readouterr().out)
    with names["client"] as client:
        whole = "".join(event.text for event in client.events(job_ids[1]) if isinstance(event, Token))
    assert names["event"].text + "".join(names["rest"]) == whole
