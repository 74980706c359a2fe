"""What is wrong with what a probe brought. Pure: each judge is tested with evidence written by hand.

A judge yields the reasons for a failure, or raises `CannotTell`. Its law: it objects to its own promise only. An
answer that broke another one is judged as far as it goes, so that one broken thing fails one check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from worker import rules
from worker.checks.asking import Limits
from worker.checks.dialects import Answer, body_of, why_refused
from worker.checks.probes import (
    BUSY,
    CONTROL,
    FEW_TOKENS,
    Cancelled,
    CannotTell,
    Company,
    Crowd,
    Heads,
    Pair,
    Refusal,
    Resumed,
    Seeds,
    Stopped,
    TooLong,
)
from worker.client import json_object
from worker.recording import Recording, Transcript

Problems = Iterator[str]

# Fewer tokens may well come in one packet.
MANY_TOKENS = 16
# What a first event may take in a crowd, besides three times what a whole answer takes on an idle server, and besides
# what an answer takes in that crowd that needs no slot. Measured from 64 streams at once on two cores: 5 to 250 ms, and
# up to 900 ms where four other programs kept them busy; GET /v1/models or /health among them took as long each time.
PROMPT_S = 0.25
# A stream whose text all comes in this last part of it was held back.
BURST_SHARE = 0.05


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _is_refused(answer: Answer) -> bool:
    status = answer.recording.status
    return status is not None and 400 <= status < 500 and status not in BUSY


# --- One stream ---


def incremental(evidence: Pair, limits: Limits) -> Problems:
    """Whether text was held back: in both streams, because a first token may be late once, for a reason of its own."""
    if evidence.other.failure:
        yield f"asked again: {evidence.other.failure}"
        return
    bursts = [_burst(answer, limits) for answer in (evidence.stream, evidence.other)]
    if all(bursts):
        yield bursts[-1]


def _burst(answer: Answer, limits: Limits) -> str:
    """How the text came all at once; empty when it did not."""
    num_tokens = answer.count("completion_tokens") or len(answer.pieces)
    if num_tokens < MANY_TOKENS or not answer.pieces:
        raise CannotTell(f"the answer has {num_tokens} tokens; {MANY_TOKENS} are needed to tell")
    first_at_s, last_at_s = answer.pieces[0][0], answer.pieces[-1][0]
    if last_at_s < limits.burst_s:
        raise CannotTell(f"it took {last_at_s * 1000:.0f} ms, too quick to tell")
    if last_at_s - first_at_s >= BURST_SHARE * last_at_s:
        return ""
    return (
        f"all {num_tokens} tokens came within the last {(last_at_s - first_at_s) * 1000:.0f} ms "
        f"of {last_at_s * 1000:.0f} ms: in one burst, not one by one"
    )


def usage(pair: Pair, limits: Limits) -> Problems:
    for what, answer in (("stream", pair.stream), ("whole answer", pair.other)):
        if answer.failure:
            continue  # said by another check
        if answer.usage is None:
            if rules.refusal(answer.recording):  # what is missing in a stream, its rules have said
                yield f"the {what} has no usage"
            continue
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        counts = [answer.count(name) for name in names]
        if None in counts:
            yield f"the usage of the {what} is {answer.usage}, with {', '.join(names)} due as numbers"
            continue
        prompt, completion, total = (count or 0 for count in counts)
        if prompt + completion != total:
            yield f"the usage of the {what} does not add up: {prompt} + {completion} is not {total}"
        if prompt < 1 or (completion < 1 and answer.text):
            yield f"the usage of the {what} counts {prompt} tokens of prompt and {completion} of answer"


# --- The same question again ---


def same_another_way(pair: Pair, limits: Limits) -> Problems:
    if pair.other.recording.status in (404, 405):
        raise CannotTell(f"there is no other way to ask: {pair.other.failure}")
    if pair.other.failure:
        yield pair.other.failure
        return
    stream, other = pair.stream, pair.other
    if stream.text != other.text:
        place = _common(stream.text, other.text)
        yield (
            f"from character {place} on the stream has {_quote(stream.text[place:])}, "
            f"the other answer {_quote(other.text[place:])}"
        )
    if stream.finish != other.finish:
        yield f"the stream ended with {stream.finish!r}, the other answer with {other.finish!r}"


def _common(a: str, b: str) -> int:
    """How many characters two texts have in common at their start."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def truthful_at_max_tokens(pair: Pair, limits: Limits) -> Problems:
    plain, answer = pair.stream, pair.other
    if answer.failure:
        yield answer.failure
        return
    plain_count = plain.count("completion_tokens")
    if (plain_count is not None and plain_count <= FEW_TOKENS) or (
        plain.text == answer.text and answer.finish == "stop"
    ):
        raise CannotTell(f"the answer is over within {FEW_TOKENS} tokens by itself")
    if answer.finish != "length":
        yield f"max_tokens {FEW_TOKENS} was reached, and the stream says {answer.finish!r} instead of length"
    count = answer.count("completion_tokens")
    if count is not None and count != FEW_TOKENS:
        yield f"max_tokens is {FEW_TOKENS}, and the usage counts {count} tokens"
    if len(answer.text) >= len(plain.text):
        yield f"max_tokens is {FEW_TOKENS}, and as much text came as without it"
    elif count is None and len(answer.pieces) > FEW_TOKENS:  # a token's text may come in several pieces
        yield f"max_tokens is {FEW_TOKENS}, and text came {len(answer.pieces)} times"


