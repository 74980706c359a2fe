"""The verdict on what one client has seen of one stream. Pure: bytes in, findings out.

tests/soak/test_judge.py shows for each finding a stream that has it, and that the whole one has none.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.soak.asks import Ask
from tests.soak.exchange import Ending
from tests.soak.oracle import answer, shown, spoken
from tests.soak.server import (
    FIRST_TOKEN_TIMEOUT_S,
    QUEUE_TIMEOUT_S,
    SLOW_CONSUMER_S,
    TOKEN_TIMEOUT_S,
    TOTAL_TIMEOUT_S,
    WRITE_LIMIT_S,
)

Finding = tuple["Kind", str]


class Kind(StrEnum):
    """What can be wrong."""

    HANG = "hangs"
    MISSING_TERMINAL = "missing terminals"
    EXTRA = "second terminals, events behind the end"
    TOKENS = "lost, repeated or wrong tokens"
    CUT = "cut bodies"
    LATE = "first events later than 3 s"
    SILENCE = "silences of three keep-alives"
    UNWANTED = "leaves and cancels that ended nothing"
    CONTRACT = "other breaches of the contract"
    ANSWER = "wrong HTTP answers"
    OUTCOME = "requests without exactly one outcome"
    UNEXPLAINED = "failures that nobody injected"
    LEAK = "leaks"
    PROCESS = "processes that did not end well"


# Errors that the injected faults explain; how many there may be is compared at the end. Those of a limit need the time
# that it takes (`_overdue`), and INCOMPLETE is never expected: it is a bug wherever it comes from.
FAILURES = {"INFERENCE_FAILED", "VRAM_OOM"}
FAREWELLS = {"ENGINE_DEAD", "SHUTTING_DOWN", "STALLED"}
# Tokens between the answer to a DELETE and the end: that of the step which was under way.
TOKENS_AFTER_CANCEL = 1
_FINISH_REASONS = {"EOS": "stop", "STOP_SEQUENCE": "stop", "MAX_TOKENS": "length"}


@dataclass(frozen=True)
class Circumstances:
    """What happened around a stream, so that some endings are no surprise.

    Attributes:
        was_killed: The process got a SIGKILL meanwhile: the one reason for a cut body.
        was_replaced: The process was told to end, or died, meanwhile.
        is_cancelled: Its client cancelled it, or left it for others to read.
        is_slow: Its client did not read for a while.
        idle_s: How long it did not read at the longest. A connection with a write that takes too long is cut.
        is_half_closed: Its client closed its sending half: the server takes it for a leave, and cuts.
        age_s: From before it was asked for until after its end: no limit of the server's has lasted longer.
        num_at_cancel: How many tokens it had when a DELETE was answered, and it had not ended. None: there was none.
    """

    was_killed: bool = False
    was_replaced: bool = False
    is_cancelled: bool = False
    is_slow: bool = False
    idle_s: float = 0.0
    is_half_closed: bool = False
    age_s: float = 0.0
    num_at_cancel: int | None = None


@dataclass(frozen=True)
class Frame:
    """One event of a body. `payload` is None for [DONE]."""

    id: int | None
    payload: dict[str, Any] | None


@dataclass(frozen=True)
class Verdict:
    """What was found, how the stream ended as `end{MAX_TOKENS}` or `error{STALLED}`, whose it was, and its text."""

    findings: list[Finding]
    outcome: str | None = None
    job_id: str | None = None
    text: str = field(default="", compare=False)


def frames_of(body: bytes) -> list[Frame]:
    """The whole events of a body; an unfinished one at its end is left out.

    Raises:
        ValueError: There is something else than ids, data, blank lines behind them, and pings.
    """
    frames: list[Frame] = []
    number: int | None = None
    payload: list[dict[str, Any] | None] = []
    for line in body[: body.rfind(b"\n") + 1].decode("ascii").split("\n")[:-1]:
        if line == ": ping" and number is None and not payload:
            continue
        if line.startswith("id: ") and number is None and not payload:
            number = int(line[4:])
        elif line.startswith("data: ") and not payload:
            payload = [None if line == "data: [DONE]" else json.loads(line[6:])]
        elif line == "" and payload:
            frames.append(Frame(number, payload[0]))
            number, payload = None, []
        else:
            raise ValueError(f"a line that does not belong there: {line[:100]!r}")
    return frames


def judge(ask: Ask, bodies: Sequence[bytes], ending: Ending, around: Circumstances) -> Verdict:
    """Judge one stream.

    Args:
        ask: What was asked for.
        bodies: What was read, in one piece or resumed: each body but the last was left in the middle.
        ending: How the last one ended.
        around: What happened meanwhile.
    """
    try:
        parts = [frames_of(body) for body in bodies]
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are such too
        return Verdict([(Kind.CONTRACT, f"malformed: {error}")])
    # Who left behind [DONE] and came back is told it again.
    frames = [frame for part in parts[:-1] for frame in part if frame.payload is not None] + parts[-1]
    stream = _Stream(ask, frames, ending, around)
    findings = list(stream.findings())
    if ending is Ending.COMPLETE and bodies[-1] and not bodies[-1].endswith(b"\n\n"):
        findings.append((Kind.CONTRACT, f"an event without its end: {bodies[-1][-80:]!r}"))
    return Verdict(findings, stream.outcome, stream.job_id, stream.text)


class _Stream:
    """One stream as the client has put it together."""

    def __init__(self, ask: Ask, frames: list[Frame], ending: Ending, around: Circumstances) -> None:
        self._ask = ask
        self._frames = frames
        self._events = [frame.payload for frame in frames if frame.payload is not None]
        self._ending = ending
        self._around = around
        is_terminal = _is_native_terminal if ask.is_native else _is_openai_terminal
        self._terminals = [i for i, frame in enumerate(frames) if frame.payload and is_terminal(frame.payload)]
        self.outcome = self._outcome(frames[self._terminals[0]].payload or {}) if self._terminals else None
        self.job_id = self._find_job_id()
        self.text = ""
        self._num_tokens: int | None = None  # as the usage of the terminal event has it

    def findings(self) -> Iterator[Finding]:
        yield from self._endings()
        yield from self._order()
        if self._ask.is_native:
            yield from self._numbers()
            yield from self._native_tokens()
        else:
            yield from self._openai_tokens()
        yield from self._reason()

    def _find_job_id(self) -> str | None:
        for event in self._events:
            if self._ask.is_native and event.get("type") == "started":
                return str(event.get("job_id"))
            if not self._ask.is_native and "id" in event:
                return str(event["id"]).rpartition("-")[2]
        return None

    def _outcome(self, terminal: dict[str, Any]) -> str:
        if not self._ask.is_native:
            if "error" in terminal:
                code = terminal["error"].get("code")
                return "cancelled" if code == "CANCELLED" else f"error{{{code}}}"
            due = self._ask.due().stop_reason
            reason = terminal["choices"][0]["finish_reason"]
            return f"end{{{due}}}" if _FINISH_REASONS[due] == reason else f"end{{{reason}}}"
        if terminal["type"] == "error":
            return f"error{{{terminal.get('code')}}}"
        reason = terminal.get("stop_reason")
        return "cancelled" if reason == "CANCELLED" else f"end{{{reason}}}"

    def _endings(self) -> Iterator[Finding]:
        """One terminal, [DONE], the end of the body, or a good reason."""
        if self._ending is Ending.HUNG:
            yield Kind.HANG, f"nothing came any more behind {self._events[-1:]}"
        elif self._ending is Ending.CUT and not self._may_be_cut():
            if self._terminals:
                yield Kind.CUT, "the body was cut behind its terminal event"
            else:
                idle = f"; nothing was read for {self._around.idle_s:.2f} s at the longest"
                yield Kind.MISSING_TERMINAL, f"the connection was cut behind {self._events[-1:]}{idle}"
        elif self._ending is Ending.COMPLETE:
            if not self._terminals:
                yield Kind.MISSING_TERMINAL, f"the body ended well behind {self._events[-1:]}"
            if not self._frames or self._frames[-1].payload is not None:
                yield Kind.CONTRACT, "the last event is not [DONE]"

    def _may_be_cut(self) -> bool:
        around = self._around
        return around.was_killed or around.is_half_closed or around.idle_s >= WRITE_LIMIT_S

    def _order(self) -> Iterator[Finding]:
        """Nothing behind the terminal but [DONE], and in OpenAI's shape the usage that was asked for."""
        if len(self._terminals) > 1:
            yield Kind.EXTRA, f"{len(self._terminals)} terminal events: {[self._frames[i] for i in self._terminals]}"
        dones = [i for i, frame in enumerate(self._frames) if frame.payload is None]
        if len(dones) > 1 or (dones and dones[0] != len(self._frames) - 1):
            yield Kind.EXTRA, "something came behind [DONE]"
        if not self._terminals:
            return
        behind = [frame.payload for frame in self._frames[self._terminals[0] + 1 :] if frame.payload is not None]
        if self._ask.includes_usage and self.outcome and self.outcome.startswith("end"):
            usage = behind[:1]
            behind = behind[1:]
            if usage and usage[0].get("choices") != []:
                yield Kind.EXTRA, f"no usage behind the terminal event but {usage}"
            elif usage:
                yield from self._usage(usage[0].get("usage"))
            elif dones:
                yield Kind.CONTRACT, "the usage that was asked for did not come"
        if behind and len(self._terminals) == 1:
            yield Kind.EXTRA, f"{behind} came behind the terminal event"

    def _numbers(self) -> Iterator[Finding]:
        numbers = [frame.id for frame in self._frames if frame.payload is not None]
        due = list(range(len(numbers)))
        if numbers != due:
            wrong = next(i for i, (a, b) in enumerate(zip(numbers, due, strict=True)) if a != b)
            yield Kind.TOKENS, f"event {numbers[wrong]} came where {due[wrong]} was due"
        if self._events and self._events[0].get("type") != "started":
            yield Kind.CONTRACT, f"the first event is {self._events[0]}"

    def _native_tokens(self) -> Iterator[Finding]:
        """Every token once and in order, and the text is the one that this many tokens spell."""
        num_tokens = 0
        text = ""
        for event in self._events:
            if event.get("type") == "token":
                if event["i"] != num_tokens:
                    yield Kind.TOKENS, f"token {event['i']} came where {num_tokens} was due"
                    return
                num_tokens += event.get("n", 1)
                text += event["t"]
        yield from self._text(text, num_tokens)
        if not self._terminals:
            return
        terminal = self._frames[self._terminals[0]].payload or {}
        yield from self._usage(terminal.get("usage"), at_least=num_tokens)
        if self._num_tokens is not None and self.outcome and not self.outcome.startswith("end"):
            lost = lost_text(self._ask, text, self._num_tokens, self.outcome, self._around.was_replaced)
            if lost:
                yield Kind.TOKENS, lost
        num_metrics = sum(event.get("type") == "metrics" for event in self._events)
        if num_metrics != 1:
            yield Kind.CONTRACT, f"{num_metrics} metrics events"
        if self.outcome and self.outcome.startswith("end"):
            due = self._ask.due()
            said = (terminal.get("tokens_out"), terminal.get("stop_sequence_matched"))
            if said != (due.num_tokens, due.stop_sequence):
                yield Kind.TOKENS, f"the end says {terminal}, {due} was due"

    def _openai_tokens(self) -> Iterator[Finding]:
        choices = [choice for event in self._events if "error" not in event for choice in event.get("choices", ())]
        if self._ask.path == "/v1/chat/completions":
            pieces = [choice["delta"].get("content") or "" for choice in choices]
            if choices and choices[0]["delta"].get("role") != "assistant":
                yield Kind.CONTRACT, f"the first chunk is {choices[0]}"
        else:
            pieces = [choice["text"] for choice in choices]
        if len({event.get("id") for event in self._events if "error" not in event}) > 1:
            yield Kind.CONTRACT, "the chunks of one answer have several ids"
        yield from self._text("".join(pieces), None)

    def _text(self, text: str, num_tokens: int | None) -> Iterator[Finding]:
        """Args: num_tokens: How many the text is said to be of, where the format says so."""
        self.text = text
        ask = self._ask
        due = ask.due()
        if self.outcome and self.outcome.startswith("end"):
            if text != due.text:
                yield Kind.TOKENS, f"the text is {text!r}, {due.text!r} was due"
        elif not due.text.startswith(text):
            yield Kind.TOKENS, f"the text is {text!r}, which {due.text!r} does not begin with"
        elif num_tokens is not None and not ask.stops and num_tokens < due.num_tokens:
            so_far = spoken(ask.key, num_tokens)
            if text != so_far:
                yield Kind.TOKENS, f"{num_tokens} tokens are {so_far!r}, {text!r} came"

    def _usage(self, usage: Any, at_least: int = 0) -> Iterator[Finding]:
        if not isinstance(usage, dict):
            yield Kind.CONTRACT, f"the usage is {usage!r}"
            return
        prompt, completion, total = (usage[f"{name}_tokens"] for name in ("prompt", "completion", "total"))
        if prompt + completion != total or prompt < 1 or completion < at_least:
            yield Kind.CONTRACT, f"the usage is {usage}, and {at_least} tokens came"
        self._num_tokens = completion
        if self.outcome and self.outcome.startswith("end") and completion != self._ask.due().num_tokens:
            yield Kind.TOKENS, f"the usage is {usage}, {self._ask.due()} was due"

    def _reason(self) -> Iterator[Finding]:
        """Whether this ending was to be expected."""
        if self.outcome is None:
            return
        num_tokens = self._num_tokens
        if num_tokens is None and self.text:  # OpenAI's errors carry no usage
            num_tokens = 1
        yield from reason_findings(self._ask, self.outcome, self._around, num_tokens)


