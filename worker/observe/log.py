"""What the engine has to say, carried off the generation thread and written by somebody else.

The generation thread must not touch `logging`: its handlers hold locks that gevent has patched. So it sends records
through a channel, and the housekeeper, an ordinary thread or greenlet of the web side, writes them.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from worker.events import Usage
from worker.streams.channel import ChannelBroken, Receiver, SendChannel

logger = logging.getLogger("endstop")


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment: while a progress bar runs, that is the bar's own redirection."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Looked up for every line."""
        return sys.stderr


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record, ASCII, whatever is in it: `time`, `level`, `logger` and `message`.

    What a record has in `fields` stands beside these, and `exception` is a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def is_news(record: logging.LogRecord) -> bool:
    """A filter of gunicorn's own log: a client that was cut off for not reading is no error with a traceback.

    The outcome line of its request says it. And what cannot be read as a request is left out of the line that says so:
    a body whose length was not announced looks like a request line, and may be a prompt; a bad header may be a key.
    """
    text, mark, _ = str(record.msg).partition("Invalid request from ip=")
    if mark and not text:
        ip = str(record.msg).removeprefix(mark).partition(": ")[0]
        record.msg, record.args = f"{mark}{ip}: what it sent is not shown", None
    return not (record.exc_info and isinstance(record.exc_info[1], TimeoutError))


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line for the log."""

    level: int  # of `logging`
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended. Each request that was accepted has exactly one.

    Attributes:
        client: The name of the API key that asked; empty where none is needed.
        outcome: `end`, `error` or `cancelled`.
        detail: The stop reason, the error code, or who cancelled.
        x_request_id: What the client calls the HTTP request, which may have made several; empty if nobody does.
    """

    request_id: str
    client: str
    outcome: str
    detail: str
    usage: Usage
    queue_ms: float
    ttft_ms: float | None
    decode_ms: float  # from the first token to the last
    longest_gap_ms: float | None  # between two tokens; None with fewer than two
    total_ms: float
    x_request_id: str = ""


Record = LogLine | Outcome


class RecordSender:
    """The engine's end of the log: never waits, and does not mind when nobody writes. Any thread."""

    def __init__(self, sender: SendChannel[Record, None]) -> None:
        self._sender = sender

    def log(self, level: int, text: str) -> None:
        """Say something. The level is one of `logging`."""
        self.send(LogLine(level, text))

    def send(self, record: Record) -> None:
        """Say how a request ended, or anything else."""
        try:
            self._sender.send(record)
        except ChannelBroken:
            pass  # nobody writes a log any more: the process is on its way out

    def close(self) -> None:
        """There is nothing more to say. The housekeeper ends when it has written what is there."""
        self._sender.close(None)


class RecordWriter:
    """Writes records to the log and counts outcomes. One consumer at a time."""

    def __init__(
        self, records: Receiver[Record, None], on_outcome: Callable[[Outcome], None] = lambda outcome: None
    ) -> None:
        """Write what comes.

        Args:
            records: What the engine has to say.
            on_outcome: Told of every request that has ended, on the housekeeper's thread.
        """
        self._records = records
        self._on_outcome = on_outcome
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def write_waiting(self, timeout_s: float) -> None:
        """Write what has come, after waiting for the first record for at most `timeout_s`.

        Raises:
            EndOfChannel: Everything is written and the engine is gone.
        """
        for record in self._records.receive(timeout_s):
            if isinstance(record, LogLine):
                logger.log(record.level, record.text)
            else:
                self._write_outcome(record)

    def _write_outcome(self, outcome: Outcome) -> None:
        self.outcomes[outcome.outcome, outcome.detail] += 1
        self._on_outcome(outcome)
        logger.info(
            "request %s x_request_id=%s key=%s outcome=%s{%s} prompt_tokens=%d tokens=%d queue_ms=%.0f ttft_ms=%s "
            "longest_gap_ms=%s total_ms=%.0f",
            outcome.request_id,
            outcome.x_request_id or "-",
            outcome.client or "-",
            outcome.outcome,
            outcome.detail,
            outcome.usage.prompt_tokens,
            outcome.usage.completion_tokens,
            outcome.queue_ms,
            _whole(outcome.ttft_ms),
            _whole(outcome.longest_gap_ms),
            outcome.total_ms,
            extra={"fields": _fields_of(outcome)},
        )


def _fields_of(outcome: Outcome) -> dict[str, object]:
    """An outcome for those who read JSON. Without prompt and answer, as the line."""
    return {
        "event": "outcome",
        "job_id": outcome.request_id,
        "x_request_id": outcome.x_request_id,
        "key": outcome.client,
        "outcome": outcome.outcome,
        "code": outcome.detail,
        "prompt_tokens": outcome.usage.prompt_tokens,
        "cached_tokens": outcome.usage.cached_tokens,
        "completion_tokens": outcome.usage.completion_tokens,
        "queue_ms": outcome.queue_ms,
        "ttft_ms": outcome.ttft_ms,
        "decode_ms": outcome.decode_ms,
        "longest_gap_ms": outcome.longest_gap_ms,
        "total_ms": outcome.total_ms,
    }


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