def text_is_text(pairs: Sequence[Pair], limits: Limits) -> Problems:
    def beyond_ascii(text: str) -> str:
        return "".join(character for character in text if not character.isascii())

    num_told = 0
    for pair in pairs:
        stream, other = pair.stream, pair.other
        num_told += bool(stream.failure or beyond_ascii(stream.text) or beyond_ascii(other.text))
        if stream.failure:
            yield stream.failure
            continue
        try:
            body_of(stream.recording).decode()
        except UnicodeDecodeError as error:
            yield f"the bytes of the stream are no UTF-8: {error}"
            continue
        if any("\ud800" <= character <= "\udfff" for character in stream.text):
            yield f"half a character came, as a lone surrogate: {_quote(stream.text)}"
            continue
        # A model may write broken bytes; then they are broken in the other answer too.
        num_broken, num_due = stream.text.count("\ufffd"), other.text.count("\ufffd")
        if num_broken > num_due:
            yield f"{num_broken} replacement characters came, {num_due} in the other answer: {_quote(stream.text)}"
        elif not other.failure and beyond_ascii(stream.text) != beyond_ascii(other.text):
            yield f"the stream says {_quote(stream.text)}, the other answer {_quote(other.text)}"
    if not num_told:
        raise CannotTell("the model answers in ASCII alone")


def stopped(evidence: Stopped, limits: Limits) -> Problems:
    answer, due, stop = evidence.answer, evidence.due, evidence.stop
    if _is_refused(answer):
        raise CannotTell(f"stop is refused: {answer.failure}")
    if answer.failure:
        yield f"with a stop string: {answer.failure}"
        return
    if answer.text.startswith(due):
        behind = answer.text.removeprefix(due)
        if behind:
            yield f"the stop string is {stop!r}, and {_quote(behind)} came after the text before it"
    elif due.startswith(answer.text):
        yield f"{_quote(due.removeprefix(answer.text))} is missing, the text before the stop string {stop!r}"
    else:
        place = _common(due, answer.text)
        yield f"another text came: {_quote(answer.text[place:])} where {_quote(due[place:])} was due"
    if answer.finish != "stop":
        yield f"the stop string {stop!r} was due, and the stream says {answer.finish!r} instead of stop"


def reproducible(evidence: Seeds, limits: Limits) -> Problems:
    for answer in (evidence.first, evidence.again):
        if _is_refused(answer):
            raise CannotTell(f"seed is refused: {answer.failure}")
        if answer.failure:
            yield f"with a seed: {answer.failure}"
            return
    if evidence.first.text != evidence.again.text:
        place = _common(evidence.first.text, evidence.again.text)
        yield (
            f"the same seed gave {_quote(evidence.first.text[place:])} and {_quote(evidence.again.text[place:])} "
            f"from character {place} on"
        )
    elif evidence.first.text == evidence.other.text:
        raise CannotTell("another seed gave the same text too: perhaps nothing is sampled")


