"""The table of checks, and the run over it.

Its law: every check of the table is shown to fail by a broken server of its own, in tests/test_checks.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from worker.checks import judges, probes
from worker.checks.asking import Limits
from worker.checks.probes import CannotTell, Refusal, Scene
from worker.recording import Transcript
from worker.rules import NATIVE_RULES, OPENAI_RULES, Rule, refusal

JOBS = "/v1/jobs"


@dataclass(frozen=True)
class Check:
    """One promise, and how it is found out whether it is kept.

    Attributes:
        name: A slug, the same in both formats where the promise is.
        probe: Asks; its result is shared by the checks that have the same probe.
        judge: Yields what is wrong with it.
        measure: Numbers worth knowing, whatever the verdict.
        needs_plain: Whether a complete plain stream is needed to tell anything.
    """

    name: str
    api: str
    route: str
    promise: str
    probe: Callable[[Scene], Any]
    judge: Callable[[Any, Limits], Iterable[str]]
    measure: Callable[[Any], Mapping[str, Any]] = lambda evidence: {}
    needs_plain: bool = True


@dataclass(frozen=True)
class Outcome:
    """A check's verdict: pass, fail or skipped."""

    check: Check
    verdict: str
    reasons: Sequence[str] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)


def _answers(answer: Any, limits: Limits) -> Iterator[str]:
    why = refusal(answer.recording)
    if why:
        yield why


def _rule_check(rule: Rule, api: str, route: str) -> Check:
    def judge(answer: Any, limits: Limits) -> Iterable[str]:
        if refusal(answer.recording):
            raise CannotTell("there is no event stream to judge")
        return rule.problems(Transcript(answer.recording))

    return Check(rule.name, api, route, rule.promise, probes.plain, judge, needs_plain=False)


def _refusal_judge(name: str) -> Callable[[Mapping[str, Refusal], Limits], Iterable[str]]:
    return lambda refusals, limits: judges.refused(refusals[name], limits)


