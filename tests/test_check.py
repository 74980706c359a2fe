"""The checker: each rule with a stream that only it objects to; recording; the command; the spawned server."""

import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tests.scripted_server import (
    END,
    ERROR,
    HELLO,
    METRICS,
    STARTED,
    USAGE,
    WAIT_S,
    Peer,
    Script,
    ScriptedServer,
    numbered,
    says,
    sse,
    token,
)
from worker import check
from worker.__main__ import cli
from worker.check import (
    NATIVE_RULES,
    OPENAI_RULES,
    Recording,
    SpawnFailed,
    judge_native,
    judge_openai,
    longest_silence_s,
    printable,
    record,
    run_check,
    spawned_server,
)
from worker.client import Client, EndstopError

HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}


def recorded(frames: Iterable[bytes], *, ending: str = "eof", detail: str = "", **changes: Any) -> Recording:
    """A recording of these frames, one read each, 1 ms apart."""
    reads = [(0.001 * n, frame) for n, frame in enumerate(frames, 1)]
    return replace(Recording(200, HEADERS, reads, ending, 0.001 * (len(reads) + 1), detail), **changes)


# --- Native streams ---

TOKENS = [token("Hel", 0), token("lo", 1)]
NARRATION = {"type": "narration", "actor": "q", "action": "wait", "target": None, "human": "3rd", "job_id": "job-1"}


def without(event: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in names}


def test_a_good_native_stream() -> None:
    verdict = judge_native(recorded(HELLO))
    assert verdict.problems == []
    assert [promise for promise, _ in verdict.outcomes] == [rule.promise for rule in NATIVE_RULES]
    assert (verdict.route, verdict.terminal, verdict.num_tokens) == ("POST /execute", "end EOS", 2)
    assert (verdict.first_event_s, verdict.ttft_s) == (0.001, 0.002)
    assert verdict.longest_gap_s == pytest.approx(0.001)
    assert verdict.longest_silence_s == pytest.approx(0.001)
    assert verdict.duration_s == pytest.approx(0.007)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(numbered([STARTED, token("Hello", 0, n=2), METRICS, END]), id="merged tokens"),
        pytest.param(numbered([STARTED, *TOKENS, METRICS, {**END, "tokens_out": 3}]), id="a token without text"),
        pytest.param(numbered([STARTED, NARRATION, *TOKENS, METRICS, END]), id="narration"),
        pytest.param(numbered([STARTED, {"type": "new"}, *TOKENS, METRICS, END]), id="an event of a later version"),
        pytest.param([b": ping\n", HELLO[0], b": ping\n", b": ping\n", *HELLO[1:]], id="keep-alives"),
        pytest.param([b"".join(HELLO)], id="all in one read"),
        pytest.param([bytes([byte]) for byte in b"".join(HELLO)], id="a read for each byte"),
        pytest.param([frame.replace(b"\n", b"\r\n") for frame in HELLO], id="other line ends"),
        pytest.param(
            numbered([STARTED, *TOKENS, METRICS, {**END, "stop_reason": "STOP_SEQUENCE"}]), id="a stop sequence"
        ),
        pytest.param(numbered([STARTED, *TOKENS, METRICS, {**END, "stop_reason": "MAX_TOKENS"}]), id="a length stop"),
    ],
)
def test_other_good_native_streams(frames: list[bytes]) -> None:
    assert judge_native(recorded(frames, ended_at_s=10.0)).problems == []


def misnumbered(*ids: int | None) -> list[bytes]:
    payloads = [STARTED, *TOKENS, METRICS, END]
    return [*(sse(payload, event_id) for payload, event_id in zip(payloads, ids, strict=True)), HELLO[-1]]


