"""What is known about all streams of a run: findings, counts, and each job's ending, to be held against the log.

The log is the product's own: one line per request, with its outcome. A job that a client knows of must have exactly
one, and it must say what the client was told.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.soak.asks import Ask
from tests.soak.exchange import Ending, Exchange
from tests.soak.judge import Circumstances, Finding, Kind, Verdict, judge, judge_whole

_OUTCOME = re.compile(r"\brequest (\w+) .*?outcome=(\w+)\{(\w*)\}")
# A traceback: its head, its indented lines, and the error.
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n)*(\S.*)$", re.MULTILINE)
_MEANT = ("tests.soak.faults.Injected", "SystemExit: injected")
_DETAILS_SHOWN = 30
JOB_LIFE_S = 15.0  # no job lasts longer: the total limit and a margin
# The promise is 100 ms from acceptance. What is later than this is no busy machine: something else was waited for.
LATE_S = 3.0
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
        is_half_closed: bool = False,
    ) -> Circumstances:
        """What happened between two moments."""
        met = [one for one in self.replacements if one.began_at <= until and since <= one.ended_at]
        return Circumstances(
            # A process that died has told every stream its end, and then exits: who reads slowly may miss it.
            was_killed=any(one.is_kill or (one.is_death and is_slow) for one in met),
            was_replaced=bool(met),
            is_cancelled=is_cancelled,
            is_slow=is_slow,
            is_half_closed=is_half_closed,
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
        job_id: str | None = None,
    ) -> Verdict:
        """Judge a stream that was read in one exchange, or in several that were resumed."""
        last = exchanges[-1]
        around = self.circumstances(
            exchanges[0].opened_at,
            last.ended_at,
            is_cancelled=is_cancelled,
            is_slow=is_slow,
            is_half_closed=last.is_half_closed,
        )
        bodies = [bytes(exchange.body) for exchange in exchanges]
        verdict = judge(ask, bodies, last.ending, around)
        self.counts["streams"] += 1
        self.counts["readings"] += len(exchanges)
        self.counts["read to the end" if last.ending is Ending.COMPLETE else f"streams {last.ending.value}"] += 1
        for exchange in exchanges:
            self._note_times(exchange, is_slow)
        self._note_verdict(ask, verdict, exchanges[0].opened_at, job_id, last.ending)
        return verdict

    def note_whole(self, ask: Ask, exchange: Exchange) -> None:
        """Judge an answer that was not streamed."""
        around = self.circumstances(exchange.opened_at, exchange.ended_at, is_half_closed=exchange.is_half_closed)
        self.counts["answers without a stream"] += 1
        if exchange.ending is not Ending.COMPLETE:
            self.counts[f"answers {exchange.ending.value}"] += 1
            if exchange.ending is not Ending.LEFT and not around.was_killed:
                self.add(Kind.CUT, f"an answer that is {exchange.ending.value}: {bytes(exchange.body[:200])!r}")
            return
        verdict = judge_whole(ask, exchange.status, bytes(exchange.body), around)
        self._note_verdict(ask, verdict, exchange.opened_at, None, exchange.ending)

    def note_job(self, job_id: str, since: float) -> None:
        """A job was accepted; nobody may ever read it."""
        self._jobs.setdefault(job_id, _Job(since))

    def _note_times(self, exchange: Exchange, is_slow: bool) -> None:
        if exchange.first_byte_at is None or is_slow:
            return
        self.longest_silence_s = max(self.longest_silence_s, exchange.longest_silence_s)
        if not self.was_replaced(exchange.opened_at):
            waited_s = exchange.first_byte_at - exchange.opened_at
            self.first_event_s.append(waited_s)
            if waited_s > LATE_S:
                self.add(Kind.LATE, f"the first event came after {waited_s:.1f} s")

    def _note_verdict(self, ask: Ask, verdict: Verdict, since: float, job_id: str | None, ending: Ending) -> None:
        job_id = verdict.job_id or job_id
        for kind, detail in verdict.findings:
            self.add(kind, f"{ask.path} {job_id}: {detail}")
        if verdict.outcome is not None:
            self.outcomes[verdict.outcome] += 1
        if job_id is not None:
            job = self._jobs.setdefault(job_id, _Job(since))
            if verdict.outcome is not None and job.outcome not in (None, verdict.outcome):
                self.add(Kind.OUTCOME, f"job {job_id} told one reader {job.outcome} and another {verdict.outcome}")
            job.outcome = verdict.outcome or job.outcome

    # ---- what the server says

    def compare_with_log(self, log: str) -> None:
        """Each job that a client knows of has exactly one line, and it says what the client was told.

        And no error was logged but those that were meant.
        """
        strangers = Counter(error for error in _TRACEBACK.findall(log) if not error.startswith(_MEANT))
        for error, number in strangers.items():
            self.add(Kind.UNEXPLAINED, f"{number} x in the log: {error}")
        written: dict[str, list[tuple[str, str]]] = {}
        for job_id, outcome, detail in _OUTCOME.findall(log):
            written.setdefault(job_id, []).append((outcome, detail))
        self.counts["outcome lines"] = sum(map(len, written.values()))
        for job_id, lines in written.items():
            if len(lines) > 1:
                self.add(Kind.OUTCOME, f"job {job_id} has {len(lines)} outcome lines: {lines}")
        for job_id, job in self._jobs.items():
            line = written.get(job_id, [None])[0]
            if line is None:
                if not self._may_have_no_line(job):
                    self.add(Kind.OUTCOME, f"job {job_id} has no outcome line; its client was told {job.outcome}")
                continue
            said = "cancelled" if line[0] == "cancelled" else f"{line[0]}{{{line[1]}}}"
            if job.outcome is not None and said != job.outcome:
                self.add(Kind.OUTCOME, f"job {job_id} ended with {said}; its client was told {job.outcome}")

    def _may_have_no_line(self, job: "_Job") -> bool:
        """Whether a SIGKILL came before the line could be written: the only thing that nobody can write about."""
        return any(
            one.is_kill and job.since - KILL_S <= one.began_at <= job.since + JOB_LIFE_S for one in self.replacements
        )

    def shown_findings(self) -> list[str]:
        """The first of them, in words."""
        lines = [f"{kind.value}: {detail}" for kind, detail in self.findings[:_DETAILS_SHOWN]]
        left = len(self.findings) - len(lines)
        return [*lines, f"and {left} more"] if left > 0 else lines


@dataclass
class _Job:
    since: float  # when its client asked for it, monotonic
    outcome: str | None = None
