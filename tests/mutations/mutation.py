"""One guard and the source text without it. Pure text: runs nothing."""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Stale(Exception):
    """The source is no longer what the table says; the message names the guard and the file."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A guard, how to take it away, and the tests that must miss it.

    Attributes:
        guard: In plain words.
        file: Relative to the root of the tree.
        old: Source text that occurs exactly once in the file.
        new: What stands there without the guard.
        tests: Node ids; one of them has to go red.
        is_gevent: Whether they have to run in a process whose threads are greenlets.
    """

    guard: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    is_gevent: bool = False

    def mutate(self, root: Path) -> str:
        """The file's text without the guard.

        Raises:
            Stale: The text to replace is not there exactly once, or what comes out of Python is none.
        """
        source = (root / self.file).read_text()
        count = source.count(self.old)
        if count != 1:
            raise Stale(f"{self.guard!r}: its text occurs {count} times in {self.file}, and must once")
        mutated = source.replace(self.old, self.new)
        if not self.file.endswith(".py"):
            return mutated
        try:
            compile(mutated, self.file, "exec")
        except SyntaxError as error:
            raise Stale(f"{self.guard!r}: {self.file} is no Python without it: {error}") from error
        return mutated

    def place(self, root: Path) -> str:
        """The function that holds the first line that changes; empty outside of them and of Python."""
        if not self.file.endswith(".py"):
            return ""
        source = (root / self.file).read_text()
        line = source[: source.index(self.old)].count("\n") + 1 + _num_equal_lines(self.old, self.new)
        return ".".join(_names_around(ast.parse(source), line))


def _num_equal_lines(old: str, new: str) -> int:
    count = 0
    for one, other in zip(old.split("\n"), new.split("\n"), strict=False):
        if one != other:
            break
        count += 1
    return min(count, old.rstrip("\n").count("\n"))


def _names_around(tree: ast.AST, line: int) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if getattr(node, "lineno", line) <= line <= getattr(node, "end_lineno", -1):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            yield from _names_around(node, line)


@functools.cache
def names_in(file: Path) -> set[str]:
    """Names in a file that can be tests: functions, classes by any way of making them, and functions in these."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


class Taking(Protocol):
    """Makes the mutations of one file."""

    def __call__(self, guard: str, old: str, new: str, *tests: str, is_gevent: bool = False) -> Mutation: ...


def taking_from(file: str, test_file: str) -> Taking:
    """Makes mutations of `file`. Tests that name no file of their own are in `test_file`."""

    def take(guard: str, old: str, new: str, *tests: str, is_gevent: bool = False) -> Mutation:
        ids = tuple(test if "::" in test else f"{test_file}::{test}" for test in tests)
        return Mutation(guard, file, old, new, ids, is_gevent)

    return take