# Each of these breaks one thing, and exactly one rule says so: without the rule the stream would pass.
NATIVE_VIOLATIONS = [
    ("a gap in the ids", misnumbered(0, 1, 3, 4, 5), "ids count from 0 without gaps: * has id '3', 2 was due"),
    ("an id twice", misnumbered(0, 1, 1, 2, 3), "ids count from 0 without gaps: * has id '1', 2 was due"),
    ("ids from 1", misnumbered(1, 2, 3, 4, 5), "ids count from 0 without gaps: * has id '1', 0 was due"),
    ("an event without id", misnumbered(0, None, 1, 2, 3), "ids count from 0 without gaps: * has id None, 1 was due"),
    (
        "no started",
        numbered([*TOKENS, METRICS, END]),
        "the first event is started, and the only one: the first event is *",
    ),
    (
        "a token before started",
        numbered([TOKENS[0], STARTED, TOKENS[1], METRICS, END]),
        "the first event is started, and the only one: the first event is *",
    ),
    (
        "started twice",
        numbered([STARTED, STARTED, *TOKENS, METRICS, END]),
        "the first event is started, and the only one: there are 2 started events",
    ),
    (
        "no terminal",
        numbered([STARTED, *TOKENS, METRICS]),
        "exactly one terminal event: there is neither an end nor an error",
    ),
    (
        "an end and an end",
        numbered([STARTED, *TOKENS, METRICS, END, END]),
        "exactly one terminal event: there are 2: end, end",
    ),
    (
        "an end and an error",
        numbered([STARTED, *TOKENS, METRICS, END, ERROR]),
        "exactly one terminal event: there are 2: end, error",
    ),
    (
        "a token after the end",
        numbered([STARTED, *TOKENS, METRICS, {**END, "tokens_out": 3}, token("!", 2)]),
        "nothing after it but [DONE]: * came after the terminal event",
    ),
    (
        "metrics after the end",
        numbered([STARTED, *TOKENS, END, METRICS]),
        "nothing after it but [DONE]: * came after the terminal event",
    ),
    ("no [DONE]", HELLO[:-1], "[DONE], and nothing after it: there is no [DONE]"),
    ("[DONE] twice", [*HELLO, HELLO[-1]], "[DONE], and nothing after it: '[DONE]' came after [DONE]"),
    ("an event after [DONE]", [*HELLO, sse(METRICS, 5)], "[DONE], and nothing after it: * came after [DONE]"),
    (
        "a keep-alive after [DONE]",
        [*HELLO, b": ping\n"],
        "a clean end of file: behind the last event there are bytes that are no event: b': ping\\n'",
    ),
    (
        "[DONE] without its blank line",
        [*HELLO, b"data: more\n"],
        "a clean end of file: behind the last event there are bytes that are no event: b'data: more\\n'",
    ),
    (
        "a keep-alive with a blank line",
        [HELLO[0], b": ping\n\n", *HELLO[1:]],
        "and end in one newline: a blank line without an event before it *",
    ),
    (
        "a retry block of its own",
        [b"retry: 3000\n\n", *HELLO],
        "and end in one newline: a blank line without an event before it *",
    ),
    (
        "three newlines",
        [HELLO[0], b"\n", *HELLO[1:]],
        "and end in one newline: a blank line without an event before it *",
    ),
    (
        "an event that is not JSON",
        numbered([STARTED, "hello", *TOKENS, METRICS, END]),
        "every event is a JSON object: 'hello' is not a JSON object",
    ),
    (
        "an event of brackets",
        numbered([STARTED, "[" * 5000, *TOKENS, METRICS, END]),
        "every event is a JSON object: * is not a JSON object",
    ),
    (
        "an event that is a list",
        numbered([STARTED, [1], *TOKENS, METRICS, END]),
        "every event is a JSON object: '[1]' is not a JSON object",
    ),
    (
        "an event without a type",
        numbered([STARTED, {"t": "x"}, *TOKENS, METRICS, END]),
        "with the fields of its type: an event is not a JSON object with a type: *",
    ),
    (
        "a token without its index",
        numbered([STARTED, without(TOKENS[0], "i"), METRICS, END]),
        "with the fields of its type: field 'i' of a 'token' event is missing",
    ),
    (
        "an end without usage",
        numbered([STARTED, *TOKENS, METRICS, without(END, "usage")]),
        "with the fields of its type: field 'usage' of a 'end' event is missing",
    ),
    (
        "a lost token",
        numbered([STARTED, token("Hel", 0), token("lo", 2), METRICS, END]),
        "tokens are whole and in order: * has index 2, 1 was due: tokens were lost, repeated or reordered",
    ),
    (
        "a token lost behind a merged one",
        numbered([STARTED, token("Hel", 0, n=2), token("lo", 1), METRICS, END]),
        "tokens are whole and in order: * has index 1, 2 was due: tokens were lost, repeated or reordered",
    ),
    (
        "a repeated token",
        numbered([STARTED, TOKENS[0], TOKENS[0], METRICS, END]),
        "tokens are whole and in order: * has index 0, 1 was due: tokens were lost, repeated or reordered",
    ),
    (
        "an end that counts too few",
        numbered([STARTED, *TOKENS, METRICS, {**END, "tokens_out": 1}]),
        "tokens are whole and in order: the end counts 1 tokens, 2 came",
    ),
    ("no metrics", numbered([STARTED, *TOKENS, END]), "metrics once: there are 0 metrics events, one was due"),
    (
        "metrics twice",
        numbered([STARTED, *TOKENS, METRICS, METRICS, END]),
        "metrics once: there are 2 metrics events, one was due",
    ),
    (
        "a failure that the server reports",
        numbered([STARTED, *TOKENS, ERROR]),
        "text comes, and no failure: it failed with STALLED: no token for 60 s",
    ),
    (
        "a stop reason for nobody",
        numbered([STARTED, *TOKENS, METRICS, {**END, "stop_reason": "CANCELLED"}]),
        "text comes, and no failure: its stop_reason is 'CANCELLED'",
    ),
    (
        "an answer without text",
        numbered([STARTED, METRICS, {**END, "tokens_out": 0}]),
        "text comes, and no failure: no text came",
    ),
]


