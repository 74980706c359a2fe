"""Every check is shown to fail, by a server that does exactly one thing wrong, and to pass by one that does none."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.little_server import FAULTS, SHORT_SILENCE, WAITS, Fault, IsSlowToAccept, LittleServer, SplitsTokens
from tests.scripted_server import ScriptedServer
from worker import rules
from worker.check import Options, run_check
from worker.checks.asking import Limits
from worker.checks.table import CHECKS

# Short, for a server that answers in milliseconds on a machine that may be busy.
QUICK = Limits(check_s=10.0, crowd=6, watch_s=0.1, freed_s=5.0, burst_s=0.03)


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


def patched(monkeypatch: pytest.MonkeyPatch, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of Limits; those of the rules are set there."""
    left = dict(options)
    for name in ("SILENCE_LIMIT_S", "HELD_BACK_S"):
        if name in left:
            monkeypatch.setattr(rules, name, left.pop(name))
    return left


@pytest.mark.slow
@pytest.mark.parametrize("api", ["native", "openai"])
def test_a_correct_server_passes_every_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    report = report_of(capsys, LittleServer(), api, **patched(monkeypatch, WAITS | SHORT_SILENCE))
    assert of_verdict(report, "fail") == {}
    assert of_verdict(report, "skipped") == {}
    assert report["passed"] is True
    assert [check["name"] for check in report["checks"]] == [check.name for check in CHECKS if check.api == api]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.api}-{fault.check}-{fault.server.__name__}")
def test_a_broken_server_fails_its_check_and_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    report = report_of(capsys, fault.server(), fault.api, **patched(monkeypatch, fault.options))
    failed = of_verdict(report, "fail")
    assert failed.keys() == {fault.check} | fault.also
    assert fault.reason in "; ".join(failed[fault.check])
    assert report["passed"] is False


@pytest.mark.slow
def test_a_token_in_two_chunks_breaks_no_promise(capsys: pytest.CaptureFixture[str]) -> None:
    assert of_verdict(report_of(capsys, SplitsTokens(), "openai"), "fail") == {}


@pytest.mark.slow
@pytest.mark.parametrize("api", ["native", "openai"])
def test_a_machine_that_is_too_busy_breaks_no_promise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    options = patched(monkeypatch, WAITS | {"crowd": 12})
    report = report_of(capsys, IsSlowToAccept(), api, **options)
    assert of_verdict(report, "fail") == {}


def test_every_check_has_a_broken_server() -> None:
    assert {(fault.api, fault.check) for fault in FAULTS} == {(check.api, check.name) for check in CHECKS}


def test_names_are_unique_within_a_format() -> None:
    names = [(check.api, check.name) for check in CHECKS]
    assert len(set(names)) == len(names)