# --- Refusals ---


def refused(evidence: Refusal, limits: Limits) -> Problems:
    status, said = evidence.recording.status, _said(evidence.recording)
    if status is None:
        yield f"{evidence.what}: {evidence.recording.detail}"
    elif status < 400:
        yield f"{evidence.what} is not refused: it was answered with {status}"
    elif status >= 500:
        yield f"{evidence.what} is answered with {status}, a failure of the server: {said}"
    elif evidence.names and not any(name.encode() in body_of(evidence.recording) for name in evidence.names):
        yield f"{evidence.what} is refused without naming {evidence.names[0]}: {said}"


def refusals_have_shape(evidence: Mapping[str, Refusal], limits: Limits) -> Problems:
    """Native refusals have a list of errors, OpenAI's an error object; either names what a program needs."""
    refusals = [one for one in evidence.values() if one.recording.status and 400 <= one.recording.status < 500]
    if not refusals:
        raise CannotTell("nothing was refused")
    for one in refusals:
        why = _shape_problem(json_object(body_of(one.recording)) or {}, is_native="unknown-model" not in evidence)
        if why:
            yield f"{one.what} is refused without {why}: {_said(one.recording)}"


def _shape_problem(body: Mapping[str, Any], is_native: bool) -> str:
    if is_native:
        errors = body.get("errors")
        if isinstance(errors, list) and errors and all(_has_text(e, "field", "constraint", "message") for e in errors):
            return ""
        return "a list of errors with field, constraint and message"
    error = body.get("error")
    if _has_text(error, "message", "type") and isinstance(error, dict) and {"param", "code"} <= error.keys():
        return ""
    return "an error object of message, type, param and code"


def _has_text(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) and value[name] for name in names)


def _said(recording: Recording) -> str:
    return f"{recording.status} {body_of(recording)[:120].decode('utf-8', 'replace').strip()}"


def too_long(evidence: TooLong, limits: Limits) -> Problems:
    if evidence.recording.status != 200:
        yield from refused(evidence, limits)
        return
    num_tokens = evidence.answer.count("prompt_tokens")
    if num_tokens is not None and num_tokens < evidence.num_words:
        yield f"{evidence.what} was cut in silence, to {num_tokens} tokens"
    elif evidence.is_surely_too_long:
        yield f"{evidence.what}, more than there is room for, is not refused: it was answered with 200"
    else:
        raise CannotTell(f"{evidence.what} was taken; --context-tokens says how many there is room for")


# --- Many at once ---


def capacity_freed(evidence: Crowd, limits: Limits) -> Problems:
    num_open = len(evidence.open_streams)
    if num_open < 2:
        raise CannotTell(f"{num_open} of {len(evidence.streams)} long streams were still open when they were left")
    if evidence.after_s is None:
        yield (
            f"{num_open} long streams were left, and a short request (idle: {evidence.baseline_s:.2f} s) had no "
            f"answer within {limits.freed_s + evidence.patience_s:.2f} s: {evidence.why_not}"
        )