def assert_problem(problems: Sequence[str], expected: str) -> None:
    """Exactly one problem, and this one; a star stands for any text."""
    (problem,) = problems
    start, star, end = expected.partition("*")
    if star:
        assert problem.startswith(start)
        assert problem.endswith(end)
    else:
        assert problem == expected


@pytest.mark.parametrize(("frames", "problem"), [pytest.param(*v[1:], id=v[0]) for v in NATIVE_VIOLATIONS])
def test_a_violation_of_the_native_contract(frames: list[bytes], problem: str) -> None:
    assert_problem(judge_native(recorded(frames)).problems, problem)
    # However the bytes were cut on their way.
    assert_problem(judge_native(recorded([b"".join(frames)])).problems, problem)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        ({"code": "ODD"}, "with the fields of its type: error code 'ODD' is not in the contract"),
        ({"message": ""}, "with the fields of its type: an error event has no message"),
        ({"usage": None}, "with the fields of its type: an error event has no usage"),
    ],
)
def test_an_error_has_fields_too(error: dict[str, Any], problem: str) -> None:
    problems = judge_native(recorded(numbered([STARTED, {**ERROR, **error}]))).problems
    assert problems[0] == problem
    assert len(problems) == 2  # the other one is that it failed


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"ending": "cut", "detail": "the connection was cut"},
            "a clean end of file: the connection was cut",
        ),
        (
            {"ending": "stopped", "detail": "it had not ended within 30 s"},
            "a clean end of file: it had not ended within 30 s",
        ),
        (
            {"ended_at_s": 14.0},
            "keep-alives come in time: not a byte for 14.0 s; a keep-alive is due every 10 s",
        ),
        (
            {"headers": {**HEADERS, "cache-control": "no-store"}},
            "headers that keep proxies from buffering: the header cache-control is 'no-store', 'no-cache' was due",
        ),
        (
            {"headers": without(HEADERS, "x-accel-buffering")},
            "headers that keep proxies from buffering: the header x-accel-buffering is None, 'no' was due",
        ),
        (
            {"reads": [(1.5, b"".join(HELLO))], "ended_at_s": 1.6},
            "the first event leaves at once: the first event came after 1.5 s; it has to leave within 100 ms, "
            "before any token",
        ),
        (
            {"reads": [(0.1, b"".join(HELLO[:2])), (12.2, b"".join(HELLO[2:]))], "ended_at_s": 12.3},
            "keep-alives come in time: not a byte for 12.1 s; a keep-alive is due every 10 s",
        ),
    ],
)
def test_a_violation_around_the_events(changes: dict[str, Any], problem: str) -> None:
    assert judge_native(recorded(HELLO, **changes)).problems == [problem]


def test_silence_that_keep_alives_break_is_no_violation() -> None:
    reads = [(0.1, b"".join(HELLO[:2])), (10.1, b": ping\n"), (20.1, b": ping\n"), (29.0, b"".join(HELLO[2:]))]
    verdict = judge_native(recorded(HELLO, reads=reads, ended_at_s=29.1))
    assert verdict.problems == []
    assert verdict.longest_gap_s == pytest.approx(28.9)
    assert verdict.longest_silence_s == pytest.approx(10.0)


@pytest.mark.parametrize("judge", [judge_native, judge_openai])
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"status": None, "detail": "Connection refused"}, "Connection refused"),
        (
            {"status": 503, "headers": {"content-type": "application/json"}, "reads": [(0.1, b'{"state": "DEAD"}')]},
            'it answered 503, application/json: {"state": "DEAD"}',
        ),
        (
            {"headers": {"content-type": "text/html"}, "reads": [(0.1, b"<html>")]},
            "it answered 200, text/html: <html>",
        ),
        ({"status": 204, "headers": {}, "reads": []}, "it answered 204, without a content type: (nothing)"),
    ],
)
def test_no_event_stream(judge: Any, changes: dict[str, Any], problem: str) -> None:
    verdict = judge(recorded([], **changes))
    assert verdict.problems == [f"it answers with an event stream: {problem}"]
    assert (verdict.terminal, verdict.num_tokens, verdict.ttft_s) == ("none", 0, None)


