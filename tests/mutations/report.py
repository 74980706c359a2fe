"""The table of guards as Markdown, and its place in a document."""

from pathlib import Path

from tests.mutations.mutation import Mutation
from tests.mutations.runner import Verdict

BEGIN, END = "<!-- mutations -->", "<!-- /mutations -->"


_HEAD = ["| guard | where | the test that misses it |", "|---|---|---|"]
_SURVIVES = "**none: it survives**"


def table_of(results: list[tuple[Mutation, Verdict]], root: Path) -> str:
    """One row per guard, in the order given."""
    return "\n".join([*_HEAD, *(_row(mutation, verdict, root) for mutation, verdict in results)])


def merged_table(
    mutations: list[Mutation], known: dict[str, str], results: list[tuple[Mutation, Verdict]], root: Path
) -> str:
    """One row per guard: of these results, or else one that is known."""
    new = {mutation.guard: _row(mutation, verdict, root) for mutation, verdict in results}
    return "\n".join([*_HEAD, *(new.get(one.guard) or known[one.guard] for one in mutations)])


def known_rows(document: Path, mutations: list[Mutation]) -> dict[str, str]:
    """The rows that a document has, by guard, of guards that did not survive."""
    lines = document.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = {line.removeprefix("| ").split(" | ")[0]: line for line in lines if _SURVIVES not in line}
    return {one.guard: rows[_escape(one.guard)] for one in mutations if _escape(one.guard) in rows}


def _row(mutation: Mutation, verdict: Verdict, root: Path) -> str:
    place = mutation.place(root)
    where = f"`{mutation.file}`" + (f": `{place}`" if place else "")
    return f"| {_escape(mutation.guard)} | {where} | {_test(mutation, verdict)} |"


def summary_of(results: list[tuple[Mutation, Verdict]], num_known: int = 0) -> str:
    """One sentence; two if some results are of runs before."""
    before = f" {num_known} of them in a run before the others." if num_known else ""
    num_survived = sum(not verdict.red for _, verdict in results)
    survived = "none survived" if not num_survived else f"{num_survived} survived"
    return f"{num_known + len(results)} guards were taken away one by one; {survived}.{before}"


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
