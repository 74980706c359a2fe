"""The checker: what it asks, what it shows, and when it fails."""

import io
import json
import re
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tests.scripted_server import HELLO, WAIT_S, Peer, Script, ScriptedServer, says
from tests.test_rules import CHAT, USAGE_CHUNK
from tests.test_spawn import fake_server
from worker import spawn
from worker.__main__ import cli
from worker.check import Options, printable, run_check


def native(frames: Iterable[bytes]) -> Script:
    def script(peer: Peer) -> None:
        peer.head(Cache_Control="no-cache", X_Accel_Buffering="no")
        for frame in frames:
            peer.chunk(frame)
        peer.last_chunk()

    return script


def scripts(**changes: Script) -> dict[str, Script]:
    values = {"execute": native(HELLO), "chat": says(CHAT), "models": lambda peer: peer.json({"data": [{"id": "m"}]})}
    values |= changes
    return {
        "POST /execute": values["execute"],
        "POST /v1/chat/completions": values["chat"],
        "GET /v1/models": values["models"],
    }


def check_command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["check", *arguments])


RULES = "answers,ids,done,eof,succeeds"


def test_a_conforming_server_passes() -> None:
    with ScriptedServer(scripts()) as server:
        result = check_command(server.url, "--prompt", "Say hello", "--max-tokens", "9", "--only", RULES)
        warm_execute, execute, models, warm_chat, chat = server.requests
    assert result.exit_code == 0
    assert result.output.endswith("PASSED\n")
    assert result.output.count("Hello\n") == 2  # the text of both streams
    table = [" ".join(line.strip("│").split("│")).split() for line in result.output.splitlines()]
    rows = {" ".join(row[:-2]): " ".join(row[-2:]) for row in table if len(row) > 2}
    for measure in ("to first event", "to first token", "longest gap between tokens", "longest silence", "duration"):
        assert any(name.endswith(measure) and value.endswith(" ms") for name, value in rows.items()), measure
    for text in ("tokens received", "end EOS", "finish_reason stop", "ids count from 0 without gaps"):
        assert text in result.output
    assert "│ fail" not in result.output
    messages = [{"role": "user", "content": "Say hello"}]
    plain = {"messages": messages, "max_tokens": 9, "temperature": 0}
    assert execute.fields == plain
    assert warm_execute.fields == plain | {"max_tokens": 1}
    assert models.path == "/v1/models"
    assert chat.fields == plain | {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert warm_chat.fields == chat.fields | {"max_tokens": 1}


def test_json_is_all_that_is_printed() -> None:
    with ScriptedServer(scripts(chat=says(CHAT[:-1]))) as server:
        result = check_command(server.url, "--json", "--only", RULES)
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["url"] == server.url
    assert report["passed"] is False
    assert {(check["route"], check["name"]): check["verdict"] for check in report["checks"]} == {
        ("POST /execute", "answers"): "pass",
        ("POST /execute", "ids"): "pass",
        ("POST /execute", "done"): "pass",
        ("POST /execute", "eof"): "pass",
        ("POST /execute", "succeeds"): "pass",
        ("POST /v1/chat/completions", "answers"): "pass",
        ("POST /v1/chat/completions", "done"): "fail",
        ("POST /v1/chat/completions", "eof"): "pass",
        ("POST /v1/chat/completions", "succeeds"): "pass",
    }
    (done,) = [check for check in report["checks"] if check["verdict"] == "fail"]
    assert done["reasons"] == ["there is no [DONE]"]
    assert done["promise"] == "[DONE] comes, and nothing after it"
    assert done["measured"].keys() == {"took_ms"}
    assert report["measured"]["POST /execute"]["num_tokens"] == 2


def test_json_says_why_there_is_nothing() -> None:
    with ScriptedServer({}) as server:
        result = check_command(server.url, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["passed"], report["checks"]) == (False, [])
    assert "there is no route to check" in report["error"]


def test_the_checks_are_listed() -> None:
    result = check_command("--list")
    assert result.exit_code == 0
    assert "two-readers" in result.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "done,nonsense"], "there is no check nonsense\n--list shows them"),
        (["--only", "anwers"], "there is no check anwers; did you mean answers?"),
        (["ftp://127.0.0.1/"], "a URL starts with http:// or https://"),
        (["--api", "grpc"], "'grpc' is not one of"),
    ],
)
def test_a_wrong_command_is_no_failed_check(arguments: list[str], complaint: str) -> None:
    result = check_command(*arguments)
    assert result.exit_code == 2
    assert complaint in result.output


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        (["--api", "native"], ["/execute", "/execute"]),
        (["--api", "openai"], ["/v1/models", "/v1/chat/completions", "/v1/chat/completions"]),
    ],
)
def test_one_format_alone(options: list[str], paths: list[str]) -> None:
    with ScriptedServer(scripts()) as server:
        result = check_command(server.url, *options, "--only", RULES)
        assert [request.path for request in server.requests] == paths
    assert result.exit_code == 0


