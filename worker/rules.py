"""The stream contract as rules, and the verdict on one recorded stream.

A rule is a promise and a function that yields what breaks it. There is a table of them for each format.

Its law: judging is pure. A verdict depends on what was recorded and on nothing else, so that each rule is tested
with a stream written by hand. One broken thing should break one rule, so that the report names the cause; each rule
has a test that goes red without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from worker.client import GenerationError, ProtocolError, parse_event
from worker.recording import Recording, Transcript, longest_silence_s

# The contract says 10 s of wall clock; 2 more for a busy machine and a slow network.
SILENCE_LIMIT_S = 12.0
# The contract says 100 ms from acceptance, which no client can see. Later than this it is not the network.
HELD_BACK_S = 1.0

STOP_REASONS = ("EOS", "MAX_TOKENS", "STOP_SEQUENCE")  # CANCELLED ends well too, but nobody cancelled
FINISH_REASONS = ("stop", "length", "tool_calls")
ERROR_CODES = (
    "INVALID_REQUEST",
    "QUEUE_TIMEOUT",
    "FIRST_TOKEN_TIMEOUT",
    "STALLED",
    "TIMEOUT",
    "SLOW_CONSUMER",
    "VRAM_OOM",
    "INFERENCE_FAILED",
    "ENGINE_DEAD",
    "SHUTTING_DOWN",
    "INCOMPLETE",
)

Problems = Iterator[str]


@dataclass(frozen=True)
class Rule:
    name: str
    promise: str
    problems: Callable[[Transcript], Problems]


def _ends_cleanly(transcript: Transcript) -> Problems:
    if transcript.recording.ending != "eof":
        yield transcript.recording.detail
    elif transcript.body and not transcript.body.endswith(b"\n\n"):
        tail = transcript.body.rpartition(b"\n\n")[2]
        yield f"behind the last event there are bytes that are no event: {tail[:60]!r}"


def _done_is_last(transcript: Transcript) -> Problems:
    if not transcript.has_done:
        yield "there is no [DONE]"
    if transcript.after_done:
        yield f"{transcript.after_done[0]} came after [DONE]"


def _is_prompt(transcript: Transcript) -> Problems:
    first_at_s = transcript.frames[0].at_s if transcript.frames else 0.0
    if first_at_s > HELD_BACK_S:
        yield f"the first event came after {first_at_s:.1f} s; it has to leave within 100 ms, before any token"


def _is_alive(transcript: Transcript) -> Problems:
    silence_s = longest_silence_s(transcript.recording)
    if silence_s > SILENCE_LIMIT_S:
        yield f"not a byte for {silence_s:.1f} s; a keep-alive is due every 10 s"


def _has_no_empty_blocks(transcript: Transcript) -> Problems:
    has_data = False
    for line in transcript.body.split(b"\n")[:-1]:
        if line == b"" and not has_data:
            yield "a blank line without an event before it (behind a comment?) breaks common clients"
            return
        has_data = line != b"" and (has_data or line.startswith(b"data"))


def _is_json(transcript: Transcript) -> Problems:
    yield from (f"{frame} is not a JSON object" for frame in transcript.events if not frame.payload)


def _native_fields(transcript: Transcript) -> Problems:
    for frame in transcript.events:
        if not frame.payload:
            continue  # said already
        try:
            parse_event(frame.sse)
        except ProtocolError as error:
            yield str(error)
        except GenerationError as error:
            if error.code not in ERROR_CODES:
                yield f"error code {error.code!r} is not in the contract"
            if not error.message:
                yield "an error event has no message"
            if not isinstance(frame.payload.get("usage"), dict):
                yield "an error event has no usage"


def _native_ids(transcript: Transcript) -> Problems:
    for expected, frame in enumerate(transcript.events):
        if frame.sse.id != str(expected):
            yield f"{frame} has id {frame.sse.id!r}, {expected} was due"
            return


def _native_starts(transcript: Transcript) -> Problems:
    types = [frame.type for frame in transcript.events]
    if not types or types[0] != "started":
        yield f"the first event is {transcript.events[0] if types else 'missing'}"
    elif types.count("started") > 1:
        yield f"there are {types.count('started')} started events"


def _native_one_terminal(transcript: Transcript) -> Problems:
    terminals = transcript.of_type("end", "error")
    if not terminals:
        yield "there is neither an end nor an error"
    elif len(terminals) > 1:
        yield f"there are {len(terminals)}: {', '.join(frame.type for frame in terminals)}"


def _native_terminal_is_last(transcript: Transcript) -> Problems:
    terminals = transcript.of_type("end", "error")
    if terminals:
        behind = transcript.events[transcript.events.index(terminals[0]) + 1 :]
        others = [frame for frame in behind if frame not in terminals]
        if others:
            yield f"{others[0]} came after the terminal event"


def _native_tokens(transcript: Transcript) -> Problems:
    expected = 0
    for frame in transcript.of_type("token"):
        index = frame.payload.get("i")
        if not isinstance(index, int):
            return  # said already
        if index != expected:
            yield f"{frame} has index {index}, {expected} was due: tokens were lost, repeated or reordered"
            return
        expected += frame.num_tokens
    for frame in transcript.of_type("end")[:1]:
        tokens_out = frame.payload.get("tokens_out")
        if isinstance(tokens_out, int) and tokens_out < expected:
            yield f"the end counts {tokens_out} tokens, {expected} came"


def _native_metrics(transcript: Transcript) -> Problems:
    num_metrics = len(transcript.of_type("metrics"))
    if transcript.of_type("end") and num_metrics != 1:
        yield f"there are {num_metrics} metrics events, one was due"


def _native_succeeds(transcript: Transcript) -> Problems:
    for frame in transcript.of_type("end", "error")[:1]:
        payload = frame.payload
        if frame.type == "error":
            yield f"it failed with {payload.get('code')}: {payload.get('message')}"
            return
        if payload.get("stop_reason") not in STOP_REASONS:
            yield f"its stop_reason is {payload.get('stop_reason')!r}"
    if not transcript.texts:
        yield "no text came"


def _native_headers(transcript: Transcript) -> Problems:
    for name, due in (("cache-control", "no-cache"), ("x-accel-buffering", "no")):
        if due not in transcript.recording.headers.get(name, ""):
            yield f"the header {name} is {transcript.recording.headers.get(name)!r}, {due!r} was due"


def _openai_chunks(transcript: Transcript) -> Problems:
    ids = set()
    for frame in transcript.events:
        if not frame.payload or "error" in frame.payload:
            continue
        if frame.payload.get("object") != "chat.completion.chunk" or not isinstance(frame.payload.get("choices"), list):
            yield f"{frame} is not a chat.completion.chunk with choices"
            return
        ids.add(str(frame.payload.get("id")))
    if len(ids) > 1 or "None" in ids:
        yield f"the chunks of one answer have the ids {', '.join(sorted(ids))}"


def _openai_plain(transcript: Transcript) -> Problems:
    for frame in transcript.frames:
        if frame.sse.id is not None or frame.sse.event != "message":
            yield f"{frame} has an id: or an event: line, which common clients do not expect"
            return


def _openai_role(transcript: Transcript) -> Problems:
    first = next((frame for frame in transcript.events if "error" not in frame.payload), None)
    if first is not None and first.delta.get("role") != "assistant":
        yield f"the first chunk is {first}"


def _openai_one_ending(transcript: Transcript) -> Problems:
    if not transcript.finishes:
        yield "there is neither a finish_reason nor an error"
    elif len(transcript.finishes) > 1:
        yield f"there are {len(transcript.finishes)}"


def _openai_ending_is_last(transcript: Transcript) -> Problems:
    finishes = transcript.finishes
    if finishes:
        behind = transcript.events[transcript.events.index(finishes[0]) + 1 :]
        others = [frame for frame in behind if frame not in finishes and not frame.is_usage]
        if others:
            yield f"{others[0]} came after the ending"


def _openai_usage(transcript: Transcript) -> Problems:
    finish = next((frame for frame in transcript.events if frame.is_finish), None)
    if finish is None:
        return
    usages = [frame for frame in transcript.events if frame.is_usage]
    if len(usages) != 1:
        yield f"there are {len(usages)} usage chunks, one was asked for"
    elif transcript.events.index(usages[0]) < transcript.events.index(finish):
        yield "the usage came before the finish_reason"


def _openai_error_fields(transcript: Transcript) -> Problems:
    for frame in transcript.events:
        if "error" in frame.payload:
            error = frame.payload["error"]
            if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= error.keys():
                yield f"{frame} is not an error with message, type, param and code"


def _openai_succeeds(transcript: Transcript) -> Problems:
    for frame in transcript.finishes[:1]:
        if "error" in frame.payload:
            error = frame.payload["error"]
            yield f"it failed with {error.get('message') if isinstance(error, dict) else error}"
            return
        if frame.choice["finish_reason"] not in FINISH_REASONS:
            yield f"its finish_reason is {frame.choice['finish_reason']!r}"
    if not transcript.texts:
        yield "no text came"


NATIVE_RULES = (
    Rule("prompt", "the first event leaves at once", _is_prompt),
    Rule("started", "the first event is started, and the only one", _native_starts),
    Rule("ids", "ids count from 0 without gaps", _native_ids),
    Rule("json", "every event is a JSON object", _is_json),
    Rule("fields", "events have the fields of their type", _native_fields),
    Rule("tokens", "tokens are whole and in order", _native_tokens),
    Rule("alive", "keep-alives come in time", _is_alive),
    Rule("one-newline", "keep-alives end in one newline", _has_no_empty_blocks),
    Rule("metrics", "metrics once", _native_metrics),
    Rule("one-terminal", "exactly one terminal event", _native_one_terminal),
    Rule("terminal-last", "nothing but [DONE] after the terminal event", _native_terminal_is_last),
    Rule("done", "[DONE] comes, and nothing after it", _done_is_last),
    Rule("eof", "a clean end of file", _ends_cleanly),
    Rule("headers", "headers that keep proxies from buffering", _native_headers),
    Rule("succeeds", "text comes, and no failure", _native_succeeds),
)

OPENAI_RULES = (
    Rule("prompt", "the first chunk leaves at once", _is_prompt),
    Rule("role", "the first chunk brings the role", _openai_role),
    Rule("plain-lines", "no id: and no event: lines", _openai_plain),
    Rule("json", "every event is a JSON object", _is_json),
    Rule("chunks", "chunks have OpenAI's shape", _openai_chunks),
    Rule("error-fields", "errors have OpenAI's shape", _openai_error_fields),
    Rule("alive", "keep-alives come in time", _is_alive),
    Rule("one-newline", "keep-alives end in one newline", _has_no_empty_blocks),
    Rule("one-ending", "exactly one finish_reason or error", _openai_one_ending),
    Rule("ending-last", "nothing but usage and [DONE] after the ending", _openai_ending_is_last),
    Rule("usage-chunk", "usage once, when asked for", _openai_usage),
    Rule("done", "[DONE] comes, and nothing after it", _done_is_last),
    Rule("eof", "a clean end of file", _ends_cleanly),
    Rule("succeeds", "text comes, and no failure", _openai_succeeds),
)


# --- The verdict ---


@dataclass(frozen=True)
class Verdict:
    """What the rules say about one stream, and what was measured on it.

    Attributes:
        outcomes: Each promise with what breaks it; kept when that is nothing.
        terminal: How the stream says it ended.
    """

    route: str
    outcomes: Sequence[tuple[str, Sequence[str]]]
    terminal: str = "none"
    num_tokens: int = 0
    first_event_s: float | None = None
    ttft_s: float | None = None
    longest_gap_s: float | None = None
    longest_silence_s: float | None = None
    duration_s: float | None = None

    @property
    def problems(self) -> list[str]:
        return [f"{promise}: {problem}" for promise, problems in self.outcomes for problem in problems]


def judge_native(recording: Recording, route: str = "POST /execute") -> Verdict:
    """Hold a native stream against the contract."""
    return _judge(recording, route, NATIVE_RULES)


def judge_openai(recording: Recording, route: str = "POST /v1/chat/completions") -> Verdict:
    """Hold a chat completion stream, asked for with `include_usage`, against the contract."""
    return _judge(recording, route, OPENAI_RULES)


def _judge(recording: Recording, route: str, rules: Sequence[Rule]) -> Verdict:
    why = refusal(recording)
    if why:
        return Verdict(route, [("it answers with an event stream", [why])])
    transcript = Transcript(recording)
    texts_at_s = [frame.at_s for frame in transcript.texts]
    return Verdict(
        route,
        [(rule.promise, list(rule.problems(transcript))) for rule in rules],
        terminal=_terminal(transcript),
        num_tokens=_num_tokens(transcript),
        first_event_s=transcript.frames[0].at_s if transcript.frames else None,
        ttft_s=texts_at_s[0] if texts_at_s else None,
        longest_gap_s=max((b - a for a, b in pairwise(texts_at_s)), default=None),
        longest_silence_s=longest_silence_s(recording),
        duration_s=recording.ended_at_s,
    )


def refusal(recording: Recording) -> str:
    """Why there is nothing to judge; empty when there is."""
    if recording.status is None:
        return recording.detail
    content_type = recording.headers.get("content-type", "")
    if recording.status == 200 and content_type.startswith("text/event-stream"):
        return ""
    body = b"".join(data for _, data in recording.reads)[:200].decode("utf-8", "replace").strip()
    return f"it answered {recording.status}, {content_type or 'without a content type'}: {body or '(nothing)'}"


def _terminal(transcript: Transcript) -> str:
    for frame in transcript.of_type("end", "error")[:1]:
        return f"{frame.type} {frame.payload.get('stop_reason') or frame.payload.get('code')}"
    for frame in transcript.finishes[:1]:
        return f"finish_reason {frame.choice['finish_reason']}" if frame.is_finish else "error"
    return "none"


def _num_tokens(transcript: Transcript) -> int:
    for frame in transcript.events:
        if frame.is_usage and isinstance(frame.payload["usage"].get("completion_tokens"), int):
            return int(frame.payload["usage"]["completion_tokens"])
    return sum(frame.num_tokens for frame in transcript.texts)
