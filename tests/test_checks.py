"""Every check is shown to fail, by a server that does exactly one thing wrong, and to pass by one that does none."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.little_server import FAULTS, WAITS, Fault, LittleServer, SplitsTokens
from tests.scripted_server import ScriptedServer
from worker import rules
from worker.check import Options, run_check
from worker.checks.asking import Limits
from worker.checks.table import CHECKS

# Short, for a server that answers in milliseconds on a machine that may be busy.
QUICK = Limits(check_s=10.0, crowd=6, watch_s=0.1, freed_s=1.5, burst_s=0.03)


@contextmanager
def serving(server: LittleServer) -> Iterator[str]:
    with ScriptedServer({}, otherwise=server.serve) as running:
        try:
            yield running.url
        finally:
            server.is_over.set()


def report_of(capsys: pytest.CaptureFixture[str], server: LittleServer, api: str, **options: Any) -> dict[str, Any]:
    with serving(server) as url:
        run_check(url, Options(api=api, limits=replace(QUICK, **options)), as_json=True)
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def of_verdict(report: dict[str, Any], verdict: str) -> dict[str, list[str]]:
    return {check["name"]: check["reasons"] for check in report["checks"] if check["verdict"] == verdict}


@pytest.mark.slow
@pytest.mark.parametrize("api", ["native", "openai"])
def test_a_correct_server_passes_every_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    monkeypatch.setattr(rules, "SILENCE_LIMIT_S", 0.4)
    monkeypatch.setattr(rules, "HELD_BACK_S", WAITS["HELD_BACK_S"])
    report = report_of(capsys, LittleServer(), api, watch_s=WAITS["watch_s"], long_tokens=WAITS["long_tokens"])
    assert of_verdict(report, "fail") == {}
    assert of_verdict(report, "skipped") == {}
    assert report["passed"] is True
    assert [check["name"] for check in report["checks"]] == [check.name for check in CHECKS if check.api == api]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.api}-{fault.check}-{fault.server.__name__}")
def test_a_broken_server_fails_its_check_and_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    options: dict[str, Any] = dict(fault.options)
    for name in ("SILENCE_LIMIT_S", "HELD_BACK_S"):
        if name in options:
            monkeypatch.setattr(rules, name, options.pop(name))
    report = report_of(capsys, fault.server(), fault.api, **options)
    failed = of_verdict(report, "fail")
    assert failed.keys() == {fault.check} | fault.also
    assert fault.reason in "; ".join(failed[fault.check])
    assert report["passed"] is False


@pytest.mark.slow
def test_a_token_in_two_chunks_breaks_no_promise(capsys: pytest.CaptureFixture[str]) -> None:
    assert of_verdict(report_of(capsys, SplitsTokens(), "openai"), "fail") == {}


def test_every_check_has_a_broken_server() -> None:
    assert {(fault.api, fault.check) for fault in FAULTS} == {(check.api, check.name) for check in CHECKS}


def test_names_are_unique_within_a_format() -> None:
    names = [(check.api, check.name) for check in CHECKS]
    assert len(set(names)) == len(names)