def test_the_model_can_be_named() -> None:
    with ScriptedServer(scripts()) as server:
        assert check_command(server.url, "--api", "openai", "--model", "other", "--only", RULES).exit_code == 0
        assert server.requests[-1].fields["model"] == "other"


def test_a_server_that_refuses_stream_options_is_asked_without() -> None:
    def script(peer: Peer) -> None:
        if "stream_options" in peer.request.fields:
            peer.json({"detail": "Unexpected fields: stream_options"}, 422)
        else:
            says([frame for frame in CHAT if frame != USAGE_CHUNK])(peer)

    with ScriptedServer(scripts(chat=script)) as server:
        result = check_command(server.url, "--api", "openai", "--only", f"{RULES},usage-chunk")
    assert result.exit_code == 0
    assert "usage-chunk skipped: stream_options is refused" in result.output


def test_the_text_is_printed_as_it_comes() -> None:
    seen = threading.Event()

    class Output(io.StringIO):
        def flush(self) -> None:
            if "Hel" in self.getvalue():
                seen.set()

    def script(peer: Peer) -> None:
        peer.head(Cache_Control="no-cache", X_Accel_Buffering="no")
        peer.chunk(HELLO[0] + HELLO[1])
        assert peer.request.fields["max_tokens"] == 1 or seen.wait(WAIT_S)
        for frame in HELLO[2:]:
            peer.chunk(frame)
        peer.last_chunk()

    output = Output()
    with ScriptedServer(scripts(execute=script)) as server:
        options = Options(only=RULES.split(","))
        assert run_check(server.url, options, console=Console(file=output, width=100))
    assert output.getvalue().startswith("POST /execute\nHello\n")
    assert "\nPOST /v1/chat/completions\nHello\n" in output.getvalue()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"execute": native(HELLO[:-1])}, "POST /execute: done: there is no [DONE]"),
        ({"chat": says(CHAT[:-1])}, "POST /v1/chat/completions: done: there is no [DONE]"),
    ],
)
def test_a_violation_fails_with_its_reason(changes: dict[str, Script], reason: str) -> None:
    with ScriptedServer(scripts(**changes)) as server:
        result = check_command(server.url, "--only", RULES)
    assert result.exit_code == 1
    assert reason in result.output.replace("\n", " ").replace("  ", " ")
    assert result.output.endswith("FAILED\n")


def test_another_server_is_checked_by_the_openai_route_alone() -> None:
    with ScriptedServer({"POST /v1/chat/completions": says(CHAT)}) as server:
        result = check_command(f"{server.url}/v1", "--only", RULES)
        chat = server.requests[-1]
    assert result.exit_code == 0
    assert "no native route (404): only the OpenAI route is checked" in result.output
    assert "POST /v1/chat/completions" in result.output
    assert "model" not in chat.fields  # it lists none


@pytest.mark.parametrize("status", [404, 405, 307])
def test_a_server_with_neither_route_fails(status: int) -> None:
    refuse: Script = lambda peer: peer.json({}, status, Location="/v1/elsewhere")
    with ScriptedServer(scripts(execute=refuse, chat=refuse) | {"POST /v1/elsewhere": says(CHAT)}) as server:
        result = check_command(server.url)
    assert result.exit_code == 1
    assert ("no native route" in result.output) == (status != 307)
    assert ("there is no route to check" in result.output) == (status != 307)
    assert ("it answered 307" in result.output) == (status == 307)


def test_a_model_that_is_not_there_is_no_missing_route() -> None:
    refuse: Script = lambda peer: peer.json({"error": {"message": "no such model"}}, 404)
    with ScriptedServer(scripts(chat=refuse)) as server:
        result = check_command(server.url, "--api", "openai")
    assert result.exit_code == 1
    assert "it answered 404" in result.output