def reason_findings(ask: Ask, outcome: str, around: Circumstances, num_tokens: int | None = None) -> Iterator[Finding]:
    """What is wrong with this outcome under these circumstances.

    Args:
        ask: What was asked for.
        outcome: How it ended.
        around: What happened meanwhile.
        num_tokens: How many were generated, or some of them; None if nobody says.
    """
    due = ask.due()
    codes = FAILURES | _overdue(ask, around, num_tokens)
    if around.was_replaced:
        codes |= FAREWELLS
    allowed = {f"error{{{code}}}" for code in codes}
    most = None if around.num_at_cancel is None else around.num_at_cancel + TOKENS_AFTER_CANCEL
    if most is None or due.num_tokens <= most:  # else a DELETE came before the end was on its way
        allowed.add(f"end{{{due.stop_reason}}}")
    if around.is_cancelled or around.is_half_closed:
        allowed.add("cancelled")
    if outcome not in allowed:
        kind = Kind.CONTRACT if most is None else Kind.UNWANTED
        yield kind, f"it ended with {outcome}; to be expected were {sorted(allowed)} ({around})"
    elif most is not None and num_tokens is not None and num_tokens > most:
        yield Kind.UNWANTED, f"DELETE was answered at {around.num_at_cancel} tokens, and {num_tokens} were generated"


