"""Panics of libraries in Rust, as errors. Plain Python, any thread.

A panic is a `BaseException`, which passes every `except Exception` on its way up and would end the generation thread.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def without_panics(library: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function that calls `library` raise a RuntimeError where that panics."""

    def guard(call: Callable[P, R]) -> Callable[P, R]:
        @wraps(call)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return call(*args, **kwargs)
            except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as panic:  # `pyo3_runtime.PanicException`, which has no module to import it from
                raise RuntimeError(f"{library} has panicked: {panic}") from panic

        return guarded

    return guard
