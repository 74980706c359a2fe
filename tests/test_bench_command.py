"""`bench`: what it asks, what it counts, and that what failed is never in the numbers."""

import json
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.http_server import HTTPServer, QuietHandler, self_signed
from tests.support.servers import running_server
from worker.__main__ import cli
from worker.bench import summarize
from worker.load import Stream, run


class ChatServer(HTTPServer):
    """Answers every request with the same tokens; refuses each `refuse_every`th; notes what it was asked."""

    def __init__(self, refuse_every: int = 0, answer_s: float = 0.0, context: ssl.SSLContext | None = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_open = self.num_open = 0
        lock = threading.Lock()
        outer = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                self._send("application/json", json.dumps({"data": [{"id": "little"}]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    number = len(outer.bodies)
                    outer.num_open += 1
                    outer.most_open = max(outer.most_open, outer.num_open)
                time.sleep(answer_s)
                with lock:
                    outer.num_open -= 1
                if refuse_every and number % refuse_every == 0:
                    self.send_error(429)
                    return
                tokens = [{"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}] * 4
                last = {"choices": [{"delta": {}, "finish_reason": "length"}]}
                usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}}
                events = [*(json.dumps(event) for event in [*tokens, last, usage]), "[DONE]"]
                self._send("text/event-stream", "".join(f"data: {event}\n\n" for event in events).encode())

            def _send(self, content_type: str, data: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.end_headers()
                self.wfile.write(data)

        super().__init__(Handler, context)


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *arguments])


def test_it_keeps_so_many_open_and_counts_what_came() -> None:
    with ChatServer(answer_s=0.02) as server:
        result = bench(f"http://{server.address}/v1", "--streams", "3", "--requests", "12", "--json", "--api-key", "k")
    assert result.exit_code == 0, result.output
    counted = json.loads(result.stdout)
    assert server.most_open == 3
    assert set(server.keys) == {"Bearer k"}
    assert (counted["requests"], counted["failures"], counted["model"]) == (12, {}, "little")
    assert (counted["prompt_tokens"], counted["tokens"]) == (84, 48)
    assert counted["tokens_per_s"] == pytest.approx(48 / counted["elapsed_s"], rel=0.01)
    assert counted["ttft_ms"]["p50"] >= 20
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert len({prompt.split()[0] for prompt in prompts}) == 12  # none begins like another
    assert all(body["ignore_eos"] is True and body["max_tokens"] == 128 for body in server.bodies)


def test_the_model_may_end_its_answers() -> None:
    with ChatServer() as server:
        bench(server.address, "--natural", "--requests", "1")
    assert "ignore_eos" not in server.bodies[0]


def test_what_failed_is_counted_by_its_reason_and_not_measured() -> None:
    with ChatServer(refuse_every=3) as server:
        result = bench(server.address, "--streams", "2", "--requests", "6", "--json")
        assert result.exit_code == 1
        counted = json.loads(result.stdout)
        assert counted["tokens"] == 16
        assert sum(counted["failures"].values()) == 2
        assert all("429" in reason for reason in counted["failures"])
        shown = bench(server.address, "--streams", "1", "--requests", "3")
    assert "2 of 3 requests answered" in shown.stdout
    assert "1 failed: HTTP/1.0 429" in shown.stdout


def test_what_does_not_end_in_time_has_failed() -> None:
    with ChatServer(answer_s=1.0) as server:
        result = bench(server.address, "--requests", "1", "--limit-s", "0.2", "--json")
    assert json.loads(result.stdout)["failures"] == {"not ended after 0.2 s": 1}
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("url", "says"), [("http://127.0.0.1:9", "Connection refused"), ("http://nowhere.invalid", "nowhere.invalid")]
)
def test_no_server_is_one_line(url: str, says: str) -> None:
    result = bench(url)
    assert result.exit_code == 1
    assert says in result.output
    assert "Traceback" not in result.output


def test_nothing_that_failed_counts_as_time() -> None:
    stream = Stream(socket=None, sent_at=5.0)  # type: ignore[arg-type]
    stream.failure = "refused"
    result = summarize("http://x", "m", 1, [stream])
    assert (result.elapsed_s, result.tokens_per_s, result.ttft_ms) == (0.0, 0.0, {})


def test_a_server_behind_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with ChatServer(context=context) as server:
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        streams = run(server.url, [body] * 3, concurrency=2, limit_s=10)
    assert [(stream.num_tokens, stream.failure) for stream in streams] == [(4, "")] * 3


@pytest.mark.slow
def test_our_own_server(tmp_path: Path) -> None:
    with running_server(tmp_path, app="wsgi:app") as server:
        result = bench(server.url, "--streams", "4", "--requests", "8", "--max-tokens", "16", "--json")
    assert result.exit_code == 0, result.output
    counted = json.loads(result.stdout)
    assert (counted["model"], counted["tokens"], counted["failures"]) == ("endstop-tiny", 128, {})
    assert counted["prompt_tokens"] > 8 * 64
