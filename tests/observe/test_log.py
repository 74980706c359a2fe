"""What is news in the log of the server below us."""

import logging
import sys

import pytest

from worker.observe.log import is_news


def record_of(error: Exception | None) -> logging.LogRecord:
    if error is None:
        return logging.LogRecord("gunicorn.error", logging.ERROR, "", 0, "a line", None, None)
    try:
        raise error
    except Exception:
        return logging.LogRecord("gunicorn.error", logging.ERROR, "", 0, "a line", None, sys.exc_info())


def test_a_client_that_was_cut_off_is_no_news() -> None:
    assert not is_news(record_of(TimeoutError("a write")))


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", ""])
def test_what_is_no_request_is_not_repeated(ip: str) -> None:
    text = f'Invalid request from ip={ip}: Invalid HTTP request line: \'{{"prompt": "canary: x"}}\''
    record = logging.LogRecord("gunicorn.error", logging.WARNING, "", 0, text, None, None)
    assert is_news(record)
    assert record.getMessage() == f"Invalid request from ip={ip}: what it sent is not shown"


@pytest.mark.parametrize("error", [None, RuntimeError("a bug"), ConnectionResetError("gone")])
def test_everything_else_is_news(error: Exception | None) -> None:
    assert is_news(record_of(error))
