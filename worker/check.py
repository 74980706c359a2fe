"""The conformance checker: does a server, ours or not, keep the stream contract?

It finds out which wire formats the server speaks, streams one prompt in each, shows the text as it comes, runs the
table of checks, and reports each promise with its verdict, for people or as JSON.

Its law: it asks and it shows, and does no more. `worker.recording` writes down what comes and knows nothing of rules,
`worker.rules` judges one stream, `worker.checks` has the scenarios and judges those, and `worker.spawn` starts a
server when there is none to check. What a server sent reaches the terminal through `printable` alone.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.checks.asking import Ask, Asker, Limits
from worker.checks.dialects import Dialect, Native, OpenAI, body_of
from worker.checks.probes import GREEDY, Scene, first_model
from worker.checks.table import CHECKS, Outcome, run_checks
from worker.client import ServerSentEvent
from worker.recording import Frame, Recording
from worker.rules import Verdict
from worker.spawn import SpawnFailed, announced_server

# Everything that a terminal may take for a command, escape first; a model's text is no reason to obey. And halves of
# surrogate pairs, which JSON can say and UTF-8 cannot.
_CONTROLS = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)) if code not in (0x09, 0x0A)
}
_STYLES = {"pass": "green", "fail": "bold red", "skipped": "yellow"}


def printable(text: str) -> str:
    """Text from a server, safe for a terminal."""
    return text.translate(_CONTROLS)


@dataclass(frozen=True)
class Options:
    """What to ask, and how.

    Attributes:
        api: auto, native or openai.
        model: Named in OpenAI requests; None for the first one that the server lists.
        only: Names of checks; empty for all.
        context_tokens: What the model has room for; None when nobody says.
    """

    prompt: str = "Once upon a time"
    max_tokens: int = 64
    api: str = "auto"
    model: str | None = None
    api_key: str | None = None
    only: Collection[str] = ()
    context_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Report:
    """What one format's checks found.

    Attributes:
        plain: The measures of its plain stream.
    """

    api: str
    plain: Verdict
    outcomes: Sequence[Outcome]

    @property
    def problems(self) -> list[str]:
        return [
            f"{outcome.check.route}: {outcome.check.name}: {reason}"
            for outcome in self.outcomes
            if outcome.verdict == "fail"
            for reason in outcome.reasons
        ]


def run_check(
    url: str | None,
    options: Options | None = None,
    *,
    worker_class: str | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> bool:
    """Check the server at `url`, or one that is started for it; say what was found; return whether all is well.

    Starting the server does not count to any limit. With `as_json`, standard output gets one JSON document and
    nothing else.
    """
    options = options or Options()
    console = console or Console(stderr=as_json, quiet=as_json)
    with contextlib.ExitStack() as stack:
        server = None
        if url is None:
            try:
                server = stack.enter_context(announced_server(console, worker_class))
            except SpawnFailed as error:
                console.print(Text(f"FAILED: {printable(str(error))}", style="red"))
                if as_json:
                    print(json.dumps(_document(None, [], 0.0) | {"error": str(error)}))
                return False
            url = server.url
        started_at = time.monotonic()
        reports = list(_reports(url, options, console))
        problems = [problem for report in reports for problem in report.problems]
        if not reports:
            problems.append(f"there is no route to check at {url}: {options.api} was asked for")
        if as_json:
            document = _document(url, reports, time.monotonic() - started_at)
            print(json.dumps(document if reports else document | {"error": problems[0]}))
        for report in reports:
            _show(report, console)
        for problem in problems:
            console.print(Text(printable(problem), style="red"))
        if problems and server is not None:
            console.print(Text(f"the server's log ends with\n{printable(server.log_tail())}", style="dim"))
        console.print(Text("FAILED", style="bold red") if problems else Text("PASSED", style="bold green"))
    return not problems


def _reports(url: str, options: Options, console: Console) -> Iterator[Report]:
    """Find the formats, and run the checks in each."""
    asker = Asker(url, options.limits, options.api_key)

    def show(event: ServerSentEvent) -> None:
        console.file.write(printable(Frame(0.0, event).text))
        console.file.flush()

    for dialect in _dialects(asker, options, console):
        console.print(Text(dialect.route, style="bold"))
        asker.begin()
        ask = dialect.stream(options.prompt, options.max_tokens, **GREEDY)
        recording = asker.ask(ask) if console.quiet else asker.ask(ask, show=show)
        console.print()
        plain = dialect.read(recording)
        scene = Scene(asker, dialect, options.prompt, options.max_tokens, plain, options.context_tokens)
        checks = [c for c in CHECKS if c.api == dialect.name and (not options.only or c.name in options.only)]
        outcomes = []
        with console.status("checking") as status:
            for check, outcome in zip(checks, run_checks(scene, checks), strict=True):
                outcomes.append(outcome)
                status.update(f"checking ({check.name} done)")
        yield Report(dialect.name, dialect.judge(recording), outcomes)


def _dialects(asker: Asker, options: Options, console: Console) -> Iterator[Dialect]:
    """The formats that the server speaks. Asking warms it up: some load their model on the first request."""
    if options.api in ("auto", "native"):
        native = Native()
        asker.begin()
        warm = asker.ask(native.stream(options.prompt, 1, **GREEDY))
        if not _is_missing(warm):
            yield native
        else:
            console.print(Text(f"no native route ({warm.status}): only the OpenAI route is checked", style="dim"))
    if options.api in ("auto", "openai"):
        asker.begin()
        openai = OpenAI(options.model or first_model(asker.ask(Ask("GET", "/v1/models"))))
        warm = asker.ask(openai.stream(options.prompt, 1, **GREEDY))
        if warm.status in (400, 422) and b"stream_options" in body_of(warm):
            openai = OpenAI(openai.model, has_stream_options=False)
            warm = asker.ask(openai.stream(options.prompt, 1, **GREEDY))
        if not _is_missing(warm):
            yield openai
        else:
            console.print(Text(f"no OpenAI route ({warm.status})", style="dim"))


def _is_missing(recording: Recording) -> bool:
    # OpenAI's API answers 404 for a model that it does not have, too; then the route is there.
    return recording.status in (404, 405) and b"model" not in body_of(recording)


def _document(url: str | None, reports: Sequence[Report], took_s: float) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "url": url,
        "passed": bool(reports) and not any(report.problems for report in reports),
        "checks": [
            {
                "name": outcome.check.name,
                "route": outcome.check.route,
                "promise": outcome.check.promise,
                "verdict": outcome.verdict,
                "reasons": list(outcome.reasons),
                "measured": dict(outcome.measured),
            }
            for report in reports
            for outcome in report.outcomes
        ],
        "measured": {
            "took_s": round(took_s, 2),
            **{report.plain.route: _measures(report.plain) for report in reports},
        },
    }


def _measures(plain: Verdict) -> dict[str, Any]:
    measures = asdict(replace(plain, outcomes=()))
    return {name: value for name, value in measures.items() if name not in ("route", "outcomes")}


def _show(report: Report, console: Console) -> None:
    """The measures of the plain stream, then the checks, grouped by route."""

    def milliseconds(value: float | None) -> str:
        return "-" if value is None else f"{value * 1000:.0f} ms"

    plain = report.plain
    measures = Table(title=plain.route, title_justify="left", show_header=False, min_width=60)
    measures.add_row("tokens received", str(plain.num_tokens))
    measures.add_row("time to first event", milliseconds(plain.first_event_s))
    measures.add_row("time to first token", milliseconds(plain.ttft_s))
    measures.add_row("longest gap between tokens", milliseconds(plain.longest_gap_s))
    measures.add_row("longest silence", milliseconds(plain.longest_silence_s))
    measures.add_row("duration", milliseconds(plain.duration_s))
    measures.add_row("terminal event", Text(printable(plain.terminal)))
    console.print(measures)
    for route in dict.fromkeys(outcome.check.route for outcome in report.outcomes):
        checks = Table(title=route, title_justify="left", show_header=False, min_width=60)
        for outcome in (outcome for outcome in report.outcomes if outcome.check.route == route):
            verdict = Text(outcome.verdict, style=_STYLES[outcome.verdict])
            checks.add_row(outcome.check.name, Text(outcome.check.promise), verdict)
        console.print(checks)
    skipped: dict[str, list[str]] = {}
    for outcome in report.outcomes:
        if outcome.verdict == "skipped":
            skipped.setdefault("; ".join(outcome.reasons), []).append(outcome.check.name)
    for reason, names in skipped.items():
        console.print(Text(printable(f"{plain.route}: {', '.join(names)} skipped: {reason}"), style="dim"))


def show_list(console: Console | None = None) -> None:
    """Print the table of checks."""
    table = Table("check", "format", "route", "promise")
    for check in CHECKS:
        table.add_row(check.name, check.api, check.route, check.promise)
    (console or Console()).print(table)