def test_an_empty_stream_breaks_what_it_should() -> None:
    assert judge_native(recorded([])).problems == [
        "the first event is started, and the only one: the first event is missing",
        "exactly one terminal event: there is neither an end nor an error",
        "[DONE], and nothing after it: there is no [DONE]",
        "text comes, and no failure: no text came",
    ]
    assert judge_openai(recorded([])).problems == [
        "exactly one finish_reason or error: there is neither a finish_reason nor an error",
        "[DONE], and nothing after it: there is no [DONE]",
        "text comes, and no failure: no text came",
    ]


def test_the_terminal_is_named() -> None:
    assert judge_native(recorded(numbered([STARTED, ERROR]))).terminal == "error STALLED"
    assert judge_native(recorded(numbered([STARTED]))).terminal == "none"
    assert judge_openai(recorded(CHAT)).terminal == "finish_reason stop"
    assert judge_openai(recorded([ROLE, FAILURE, HELLO[-1]])).terminal == "error"


# --- OpenAI streams ---


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", **more} | {
        "choices": list(choices)
    }


def choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


ROLE = sse(chunk(choice({"role": "assistant", "content": ""})))
TEXTS = [sse(chunk(choice({"content": "Hel"}))), sse(chunk(choice({"content": "lo"})))]
FINISH = sse(chunk(choice({}, "stop")))
USAGE_CHUNK = sse(chunk(usage=USAGE))
FAILURE = sse({"error": {"message": "out of memory", "type": "server_error", "param": None, "code": "VRAM_OOM"}})
CHAT_DONE = sse("[DONE]")
CHAT = [ROLE, *TEXTS, FINISH, USAGE_CHUNK, CHAT_DONE]


def test_a_good_openai_stream() -> None:
    verdict = judge_openai(recorded(CHAT, headers={"content-type": "text/event-stream; charset=utf-8"}))
    assert verdict.problems == []
    assert [promise for promise, _ in verdict.outcomes] == [rule.promise for rule in OPENAI_RULES]
    assert (verdict.route, verdict.num_tokens) == ("POST /v1/chat/completions", 2)
    assert (verdict.first_event_s, verdict.ttft_s) == (0.001, 0.002)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([ROLE, *TEXTS, sse(chunk(choice({"content": "!"}, "length"))), *CHAT[-2:]], id="text at the end"),
        pytest.param([ROLE, b": ping\n", *CHAT[1:]], id="a keep-alive"),
        pytest.param(
            [ROLE, sse(chunk(choice({"content": "Hi"}), usage=USAGE)), *CHAT[3:]], id="usage beside every text"
        ),
        pytest.param([sse(chunk(choice({"role": "assistant", "content": "Hi"}))), *CHAT[3:]], id="role with text"),
        pytest.param([ROLE, sse(chunk(choice({"reasoning_content": "hm"}))), *CHAT[3:]], id="a model that only thinks"),
    ],
)
def test_other_good_openai_streams(frames: list[bytes]) -> None:
    assert judge_openai(recorded(frames)).problems == []


def test_tokens_are_counted_by_usage_and_without_it_by_text() -> None:
    assert judge_openai(recorded([ROLE, TEXTS[0], *CHAT[3:]])).num_tokens == 2
    assert judge_openai(recorded([ROLE, TEXTS[0], FINISH, CHAT_DONE])).num_tokens == 1