def prompt_while_waiting(evidence: Crowd, limits: Limits) -> Problems:
    """Whether those who waited for their first text heard of it long before.

    A lone stream cannot tell: its first token is there in milliseconds, and a server that sends nothing before it
    looks prompt. Judged by most of those who waited, because one connection of many may be late by itself.

    A busy machine makes every answer late, so the controls widen the limit. But where most of them have no answer at
    all until the crowd is left, it is the server that lets everybody wait, and nothing is widened.
    """
    prompt_s = min(rules.HELD_BACK_S, PROMPT_S + evidence.patience_s)
    num_unanswered = sum(control.status is None for control in evidence.controls)
    answers_nobody = 2 * num_unanswered > len(evidence.controls)
    busy_s = 0.0 if answers_nobody else max((control.ended_at_s for control in evidence.controls), default=0.0)
    limit_s = prompt_s + busy_s
    waits_s, firsts_s, longest_s = [], [], 0.0
    for answer in evidence.answers:
        recording = answer.recording
        if recording.status not in (200, None):
            continue
        waited_s = answer.pieces[0][0] if answer.pieces else recording.ended_at_s
        longest_s = max(longest_s, waited_s)
        if waited_s > prompt_s + limit_s:
            frames = Transcript(recording).frames
            waits_s.append(waited_s)
            firsts_s.append(frames[0].at_s if frames else recording.ended_at_s)
    control = f"{CONTROL.method} {CONTROL.path}, which waits for no slot,"
    if not waits_s and longest_s > 2 * prompt_s:
        raise CannotTell(
            f"too busy to tell: {control} took {busy_s:.2f} s in the same moments; a longer --watch-s may tell"
        )
    if not waits_s:
        raise CannotTell(
            f"no stream waited longer than {2 * prompt_s:.2g} s for its first token; a larger --crowd or a longer "
            "--watch-s may tell"
        )
    num_late = sum(first_s > limit_s for first_s in firsts_s)
    if 2 * num_late > len(waits_s):
        yield (
            f"{len(waits_s)} streams waited for their first token, up to {max(waits_s):.1f} s; {num_late} of them got "
            f"no event within {limit_s:.2f} s; the first has to leave within 100 ms, before any token"
        )
        if answers_nobody:
            yield f"{num_unanswered} of {len(evidence.controls)} requests of {control} had no answer either"


def alive_while_waiting(evidence: Crowd, limits: Limits) -> Problems:
    waits_s, silences_s = [], []
    for answer in evidence.answers:
        if answer.recording.status not in (200, None):
            continue
        waited_s = answer.pieces[0][0] if answer.pieces else answer.recording.ended_at_s
        instants = [at_s for at_s, _ in answer.recording.reads if at_s < waited_s]
        waits_s.append(waited_s)
        silences_s.append(max(b - a for a, b in pairwise([0.0, *instants, waited_s])))
    if not waits_s:
        raise CannotTell("none of the long streams was taken")
    if max(silences_s) > rules.SILENCE_LIMIT_S:
        yield f"while it waited for its first token, a stream was silent for {max(silences_s):.1f} s"
    elif max(waits_s) <= rules.SILENCE_LIMIT_S:
        raise CannotTell(
            f"no stream waited longer than {max(waits_s):.1f} s for its first token; --watch-s looks longer, and "
            f"more than {rules.SILENCE_LIMIT_S:g} s can tell"
        )


def isolated(evidence: Sequence[Company], limits: Limits) -> Problems:
    told = [one for one in evidence if not one.alone.failure]
    if len(told) < 2:
        raise CannotTell(f"alone, {len(told)} of {len(evidence)} questions were answered")
    seen: dict[str, str] = {}
    for one in told:
        if one.together.recording.status in BUSY:
            raise CannotTell(f"it takes fewer than {len(evidence)} streams at once: {one.together.failure}")
        if one.together.failure:
            yield f"{one.content!r} is answered alone, and not among others: {one.together.failure}"
            continue
        for stream_id in one.together.ids:
            if stream_id in seen:
                yield f"{one.content!r} and {seen[stream_id]!r} were answered under the same id {stream_id}"
            seen[stream_id] = one.content
        if len(one.together.ids) > 1:
            yield f"{one.content!r} was answered under the ids {', '.join(sorted(one.together.ids))}"
        if one.together.text != one.alone.text:
            yield from _foreign(one, told)


def _foreign(one: Company, told: Sequence[Company]) -> Problems:
    """What in a text that is not the same as alone cannot come from rounding."""
    text, due = one.together.text, one.alone.text
    place = _common(text, due)
    difference = f"{one.content!r} was answered with {_quote(text)} among others and with {_quote(due)} alone"
    if place < min(len(one.alone.pieces[0][1]) if one.alone.pieces else 1, 8):
        yield f"{difference}: they differ from the first token on"
        return
    own = set(due.split())
    for other in told:
        strange = set(other.alone.text.split()) - own
        if other is not one and any(len(word) > 3 and word in strange for word in text[place:].split()):
            yield f"{difference}: it has words of the answer to {other.content!r}"
            return


