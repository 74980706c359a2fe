"""The rules: each with a stream that only it objects to."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.scripted_server import END, ERROR, HELLO, METRICS, STARTED, USAGE, numbered, sse, token
from tests.test_recording import HEADERS, recorded
from worker.rules import NATIVE_RULES, OPENAI_RULES, Rule, judge_native, judge_openai

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
        "nothing but [DONE] after the terminal event: * came after the terminal event",
    ),
    (
        "metrics after the end",
        numbered([STARTED, *TOKENS, END, METRICS]),
        "nothing but [DONE] after the terminal event: * came after the terminal event",
    ),
    ("no [DONE]", HELLO[:-1], "[DONE] comes, and nothing after it: there is no [DONE]"),
    ("[DONE] twice", [*HELLO, HELLO[-1]], "[DONE] comes, and nothing after it: '[DONE]' came after [DONE]"),
    ("an event after [DONE]", [*HELLO, sse(METRICS, 5)], "[DONE] comes, and nothing after it: * came after [DONE]"),
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
        "keep-alives end in one newline: a blank line without an event before it *",
    ),
    (
        "a retry block of its own",
        [b"retry: 3000\n\n", *HELLO],
        "keep-alives end in one newline: a blank line without an event before it *",
    ),
    (
        "three newlines",
        [HELLO[0], b"\n", *HELLO[1:]],
        "keep-alives end in one newline: a blank line without an event before it *",
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
        "events have the fields of their type: an event is not a JSON object with a type: *",
    ),
    (
        "a token without its index",
        numbered([STARTED, without(TOKENS[0], "i"), METRICS, END]),
        "events have the fields of their type: field 'i' of a 'token' event is missing",
    ),
    (
        "an end without usage",
        numbered([STARTED, *TOKENS, METRICS, without(END, "usage")]),
        "events have the fields of their type: field 'usage' of a 'end' event is missing",
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
        ({"code": "ODD"}, "events have the fields of their type: error code 'ODD' is not in the contract"),
        ({"message": ""}, "events have the fields of their type: an error event has no message"),
        ({"usage": None}, "events have the fields of their type: an error event has no usage"),
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
        "[DONE] comes, and nothing after it: there is no [DONE]",
        "text comes, and no failure: no text came",
    ]
    assert judge_openai(recorded([])).problems == [
        "exactly one finish_reason or error: there is neither a finish_reason nor an error",
        "[DONE] comes, and nothing after it: there is no [DONE]",
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
        "nothing but usage and [DONE] after the ending: * came after the ending",
    ),
    (
        "an empty chunk after the finish_reason",
        [ROLE, *TEXTS, FINISH, sse(chunk()), USAGE_CHUNK, CHAT_DONE],
        "nothing but usage and [DONE] after the ending: * came after the ending",
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
    ("no [DONE]", CHAT[:-1], "[DONE] comes, and nothing after it: there is no [DONE]"),
    ("[DONE] twice", [*CHAT, CHAT_DONE], "[DONE] comes, and nothing after it: '[DONE]' came after [DONE]"),
    ("a chunk after [DONE]", [*CHAT, USAGE_CHUNK], "[DONE] comes, and nothing after it: * came after [DONE]"),
    (
        "a keep-alive with a blank line",
        [ROLE, b": ping\n\n", *CHAT[1:]],
        "keep-alives end in one newline: a blank line without an event before it *",
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
    rules: Sequence[Rule], violations: list[tuple[str, list[bytes], str]], elsewhere: set[str]
) -> None:
    promises = [rule.promise for rule in rules]
    broken = {promise for promise in promises for _, _, problem in violations if problem.startswith(f"{promise}: ")}
    assert broken | elsewhere == set(promises)
    assert broken & elsewhere == set()
