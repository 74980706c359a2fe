"""`python -m tests.mutations`: takes every guard away, one by one, and sees whether a test misses it.

Exit code 1 if a guard can go without a test turning red, if a selection of tests is red with every guard in place, or
if the table does not fit the source.
"""

# ruff: noqa: T201 the report goes to stdout, the progress to stderr

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutations.mutation import Mutation, Stale
from tests.mutations.report import known_tests, merged_table, summary_of, table_of, write_between_markers
from tests.mutations.runner import ROOT, NoVerdict, Verdict, judge, judge_whole
from tests.mutations.table import MUTATIONS


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="only guards whose name or file has these words")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this document")
    parser.add_argument("--missing", action="store_true", help="with --write: only guards that it has no row of")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in m.guard or arguments.only in m.file]
    if not chosen:
        parser.error(f"no guard has the words {arguments.only!r}")
    if arguments.write and arguments.only and not arguments.missing:
        parser.error("--write is for the whole table, or, with --missing, for more of it")
    if arguments.missing and not arguments.write:
        parser.error("--missing needs --write")
    known = known_tests(arguments.write, MUTATIONS, ROOT) if arguments.missing else {}
    chosen = [m for m in chosen if m.guard not in known]
    began = time.monotonic()
    try:
        for mutation in chosen:
            mutation.mutate(ROOT)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            if not all(list(pool.map(_is_green, _selections(chosen)))):
                return 1
            results = list(zip(chosen, pool.map(_take_away, chosen), strict=True))
    except (Stale, NoVerdict) as error:
        _say(str(error))
        return 1
    if arguments.write:
        table = merged_table(MUTATIONS, known, results, ROOT)
        write_between_markers(arguments.write, f"{summary_of(results, len(known))}\n\n{table}")
    else:
        print(f"{summary_of(results)}\n\n{table_of(results, ROOT)}")
    _say(f"{summary_of(results)} {time.monotonic() - began:.0f} s")
    return int(any(not verdict.red for _, verdict in results))


def _selections(chosen: list[Mutation]) -> list[tuple[tuple[str, ...], bool]]:
    """Every test that is named, in one selection for each file: a process for each would take as long as the rest."""
    found: dict[tuple[str, bool], dict[str, None]] = {}
    for mutation in chosen:
        for test in mutation.tests:
            found.setdefault((test.partition("::")[0], mutation.is_gevent), {})[test] = None
    return [(tuple(tests), is_gevent) for (_, is_gevent), tests in found.items()]


def _is_green(selection: tuple[tuple[str, ...], bool]) -> bool:
    tests, is_gevent = selection
    try:
        verdict = judge_whole(tests, is_gevent)
    except NoVerdict as error:
        _say(str(error))
        return False
    state = f"RED with every guard in place ({verdict.red}: {verdict.reason})" if verdict.red else "green"
    _say(f"{verdict.seconds:5.1f} s  {state}: {len(tests)} tests of {tests[0].partition('::')[0]}")
    return not verdict.red


def _take_away(mutation: Mutation) -> Verdict:
    try:
        verdict = judge(mutation)
    except (Stale, NoVerdict) as error:  # said at once, and not when everything is over
        _say(f"FAILED: {mutation.guard}: {error}")
        raise
    state = f"red ({verdict.red.partition('::')[2]}: {verdict.reason})" if verdict.red else "SURVIVES"
    _say(f"{verdict.seconds:5.1f} s  {mutation.guard}: {state}")
    return verdict


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
