"""`python -m tests.mutations`: takes every guard away, one by one, and sees whether a test misses it.

Exit code 1 if a guard can go without a test turning red, if a selection of tests is red with every guard in place, or
if the table does not fit the source.
"""

# ruff: noqa: T201 the report goes to stdout, the progress to stderr

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.mutations.mutation import Mutation, Stale
from tests.mutations.report import summary_of, table_of, write_between_markers
from tests.mutations.runner import ROOT, NoVerdict, Verdict, judge
from tests.mutations.table import MUTATIONS

T = TypeVar("T")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="only guards whose name or file has these words")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this document")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in m.guard or arguments.only in m.file]
    began = time.monotonic()
    try:
        for mutation in chosen:
            mutation.mutate(ROOT)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            are_green = all(list(pool.map(_told(_is_green), _distinct(chosen))))
            if not are_green:
                return 1
            results = list(zip(chosen, pool.map(_told(_take_away), chosen), strict=True))
    except (Stale, NoVerdict) as error:
        print(error, file=sys.stderr)
        return 1
    table = f"{summary_of(results)}\n\n{table_of(results, ROOT)}"
    if arguments.write:
        write_between_markers(arguments.write, table)
    else:
        print(table)
    print(f"{summary_of(results)} {time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(any(not verdict.red for _, verdict in results))


def _distinct(chosen: list[Mutation]) -> list[Mutation]:
    """One mutation for each distinct selection of tests."""
    return list({(mutation.tests, mutation.is_gevent): mutation for mutation in chosen}.values())


def _is_green(mutation: Mutation) -> bool:
    verdict = judge(mutation, is_mutated=False)
    state = f"RED with every guard in place: {verdict.reason}" if verdict.red else "green"
    print(f"{verdict.seconds:5.1f} s  {state}  {' '.join(mutation.tests)}", file=sys.stderr, flush=True)
    return not verdict.red


def _take_away(mutation: Mutation) -> Verdict:
    verdict = judge(mutation, is_mutated=True)
    state = f"red ({verdict.red.partition('::')[2]}: {verdict.reason})" if verdict.red else "SURVIVES"
    print(f"{verdict.seconds:5.1f} s  {mutation.guard}: {state}", file=sys.stderr, flush=True)
    return verdict


def _told(call: Callable[[Mutation], T]) -> Callable[[Mutation], T]:
    """The same, with what went wrong on stderr at once and not when everything is over."""

    def tell(mutation: Mutation) -> T:
        try:
            return call(mutation)
        except (Stale, NoVerdict) as error:
            print(f"FAILED: {error}", file=sys.stderr, flush=True)
            raise

    return tell


if __name__ == "__main__":
    sys.exit(main())