def _crowd_measures(crowd: Any) -> dict[str, Any]:
    return {
        "num_streams": len(crowd.streams),
        "num_open_when_left": len(crowd.open_streams),
        "short_idle_ms": _ms(crowd.baseline_s),
        "short_after_ms": _ms(crowd.after_s),
        "longest_wait_ms": _ms(max(crowd.waits_s(), default=None)),
        "slowest_control_ms": _ms(max((control.ended_at_s for control in crowd.controls), default=None)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _common_checks(api: str, route: str, other_way: str) -> Iterator[Check]:
    """The checks that both formats have."""

    def check(name: str, promise: str, probe: Any, judge: Any, measure: Any = lambda evidence: {}) -> Check:
        return Check(name, api, route, promise, probe, judge, measure)

    yield check("incremental", "tokens come one by one, not in a burst", probes.again, judges.incremental)
    yield check("same-whole", f"the stream is the same as {other_way}", probes.whole, judges.same_another_way)
    yield check("usage", "usage is there, and adds up", probes.whole, judges.usage)
    yield check("max-tokens", "max_tokens reads as length, exactly", probes.few_tokens, judges.truthful_at_max_tokens)
    yield check("utf8", "characters of several bytes are whole", probes.non_ascii, judges.text_is_text)
    yield check("stop", "nothing of a stop string leaks", probes.stop_string, judges.stopped)
    yield check(
        "seed",
        "the same seed gives the same text",
        probes.seeds,
        judges.reproducible,
        lambda seeds: {"another_seed_differs": seeds.first.text != seeds.other.text},
    )
    refused = [
        ("malformed", "malformed JSON is refused"),
        ("bad-value", "an impossible value is refused by name"),
        ("unknown-field", "an unknown field is refused, not ignored"),
    ]
    if api == "openai":
        refused.append(("unknown-model", "an unknown model is refused by name"))
    for name, promise in refused:
        yield check(name, promise, probes.refusals, _refusal_judge(name))
    yield check("error-shape", "refusals are for programs too", probes.refusals, judges.refusals_have_shape)
    yield check(
        "isolated",
        "streams at once do not mix",
        probes.company,
        judges.isolated,
        lambda company: {"num_streams": len(company), "num_different": judges.num_different(company)},
    )
    yield check("head", "HEAD is harmless", probes.heads, judges.head_is_harmless)
    yield check(
        "queued-prompt", "who waits in the queue is answered at once", probes.crowd, judges.prompt_while_waiting
    )
    yield check("queued-alive", "who waits in the queue hears of it", probes.crowd, judges.alive_while_waiting)
    yield check("freed", "leaving frees the capacity", probes.crowd, judges.capacity_freed, _crowd_measures)
    # Last: a server that takes such a prompt has work for a while.
    yield check("too-long", "a prompt that cannot fit is refused", probes.too_long, judges.too_long)


def _native_checks() -> Iterator[Check]:
    api, route = "native", "POST /execute"

    def of_jobs(name: str, promise: str, probe: Any, judge: Any, measure: Any = lambda evidence: {}) -> Check:
        return Check(name, api, JOBS, promise, probe, judge, measure)

    yield Check("answers", api, route, "it answers with an event stream", probes.plain, _answers, needs_plain=False)
    yield from (_rule_check(rule, api, route) for rule in NATIVE_RULES)
    yield of_jobs("resume", "a resumed stream has each event once", probes.resumed, judges.exactly_once)
    yield of_jobs("two-readers", "two readers see the same", probes.two_readers, judges.the_same_for_both)
    yield of_jobs(
        "cancel",
        "DELETE ends a job at once",
        probes.cancelled,
        judges.cancelled_at_once,
        lambda cancelled: {"ended_after_ms": _ms(cancelled.ended_after_s)},
    )
    yield from _common_checks(api, route, "through a job")


def _openai_checks() -> Iterator[Check]:
    api, route = "openai", "POST /v1/chat/completions"
    yield Check("answers", api, route, "it answers with an event stream", probes.plain, _answers, needs_plain=False)
    for rule in OPENAI_RULES:
        check = _rule_check(rule, api, route)
        yield replace(check, probe=probes.plain_with_usage) if rule.name == "usage-chunk" else check
    yield Check("models", api, "GET /v1/models", "the models are listed", probes.models, judges.lists_models)
    yield from _common_checks(api, route, "in one piece")


CHECKS: tuple[Check, ...] = (*_native_checks(), *_openai_checks())


def run_checks(scene: Scene, checks: Sequence[Check]) -> Iterator[Outcome]:
    """Probe and judge, one check after the other, as they stand in the table."""
    evidence: dict[Callable[[Scene], Any], Any] = {}
    for check in checks:
        started_at = time.monotonic()
        measured: dict[str, Any] = {}
        reasons: list[str] = []
        try:
            found = _evidence(scene, check, evidence)
            measured = {**check.measure(found), "took_ms": _ms(time.monotonic() - started_at)}
            for reason in check.judge(found, scene.asker.limits):
                reasons.append(reason)
        except CannotTell as why:
            if not reasons:  # what has been found wrong stays wrong
                yield Outcome(check, "skipped", [str(why)], measured)
                continue
        yield Outcome(check, "fail" if reasons else "pass", reasons, measured)


def _evidence(scene: Scene, check: Check, evidence: dict[Callable[[Scene], Any], Any]) -> Any:
    """What the check's probe brought; it is sent once.

    Raises:
        CannotTell: It cannot be sent here, or there is nothing to compare it with.
    """
    if check.needs_plain and scene.plain.failure:
        raise CannotTell(f"the plain stream is no complete answer: {scene.plain.failure}")
    if check.probe not in evidence:
        scene.asker.begin()
        try:
            evidence[check.probe] = check.probe(scene)
        except CannotTell as why:
            evidence[check.probe] = why
    found = evidence[check.probe]
    if isinstance(found, CannotTell):
        raise found
    return found