OPENAI_VIOLATIONS = [
    ("no role", [*CHAT[1:]], "the first chunk brings the role: the first chunk is *"),
    (
        "an id line",
        [ROLE, b"id: 1\n" + TEXTS[0], *CHAT[2:]],
        "no id: and no event: lines: * has an id: or an event: line, which common clients do not expect",
    ),
    (
        "an event line",
        [b"event: chunk\n" + ROLE, *CHAT[1:]],
        "no id: and no event: lines: * has an id: or an event: line, which common clients do not expect",
    ),
    (
        "an id on [DONE]",
        [*CHAT[:-1], b"id: 5\n" + CHAT_DONE],
        "no id: and no event: lines: '[DONE]' has an id: or an event: line, which common clients do not expect",
    ),
    ("not JSON", [ROLE, sse("hello"), *CHAT[1:]], "every event is a JSON object: 'hello' is not a JSON object"),
    (
        "an event of its own kind",
        [ROLE, sse(METRICS), *CHAT[1:]],
        "chunks have OpenAI's shape: * is not a chat.completion.chunk with choices",
    ),
    (
        "another object",
        [ROLE, sse(chunk(choice({}), object="text_completion")), *CHAT[1:]],
        "chunks have OpenAI's shape: * is not a chat.completion.chunk with choices",
    ),
    (
        "another id",
        [ROLE, sse(chunk(choice({}), id="chatcmpl-2")), *CHAT[1:]],
        "chunks have OpenAI's shape: the chunks of one answer have the ids chatcmpl-1, chatcmpl-2",
    ),
    (
        "no id",
        [sse(without(json.loads(frame[6:]), "id")) if frame != CHAT_DONE else frame for frame in CHAT],
        "chunks have OpenAI's shape: the chunks of one answer have the ids None",
    ),
    (
        "no finish_reason",
        [ROLE, *TEXTS, CHAT_DONE],
        "exactly one finish_reason or error: there is neither a finish_reason nor an error",
    ),
    ("two finish_reasons", [ROLE, *TEXTS, FINISH, *CHAT[3:]], "exactly one finish_reason or error: there are 2"),
    (
        "a finish_reason and an error",
        [*CHAT[:-1], FAILURE, CHAT_DONE],
        "exactly one finish_reason or error: there are 2",
    ),
    (
        "text after the finish_reason",
        [ROLE, *TEXTS, FINISH, TEXTS[0], USAGE_CHUNK, CHAT_DONE],
        "nothing after it but usage and [DONE]: * came after the ending",
    ),
    (
        "an empty chunk after the finish_reason",
        [ROLE, *TEXTS, FINISH, sse(chunk()), USAGE_CHUNK, CHAT_DONE],
        "nothing after it but usage and [DONE]: * came after the ending",
    ),
    (
        "no usage",
        [ROLE, *TEXTS, FINISH, CHAT_DONE],
        "usage once, when asked for: there are 0 usage chunks, one was asked for",
    ),
    (
        "usage twice",
        [*CHAT[:-1], USAGE_CHUNK, CHAT_DONE],
        "usage once, when asked for: there are 2 usage chunks, one was asked for",
    ),
    (
        "usage too early",
        [ROLE, USAGE_CHUNK, *TEXTS, FINISH, CHAT_DONE],
        "usage once, when asked for: the usage came before the finish_reason",
    ),
    ("no [DONE]", CHAT[:-1], "[DONE], and nothing after it: there is no [DONE]"),
    ("[DONE] twice", [*CHAT, CHAT_DONE], "[DONE], and nothing after it: '[DONE]' came after [DONE]"),
    ("a chunk after [DONE]", [*CHAT, USAGE_CHUNK], "[DONE], and nothing after it: * came after [DONE]"),
    (
        "a keep-alive with a blank line",
        [ROLE, b": ping\n\n", *CHAT[1:]],
        "and end in one newline: a blank line without an event before it *",
    ),
    ("bytes behind the end", [*CHAT, b"data: x\n"], "a clean end of file: behind the last event there are bytes *"),
    (
        "a failure that the server reports",
        [ROLE, *TEXTS, FAILURE, CHAT_DONE],
        "text comes, and no failure: it failed with out of memory",
    ),
    (
        "an odd finish_reason",
        [ROLE, *TEXTS, sse(chunk(choice({}, "tired"))), *CHAT[-2:]],
        "text comes, and no failure: its finish_reason is 'tired'",
    ),
    ("no text", [ROLE, *CHAT[-3:]], "text comes, and no failure: no text came"),
]


@pytest.mark.parametrize(("frames", "problem"), [pytest.param(*v[1:], id=v[0]) for v in OPENAI_VIOLATIONS])
def test_a_violation_of_the_openai_contract(frames: list[bytes], problem: str) -> None:
    assert_problem(judge_openai(recorded(frames)).problems, problem)
    assert_problem(judge_openai(recorded([b"".join(frames)])).problems, problem)


@pytest.mark.parametrize("error", ["out of memory", {"message": "out of memory"}, None])
def test_a_flat_error_is_not_openais(error: object) -> None:
    problems = judge_openai(recorded([ROLE, sse({"error": error}), CHAT_DONE])).problems
    assert problems[0].endswith("is not an error with message, type, param and code")
    assert problems[1].startswith("text comes, and no failure: it failed with")
    assert len(problems) == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ending": "cut", "detail": "the connection was cut"}, "a clean end of file: the connection was cut"),
        (
            {"ended_at_s": 14.0},
            "keep-alives come in time: not a byte for 14.0 s; a keep-alive is due every 10 s",
        ),
        (
            {"reads": [(2.0, b"".join(CHAT))], "ended_at_s": 2.1},
            "the first chunk leaves at once: the first event came after 2.0 s; it has to leave within 100 ms, "
            "before any token",
        ),
    ],
)
def test_a_violation_around_the_chunks(changes: dict[str, Any], problem: str) -> None:
    assert judge_openai(recorded(CHAT, **changes)).problems == [problem]