def num_different(evidence: Sequence[Company]) -> int:
    """How many answers were not the same in company: with 16-bit arithmetic, some may round differently."""
    return sum(one.together.text != one.alone.text for one in evidence)


# --- Around the streams ---


def head_is_harmless(evidence: Heads, limits: Limits) -> Problems:
    for path, recording in evidence.answers:
        if recording.status is None:
            yield f"HEAD {path} has no answer: {recording.detail}"
        elif recording.status >= 500:
            yield f"HEAD {path} is answered with {recording.status}"
    if evidence.after.failure:
        yield f"a stream after HEAD: {evidence.after.failure}"
    elif not evidence.after.text:
        yield "a stream after HEAD has no text"


def lists_models(recording: Recording, limits: Limits) -> Problems:
    if recording.status in (404, 405):
        raise CannotTell(f"there is no such route ({recording.status})")
    if recording.status != 200:
        yield why_refused(recording)
        return
    listing = json_object(body_of(recording)) or {}
    data = listing.get("data")
    if listing.get("object") != "list" or not isinstance(data, list) or not all(_is_model(entry) for entry in data):
        yield f"it is no list of models with ids: {_said(recording)}"
    elif not data:
        yield "it lists no model, and answers all the same"


def _is_model(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str)


# --- Jobs ---


def cancelled_at_once(evidence: Cancelled, limits: Limits) -> Problems:
    first, again, unknown = evidence.statuses
    if first != 200:
        yield f"DELETE is answered with {first}, 200 was due"
    if again != 200:
        yield f"DELETE of a cancelled job is answered with {again}, 200 was due"
    if unknown != 404:
        yield f"DELETE of a job that never was is answered with {unknown}, 404 was due"
    if evidence.ended_after_s > limits.stopped_s:
        yield f"the stream ended {evidence.ended_after_s:.1f} s after DELETE; one step was due"
    elif evidence.answer.failure:
        yield f"the cancelled stream: {evidence.answer.failure}"
    elif evidence.answer.finish != "cancelled":
        yield f"the cancelled stream says {evidence.answer.finish!r} instead of CANCELLED"


def exactly_once(evidence: Resumed, limits: Limits) -> Problems:
    for what, transcript in (("the resumed stream", evidence.behind), ("the stream from its start", evidence.all)):
        why = rules.refusal(transcript.recording)
        if why:
            yield f"{what}: {why}"
            return
    before, behind, due = evidence.before.numbered, evidence.behind.numbered, evidence.all.numbered
    if before != due[: len(before)]:
        yield "read again from its start, the stream has other events"
        return
    missing = [event for event in due[len(before) :] if event not in behind]
    again = [event for event in behind if event in before]
    if missing:
        yield f"behind event {before[-1][0]}, {len(missing)} events did not come, the first with id {missing[0][0]}"
    if again:
        yield f"behind event {before[-1][0]}, {len(again)} events came again, the first with id {again[0][0]}"
    if not missing and not again and behind != due[len(before) :]:
        yield f"behind event {before[-1][0]}, the events are not those of the stream read from its start"
    if evidence.over is not None:
        yield from _is_over(evidence.over)


def _is_over(transcript: Transcript) -> Problems:
    """Whether who has the terminal event already is told that this was all: by an end, with or without [DONE]."""
    recording = transcript.recording
    if recording.status is None or (recording.status == 200 and recording.ending != "eof"):
        yield f"a client that came back with the id of the terminal event: {recording.detail}"
    elif recording.status >= 400:
        yield f"a client that came back with the id of the terminal event is refused: {why_refused(recording)}"
    elif transcript.events:
        yield f"behind the terminal event, {len(transcript.events)} events came, the first {transcript.events[0]}"


def the_same_for_both(evidence: Sequence[Transcript], limits: Limits) -> Problems:
    for transcript in evidence:
        why = rules.refusal(transcript.recording)
        if why:
            yield f"one of two readers: {why}"
            return
    first, second = (transcript.numbered for transcript in evidence)
    if first != second:
        place = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
        place = min(len(first), len(second)) if place is None else place
        yield f"two readers saw {len(first)} and {len(second)} events; they differ from event {place} on"
