"""The table of guards as Markdown, and its place in a document."""

from pathlib import Path

from tests.mutations.mutation import Mutation
from tests.mutations.runner import Verdict

BEGIN, END = "<!-- mutations -->", "<!-- /mutations -->"


def table_of(results: list[tuple[Mutation, Verdict]], root: Path) -> str:
    """One row per guard, in the order given."""
    rows = ["| guard | where | the test that misses it |", "|---|---|---|"]
    for mutation, verdict in results:
        place = mutation.place(root)
        where = f"`{mutation.file}`" + (f": `{place}`" if place else "")
        rows.append(f"| {_escape(mutation.guard)} | {where} | {_test(mutation, verdict)} |")
    return "\n".join(rows)


def summary_of(results: list[tuple[Mutation, Verdict]]) -> str:
    """One sentence."""
    num_survived = sum(not verdict.red for _, verdict in results)
    survived = "none survived" if not num_survived else f"{num_survived} survived"
    return f"{len(results)} guards were taken away one by one; {survived}."


def write_between_markers(document: Path, text: str) -> None:
    """Put the text between the two markers of a document.

    Raises:
        ValueError: The markers are not there, once each and in order.
    """
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in after:
        raise ValueError(f"{document} must have one {BEGIN} and one {END} behind it")
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _test(mutation: Mutation, verdict: Verdict) -> str:
    if not verdict.red:
        return "**none: it survives**"
    file, _, name = verdict.red.partition("::")
    under = ", under gevent" if mutation.is_gevent else ""
    return f"`{file.removeprefix('tests/')}`: `{_escape(name)}`{under}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
