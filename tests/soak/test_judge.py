"""The judge finds what is wrong with a stream, and nothing wrong with one that is whole."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.soak.asks import Ask
from tests.soak.exchange import Ending
from tests.soak.judge import Circumstances, Kind, Verdict, frames_of, judge, judge_whole, reason_findings
from tests.soak.oracle import answer, key_of, length_of, shown, spoken
from tests.soak.server import WRITE_LIMIT_S

NUM_TOKENS = 24
CALM = Circumstances()
Payloads = list[dict[str, Any]]


def _prompt() -> str:
    """One whose answer goes on for longer than NUM_TOKENS."""
    return next(p for p in map(str, range(100)) if length_of(key_of(p.encode())) is None)


PROMPT = _prompt()
KEY = key_of(PROMPT.encode())
NATIVE = Ask("/execute", {"prompt": PROMPT, "max_tokens": NUM_TOKENS}, KEY, NUM_TOKENS, ())
CHAT = Ask("/v1/chat/completions", {"stream": True, "stream_options": {"include_usage": True}}, KEY, NUM_TOKENS, ())
USAGE = {"prompt_tokens": 3, "completion_tokens": NUM_TOKENS, "total_tokens": 3 + NUM_TOKENS}
STEP = 3  # tokens per event
END = {
    "type": "end",
    "tokens_out": NUM_TOKENS,
    "stop_reason": "MAX_TOKENS",
    "stop_sequence_matched": None,
    "usage": USAGE,
}


def native_payloads() -> Payloads:
    """A whole stream."""
    tokens: Payloads = []
    for i in range(0, NUM_TOKENS, STEP):
        before, after = spoken(KEY, i), spoken(KEY, i + STEP)
        tokens.append({"type": "token", "t": after[len(before) :], "i": i, "n": STEP})
    started = {"type": "started", "job_id": "abc", "model": "m", "started_at": "2031-01-01T00:00:00Z"}
    return [started, *tokens, {"type": "metrics"}, dict(END)]


def native_body(payloads: Payloads, numbers: list[int] | None = None) -> bytes:
    """Numbered events and [DONE]."""
    numbers = numbers or list(range(len(payloads)))
    events = [f"id: {n}\ndata: {json.dumps(p)}\n\n" for n, p in zip(numbers, payloads, strict=True)]
    return ("".join(events) + "data: [DONE]\n\n").encode()


def chat_body(change: Callable[[Payloads], Payloads] = lambda chunks: chunks) -> bytes:
    """A whole stream of chunks, changed."""

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {"id": "chatcmpl-abc", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}

    text = answer(KEY, NUM_TOKENS).text
    chunks: Payloads = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": character}) for character in text]
    chunks += [chunk({}, "length"), {"id": "chatcmpl-abc", "choices": [], "usage": USAGE}]
    events = [f"data: {json.dumps(one)}\n\n" for one in change(chunks)]
    return ("".join(events) + "data: [DONE]\n\n").encode()


def judged(body: bytes, ending: Ending = Ending.COMPLETE, around: Circumstances = CALM, ask: Ask = NATIVE) -> Verdict:
    return judge(ask, [body], ending, around)


def kinds(verdict: Verdict) -> set[Kind]:
    return {kind for kind, _ in verdict.findings}


def without(items: list[Any], at: int) -> list[Any]:
    return [*items[:at], *items[at + 1 :]]


def test_a_whole_stream_is_well() -> None:
    verdict = judged(native_body(native_payloads()))
    assert verdict == Verdict([], "end{MAX_TOKENS}", "abc")


def test_pings_are_no_events() -> None:
    body = native_body(native_payloads()).replace(b"id: 2\n", b": ping\n: ping\nid: 2\n")
    assert judged(body).findings == []


def test_a_whole_chat_is_well() -> None:
    assert judged(chat_body(), ask=CHAT) == Verdict([], "end{MAX_TOKENS}", "abc")


@pytest.mark.parametrize("at", [1, 3, NUM_TOKENS // STEP])
def test_a_lost_token(at: int) -> None:
    """With the numbers that it leaves behind, and numbered as if it had never been."""
    payloads = native_payloads()
    gap = native_body(without(payloads, at), without(list(range(len(payloads))), at))
    assert Kind.TOKENS in kinds(judged(gap))
    assert Kind.TOKENS in kinds(judged(native_body(without(payloads, at))))


def test_a_lost_token_that_the_indices_do_not_show() -> None:
    payloads = native_payloads()
    payloads[2]["t"] = ""
    assert Kind.TOKENS in kinds(judged(native_body(payloads)))


def test_a_lost_token_of_a_stream_that_failed() -> None:
    payloads = native_payloads()
    payloads[4]["t"] = payloads[4]["t"][:-1]
    payloads[5:-1] = [{"type": "metrics"}]
    payloads[-1] = {"type": "error", "code": "INFERENCE_FAILED", "message": "m", "usage": USAGE}
    assert Kind.TOKENS in kinds(judged(native_body(payloads)))


def test_a_repeated_token() -> None:
    payloads = native_payloads()
    again = [*payloads[:3], payloads[2], *payloads[3:]]
    assert Kind.TOKENS in kinds(judged(native_body(again)))
    numbers = [0, 1, 2, *range(2, len(payloads))]
    assert Kind.TOKENS in kinds(judged(native_body(again, numbers)))


def test_tokens_in_the_wrong_order() -> None:
    payloads = native_payloads()
    payloads[2]["t"], payloads[3]["t"] = payloads[3]["t"], payloads[2]["t"]
    assert Kind.TOKENS in kinds(judged(native_body(payloads)))


def test_the_answer_to_another_prompt() -> None:
    other = Ask("/execute", {}, key_of(b"another"), NUM_TOKENS, ())
    assert Kind.TOKENS in kinds(judged(native_body(native_payloads()), ask=other))


def test_a_chat_that_lost_or_repeated_a_token() -> None:
    lost = chat_body(lambda chunks: without(chunks, 5))
    repeated = chat_body(lambda chunks: [*chunks[:6], chunks[5], *chunks[6:]])
    assert Kind.TOKENS in kinds(judged(lost, ask=CHAT))
    assert Kind.TOKENS in kinds(judged(repeated, ask=CHAT))


def test_a_missing_terminal() -> None:
    assert Kind.MISSING_TERMINAL in kinds(judged(native_body(native_payloads()[:-1])))
    assert Kind.MISSING_TERMINAL in kinds(judged(chat_body(lambda chunks: chunks[:-2]), ask=CHAT))


def test_an_empty_body() -> None:
    assert Kind.MISSING_TERMINAL in kinds(judged(b""))


def test_two_terminals() -> None:
    payloads = native_payloads()
    assert Kind.EXTRA in kinds(judged(native_body([*payloads, payloads[-1]])))
    error = {"error": {"message": "m", "type": "server_error", "param": None, "code": "STALLED"}}
    assert Kind.EXTRA in kinds(judged(chat_body(lambda chunks: [*chunks, error]), ask=CHAT))


def test_an_event_behind_the_terminal() -> None:
    payloads = native_payloads()
    assert Kind.EXTRA in kinds(judged(native_body([*payloads[:-2], payloads[-1], payloads[-2]])))


def test_something_behind_done() -> None:
    body = native_body(native_payloads())
    assert Kind.EXTRA in kinds(judged(body + b"data: [DONE]\n\n"))
    assert Kind.EXTRA in kinds(judged(body + b'id: 99\ndata: {"type": "narration"}\n\n'))


def test_a_body_without_done() -> None:
    body = native_body(native_payloads()).removesuffix(b"data: [DONE]\n\n")
    assert kinds(judged(body)) == {Kind.CONTRACT}


def test_a_cut_body() -> None:
    body = native_body(native_payloads())
    in_the_middle = body[: len(body) // 2]
    assert Kind.MISSING_TERMINAL in kinds(judged(in_the_middle, Ending.CUT))
    assert Kind.CUT in kinds(judged(body, Ending.CUT))
    assert judged(in_the_middle, Ending.CUT, Circumstances(was_killed=True)).findings == []
    assert judged(in_the_middle, Ending.CUT, Circumstances(is_half_closed=True)).findings == []
    assert Kind.MISSING_TERMINAL in kinds(judged(in_the_middle, Ending.CUT, Circumstances(was_replaced=True)))
    too_long, long = (Circumstances(idle_s=seconds, is_slow=True) for seconds in (WRITE_LIMIT_S, WRITE_LIMIT_S - 0.1))
    assert judged(in_the_middle, Ending.CUT, too_long).findings == []
    assert Kind.MISSING_TERMINAL in kinds(judged(in_the_middle, Ending.CUT, long))


def test_a_body_that_ends_well_is_held_to_it_even_where_it_might_be_cut() -> None:
    body = native_body(native_payloads()[:-1])
    assert Kind.MISSING_TERMINAL in kinds(judged(body, around=Circumstances(was_killed=True, is_half_closed=True)))


def test_a_hang() -> None:
    body = native_body(native_payloads())
    assert Kind.HANG in kinds(judged(body[: len(body) // 2], Ending.HUNG))


def test_who_leaves_has_nothing_to_complain_about() -> None:
    body = native_body(native_payloads())
    for length in range(0, len(body), 7):
        assert judged(body[:length], Ending.LEFT).findings == []


@pytest.mark.parametrize("size", [1, 50, 333, 1000])
def test_a_resumed_stream_is_judged_as_a_whole(size: int) -> None:
    payloads = native_payloads()
    body = native_body(payloads)
    bodies = _resumed(payloads, size)
    assert len(bodies) > 1 or size >= len(body)
    assert judge(NATIVE, bodies, Ending.COMPLETE, CALM).findings == []
    for i in range(len(bodies) - 1):
        lost, repeated = without(bodies, i), [*bodies[: i + 1], *bodies[i:]]
        if frames_of(bodies[i]):
            found = kinds(judge(NATIVE, lost, Ending.COMPLETE, CALM))
            assert found & {Kind.TOKENS, Kind.MISSING_TERMINAL}  # the last part holds the terminal event
            assert Kind.TOKENS in kinds(judge(NATIVE, repeated, Ending.COMPLETE, CALM))


def _resumed(payloads: Payloads, size: int) -> list[bytes]:
    """What a client has seen that is cut off after so many bytes each time, as long as it gets on."""
    bodies = []
    first = 0
    while first < len(payloads):
        rest = native_body(payloads[first:], list(range(first, len(payloads))))
        bodies.append(rest[:size])
        num_whole = sum(frame.payload is not None for frame in frames_of(rest[:size]))
        first += num_whole
        size += 200
    if not bodies[-1].endswith(b"data: [DONE]\n\n"):
        bodies.append(b"data: [DONE]\n\n")
    return bodies


def test_usage_that_does_not_add_up() -> None:
    payloads = native_payloads()
    payloads[-1]["usage"] = USAGE | {"total_tokens": 1}
    assert Kind.CONTRACT in kinds(judged(native_body(payloads)))
    payloads[-1]["usage"] = USAGE | {"completion_tokens": NUM_TOKENS - 1, "total_tokens": NUM_TOKENS + 2}
    assert Kind.TOKENS in kinds(judged(native_body(payloads)))


def test_usage_that_was_asked_for_and_did_not_come() -> None:
    assert Kind.CONTRACT in kinds(judged(chat_body(lambda chunks: chunks[:-1]), ask=CHAT))


def test_an_end_that_gives_another_reason() -> None:
    payloads = native_payloads()
    payloads[-1]["stop_reason"] = "EOS"
    assert Kind.CONTRACT in kinds(judged(native_body(payloads)))


@pytest.mark.parametrize(
    ("code", "around"),
    [
        ("SHUTTING_DOWN", Circumstances(was_replaced=True)),
        ("ENGINE_DEAD", Circumstances(was_replaced=True)),
        ("STALLED", Circumstances(was_replaced=True)),
        ("SLOW_CONSUMER", Circumstances(is_slow=True, age_s=1.5)),
        ("STALLED", Circumstances(age_s=3)),
        ("TIMEOUT", Circumstances(age_s=10)),
    ],
)
def test_some_errors_need_a_reason(code: str, around: Circumstances) -> None:
    payloads = native_payloads()
    payloads[-1] = {"type": "error", "code": code, "message": "m", "usage": USAGE}
    assert Kind.CONTRACT in kinds(judged(native_body(payloads)))
    assert judged(native_body(payloads), around=around).findings == []


def broken(num_tokens: int, num_sent: int, code: str = "VRAM_OOM", stops: tuple[str, ...] = ()) -> bytes:
    """A stream that broke off after so many tokens, when the text of so many had been sent."""
    usage = {"prompt_tokens": 3, "completion_tokens": num_tokens, "total_tokens": 3 + num_tokens}
    started, text = native_payloads()[0], shown(KEY, num_sent, stops)
    tokens = [{"type": "token", "t": text, "i": 0, "n": num_sent}] if text else []
    terminal: dict[str, Any] = {"type": "error", "code": code, "message": "m", "usage": usage}
    if code == "CANCELLED":
        terminal = END | {"stop_reason": code, "tokens_out": num_tokens, "usage": usage}
    return native_body([started, *tokens, {"type": "metrics"}, terminal])


@pytest.mark.parametrize("code", ["VRAM_OOM", "INFERENCE_FAILED", "CANCELLED"])
def test_tokens_that_were_waiting_when_it_broke_off(code: str) -> None:
    around = Circumstances(is_cancelled=True)
    assert judged(broken(20, 20, code), around=around).findings == []
    assert kinds(judged(broken(20, 16, code), around=around)) == {Kind.TOKENS}
    assert kinds(judged(broken(20, 0, code), around=around)) == {Kind.TOKENS}


def test_the_beginning_of_a_character_may_wait() -> None:
    whole = next(n for n in range(4, 60) if spoken(KEY, n) == spoken(KEY, n + 2) != spoken(KEY, n + 3))
    for n in range(3):
        assert judged(broken(whole + n, whole)).findings == []
    assert kinds(judged(broken(whole + 4, whole))) == {Kind.TOKENS}


def test_the_beginning_of_a_stop_string_may_wait() -> None:
    letters = next(n for n in range(4, 60, 4) if spoken(KEY, n + 4)[-4:].isascii())
    stop = spoken(KEY, letters + 3)[-3:] + "ZZ"
    ask = replace(NATIVE, stops=(stop,))
    assert judged(broken(letters + 3, letters, stops=(stop,)), ask=ask).findings == []
    assert kinds(judged(broken(letters + 3, letters))) == {Kind.TOKENS}
    assert kinds(judged(broken(letters + 4, letters, stops=(stop,)), ask=ask)) == {Kind.TOKENS}


def test_one_token_may_be_lost_with_its_detokenizer_or_its_process() -> None:
    letters = next(n for n in range(4, 60, 4) if spoken(KEY, n + 4)[-4:].isascii())
    replaced = Circumstances(was_replaced=True)
    assert judged(broken(letters + 1, letters, "INFERENCE_FAILED")).findings == []
    assert judged(broken(letters + 1, letters, "SHUTTING_DOWN"), around=replaced).findings == []
    assert kinds(judged(broken(letters + 2, letters, "INFERENCE_FAILED"))) == {Kind.TOKENS}
    assert kinds(judged(broken(letters + 1, letters, "VRAM_OOM"))) == {Kind.TOKENS}


@pytest.mark.parametrize(
    ("code", "limit_s", "num_tokens"),
    [
        ("QUEUE_TIMEOUT", 8, 0),
        ("FIRST_TOKEN_TIMEOUT", 5, 0),
        ("STALLED", 3, 4),
        ("TIMEOUT", 10, 4),
        ("TIMEOUT", 10, 0),
        ("SLOW_CONSUMER", 1.5, 4),
    ],
)
def test_a_limit_needs_its_time(code: str, limit_s: float, num_tokens: int) -> None:
    body = broken(num_tokens, num_tokens, code)
    assert judged(body, around=Circumstances(age_s=limit_s, is_slow=True)).findings == []
    assert kinds(judged(body, around=Circumstances(age_s=limit_s - 0.1, is_slow=True))) == {Kind.CONTRACT}


@pytest.mark.parametrize(("code", "num_tokens"), [("QUEUE_TIMEOUT", 4), ("FIRST_TOKEN_TIMEOUT", 4), ("STALLED", 0)])
def test_a_limit_of_another_phase(code: str, num_tokens: int) -> None:
    body = broken(num_tokens, num_tokens, code)
    assert kinds(judged(body, around=Circumstances(age_s=60))) == {Kind.CONTRACT}


def test_a_limit_that_was_asked_for() -> None:
    ask = replace(NATIVE, fields=NATIVE.fields | {"deadline_s": 2.5})
    assert judged(broken(4, 4, "TIMEOUT"), ask=ask, around=Circumstances(age_s=2.5)).findings == []
    assert kinds(judged(broken(4, 4, "TIMEOUT"), ask=ask, around=Circumstances(age_s=2.4))) == {Kind.CONTRACT}


def test_a_chat_that_has_text_did_not_wait_for_its_first_token() -> None:
    def ending(num_chunks: int) -> bytes:
        error = {"error": {"message": "m", "type": "server_error", "param": None, "code": "FIRST_TOKEN_TIMEOUT"}}
        return chat_body(lambda chunks: [*chunks[:num_chunks], error])

    assert judged(ending(1), ask=CHAT, around=Circumstances(age_s=5)).findings == []
    assert kinds(judged(ending(3), ask=CHAT, around=Circumstances(age_s=5))) == {Kind.CONTRACT}


def test_a_delete_that_was_answered_ends_the_work() -> None:
    def around(num_at_cancel: int) -> Circumstances:
        return Circumstances(is_cancelled=True, num_at_cancel=num_at_cancel)

    whole = native_body(native_payloads())
    for num_at_cancel in (0, NUM_TOKENS - 2):
        assert kinds(judged(whole, around=around(num_at_cancel))) == {Kind.UNWANTED}
        ((kind, _),) = reason_findings(NATIVE, "end{MAX_TOKENS}", around(num_at_cancel))  # its usage is missing
        assert kind is Kind.UNWANTED
    assert judged(whole, around=around(NUM_TOKENS - 1)).findings == []  # the last step was under way
    assert judged(whole, around=Circumstances(is_cancelled=True)).findings == []  # nobody knows when
    for code in ("CANCELLED", "VRAM_OOM"):
        assert judged(broken(8, 8, code), around=around(7)).findings == []
        assert kinds(judged(broken(8, 8, code), around=around(6))) == {Kind.UNWANTED}


@pytest.mark.parametrize("code", ["INCOMPLETE", "INVALID_REQUEST", "WHATEVER"])
def test_some_errors_have_none(code: str) -> None:
    payloads = native_payloads()
    payloads[-1] = {"type": "error", "code": code, "message": "m", "usage": USAGE}
    around = Circumstances(was_replaced=True, is_cancelled=True, is_slow=True)
    assert Kind.CONTRACT in kinds(judged(native_body(payloads), around=around))


def test_a_cancel_that_nobody_asked_for() -> None:
    payloads = native_payloads()
    payloads[-1] = END | {"stop_reason": "CANCELLED"}
    assert Kind.CONTRACT in kinds(judged(native_body(payloads)))
    assert judged(native_body(payloads), around=Circumstances(is_cancelled=True)).outcome == "cancelled"


@pytest.mark.parametrize("bad", [b"hello\n", b": ping\n\n", b"data: {\n\n", b"event: x\n", b"data: \xff\n\n"])
def test_bytes_that_are_no_event(bad: bytes) -> None:
    assert kinds(judged(bad + native_body(native_payloads()))) == {Kind.CONTRACT}


def test_an_event_without_its_end() -> None:
    body = native_body(native_payloads()) + b"id: 99\ndata: {"
    assert Kind.CONTRACT in kinds(judged(body))


def test_an_answer_that_was_not_streamed() -> None:
    text = answer(KEY, NUM_TOKENS).text

    def verdict(text: str, reason: str = "length") -> Verdict:
        choice = {"message": {"content": text}, "finish_reason": reason}
        body = {"id": "chatcmpl-abc", "choices": [choice], "usage": USAGE}
        return judge_whole(CHAT, 200, json.dumps(body).encode(), CALM)

    assert verdict(text) == Verdict([], "end{MAX_TOKENS}", "abc")
    assert kinds(verdict(text[:-1])) == {Kind.TOKENS}
    assert kinds(verdict(text + text[-1])) == {Kind.TOKENS}
    assert kinds(verdict(text, "stop")) == {Kind.TOKENS}
    assert kinds(judge_whole(CHAT, 200, b"{}", CALM)) == {Kind.CONTRACT}
    failed = json.dumps({"error": {"code": "VRAM_OOM"}}).encode()
    assert judge_whole(CHAT, 503, failed, CALM) == Verdict([], "error{VRAM_OOM}")