@pytest.mark.parametrize(
    ("rules", "violations", "elsewhere"),
    [
        (
            NATIVE_RULES,
            NATIVE_VIOLATIONS,
            {"the first event leaves at once", "keep-alives come in time", "headers that keep proxies from buffering"},
        ),
        (
            OPENAI_RULES,
            OPENAI_VIOLATIONS,
            {"the first chunk leaves at once", "keep-alives come in time", "errors have OpenAI's shape"},
        ),
    ],
    ids=["native", "openai"],
)
def test_every_rule_has_its_violation(
    rules: Sequence[check.Rule], violations: list[tuple[str, list[bytes], str]], elsewhere: set[str]
) -> None:
    promises = [rule.promise for rule in rules]
    broken = {promise for promise in promises for _, _, problem in violations if problem.startswith(f"{promise}: ")}
    assert broken | elsewhere == set(promises)
    assert broken & elsewhere == set()


def test_silence_is_measured_from_the_request_to_the_end() -> None:
    reads = [(3.0, b"x"), (4.0, b"x")]
    assert longest_silence_s(recorded([], reads=reads, ended_at_s=6.0)) == 3.0
    assert longest_silence_s(recorded([], reads=reads, ended_at_s=8.0)) == 4.0
    assert longest_silence_s(recorded([], reads=[], ended_at_s=2.0)) == 2.0


def test_text_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b1m\x7f\r\n\tc\xa0é") == "a\ufffd[2Jb\ufffd\ufffd1m\ufffd\ufffd\n\tc\xa0é"


# --- Recording ---


def recording_of(script: Script, limit_s: float = WAIT_S) -> tuple[Recording, list[str]]:
    shown: list[str] = []
    with ScriptedServer({"POST /execute": script}) as server, Client(server.url) as client:
        recording = record(
            client.session,
            "POST",
            f"{server.url}/execute",
            {"prompt": "Hi"},
            limit_s=limit_s,
            show=lambda event: shown.append(event.data),
        )
    return recording, shown


def test_a_recording_has_every_byte_and_a_clean_end() -> None:
    recording, shown = recording_of(says(HELLO))
    assert (recording.status, recording.headers["content-type"]) == (200, "text/event-stream")
    assert b"".join(data for _, data in recording.reads) == b"".join(HELLO)
    assert (recording.ending, recording.detail) == ("eof", "")
    assert 0 < recording.reads[0][0] <= recording.reads[-1][0] <= recording.ended_at_s < WAIT_S
    assert len(shown) == len(HELLO)


def test_events_are_shown_as_they_come() -> None:
    seen = [threading.Event() for _ in HELLO]

    def script(peer: Peer) -> None:
        peer.head()
        for n, frame in enumerate(HELLO):
            assert n == 0 or seen[n - 1].wait(WAIT_S)
            peer.chunk(frame)
        peer.last_chunk()

    count = iter(seen)
    with ScriptedServer({"POST /execute": script}) as server, Client(server.url) as client:
        url = f"{server.url}/execute"
        recording = record(client.session, "POST", url, {}, limit_s=WAIT_S, show=lambda _: next(count).set())
    assert recording.ending == "eof"
    assert len({at_s for at_s, _ in recording.reads}) == len(HELLO)


def test_a_cut_stream_is_recorded_as_cut() -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0])

    recording, _ = recording_of(script)
    assert (recording.ending, recording.detail) == ("cut", "the connection was cut in the middle of the stream")
    assert [data for _, data in recording.reads] == [HELLO[0]]


def test_a_refusal_is_recorded_with_its_body() -> None:
    recording, _ = recording_of(lambda peer: peer.json({"state": "LOADING"}, 503))
    assert recording.status == 503
    assert recording.reads[0][1] == b'{"state": "LOADING"}'


def test_nobody_listens() -> None:
    with ScriptedServer({}) as server:
        url = server.url
    with Client(url) as client:
        recording = record(client.session, "POST", url, {}, limit_s=WAIT_S)
    assert (recording.status, recording.detail) == (None, "Connection refused")


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2"])
def test_the_limit_holds_wherever_the_server_stops(first: bytes) -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(first)
        assert peer.wait_until_left()  # the checker does not leave its connection behind
        left.set()

    recording, _ = recording_of(script, limit_s=0.3)
    assert (recording.ending, recording.ended_at_s) == ("stopped", 0.3) or recording.status is None
    assert recording.detail in ("it had not ended within 0.3 s", "no answer within 0.3 s")
    assert left.is_set()


@pytest.mark.slow
def test_the_limit_holds_while_the_server_talks() -> None:
    enough = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        while not enough.is_set():
            peer.chunk(b": ping\n")

    recording, _ = recording_of(script, limit_s=0.3)
    enough.set()
    assert (recording.ending, recording.ended_at_s) == ("stopped", 0.3)
    assert recording.reads[-1][0] <= 0.3


