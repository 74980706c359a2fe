"""The tree that is drawn at the top of errors.py is the tree of the classes, with their statuses and codes."""

import inspect
import re

import pytest

from worker import errors
from worker.errors import (
    DeadlineExceeded,
    EndstopError,
    FieldError,
    GenerationFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    RequestError,
    one_line,
)

# of the stream contract, section 2
CONTRACT_CODES = {
    "QUEUE_TIMEOUT",
    "FIRST_TOKEN_TIMEOUT",
    "STALLED",
    "TIMEOUT",
    "SLOW_CONSUMER",
    "VRAM_OOM",
    "INFERENCE_FAILED",
    "ENGINE_DEAD",
    "SHUTTING_DOWN",
    "INCOMPLETE",
}


def drawn() -> dict[str, tuple[int, str]]:
    """Depth and line of each class in the drawing."""
    assert errors.__doc__ is not None
    found = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([│├└─ ]*)([A-Z]\w+)(.*)", line)
        if match and (match[1] or match[2] == "EndstopError"):
            found[match[2]] = (len(match[1]) // 4, match[3])
    return found


def classes() -> dict[str, type[EndstopError]]:
    return {
        name: one
        for name, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, EndstopError) and one.__module__ == errors.__name__
    }


def test_the_drawing_names_every_class_and_no_other() -> None:
    assert set(drawn()) == set(classes())


def test_the_drawing_has_each_class_under_its_base() -> None:
    above: list[str] = []
    for name, (depth, _) in drawn().items():
        above = [*above[:depth], name]
        if depth:
            assert classes()[name].__base__ is classes()[above[depth - 1]]


@pytest.mark.parametrize("name", [name for name, one in classes().items() if hasattr(one, "status")])
def test_the_drawing_has_each_status_and_code(name: str) -> None:
    one = classes()[name]
    line = drawn()[name][1]
    if one in (RequestError, GenerationFailed):
        return
    status = vars(one).get("status", one.__mro__[1].__dict__.get("status"))
    assert str(status) in line
    if one is not NotReady:
        assert vars(one).get("code", one.__mro__[1].__dict__.get("code")) in line


def test_failures_have_the_codes_of_the_contract() -> None:
    in_drawing = set(re.findall(r"\b[A-Z][A-Z_]{4,}\b", errors.__doc__ or ""))
    assert in_drawing >= CONTRACT_CODES
    own = {vars(one)["code"] for one in classes().values() if issubclass(one, GenerationFailed) and "code" in vars(one)}
    assert own <= CONTRACT_CODES


def test_every_error_carries_its_message() -> None:
    for one in classes().values():
        if one in (InvalidRequest, NotReady):
            continue
        assert str(one("because")) == "because"


def test_an_invalid_request_names_all_its_fields() -> None:
    error = InvalidRequest([FieldError("a", "x", "is bad"), FieldError("b", "y", "is worse")])
    assert error.message == str(error) == "a: is bad; b: is worse"
    assert (error.status, error.code, error.retry_after_s) == (400, "INVALID_REQUEST", None)


def test_refusals_say_when_to_come_back() -> None:
    assert Overloaded("full", 3).retry_after_s == 3
    not_ready = NotReady("LOADING", "the model is loading", 2)
    assert (not_ready.status, not_ready.code, not_ready.retry_after_s) == (503, "LOADING", 2)


def test_a_deadline_names_which_one_without_changing_the_others() -> None:
    assert DeadlineExceeded("late", "STALLED").code == "STALLED"
    assert DeadlineExceeded("late").code == "TIMEOUT"


def test_what_is_repeated_of_another_is_one_short_line_that_commands_no_terminal() -> None:
    assert one_line(ValueError("a\n\tb\x1b[2J\x9b\x7f")) == "ValueError: a b\ufffd[2J\ufffd\ufffd"
    assert one_line("x" * 1000) == "x" * 300