def _overdue(ask: Ask, around: Circumstances, num_tokens: int | None) -> set[str]:
    """Codes of the limits that a stream of this age may have reached."""
    limits_s = {"TIMEOUT": ask.fields.get("deadline_s", TOTAL_TIMEOUT_S)}
    if num_tokens != 0:
        limits_s["STALLED"] = TOKEN_TIMEOUT_S
    if not num_tokens:
        limits_s |= {"QUEUE_TIMEOUT": QUEUE_TIMEOUT_S, "FIRST_TOKEN_TIMEOUT": FIRST_TOKEN_TIMEOUT_S}
    if around.is_slow:
        limits_s["SLOW_CONSUMER"] = SLOW_CONSUMER_S
    return {code for code, limit_s in limits_s.items() if around.age_s >= limit_s}


def lost_text(ask: Ask, text: str, num_tokens: int, outcome: str, was_replaced: bool) -> str:
    """How the text of a stream that broke off is not that of so many tokens; empty when it is.

    Every token that was drawn has been sent, except those that are not decidable yet (`oracle.shown`): of a character
    at most 3 (worker/engine/detokenizer.py, which is exact for bytes), and what may begin a stop string
    (worker/engine/stop_strings.py). One more is counted and never sent where its own detokenizer raised, or where the
    stream was ended from outside in the middle of a step.
    """
    nums_sent = {num_tokens}
    if num_tokens and (outcome == "error{INFERENCE_FAILED}" or was_replaced):
        nums_sent.add(num_tokens - 1)
    due = {shown(ask.key, num_sent, ask.stops) for num_sent in nums_sent}
    return "" if text in due else f"{outcome} after {num_tokens} tokens and the text {text!r}; due was one of {due}"