def test_a_flood_is_not_recorded_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_RECORDED_BYTES", 1000)

    def script(peer: Peer) -> None:
        peer.head()
        while True:  # ends with the connection
            peer.chunk(b"data: xxxxxxxxxxxxxxxxxxxx\n\n")

    recording, _ = recording_of(script)
    assert (recording.ending, recording.detail) == ("stopped", "it is longer than 1000 bytes")


def test_a_stopped_checker_leaves_no_connection_behind() -> None:
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0])
        assert peer.wait_until_left()
        left.set()

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with ScriptedServer({"POST /execute": script}) as server, Client(server.url) as client:
        url = f"{server.url}/execute"
        with pytest.raises(KeyboardInterrupt):
            record(client.session, "POST", url, {}, limit_s=WAIT_S, show=interrupt)
    assert left.is_set()


# --- The command ---


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


def test_a_conforming_server_passes() -> None:
    with ScriptedServer(scripts()) as server:
        result = check_command(server.url, "--prompt", "Say hello", "--max-tokens", "9")
        execute, models, chat = server.requests
    assert result.exit_code == 0
    assert result.output.endswith("PASSED\n")
    assert result.output.count("Hello\n") == 2  # the text of both streams
    table = [" ".join(line.strip("│").split("│")).split() for line in result.output.splitlines()]
    rows = {" ".join(row[:-2]): " ".join(row[-2:]) for row in table if len(row) > 2}
    for measure in ("to first event", "to first token", "longest gap between tokens", "longest silence", "duration"):
        assert any(name.endswith(measure) and value.endswith(" ms") for name, value in rows.items()), measure
    for text in ("tokens received", "end EOS", "finish_reason stop", "ids count from 0 without gaps"):
        assert text in result.output
    assert "FAILED" not in result.output
    assert execute.fields == {"prompt": "Say hello", "max_tokens": 9, "temperature": 0}
    assert models.path == "/v1/models"
    assert chat.fields == {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello"}],
        "max_tokens": 9,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_text_is_printed_as_it_comes() -> None:
    seen = threading.Event()

    class Output(io.StringIO):
        def flush(self) -> None:
            if "Hel" in self.getvalue():
                seen.set()

    def script(peer: Peer) -> None:
        peer.head(Cache_Control="no-cache", X_Accel_Buffering="no")
        peer.chunk(HELLO[0] + HELLO[1])
        assert seen.wait(WAIT_S)
        for frame in HELLO[2:]:
            peer.chunk(frame)
        peer.last_chunk()

    output = Output()
    with ScriptedServer(scripts(execute=script)) as server:
        assert run_check(server.url, console=Console(file=output, width=100))
    assert output.getvalue().startswith("POST /execute\nHello\nPOST /v1/chat/completions\nHello\n")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"execute": native(HELLO[:-1])}, "POST /execute: [DONE], and nothing after it: there is no [DONE]"),
        ({"chat": says(CHAT[:-1])}, "POST /v1/chat/completions: [DONE], and nothing after it: there is no [DONE]"),
    ],
)
def test_a_violation_fails_with_its_reason(changes: dict[str, Script], reason: str) -> None:
    with ScriptedServer(scripts(**changes)) as server:
        result = check_command(server.url)
    assert result.exit_code == 1
    assert reason in result.output.replace("\n", " ").replace("  ", " ")
    assert result.output.endswith("FAILED\n")


def test_another_server_is_checked_by_the_openai_route_alone() -> None:
    with ScriptedServer({"POST /v1/chat/completions": says(CHAT)}) as server:
        result = check_command(f"{server.url}/v1")
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
    assert f"it answered {status}" in result.output
    assert ("no native route" in result.output) == (status != 307)


def test_an_unreachable_server_fails() -> None:
    with ScriptedServer({}) as server:
        url = server.url
    result = check_command(url)
    assert result.exit_code == 1
    assert "Connection refused" in result.output


def test_an_api_key_is_sent() -> None:
    with ScriptedServer(scripts()) as server:
        assert check_command(server.url, "--api-key", "k").exit_code == 0
        assert [request.headers.get("authorization") for request in server.requests] == ["Bearer k"] * 3


@pytest.mark.slow
def test_the_limit_is_for_both_streams() -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(HELLO[0])
        assert peer.wait_until_left()

    with ScriptedServer(scripts(execute=script)) as server:
        result = check_command(server.url, "--limit-s", "0.3")
        assert [request.path for request in server.requests] == ["/execute"]
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert re.search(r"it had not ended within 0\.[23]\d* s", output)  # what was left when it was asked
    assert "no time is left of the limit of 0.3 s" in output


def test_a_worker_class_is_for_a_server_of_our_own() -> None:
    result = check_command("http://127.0.0.1:1", "--worker-class", "gthread")
    assert result.exit_code == 2
    assert "--worker-class" in result.output


