"""With `ENDSTOP_LOG_FORMAT=json` all that a real server prints is objects, one a line, from its start to its end."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.servers import WORKER_CLASSES, RawStream, Server, assert_ended_once, running_server

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("worker_class", WORKER_CLASSES)]

PROMPT = {"prompt": "hello", "max_tokens": 5, "temperature": 0}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
# Every library may warn.
ENV = {"ENDSTOP_LOG_FORMAT": "json", "PYTHONWARNINGS": "always"}


def lines_of(server: Server) -> list[dict[str, Any]]:
    """What it has printed. Fails on a line that is no object with the fields of every line."""
    found = []
    for text in server.log().splitlines(keepends=True):
        if not text.endswith("\n") and server.process.poll() is None:
            break  # it is being written
        line = json.loads(text)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"]), text
        assert line["level"] in ("debug", "info", "warning", "error", "critical"), text
        assert isinstance(line["message"], str), text
        assert line["logger"], text
        found.append(line)
    return found


def outcomes_of(server: Server) -> list[dict[str, Any]]:
    return [line for line in lines_of(server) if line.get("event") == "outcome"]


def test_every_line_is_an_object_and_every_request_has_one(tmp_path: Path, worker_class: str) -> None:
    asked: dict[str, str] = {}  # names of requests, and how they have to end

    env, app = ENV | {"GATED_LOAD_S": "300"}, "tests.support.talkative_wsgi:app"
    with running_server(tmp_path, worker_class, app, wait=False, env=env) as server:
        server.wait_for(lambda: "loading weights" in server.log(), "a load that is told")
        server.allow("loaded")
        server.wait_ready()
        server.allow("open")
        name = {"X-Request-Id": "order-1", "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
        answer = requests.post(server.url + "/execute", json=PROMPT, headers=name, timeout=30)
        assert_ended_once(answer.content)
        asked["order-1"] = "end{MAX_TOKENS}"
        answer = server.post("/v1/completions", PROMPT)
        asked[answer.headers["X-Request-Id"]] = "end{MAX_TOKENS}"

        server.post("/gate/close")
        server.post("/fault/error")
        server.allow(1)
        with RawStream(server, "POST", "/execute", PROMPT, X_Request_Id="order-2") as stream:
            assert_ended_once(stream.read_all())
        asked["order-2"] = "error{INFERENCE_FAILED}"
        server.post("/gate/close")
        with RawStream(server, "POST", "/execute", PROMPT, X_Request_Id="order-3") as stream:
            stream.read_until(b"started")
        asked["order-3"] = "cancelled{client}"
        server.wait_for(lambda: server.stats()["wanted"] == 0, "it is noticed")
        server.allow("open")
        server.wait_for(lambda: len(outcomes_of(server)) == 4, "outcomes")

        assert server.post("/execute", PROMPT | {"nope": 1}).status_code == 400
        assert server.get("/nope").status_code == 404
        with RawStream(server, "THIS IS", "no request", b"canary: a prompt") as stream:
            assert stream.head()[0] == 400
        name = {"X-Request-Id": "order-4", "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
        assert requests.post(server.url + "/talk/bug", headers=name, timeout=30).status_code == 500
        server.post("/talk")
        server.wait_for(lambda: server.log().count("UserWarning: canary") == 2, "both warnings")
        server.process.terminate()
        assert server.wait_exit() == 0

        outcomes = outcomes_of(server)
        assert {line["x_request_id"]: f"{line['outcome']}{{{line['code']}}}" for line in outcomes} == asked
        assert len(outcomes) == len(asked)
        assert {line["x_request_id"]: line["trace_id"] for line in outcomes}["order-1"] == TRACE_ID
        lines = lines_of(server)
        said = Counter(line["message"] for line in lines)
        told = "loading weights", "canary: a library", "canary: one write\nof two lines"
        assert [said[text] for text in (*told, "canary: the beginning of a line")] == [1, 1, 1, 1]
        [failed] = [line for line in lines if "RuntimeError: canary" in line.get("exception", "")]
        assert (failed["x_request_id"], failed["trace_id"], failed["path"]) == ("order-4", TRACE_ID, "/talk/bug")
        [uncaught] = [line for line in lines if "RuntimeError: canary" in line["message"]]
        assert uncaught["message"].startswith("Traceback")
        [refused] = [line for line in lines if "Invalid request" in line["message"]]
        assert refused["logger"] == "gunicorn.error"
        assert "Endstop serves endstop-tiny at http" in server.log()


def test_the_real_model_loads_in_lines_of_json(tmp_path: Path, worker_class: str) -> None:
    with running_server(tmp_path, worker_class, app="wsgi:app", env=ENV) as server:
        assert server.post("/execute", PROMPT).status_code == 200
        server.wait_for(lambda: len(outcomes_of(server)) == 1, "the outcome")
        server.process.terminate()
        assert server.wait_exit() == 0
        messages = [line["message"] for line in lines_of(server)]
        assert [text for text in messages if text.startswith("loading ")]
        assert [text for text in messages if text.startswith("ready after ")]


def test_a_start_that_fails_says_so_in_json_too(tmp_path: Path, worker_class: str) -> None:
    env = ENV | {"ENDSTOP_MODEL": str(tmp_path), "ENDSTOP_DEAD_LINGER_S": "0"}
    with running_server(tmp_path, worker_class, app="wsgi:app", env=env, wait=False) as server:
        assert server.wait_exit() != 0
        assert [line for line in lines_of(server) if line["level"] == "error"]
        assert [line for line in lines_of(server) if "has no config.json" in line["message"]], "why is in the log"
