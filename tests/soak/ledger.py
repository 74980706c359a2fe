"""What is known about all streams of a run: findings, counts, and each job's ending, to be held against the log.

The log is the product's own: one line per request, with its outcome. A job that a client knows of must have exactly
one, and it must say what the client was told.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.soak.asks import Ask
from tests.soak.exchange import Ending, Exchange
from tests.soak.judge import Circumstances, Finding, Kind, Verdict, judge, judge_whole, lost_text
from tests.soak.server import (
    FIRST_TOKEN_TIMEOUT_S,
    KEEP_ALIVE_S,
    QUEUE_TIMEOUT_S,
    SLOW_CONSUMER_S,
    TOTAL_TIMEOUT_S,
)

_OUTCOME = re.compile(
    r"\brequest (\w+) .*?outcome=(\w+)\{(\w*)\} prompt_tokens=\d+ tokens=(\d+) queue_ms=(\d+) .*?total_ms=(\d+)"
)
# A traceback: its head, its indented lines, and the error.
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n)*(\S.*)$", re.MULTILINE)
_MEANT = ("tests.soak.faults.Injected", "SystemExit: injected")
_DETAILS_SHOWN = 30
JOB_LIFE_S = 15.0  # no job lasts longer: the total limit and a margin
# The promise is 100 ms from acceptance. What is later than this is no busy machine: something else was waited for.
LATE_S = 3.0
# The same for keep-alives, and for what a leave or a DELETE takes. The promise is one step, a slow one 0.3 s.
SILENCE_S = 3 * KEEP_ALIVE_S
UNWANTED_S = 2.0
# What ends a stream that nobody reads, if its client's leaving did not.
_UNSEEN_LEAVES = {("error", "SLOW_CONSUMER")} | {("cancelled", by) for by in ("unclaimed", "orphan", "engine")}
ROUNDING_S = 0.002  # of two of the log's milliseconds
SHORTEST_DEADLINE_S = 2.5  # of those that asks.py draws
NEAR_S = 60.0  # what may have to do with what happened to a job
KILL_S = 1.0  # from our decision to kill to the death
# What a 503 says when it is no refusal but the end of an answer that was not to be streamed.
_FAILURES_503 = ("VRAM_OOM", "ENGINE_DEAD", "SHUTTING_DOWN", "SLOW_CONSUMER")


@dataclass(frozen=True)
class Replacement:
    """Something that ended a worker process. Times are monotonic; `ended_at` is when the next one was ready."""

    name: str
    is_kill: bool
    is_death: bool
    began_at: float
    ended_at: float = float("inf")


class Ledger:
    """The accounts of one run under one worker class."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.replacements: list[Replacement] = []
        self.first_event_s: list[float] = []
        self.longest_silence_s = 0.0
        self.longest_unwanted_s = 0.0
        self._jobs: dict[str, _Job] = {}

    # ---- what happened to the process

    def begin_replacement(self, replacement: Replacement) -> None:
        """Something is about to end the worker."""
        self.replacements.append(replacement)

    def end_replacement(self, at: float) -> None:
        """The next worker is ready."""
        last = self.replacements[-1]
        self.replacements[-1] = Replacement(last.name, last.is_kill, last.is_death, last.began_at, at)

    def circumstances(
        self,
        since: float,
        until: float,
        *,
        is_cancelled: bool = False,
        is_slow: bool = False,
        idle_s: float = 0.0,
        is_half_closed: bool = False,
        asked_at: float | None = None,
        num_at_cancel: int | None = None,
    ) -> Circumstances:
        """What happened between two moments. `asked_at`: of the request, if it was earlier."""
        met = [one for one in self.replacements if one.began_at <= until and since <= one.ended_at]
        return Circumstances(
            # A process that died has told every stream its end, and then exits: who reads slowly may miss it.
            was_killed=any(one.is_kill or (one.is_death and is_slow) for one in met),
            was_replaced=bool(met),
            is_cancelled=is_cancelled,
            is_slow=is_slow,
            idle_s=idle_s,
            is_half_closed=is_half_closed,
            age_s=until - (since if asked_at is None else asked_at),
            num_at_cancel=num_at_cancel,
        )

    def was_replaced(self, since: float) -> bool:
        """Whether the process was told to end or died since then."""
        return any(one.ended_at >= since for one in self.replacements)

    # ---- what clients saw

    def add(self, kind: Kind, detail: str) -> None:
        """Note something that must not be."""
        self.findings.append((kind, detail))

    def note_refusal(self, exchange: Exchange) -> bool:
        """Whether this answer is a refusal for now, which any request may get. It has to say when to come back."""
        if exchange.status not in (429, 503) or exchange.ending not in (Ending.COMPLETE, Ending.LEFT):
            return False
        if any(f'"{code}"'.encode() in exchange.body for code in _FAILURES_503):
            return False
        if exchange.ending is Ending.COMPLETE and not exchange.headers.get("retry-after", "").isdigit():
            self.add(Kind.ANSWER, f"{exchange.status} without Retry-After: {bytes(exchange.body[:200])!r}")
        self.counts[f"refused with {exchange.status}"] += 1
        return True

    def note_no_answer(self, exchange: Exchange) -> bool:
        """Whether this exchange has no answer to judge, because somebody went before there was one."""
        if exchange.ending is Ending.HUNG and not exchange.status:
            self.add(Kind.HANG, "not a byte of an answer came")
        elif exchange.ending is Ending.UNANSWERED:
            self.counts["connections closed before an answer"] += 1
            around = self.circumstances(exchange.opened_at, exchange.ended_at)
            if not (around.was_replaced or exchange.is_half_closed):
                self.add(Kind.ANSWER, "the connection was closed without an answer")
        elif exchange.ending is Ending.CUT and not exchange.is_event_stream and self._was_dying(exchange):
            self.counts["answers cut with their process"] += 1
            return True
        elif not exchange.status:
            self.counts["left before the first byte"] += 1
        return not exchange.status

    def _was_dying(self, exchange: Exchange) -> bool:
        """Whether the process went without waiting for anybody: killed, or dead and past the second that it lingers.

        A stream has its terminal event by then; a refusal that was begun in the last moment is cut.
        """
        return any(
            (one.is_kill or one.is_death) and one.began_at <= exchange.ended_at and exchange.opened_at <= one.ended_at
            for one in self.replacements
        )

    def note_fault(self, exchange: Exchange) -> bool:
        """Whether this answer is the tokenizer's injected fault. How many there were is compared at the end."""
        if exchange.status == 500 and b'"INTERNAL"' in exchange.body:
            self.counts["answered with 500 INTERNAL"] += 1
            return True
        return False

    def note_stream(
        self,
        ask: Ask,
        exchanges: Sequence[Exchange],
        *,
        is_cancelled: bool = False,
        is_slow: bool = False,
        is_plain: bool = False,
        job_id: str | None = None,
        asked_at: float | None = None,
        num_at_cancel: int | None = None,
    ) -> Verdict:
        """Judge a stream that was read in one exchange, or in several that were resumed.

        Args:
            ask: What was asked for.
            exchanges: The readings.
            is_cancelled: Its client has sent DELETE, or may have left it alone for too long.
            is_slow: Its client did not read for a while.
            is_plain: Its client's leaving ends it.
            job_id: If it was known before.
            asked_at: When its client asked for it; when it began to read, if not given.
            num_at_cancel: See `Circumstances`.
        """
        last = exchanges[-1]
        around = self.circumstances(
            exchanges[0].opened_at,
            last.ended_at,
            is_cancelled=is_cancelled,
            is_slow=is_slow,
            idle_s=last.longest_idle_s,
            is_half_closed=last.is_half_closed,
            asked_at=asked_at,
            num_at_cancel=num_at_cancel,
        )
        bodies = [bytes(exchange.body) for exchange in exchanges]
        verdict = judge(ask, bodies, last.ending, around)
        self.counts["streams"] += 1
        self.counts["readings"] += len(exchanges)
        self.counts["read to the end" if last.ending is Ending.COMPLETE else f"streams {last.ending.value}"] += 1
        for exchange in exchanges:
            self._note_times(exchange, is_slow)
        since, known_at = exchanges[0].opened_at, exchanges[0].first_byte_at or last.ended_at
        job = self._note_verdict(ask, verdict, asked_at or since, known_at, job_id)
        if job is not None:
            if verdict.outcome is not None and not verdict.outcome.startswith("end"):
                job.broken_text, job.was_replaced = verdict.text, around.was_replaced
            if is_plain and last.left_at is not None:
                job.unwanted_at, job.is_left = last.left_at, not is_slow
        return verdict

    def note_whole(self, ask: Ask, exchange: Exchange, *, asked_at: float | None = None) -> None:
        """Judge an answer that was not streamed."""
        around = self.circumstances(
            exchange.opened_at, exchange.ended_at, is_half_closed=exchange.is_half_closed, asked_at=asked_at
        )
        self.counts["answers without a stream"] += 1
        if exchange.ending is not Ending.COMPLETE:
            self.counts[f"answers {exchange.ending.value}"] += 1
            if exchange.ending is not Ending.LEFT and not around.was_killed:
                self.add(Kind.CUT, f"an answer that is {exchange.ending.value}: {bytes(exchange.body[:200])!r}")
            return
        verdict = judge_whole(ask, exchange.status, bytes(exchange.body), around)
        since, known_at = exchange.opened_at, exchange.first_byte_at or exchange.ended_at
        self._note_verdict(ask, verdict, asked_at or since, known_at, None)

    def note_job(self, job_id: str, since: float, ask: Ask, known_at: float) -> None:
        """A job was accepted; nobody may ever read it."""
        self._jobs.setdefault(job_id, _Job(since, ask, known_at))

    def note_unwanted(self, job_id: str, at: float) -> None:
        """From this moment on, a job that was noted has nobody who wants it, and the server knows."""
        self._jobs[job_id].unwanted_at = at

    def _note_times(self, exchange: Exchange, is_slow: bool) -> None:
        if exchange.first_byte_at is None or is_slow:
            return
        self.longest_silence_s = max(self.longest_silence_s, exchange.longest_silence_s)
        if not self.was_replaced(exchange.opened_at):
            if exchange.longest_silence_s > SILENCE_S:
                tail = bytes(exchange.body[-80:])
                self.add(Kind.SILENCE, f"not a byte for {exchange.longest_silence_s:.1f} s; it ends with {tail!r}")
            waited_s = exchange.first_byte_at - exchange.opened_at
            self.first_event_s.append(waited_s)
            if waited_s > LATE_S:
                self.add(Kind.LATE, f"the first event came after {waited_s:.1f} s")

    def _note_verdict(
        self, ask: Ask, verdict: Verdict, since: float, known_at: float, job_id: str | None
    ) -> "_Job | None":
        job_id = verdict.job_id or job_id
        for kind, detail in verdict.findings:
            self.add(kind, f"{ask.path} {job_id}: {detail}")
        if verdict.outcome is not None:
            self.outcomes[verdict.outcome] += 1
        if job_id is None:
            return None
        job = self._jobs.setdefault(job_id, _Job(since, ask, known_at))
        if verdict.outcome is not None and job.outcome not in (None, verdict.outcome):
            self.add(Kind.OUTCOME, f"job {job_id} told one reader {job.outcome} and another {verdict.outcome}")
        job.outcome = verdict.outcome or job.outcome
        return job

    # ---- what the server says

    def compare_with_log(self, log: str) -> None:
        """Each job that a client knows of has exactly one line, and it says what the client was told.

        No limit was reached before its time, nobody was left at work for a client that had gone, and no error was
        logged but those that were meant.
        """
        strangers = Counter(error for error in _TRACEBACK.findall(log) if not error.startswith(_MEANT))
        for error, number in strangers.items():
            self.add(Kind.UNEXPLAINED, f"{number} x in the log: {error}")
        written: dict[str, list[_Line]] = {}
        for job_id, outcome, detail, *numbers in _OUTCOME.findall(log):
            num_tokens, queue_ms, total_ms = map(int, numbers)
            line = _Line(outcome, detail, num_tokens, queue_ms / 1000, total_ms / 1000)
            written.setdefault(job_id, []).append(line)
        self.counts["outcome lines"] = sum(map(len, written.values()))
        for job_id, lines in written.items():
            if len(lines) > 1:
                self.add(Kind.OUTCOME, f"job {job_id} has {len(lines)} outcome lines: {lines}")
            known = self._jobs.get(job_id)
            if lines[0].is_too_soon(known.ask if known is not None else None):
                self.add(Kind.UNEXPLAINED, f"job {job_id} reached a limit before its time: {lines[0]}")
        for job_id, job in self._jobs.items():
            if job_id in written:
                for kind, detail in self._job_findings(job, written[job_id][0]):
                    self.add(kind, f"job {job_id} {detail}")
            elif not self._may_have_no_line(job):
                self.add(Kind.OUTCOME, f"job {job_id} has no outcome line; its client {self._story(job)}")

    def _job_findings(self, job: "_Job", line: "_Line") -> Iterator[Finding]:
        """What a job's line says that cannot be, after what its client has seen and done."""
        if job.outcome is not None and line.said != job.outcome:
            yield Kind.OUTCOME, f"ended with {line.said}; its client was told {job.outcome}"
        elif line.outcome == "end" and line.num_tokens != job.ask.due().num_tokens:
            yield Kind.OUTCOME, f"ended with {line}; {job.ask.due()} was due"
        elif job.broken_text is not None:  # OpenAI's errors carry no usage: the line has it
            lost = lost_text(job.ask, job.broken_text, line.num_tokens, line.said, job.was_replaced)
            if lost:
                yield Kind.TOKENS, f"lost what was waiting: {lost}"
        if job.unwanted_at is None:
            return
        # It was submitted after its client asked for it, so that it went on for at least this long.
        went_on_s = job.since + line.total_s - job.unwanted_at
        if self.circumstances(job.since, job.unwanted_at + max(UNWANTED_S, went_on_s)).was_replaced:
            return
        self.longest_unwanted_s = max(self.longest_unwanted_s, went_on_s)
        if went_on_s > UNWANTED_S:
            yield Kind.UNWANTED, f"went on for {went_on_s:.1f} s when nobody wanted it any more: {line}"
        elif job.is_left and (line.outcome, line.detail) in _UNSEEN_LEAVES:
            yield Kind.UNWANTED, f"was left by its client, who was not missed: {line}"

    def _may_have_no_line(self, job: "_Job") -> bool:
        """Whether a SIGKILL came before the line could be written: the only thing that nobody can write about."""
        return any(
            one.is_kill and job.since - KILL_S <= one.began_at <= job.known_at + JOB_LIFE_S for one in self.replacements
        )

    def _story(self, job: "_Job") -> str:
        times = [(one.name, one.began_at - job.since) for one in self.replacements]
        near = ", ".join(f"{name} after {after_s:.1f} s" for name, after_s in times if abs(after_s) < NEAR_S)
        return (
            f"had its id after {job.known_at - job.since:.1f} s and was told {job.outcome}; {near or 'no worker left'}"
        )

    def shown_findings(self) -> list[str]:
        """The first of them, in words."""
        lines = [f"{kind.value}: {detail}" for kind, detail in self.findings[:_DETAILS_SHOWN]]
        left = len(self.findings) - len(lines)
        return [*lines, f"and {left} more"] if left > 0 else lines


