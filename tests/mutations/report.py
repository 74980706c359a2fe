"""The table of guards as Markdown, and its place in a document."""

import re
from pathlib import Path

from tests.mutations.mutation import Mutation, names_in
from tests.mutations.runner import Verdict

BEGIN, END = "<!-- mutations -->", "<!-- /mutations -->"


_HEAD = ["| guard | where | the test that misses it |", "|---|---|---|"]
_SURVIVES = "**none: it survives**"


def table_of(results: list[tuple[Mutation, Verdict]], root: Path) -> str:
    """One row per guard, in the order given."""
    return "\n".join([*_HEAD, *(_row(mutation, _test(mutation, verdict), root) for mutation, verdict in results)])


def merged_table(
    mutations: list[Mutation], known: dict[str, str], results: list[tuple[Mutation, Verdict]], root: Path
) -> str:
    """One row per guard that a test has missed, in these results or, by `known`, in a run before."""
    tests = known | {mutation.guard: _test(mutation, verdict) for mutation, verdict in results}
    return "\n".join([*_HEAD, *(_row(one, tests[one.guard], root) for one in mutations if one.guard in tests)])


def known_tests(document: Path, mutations: list[Mutation], root: Path) -> dict[str, str]:
    """The last column of a document, by guard, where it names a test that there still is.

    Where a guard is may have changed since, and is not read from there.
    """
    rows = [line.removeprefix("| ").removesuffix(" |") for line in between_markers(document).splitlines()]
    cells = {row.split(" | ")[0]: row.rpartition(" | ")[2] for row in rows}
    known = {one.guard: cells.get(_escape(one.guard), "") for one in mutations}
    return {guard: cell for guard, cell in known.items() if _is_of_a_test(cell, root)}


def _is_of_a_test(cell: str, root: Path) -> bool:
    named = re.match(r"`(.+?)`: `([\w:]+)", cell)
    if named is None or not (path := root / "tests" / named[1]).exists():
        return False
    return named[2].removesuffix("::runTest") in names_in(path)  # unittest's name for the test of a state machine


def _row(mutation: Mutation, test: str, root: Path) -> str:
    place = mutation.place(root)
    where = f"`{mutation.file}`" + (f": `{place}`" if place else "")
    return f"| {_escape(mutation.guard)} | {where} | {test} |"


def summary_of(results: list[tuple[Mutation, Verdict]], num_known: int = 0) -> str:
    """One sentence; two if some results are of runs before."""
    before = f" {num_known} of them in runs before the others." if num_known and results else ""
    num_survived = sum(not verdict.red for _, verdict in results)
    survived = "none survived" if not num_survived else f"{num_survived} survived"
    return f"{num_known + len(results)} guards were taken away one by one; {survived}.{before}"


def between_markers(document: Path) -> str:
    """What a document has there."""
    return document.read_text().partition(BEGIN)[2].partition(END)[0]


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
        return _SURVIVES
    file, _, name = verdict.red.partition("::")
    under = ", under gevent" if mutation.is_gevent else ""
    return f"`{file.removeprefix('tests/')}`: `{_escape(name)}`{under}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
