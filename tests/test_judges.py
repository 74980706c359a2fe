"""The judges, on evidence written by hand: where they draw the line, and when they say that they cannot tell."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from tests.scripted_server import HELLO, numbered, sse
from tests.test_recording import recorded
from tests.test_rules import CHAT
from worker.checks import judges
from worker.checks.asking import Ask, Limits
from worker.checks.dialects import Answer, Native, OpenAI, malformed
from worker.checks.probes import (
    CannotTell,
    Company,
    Crowd,
    Pair,
    Refusal,
    Seeds,
    Stopped,
    TooLong,
    choose_stop,
    first_model,
)
from worker.recording import Recording

LIMITS = Limits()
STREAM = recorded(HELLO)


def said(*pieces: str, finish: str = "stop", at_s: Iterable[float] | None = None, **changes: Any) -> Answer:
    """An answer of these pieces, 10 ms apart."""
    instants = at_s or (0.01 * n for n in range(1, len(pieces) + 1))
    return Answer(STREAM, list(zip(instants, pieces, strict=False)), finish, **changes)


def refusal(status: int, body: object, *names: str) -> Refusal:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Refusal("it", Recording(status, {}, [(0.1, data)], "eof", 0.1), names)


def problems(judge: Any, evidence: Any, limits: Limits = LIMITS) -> list[str]:
    return list(judge(evidence, limits))


def why_not(judge: Any, evidence: Any) -> str:
    with pytest.raises(CannotTell) as caught:
        problems(judge, evidence)
    return str(caught.value)


# --- Reading ---


def test_both_formats_read_the_same() -> None:
    native, openai = Native().read(recorded(HELLO)), OpenAI().read(recorded(CHAT))
    assert (native.text, native.finish, native.failure) == ("Hello", "stop", "")
    assert (openai.text, openai.finish, openai.failure) == ("Hello", "stop", "")
    assert native.count("total_tokens") == openai.count("total_tokens") == 5
    assert native.ids == {"job-1"}
    assert openai.ids == {"chatcmpl-1"}


@pytest.mark.parametrize("dialect", [Native(), OpenAI()])
def test_an_answer_without_an_ending_is_a_failure(dialect: Native | OpenAI) -> None:
    assert dialect.read(recorded([HELLO[0]])).failure == "it ended without saying how"
    assert dialect.read(recorded([HELLO[0]], ending="cut", detail="the connection was cut")).failure
    assert dialect.read(recorded([], status=404)).failure.startswith("it answered 404")


def test_an_answer_with_an_error_is_a_failure() -> None:
    assert Native().read(recorded(numbered([{"type": "error", "code": "STALLED"}]))).failure == "it failed with STALLED"
    assert OpenAI().read(recorded([sse({"error": {"message": "no"}})])).failure.startswith("it failed with")


@pytest.mark.parametrize("listing", [b"", b"[]", b"{}", b'{"data": []}', b'{"data": [{"id": 7}]}', b'{"data": [7]}'])
def test_a_list_without_models_names_none(listing: bytes) -> None:
    assert first_model(Recording(200, {}, [(0.1, listing)], "eof", 0.1)) is None


def test_a_malformed_request_is_no_json() -> None:
    body = malformed(Ask("POST", "/execute", {"max_tokens": 1})).body
    assert body == b'{"max_tokens": 1'


# --- How tokens arrive ---


PACED = said(*"x" * 20)
BURST = said(*"x" * 20, at_s=[1.0 + 0.002 * n for n in range(20)])


def test_tokens_at_a_pace_are_no_burst() -> None:
    assert problems(judges.incremental, Pair(PACED, PACED)) == []


def test_a_slow_first_token_is_no_burst() -> None:
    slow = said(*"x" * 20, at_s=[1.0 + 0.005 * n for n in range(20)])
    assert problems(judges.incremental, Pair(slow, slow)) == []


def test_a_first_token_that_is_late_once_is_no_burst() -> None:
    assert problems(judges.incremental, Pair(BURST, PACED)) == []
    assert problems(judges.incremental, Pair(PACED, BURST)) == []


def test_all_tokens_in_the_last_moment_are_a_burst() -> None:
    (problem,) = problems(judges.incremental, Pair(BURST, BURST))
    assert problem == "all 20 tokens came within the last 38 ms of 1038 ms: in one burst, not one by one"
    # One piece that stands for many, as its usage says.
    one = said("xx", at_s=[1.0], usage={"completion_tokens": 64})
    assert problems(judges.incremental, Pair(one, one))


def test_few_or_quick_tokens_tell_nothing() -> None:
    few, quick = said(*"x" * 15), said(*"x" * 20, at_s=[0.001] * 20)
    assert "needed to tell" in why_not(judges.incremental, Pair(few, few))
    assert "too quick to tell" in why_not(judges.incremental, Pair(quick, quick))


# --- Stop strings ---


def test_a_stop_string_crosses_the_border_of_two_pieces() -> None:
    assert choose_stop(said("Hello", " brave", " new", " world")) == ("ave ne", "Hello br")


def test_a_stop_string_that_came_before_will_not_do() -> None:
    stop, due = choose_stop(said("abcdef", "abcdef", "abcdef", "xyzuvw"))
    assert "abcdefabcdefabcdefxyzuvw".find(stop) == len(due)


@pytest.mark.parametrize("pieces", [[], ["a"], ["aaaa", "aaaa", "aaaa"]])
def test_a_text_without_a_place_to_stop(pieces: list[str]) -> None:
    with pytest.raises(CannotTell):
        choose_stop(said(*pieces))


def test_a_refused_stop_string_is_not_supported() -> None:
    answer = Answer(Recording(400, {}, [], "eof", 0.1), failure="it answered 400")
    assert why_not(judges.stopped, Stopped("x", "abc", answer)) == "stop is refused: it answered 400"


def test_a_stop_string_has_to_be_the_reason() -> None:
    (problem,) = problems(judges.stopped, Stopped("x", "abc", said("abc", finish="length")))
    assert "says 'length' instead of stop" in problem
    (problem,) = problems(judges.stopped, Stopped("x", "abc", said("abd")))
    assert problem == "another text came: 'd' where 'c' was due"


# --- Comparisons ---


def test_an_answer_that_is_over_by_itself_says_nothing_about_max_tokens() -> None:
    short = said("Hi", usage={"completion_tokens": 2})
    assert "by itself" in why_not(judges.truthful_at_max_tokens, Pair(short, short))


def test_text_beyond_max_tokens_is_found_without_a_usage() -> None:
    plain = said(*"abcdefghij", finish="length")
    (problem,) = problems(judges.truthful_at_max_tokens, Pair(plain, said(*"abcdefg", finish="length")))
    assert problem == "max_tokens is 5, and text came 7 times"
    (problem,) = problems(judges.truthful_at_max_tokens, Pair(plain, said("abcdefghij", finish="length")))
    assert problem == "max_tokens is 5, and as much text came as without it"


def test_a_token_may_come_in_several_pieces() -> None:
    plain = said(*"abcdefghijklmnop", finish="length")
    halves = said(*"abcdefghij", finish="length", usage={"completion_tokens": 5})
    assert problems(judges.truthful_at_max_tokens, Pair(plain, halves)) == []


def test_broken_characters_of_the_model_are_its_own() -> None:
    broken = said("\ufffd\u4e16")
    assert problems(judges.text_is_text, [Pair(broken, broken)]) == []
    assert why_not(judges.text_is_text, [Pair(said("Hello"), said("Hello"))]) == "the model answers in ASCII alone"


def test_bytes_that_are_no_text_are_found() -> None:
    answer = Answer(recorded([b"data: \xe4\xb8\n\n"]), [(0.1, "\ufffd")], "stop")
    (problem,) = problems(judges.text_is_text, [Pair(answer, answer)])
    assert problem.startswith("the bytes of the stream are no UTF-8")


def test_a_seed_that_changes_nothing_tells_nothing() -> None:
    same = said("once")
    assert "another seed gave the same text" in why_not(judges.reproducible, Seeds(same, same, same))
    assert problems(judges.reproducible, Seeds(same, same, said("twice"))) == []


@pytest.mark.parametrize(
    ("usage", "problem"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2}, "with prompt_tokens, completion_tokens, total_tokens due"),
        ({"prompt_tokens": 3, "completion_tokens": True, "total_tokens": 4}, "due as numbers"),
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 6}, "does not add up: 3 + 2 is not 6"),
        ({"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2}, "counts 0 tokens of prompt and 2 of answer"),
    ],
)
def test_a_usage_has_to_add_up(usage: dict[str, int], problem: str) -> None:
    fine = said("x", usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
    (found,) = problems(judges.usage, Pair(fine, said("x", usage=usage)))
    assert problem in found


# --- Refusals ---


def test_a_refusal_is_a_status_that_blames_the_client() -> None:
    assert problems(judges.refused, refusal(422, {"detail": "temperature"}, "temperature")) == []
    for status in (200, 500):
        assert len(problems(judges.refused, refusal(status, {}))) == 1
    assert "without naming top_p" in problems(judges.refused, refusal(400, {}, "top_p"))[0]


@pytest.mark.parametrize(
    ("is_native", "body", "is_fine"),
    [
        (True, {"errors": [{"field": "a", "constraint": "b", "message": "c"}]}, True),
        (True, {"errors": [{"field": "a", "constraint": "b", "message": ""}]}, False),
        (True, {"errors": []}, False),
        (True, {"errors": ["a"]}, False),
        (True, {"error": {"message": "a", "type": "b", "param": None, "code": None}}, False),
        (False, {"error": {"message": "a", "type": "b", "param": None, "code": None}}, True),
        (False, {"error": {"message": "a", "type": "b"}}, False),
        (False, {"error": "a"}, False),
        (False, {"detail": "a"}, False),
        (False, b"<html>", False),
    ],
)
def test_the_shape_of_a_refusal(is_native: bool, body: object, is_fine: bool) -> None:
    name = "malformed" if is_native else "unknown-model"
    assert (problems(judges.refusals_have_shape, {name: refusal(400, body)}) == []) is is_fine


def test_without_a_refusal_there_is_no_shape() -> None:
    assert why_not(judges.refusals_have_shape, {"malformed": refusal(200, {})}) == "nothing was refused"


def test_a_long_prompt_that_was_taken_may_have_fitted() -> None:
    def taken(num_tokens: int, is_surely_too_long: bool) -> TooLong:
        return TooLong("it", STREAM, (), 100, is_surely_too_long, said("x", usage={"prompt_tokens": num_tokens}))

    assert "--context-tokens" in why_not(judges.too_long, taken(101, False))
    assert problems(judges.too_long, taken(64, False)) == ["it was cut in silence, to 64 tokens"]
    assert "is not refused" in problems(judges.too_long, taken(101, True))[0]


# --- Many at once ---


def company(*rows: tuple[str, str]) -> list[Company]:
    return [
        Company(f"question {n}", said(*alone), said(*together, ids=frozenset({str(n)})))
        for n, (alone, together) in enumerate(rows)
    ]


def test_rounding_is_no_mixing() -> None:
    evidence = company(("The capital is Paris", "The capital is paris"), ("Hello", "Hello"))
    assert problems(judges.isolated, evidence) == []
    assert judges.num_different(evidence) == 1


def test_words_of_a_neighbour_are_mixing() -> None:
    evidence = company(("The capital is Paris", "The capital is Tokyo"), ("It is Tokyo", "It is Tokyo"))
    assert "it has words of the answer to 'question 1'" in problems(judges.isolated, evidence)[0]


def test_another_first_token_is_mixing() -> None:
    evidence = company(("Paris", "Rome"), ("Hello", "Hello"))
    assert "differ from the first token on" in problems(judges.isolated, evidence)[0]


def test_one_id_for_two_streams_is_mixing() -> None:
    evidence = [Company(str(n), said("x"), said("x", ids=frozenset({"same"}))) for n in range(2)]
    assert "under the same id same" in problems(judges.isolated, evidence)[0]


def test_a_server_that_takes_fewer_streams_is_not_judged() -> None:
    full = Answer(Recording(429, {}, [], "eof", 0.1), failure="it answered 429")
    evidence = [*company(("a", "a")), Company("b", said("b"), full)]
    assert "fewer than 2 streams at once" in why_not(judges.isolated, evidence)


def crowd(*streams: Recording, after_s: float | None = 0.1, controls: Iterable[Recording] = ()) -> Crowd:
    why_not = "" if after_s else "no answer"
    return Crowd(0.1, streams, [Answer(stream) for stream in streams], after_s, why_not, list(controls))


def waiting(*at_s: float, until_s: float) -> Recording:
    return Recording(200, {}, [(instant, b": ping\n") for instant in at_s], "stopped", until_s)


def test_capacity_is_judged_by_streams_that_were_left() -> None:
    left = waiting(0.1, until_s=2.0)
    ended = Recording(200, {}, [], "eof", 1.0)
    assert "1 of 2 long streams were still open" in why_not(judges.capacity_freed, crowd(left, ended))
    assert problems(judges.capacity_freed, crowd(left, left)) == []
    (problem,) = problems(judges.capacity_freed, crowd(left, left, after_s=None))
    assert problem == (
        "2 long streams were left, and a short request (idle: 0.10 s) had no answer within 2.30 s: no answer"
    )


def event_at(at_s: float | None, *, until_s: float = 2.0) -> Recording:
    """A stream that waits for its first token, with its first event at this time."""
    reads = [] if at_s is None else [(at_s, HELLO[0])]
    return Recording(200, {}, [(0.01, b": ping\n"), *reads], "stopped", until_s)


UNANSWERED = Recording(None, {}, [], "stopped", 2.0, "it had not ended within 2 s")


def test_who_waits_has_to_be_answered_at_once() -> None:
    assert problems(judges.prompt_while_waiting, crowd(event_at(0.1), event_at(0.2))) == []
    for late in (event_at(1.5), event_at(None), UNANSWERED):
        (problem,) = problems(judges.prompt_while_waiting, crowd(event_at(0.1), late, late))
        assert problem.startswith(
            "3 streams waited for their first token, up to 2.0 s; 2 of them got no event within 0.55 s"
        )


def test_one_late_connection_of_many_is_no_held_back_event() -> None:
    assert problems(judges.prompt_while_waiting, crowd(event_at(0.1), event_at(0.2), event_at(1.5))) == []


def control(took_s: float) -> Recording:
    return Recording(404, {}, [(took_s, b"{}")], "eof", took_s)


def test_a_busy_machine_is_no_held_back_event() -> None:
    late = [event_at(0.9, until_s=3.0), event_at(1.2, until_s=3.0)]
    assert problems(judges.prompt_while_waiting, crowd(*late))
    assert problems(judges.prompt_while_waiting, crowd(*late, controls=[control(0.1), control(0.8)])) == []
    # As late as the others, and everything else was in time.
    (problem,) = problems(judges.prompt_while_waiting, crowd(*late, controls=[control(0.01)]))
    assert "2 of them got no event within 0.56 s" in problem


def test_a_machine_that_is_too_busy_tells_nothing() -> None:
    late = event_at(None, until_s=2.0)
    why = why_not(judges.prompt_while_waiting, crowd(late, late, controls=[control(0.2), control(1.5)]))
    assert why.startswith("too busy to tell: GET /v1/models, which waits for no slot, took 1.50 s in the same moments")


def test_a_server_that_answers_nobody_is_not_busy() -> None:
    late = event_at(None, until_s=2.0)
    answers_nobody = crowd(late, late, controls=[control(0.01), UNANSWERED, UNANSWERED])
    _, problem = problems(judges.prompt_while_waiting, answers_nobody)
    assert "2 of 3 requests of GET /v1/models, which waits for no slot, had no answer either" in problem
    one = crowd(late, late, controls=[control(0.01), control(0.01), UNANSWERED])
    assert "too busy to tell" in why_not(judges.prompt_while_waiting, one)


def test_where_nobody_waits_nobody_can_tell_who_is_answered_at_once() -> None:
    refused = Recording(None, {}, [], "cut", 0.01, "connection refused")
    at_once = crowd(event_at(0.1, until_s=1.0), refused)
    assert "no stream waited longer than 1.1 s" in why_not(judges.prompt_while_waiting, at_once)


def test_who_waits_long_has_to_hear_of_it() -> None:
    assert problems(judges.alive_while_waiting, crowd(waiting(0.1, 10.0, 20.0, until_s=21.0))) == []
    (problem,) = problems(judges.alive_while_waiting, crowd(waiting(0.1, until_s=14.0)))
    assert problem == "while it waited for its first token, a stream was silent for 13.9 s"
    assert "no stream waited longer than 3.0 s" in why_not(judges.alive_while_waiting, crowd(waiting(until_s=3.0)))
