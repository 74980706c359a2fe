"""What the engine has to say, carried off the generation thread and written by somebody else.

The generation thread must not touch `logging`: its handlers hold locks that gevent has patched. So it sends records
through a channel, and the housekeeper, an ordinary thread or greenlet of the web side, writes them.
"""

import json
import logging
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, TextIO

from worker.events import Usage
from worker.origin import NO_ORIGIN, Origin
from worker.request import SamplingParams
from worker.streams.channel import ChannelBroken, Receiver, SendChannel

logger = logging.getLogger("endstop")


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment: while a progress bar runs, that is the bar's own redirection.

    Where that makes lines of JSON of what it is given, it writes past it: its lines are such already.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Looked up for every line."""
        out = sys.stderr
        return out.raw if isinstance(out, JsonStderr) else out


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record, ASCII, whatever is in it: `time`, `level`, `logger` and `message`.

    What a record has in `fields` stands beside these, and `exception` is a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json_line(record.created, record.levelname.lower(), record.name, record.getMessage(), fields)


def json_line(at: float, level: str, name: str, message: str, fields: Mapping[str, Any] = MappingProxyType({})) -> str:
    """One line of the log, as an object. `at` is Unix time."""
    time_text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": time_text, "level": level, "logger": name, "message": message, **fields})


class JsonStderr:
    """`sys.stderr` where the log is lines of JSON: what Python and its libraries print there becomes such lines.

    Warnings, tracebacks of threads, handlers of libraries: whoever collects the log reads objects or nothing. Lines
    that are written together are one object. No lock, for the generation thread may print too; two threads that print
    parts of lines at the same time may mix them.
    """

    max_begun = 8192  # a bar that draws itself again and again never ends its line

    def __init__(self, raw: TextIO) -> None:
        """Write to `raw`, which the log's own lines go to as they are."""
        self.raw = raw
        self._begun = ""

    def write(self, text: str) -> int:
        """Print. Only whole lines are passed on."""
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if len(self._begun) > self.max_begun:
            whole, self._begun = whole + newline + self._begun, ""
        if whole.strip():
            self.raw.write(json_line(time.time(), "warning", "stderr", whole) + "\n")
            self.raw.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing but the beginning of a line is kept."""
        self.raw.flush()

    def isatty(self) -> bool:
        """A program reads it: no colours, no bars."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def speak_json() -> None:
    """From now on all that this process and those that it forks print to stderr is lines of JSON. Idempotent.

    Not `logging.captureWarnings`: what warns may be the generation thread, which must not come near its locks.
    """
    if not isinstance(sys.stderr, JsonStderr):
        sys.stderr = JsonStderr(sys.stderr)
        sys.excepthook = _say_exception
        threading.excepthook = lambda args: _say_exception(args.exc_type, args.exc_value, args.exc_traceback)


def _say_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """What nobody has caught, as one print."""
    sys.stderr.write("".join(traceback.format_exception(kind, error, trace)))


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
        ended_at: When it did, monotonic.
        origin: The HTTP request that made it.
        is_chat: Whether it was asked with messages.
        params: What it was asked for.
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
    ended_at: float = 0.0
    origin: Origin = NO_ORIGIN
    is_chat: bool = False
    params: SamplingParams | None = None


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
        self, records: Receiver[Record, None], on_outcome: Callable[[Outcome], str] = lambda outcome: ""
    ) -> None:
        """Write what comes.

        Args:
            records: What the engine has to say.
            on_outcome: Told of every request that has ended, on the housekeeper's thread. Says the id of its trace, or
                nothing.
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
        trace_id = self._on_outcome(outcome)
        logger.info(
            "request %s x_request_id=%s key=%s outcome=%s{%s} prompt_tokens=%d tokens=%d queue_ms=%.0f ttft_ms=%s "
            "longest_gap_ms=%s total_ms=%.0f",
            outcome.request_id,
            outcome.origin.x_request_id or "-",
            outcome.client or "-",
            outcome.outcome,
            outcome.detail,
            outcome.usage.prompt_tokens,
            outcome.usage.completion_tokens,
            outcome.queue_ms,
            _whole(outcome.ttft_ms),
            _whole(outcome.longest_gap_ms),
            outcome.total_ms,
            extra={"fields": _fields_of(outcome, trace_id)},
        )


def _fields_of(outcome: Outcome, trace_id: str) -> dict[str, object]:
    """An outcome for those who read JSON. Without prompt and answer, as the line."""
    return {
        "event": "outcome",
        "job_id": outcome.request_id,
        "x_request_id": outcome.origin.x_request_id,
        "trace_id": trace_id,
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
