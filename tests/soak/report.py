"""What a soak has to say: a table for people, one line of JSON for machines."""

import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.soak.judge import Kind
from tests.soak.run import Result

# Counters that are compared between the two rests, in the order of the table.
_COUNTERS = ("open", "running", "streams", "preempted", "threads", "pool_threads", "descriptors")


def is_well(results: list[Result]) -> bool:
    """Whether all was run and there is nothing to find fault with."""
    return all(result.is_whole and not result.ledger.findings for result in results)


def show(results: list[Result], console: Console) -> None:
    """Print the table, the findings, and the line of JSON last."""
    table = Table(title="soak", title_justify="left")
    table.add_column("", no_wrap=True)
    for result in results:
        table.add_column(result.worker_class, justify="right")

    def section(name: str, rows: dict[str, list[Any]]) -> None:
        table.add_row(Text(name, style="bold"), *[""] * len(results))
        for title, values in rows.items():
            table.add_row(f"  {title}", *(str(value) for value in values))
        table.add_section()

    ledgers = [result.ledger for result in results]
    section("run", {"seed": [r.seed for r in results], "seconds": [f"{r.seconds:.0f}" for r in results]})
    section("clients", _merged([ledger.counts for ledger in ledgers]))
    section("outcomes that clients were told", _merged([ledger.outcomes for ledger in ledgers]))
    section("faults injected into the last worker", _merged([Counter(r.last.get("faults", {})) for r in results]))
    section(
        "the process",
        {
            "ended by": [", ".join(_initials(one.name) for one in ledger.replacements) for ledger in ledgers],
            "exit code": [result.exit_code for result in results],
            "first event ms, p50 / p99 / max": [_quantiles_ms(ledger.first_event_s) for ledger in ledgers],
            "longest silence s": [f"{ledger.longest_silence_s:.1f}" for ledger in ledgers],
            "longest work for nobody s": [f"{ledger.longest_unwanted_s:.1f}" for ledger in ledgers],
        },
    )
    section(
        "at rest, first -> last",
        {name: [f"{r.first.get(name)} -> {r.last.get(name)}" for r in results] for name in _COUNTERS}
        | {"greenlets": [f"{_greenlets(r.first)} -> {_greenlets(r.last)}" for r in results]}
        | {"memory MiB": [f"{_mib(r.first)} -> {_mib(r.last)}" for r in results]}
        | {
            f"arbiter's {name}": [f"{r.arbiter_first.get(name)} -> {r.arbiter_last.get(name)}" for r in results]
            for name in ("threads", "descriptors")
        },
    )
    table.add_row(Text("must be 0", style="bold"), *[""] * len(results))
    for kind in Kind:
        numbers = [sum(found is kind for found, _ in ledger.findings) for ledger in ledgers]
        table.add_row(f"  {kind.value}", *(Text(str(n), style="bold red" if n else "green") for n in numbers))
    console.print(table)
    for result in results:
        for line in result.ledger.shown_findings():
            console.print(Text(f"{result.worker_class}: {line}", style="red"))
    console.print(Text("PASSED", style="bold green") if is_well(results) else Text("FAILED", style="bold red"))
    console.file.write(json.dumps(as_json(results)) + "\n")


def as_json(results: list[Result]) -> dict[str, Any]:
    """All numbers."""
    return {
        "soak": "passed" if is_well(results) else "failed",
        "worker_classes": {
            result.worker_class: {
                "seed": result.seed,
                "seconds": round(result.seconds, 1),
                "clients": dict(result.ledger.counts),
                "outcomes": dict(result.ledger.outcomes),
                "findings": {kind.value: sum(k is kind for k, _ in result.ledger.findings) for kind in Kind},
                "replaced_by": [one.name for one in result.ledger.replacements],
                "exit_code": result.exit_code,
                "leaked": result.leaked,
                "first": result.first,
                "last": result.last,
                "longest_silence_s": round(result.ledger.longest_silence_s, 2),
                "longest_unwanted_s": round(result.ledger.longest_unwanted_s, 2),
            }
            for result in results
        },
    }


def _merged(counters: list[Counter[str]]) -> dict[str, list[Any]]:
    names = sorted({name for counter in counters for name in counter})
    return {name: [counter[name] for counter in counters] for name in names}


def _initials(name: str) -> str:
    return name.replace(" of the worker", "")


def _quantiles_ms(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    picks = (ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1])
    return " / ".join(f"{pick * 1000:.0f}" for pick in picks)


def _greenlets(counters: dict[str, Any]) -> int:
    number: int = counters.get("objects", {}).get("greenlets", 0)
    return number


def _mib(counters: dict[str, Any]) -> str:
    return f"{counters.get('rss_bytes', 0) / 2**20:.0f}"