# --- The spawned server ---

# Stands for gunicorn: answers GET /ready with 200, says its settings, ends by SIGTERM unless told to be stubborn.
FAKE_SERVER = """
import os, signal, socket, sys
print("host", os.environ["ENDSTOP_HOST"], "class", os.environ.get("ENDSTOP_WORKER_CLASS"), flush=True)
if "crash" in sys.argv:
    sys.exit("no such model")
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
body = b'{"state": "DEAD"}' if "dead" in sys.argv else b'{"state": "LOADING"}' if "slow" in sys.argv else b""
status = b"503 Service Unavailable" if body else b"404 Not Found" if "stranger" in sys.argv else b"200 OK"
print("ready to answer", flush=True)
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 %b\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (status, len(body), body))
    connection.close()
"""


def fake_server(*words: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", FAKE_SERVER, *words]


def is_listening(url: str) -> bool:
    with Client(url) as client:
        try:
            return bool(client.ready())
        except EndstopError:
            return False


def test_a_spawned_server_is_ready_and_then_gone() -> None:
    with spawned_server("gthread", command=fake_server()) as server:
        assert is_listening(server.url)
        assert server.log_tail() == "host 127.0.0.1 class gthread\nready to answer"
        assert server.log_tail().endswith("ready to answer")  # reading it has not moved the server's pen
    assert not is_listening(server.url)


def test_a_spawned_server_is_gone_after_an_error() -> None:
    urls = []

    def spawn_and_fail() -> None:
        with spawned_server(command=fake_server()) as server:
            urls.append(server.url)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spawn_and_fail()
    assert not is_listening(urls[0])


def test_a_server_that_exits_is_reported_at_once_with_its_log() -> None:
    with pytest.raises(SpawnFailed) as caught, spawned_server(command=fake_server("crash")):
        pass
    assert str(caught.value) == (
        "the server exited with status 1 before it was ready; its log ends with\n"
        "host 127.0.0.1 class None\nno such model"
    )


def test_a_server_that_is_dead_is_reported_at_once() -> None:
    with pytest.raises(SpawnFailed, match="could not load its model"), spawned_server(command=fake_server("dead")):
        pass


def test_a_server_that_is_not_ours_is_reported() -> None:
    with pytest.raises(SpawnFailed, match="GET /ready with 404"), spawned_server(command=fake_server("stranger")):
        pass


def test_a_server_that_never_gets_ready_is_given_up() -> None:
    with (
        ScriptedServer({"GET /ready": lambda peer: peer.json({"state": "LOADING"}, 503)}) as server,
        subprocess.Popen(["sleep", "60"]) as process,
        tempfile.TemporaryFile() as log,
    ):
        with pytest.raises(SpawnFailed, match=r"not ready after 0 s \(LOADING\)"):
            check._wait_until_ready(check.SpawnedServer(server.url, log), process, 0.0)
        process.kill()


def test_an_impatient_user_has_the_server_killed() -> None:
    class Interrupted(subprocess.Popen[bytes]):
        def terminate(self) -> None:
            """It would obey, and this one must not."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                raise KeyboardInterrupt
            return super().wait()

    process = Interrupted(["sleep", "60"], process_group=0)
    with pytest.raises(KeyboardInterrupt):
        check._stop(process, WAIT_S)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_server_that_ignores_sigterm_is_killed() -> None:
    with spawned_server(command=fake_server("stubborn"), stop_limit_s=0.2) as server:
        assert is_listening(server.url)
    assert not is_listening(server.url)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_takes_the_server_along(signum: signal.Signals) -> None:
    """The whole way: a process that has spawned a server is signalled, and both are gone."""
    code = (
        "import signal, time\n"
        "from worker.check import spawned_server\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored when we are a background job
        f"with spawned_server(command={fake_server()!r}) as server:\n"
        "    print(server.url, flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"  # signal.pause() would miss a signal that comes just before it
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=check.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert is_listening(url)
        process.send_signal(signum)
        assert process.wait(WAIT_S) != 0
    assert not is_listening(url)


def test_the_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with spawned_server(command=fake_server()):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def check_with(monkeypatch: pytest.MonkeyPatch, *words: str, **options: Any) -> tuple[bool, str]:
    """`run_check` without a URL, with the fake in the place of gunicorn."""
    spawn = check.spawned_server
    monkeypatch.setattr(check, "spawned_server", lambda worker_class: spawn(worker_class, command=fake_server(*words)))
    output = io.StringIO()
    is_passed = run_check(None, console=Console(file=output, width=100), **options)
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


def test_what_is_spawned_exists() -> None:
    assert check.SERVE_COMMAND[1:] == ("-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app")
    assert Path(check.ROOT, "worker", "check.py").samefile(check.__file__)