def test_an_unreachable_server_fails_in_one_line() -> None:
    with ScriptedServer({}) as server:
        url = server.url
    result = check_command(url)
    assert result.exit_code == 1
    assert " ".join(result.output.split()) == f"{url}: Connection refused; is the server running there? FAILED"
    report = json.loads(check_command(url, "--json").stdout)
    assert (report["passed"], report["checks"]) == (False, [])
    assert report["error"] == f"{url}: Connection refused; is the server running there?"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ([], "give the key with --api-key"),
        (["--api-key", "k"], "the key of --api-key is not accepted"),
    ],
)
def test_a_missing_key_is_said_in_one_line(arguments: list[str], remedy: str) -> None:
    refuse: Script = lambda peer: peer.json({"message": "this server needs a key"}, 401)
    with ScriptedServer({}, otherwise=refuse) as server:
        result = check_command(server.url, *arguments)
        report = json.loads(check_command(server.url, *arguments, "--json").stdout)
    line = f"{server.url}: it answered 401; {remedy}"
    assert result.exit_code == 1
    assert " ".join(result.output.split()) == f"{line} FAILED"
    assert (report["passed"], report["error"]) == (False, line)


def test_a_format_without_an_answer_fails_beside_one_that_passes() -> None:
    refuse: Script = lambda peer: peer.json({"message": "no"}, 401)
    with ScriptedServer(scripts(chat=refuse)) as server:
        result = check_command(server.url, "--only", RULES)
        report = json.loads(check_command(server.url, "--only", RULES, "--json").stdout)
    assert result.exit_code == 1
    assert "it answered 401; give the key with --api-key" in " ".join(result.output.split())
    assert report["passed"] is False
    assert {check["verdict"] for check in report["checks"]} == {"pass"}
    assert "it answered 401" in report["error"]


def test_an_api_key_is_sent() -> None:
    with ScriptedServer(scripts()) as server:
        assert check_command(server.url, "--api-key", "k", "--only", RULES).exit_code == 0
        assert {request.headers.get("authorization") for request in server.requests} == {"Bearer k"}


@pytest.mark.slow
def test_the_limit_is_for_each_check() -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0])
        assert peer.wait_until_left()

    with ScriptedServer(scripts(execute=script)) as server:
        result = check_command(server.url, "--limit-s", "0.3")
        native = [request.path for request in server.requests if request.path not in ("/v1/chat/completions",)]
    assert native[:2] == ["/execute", "/execute"]  # the warm-up, the plain stream, and nothing that compares with it
    assert native[2:3] == ["/v1/models"]
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert re.search(r"POST /execute: eof: it had not ended within 0\.[23]\d* s", output)
    assert re.search(r"resume, two-readers, [^:]* skipped: the plain stream is no complete answer", output)


def test_a_worker_class_is_for_a_server_of_our_own() -> None:
    result = check_command("http://127.0.0.1:1", "--worker-class", "gthread")
    assert result.exit_code == 2
    assert "--worker-class" in result.output


def check_with(monkeypatch: pytest.MonkeyPatch, *words: str, **options: Any) -> tuple[bool, str]:
    """`run_check` without a URL, with the fake in the place of gunicorn."""
    real = spawn.spawned_server
    monkeypatch.setattr(spawn, "spawned_server", lambda worker_class: real(worker_class, command=fake_server(*words)))
    output = io.StringIO()
    is_passed = run_check(None, Options(only=RULES.split(",")), console=Console(file=output, width=100), **options)
    return is_passed, output.getvalue()


def test_a_failed_spawn_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    is_passed, output = check_with(monkeypatch, "crash")
    assert is_passed is False
    assert "FAILED: the server exited with status 1" in output
    assert "no such model" in output


def test_a_failed_check_shows_the_log_of_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    is_passed, output = check_with(monkeypatch, worker_class="gthread")
    assert is_passed is False
    assert "it answered 200, without a content type" in output
    assert "the server's log ends with\nhost 127.0.0.1 class gthread\nready to answer" in output


def test_half_a_surrogate_pair_is_shown() -> None:
    """JSON can say it, UTF-8 cannot: a terminal would end the command."""
    assert printable("a\ud83db\udfffc\U0001f600").encode() == "a\ufffdb\ufffdc\U0001f600".encode()


def test_text_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b1m\x7f\r\n\tc\xa0é") == "a\ufffd[2Jb\ufffd\ufffd1m\ufffd\ufffd\n\tc\xa0é"