@dataclass(frozen=True)
class _Line:
    """What the log says of one request."""

    outcome: str
    detail: str
    num_tokens: int
    queue_s: float
    total_s: float

    @property
    def said(self) -> str:
        """As a client is told it."""
        return "cancelled" if self.outcome == "cancelled" else f"{self.outcome}{{{self.detail}}}"

    def is_too_soon(self, ask: Ask | None) -> bool:
        """Whether it names a limit that was not reached. Also for those that nobody has read to their end."""
        deadline_s = SHORTEST_DEADLINE_S if ask is None else ask.fields.get("deadline_s", TOTAL_TIMEOUT_S)
        match self.detail:
            case "TIMEOUT":
                return bool(self.total_s < deadline_s)
            case "QUEUE_TIMEOUT":
                return self.num_tokens > 0 or self.queue_s < QUEUE_TIMEOUT_S
            case "FIRST_TOKEN_TIMEOUT":
                return self.num_tokens > 0 or self.total_s - self.queue_s < FIRST_TOKEN_TIMEOUT_S - ROUNDING_S
            case "SLOW_CONSUMER":
                return self.total_s < SLOW_CONSUMER_S
        return False


@dataclass
class _Job:
    """What clients know of a job.

    Attributes:
        since: When its client asked for it, monotonic.
        known_at: When its client had its id, and the server had it: while a worker is replaced, requests wait for the
            next one.
        outcome: What its readers were told.
        broken_text: All of its text, where it ended with something else than an end.
        was_replaced: Whether the process was told to end, or died, while it was read.
        unwanted_at: When it had nobody any more who wanted it, and the server could know.
        is_left: Whether that was by the leaving of a client that had read all so far.
    """

    since: float
    ask: Ask
    known_at: float
    outcome: str | None = None
    broken_text: str | None = None
    was_replaced: bool = False
    unwanted_at: float | None = None
    is_left: bool = False
