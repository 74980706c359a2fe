"""What is news in the log of the server below us, and lines of our own."""

import io
import json
import logging
import sys
from typing import Any

import pytest

from worker.events import Usage
from worker.observe.log import JsonFormatter, JsonStderr, Outcome, Record, RecordWriter, StderrHandler, is_news
from worker.origin import Origin
from worker.streams.channel import ReceiveChannel, SendChannel, open_channel
from worker.streams.wakeup import ThreadWakeup


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


# ---- lines of JSON


def as_json(**changed: Any) -> dict[str, Any]:
    record = logging.LogRecord("endstop", logging.WARNING, "", 0, "two\nlines of %s \u2028", ("ü",), None)
    vars(record).update(changed)
    text = JsonFormatter().format(record)
    assert text.isascii()
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_record_is_one_line_whatever_is_in_it() -> None:
    found = as_json()
    assert found.pop("time").endswith("+00:00")
    assert found == {"level": "warning", "logger": "endstop", "message": "two\nlines of ü \u2028"}


def test_a_traceback_is_in_the_line() -> None:
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        found = as_json(exc_info=sys.exc_info(), fields={"x_request_id": "order-7"})
    assert "RuntimeError: a bug" in found["exception"]
    assert found["x_request_id"] == "order-7"


def printed(*texts: str) -> list[dict[str, Any]]:
    raw = io.StringIO()
    stderr = JsonStderr(raw)
    for text in texts:
        assert stderr.write(text) == len(text)
    return [json.loads(line) for line in raw.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("texts", "messages"),
    [
        (["a line\n"], ["a line"]),
        (["a ", "line", "\n", "and more"], ["a line"]),
        (["two\nlines\n"], ["two\nlines"]),
        (["one\nand the beginning", " of another\n"], ["one", "and the beginning of another"]),
        (["\n", "  \n"], []),
    ],
)
def test_what_others_print_becomes_lines(texts: list[str], messages: list[str]) -> None:
    found = printed(*texts)
    assert [line["message"] for line in found] == messages
    assert {(line["level"], line["logger"]) for line in found} <= {("warning", "stderr")}


def test_a_line_that_never_ends_is_not_kept_for_ever() -> None:
    found = printed(*["\r 10%"] * JsonStderr.max_begun)
    assert sum(len(line["message"]) for line in found) > 4 * JsonStderr.max_begun


def test_lines_of_the_log_are_not_wrapped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stderr", JsonStderr(raw))
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter())
    handler.handle(logging.LogRecord("endstop", logging.INFO, "", 0, "a line", None, None))
    [line] = raw.getvalue().splitlines()
    assert json.loads(line)["logger"] == "endstop"


OUTCOME = Outcome("job", "alice", "end", "EOS", Usage(5, 3, 2), 1.5, 20.25, 10.0, None, 31.0, origin=Origin("order-7"))


def written(caplog: pytest.LogCaptureFixture, on_outcome: Any = None) -> logging.LogRecord:
    caplog.set_level("INFO", "endstop")
    sender: SendChannel[Record, None]
    receiver: ReceiveChannel[Record, None]
    sender, receiver = open_channel(ThreadWakeup(), None)
    sender.send(OUTCOME)
    writer = RecordWriter(receiver, on_outcome or (lambda outcome: "4bf9"))
    writer.write_waiting(0)
    [record] = caplog.records
    return record


def test_an_outcome_names_the_request_as_its_client_does(caplog: pytest.LogCaptureFixture) -> None:
    assert written(caplog).getMessage() == (
        "request job x_request_id=order-7 key=alice outcome=end{EOS} prompt_tokens=5 tokens=3 queue_ms=2 ttft_ms=20 "
        "longest_gap_ms=- total_ms=31"
    )


def test_an_outcome_has_its_numbers_as_numbers(caplog: pytest.LogCaptureFixture) -> None:
    found = json.loads(JsonFormatter().format(written(caplog)))
    for name in ("time", "level", "logger", "message"):
        found.pop(name)
    assert found == {
        "event": "outcome",
        "job_id": "job",
        "x_request_id": "order-7",
        "trace_id": "4bf9",
        "key": "alice",
        "outcome": "end",
        "code": "EOS",
        "prompt_tokens": 5,
        "cached_tokens": 2,
        "completion_tokens": 3,
        "queue_ms": 1.5,
        "ttft_ms": 20.25,
        "decode_ms": 10.0,
        "longest_gap_ms": None,
        "total_ms": 31.0,
    }


def test_whoever_counts_is_told_of_each_outcome_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Outcome] = []
    written(caplog, seen.append)
    assert seen == [OUTCOME]
