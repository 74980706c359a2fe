"""The table of guards fits the source and the tests, so that it cannot rot between its runs, which are long."""

from pathlib import Path

import pytest

from tests.mutations.mutation import Mutation, Stale, names_in
from tests.mutations.report import (
    BEGIN,
    END,
    between_markers,
    known_tests,
    merged_table,
    table_of,
    write_between_markers,
)
from tests.mutations.runner import ROOT, Verdict, _first_red
from tests.mutations.table import MUTATIONS
from tests.support.browser import check_script

LOST = Mutation("a guard", "some.py", "        if is_bad:\n            raise Bad\n", "", ("tests/test_x.py::test_bad",))
SOURCE = "class One:\n    def two(self) -> None:\n        if is_bad:\n            raise Bad\n        go_on()\n"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.guard)
def test_each_guard_is_where_the_table_says_and_its_tests_exist(mutation: Mutation) -> None:
    assert mutation.mutate(ROOT) != (ROOT / mutation.file).read_text()
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in names_in(ROOT / file), f"{test} does not exist"


@pytest.mark.parametrize(
    "mutation", [one for one in MUTATIONS if one.file.endswith(".js")], ids=lambda mutation: mutation.guard
)
def test_a_script_is_one_without_its_guard_too(mutation: Mutation, tmp_path: Path) -> None:
    check_script(mutation.mutate(ROOT), tmp_path)


def test_no_guard_has_the_name_of_another() -> None:
    assert len({mutation.guard for mutation in MUTATIONS}) == len(MUTATIONS)


def test_the_page_of_guards_says_where_they_are_and_which_tests_there_are() -> None:
    """`--missing --write` mends it, and takes a guard away again whose test has gone."""
    document = ROOT / "docs/guards.md"
    known = known_tests(document, MUTATIONS, ROOT)
    assert between_markers(document).partition("\n\n")[2].strip() == merged_table(MUTATIONS, known, [], ROOT)


# ---- the machinery


@pytest.mark.parametrize("source", ["go_on()\n", SOURCE + SOURCE.replace("One", "Two")])
def test_a_text_that_is_not_there_once_is_stale(tmp_path: Path, source: str) -> None:
    (tmp_path / "some.py").write_text(source)
    with pytest.raises(Stale, match="'a guard'"):
        LOST.mutate(tmp_path)


def test_a_mutation_that_is_no_python_is_stale(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(SOURCE.replace("        go_on()\n", ""))
    with pytest.raises(Stale, match="no Python"):
        LOST.mutate(tmp_path)


def test_the_place_is_the_function_of_the_first_line_that_changes(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(SOURCE)
    assert LOST.place(tmp_path) == "One.two"
    across = Mutation("a guard", "some.py", "class One:\n    def two", "class One:\n    def three", ())
    assert across.place(tmp_path) == "One.two"


def test_the_report_names_the_test_and_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(SOURCE)
    table = table_of(
        [(LOST, Verdict("tests/test_x.py::test_bad[a|b]", "E", 1.0)), (LOST, Verdict("", "", 1.0))], tmp_path
    )
    assert "| a guard | `some.py`: `One.two` | `test_x.py`: `test_bad[a\\|b]` |" in table
    assert "it survives" in table
    document = tmp_path / "doc.md"
    document.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nmore\n")
    write_between_markers(document, table)
    assert document.read_text() == f"# Title\n\n{BEGIN}\n{table}\n{END}\n\nmore\n"
    document.write_text(f"{BEGIN}\n")
    with pytest.raises(ValueError, match="one"):
        write_between_markers(document, table)


def test_rows_of_a_run_before_are_kept_but_for_guards_that_survived(tmp_path: Path) -> None:
    here = Path(__file__).relative_to(ROOT)
    red, alive = Verdict(f"{here}::test_no_guard_has_the_name_of_another", "it is red", 1.0), Verdict("", "", 1.0)
    first, second, third = MUTATIONS[:3]
    document = tmp_path / "doc.md"
    document.write_text(f"{BEGIN}{END}")
    write_between_markers(document, table_of([(first, red), (second, alive)], ROOT))
    known = known_tests(document, [first, second, third], ROOT)
    assert list(known) == [first.guard]
    write_between_markers(document, table_of([(first, Verdict(f"{here}::test_that_has_gone", "", 1.0))], ROOT))
    assert known_tests(document, [first], ROOT) == {}
    later = Verdict("tests/test_b.py::test_that", "it is red", 1.0)
    table = merged_table([third, first, second], known, [(second, later), (third, later)], ROOT)
    assert [line.rpartition("`: `")[2] for line in table.splitlines()[2:]] == [
        "test_that` |",
        "test_no_guard_has_the_name_of_another` |",
        "test_that` |",
    ]


@pytest.mark.parametrize(
    ("output", "red"),
    [
        ("FAILED tests/a.py::test_b[x-y] - AssertionError: no - not at all\n", "tests/a.py::test_b[x-y]"),
        ("FAILED tests/a.py::test_b[the loop-gthread]\n1 failed", "tests/a.py::test_b[the loop-gthread]"),
        ("ERROR tests/a.py::test_b - Failed: left\n", "tests/a.py::test_b"),
        ("1 passed\n", ""),
    ],
)
def test_the_red_test_is_read_from_the_output(output: str, red: str) -> None:
    assert _first_red(output) == red