def _is_native_terminal(payload: dict[str, Any]) -> bool:
    return payload.get("type") in ("end", "error")


def _is_openai_terminal(payload: dict[str, Any]) -> bool:
    return "error" in payload or any(choice.get("finish_reason") for choice in payload.get("choices", ()))


def judge_whole(ask: Ask, status: int, body: bytes, around: Circumstances) -> Verdict:
    """Judge an answer that was not streamed: a 200 with the whole text, or an error that names its code."""
    try:
        payload = json.loads(body)
        if status != 200:
            code = payload["error"]["code"]
            outcome = "cancelled" if code == "CANCELLED" else f"error{{{code}}}"
            return Verdict(list(reason_findings(ask, outcome, around)), outcome)
        choice = payload["choices"][0]
        text = choice["message"]["content"] if ask.path == "/v1/chat/completions" else choice["text"]
        reason, completion = choice["finish_reason"], payload["usage"]["completion_tokens"]
        job_id = payload["id"].rpartition("-")[2]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return Verdict([(Kind.CONTRACT, f"{error!r} in {body[:200]!r}")])
    due = answer(ask.key, ask.max_tokens, ask.stops)
    findings: list[Finding] = []
    if (text, reason, completion) != (due.text, _FINISH_REASONS[due.stop_reason], due.num_tokens):
        findings.append((Kind.TOKENS, f"{(text, reason, completion)} came, {due} was due"))
    return Verdict(findings, f"end{{{due.stop_reason}}}", job_id)
