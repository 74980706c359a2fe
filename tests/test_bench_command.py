"""`bench`: what it asks, what it counts, and that what failed is never in the numbers."""

import contextlib
import io
import json
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tests.support.http_server import HTTPServer, QuietHandler, self_signed
from tests.support.servers import running_server
from worker.__main__ import cli
from worker.bench import show, summarize
from worker.load import LoadFailed, Stream, _read, run


class ChatServer(HTTPServer):
    """Answers every request with the same tokens; refuses each `refuse_every`th; notes what it was asked.

    The first answer waits until `num_together` requests are open.
    """

    def __init__(
        self,
        refuse_every: int = 0,
        answer_s: float = 0.0,
        context: ssl.SSLContext | None = None,
        num_together: int = 1,
    ) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_open = self.num_open = 0
        lock = threading.Condition()
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
                    lock.notify_all()
                    lock.wait_for(lambda: outer.most_open >= num_together, 30)
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
    with ChatServer(answer_s=0.02, num_together=3) as server:
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


def test_a_stream_that_never_ends_has_failed_in_time() -> None:
    """Bytes that keep coming are no reason to wait for longer."""

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b": still here\n" * 1000)

    with HTTPServer(Handler) as server:
        streams = run(server.url, [{}] * 8, concurrency=8, limit_s=0.2)
        assert {stream.failure for stream in streams} == {"not ended after 0.2 s"}
        with pytest.raises(LoadFailed, match="8 of 8 answers have not ended"):
            run(server.url, [{}] * 8, concurrency=8, limit_s=0.2, is_strict=True)


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


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
BODY = (
    b'data: {"choices":[{"delta":{"content":"h\xc3\xa9"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


def fed(wire: bytes, num_bytes: int) -> Stream:
    """What a stream has of these bytes, which come so many at a time."""
    stream = Stream(socket=None, sent_at=0.0)  # type: ignore[arg-type]
    for begin in range(0, len(wire), num_bytes):
        stream.feed(wire[begin : begin + num_bytes], begin + 1.0)
    return stream


@pytest.mark.parametrize("num_bytes", [1, 7, 10_000])
@pytest.mark.parametrize("chunk_bytes", [0, 1, 10, 10_000])
def test_a_stream_is_the_same_however_it_is_cut(chunk_bytes: int, num_bytes: int) -> None:
    """Into chunks, whose borders may be within a line, and into what one read brings. 0: not chunked."""
    if chunk_bytes:
        pieces = [BODY[begin : begin + chunk_bytes] for begin in range(0, len(BODY), chunk_bytes)]
        chunks = b"".join(b"%X;extension=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        wire = HEAD + b"transfer-encoding: Chunked\r\n\r\n" + chunks + b"0\r\nTrailer: 1\r\n\r\n"
    else:
        wire = HEAD + b"\r\n" + BODY
    stream = fed(wire, num_bytes)
    assert stream.is_whole
    assert (stream.num_prompt_tokens, stream.num_tokens, stream.finish_reason) == (1, 2, "stop")
    assert len(stream.text_at) == 2
    if num_bytes == 1:
        assert stream.text_at[0] < stream.text_at[1]  # as each came


@pytest.mark.parametrize(("last", "why"), [(b"0\r\n\r\n", ""), (b"", None)])
def test_the_last_chunk_is_the_end_though_the_connection_stays(last: bytes, why: str | None) -> None:
    """Of a server that counts no tokens: nothing else says that no count comes."""
    event = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%s" % (len(event), event, last))
        assert _read(Stream(ours, 0.0)) == why


@pytest.mark.parametrize("size", [b"data", b"-5"])
def test_what_is_no_chunk_has_failed(size: bytes) -> None:
    with pytest.raises(LoadFailed, match="no chunk"):
        fed(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n\r\n", 10_000)


@pytest.mark.parametrize(
    "event",
    [
        "not json",
        "\xff",
        "[]",
        "null",
        "5",
        '"error"',
        '{"choices": null}',
        '{"choices": [null]}',
        '{"choices": [{"delta": null}]}',
        '{"choices": {"0": 1}}',
        '{"usage": 5}',
        '{"usage": {"prompt_tokens": 1}}',
        '{"usage": {"completion_tokens": "x"}}',
        '{"usage": {"completion_tokens": Infinity}}',
        '{"usage": {"completion_tokens": 2, "prompt_tokens": [3]}}',
        "[" * 100_000,
    ],
)
def test_an_event_of_another_form_has_failed(event: str) -> None:
    with pytest.raises(LoadFailed, match=r"an event is not of OpenAI's form: .{4,300}$"):
        fed(HEAD + b"\r\ndata: " + event.encode("latin-1") + b"\n\n", 10_000)


@pytest.mark.parametrize(
    "head",
    [HEAD + b"\r\n", HEAD, HEAD + b"Transfer-Encoding: chunked\r\n\r\n"],
    ids=["of the body", "of the head", "of a chunk's head"],
)
def test_a_line_without_an_end_fills_no_memory(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr("worker.load.MAX_LINE_BYTES", 10_000)
    with pytest.raises(LoadFailed, match="a line is longer than 10000 bytes"):
        fed(head + b"1" * 30_000, 1000)


def test_a_models_name_cannot_command_the_terminal() -> None:
    output = io.StringIO()
    show(summarize("http://x", "m\x1b[2J", 1, []), Console(file=output))
    assert output.getvalue().startswith("m\ufffd[2J at http://x")


@pytest.mark.slow
def test_our_own_server(tmp_path: Path) -> None:
    with running_server(tmp_path, app="wsgi:app") as server:
        result = bench(server.url, "--streams", "4", "--requests", "8", "--max-tokens", "16", "--json")
    assert result.exit_code == 0, result.output
    counted = json.loads(result.stdout)
    assert (counted["model"], counted["tokens"], counted["failures"]) == ("endstop-tiny", 128, {})
    assert counted["prompt_tokens"] > 8 * 64
