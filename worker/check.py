"""The conformance checker: does a server, ours or not, keep the stream contract?

It streams one prompt through `POST /execute` and one chat through `POST /v1/chat/completions`, records every byte
with the time of its arrival, and judges the records against one rule after the other.

Its law: recording and judging are apart. `record` knows nothing of rules; `judge_native` and `judge_openai` are
pure functions of what was recorded, so that each rule is tested with a stream written by hand. They look at the
raw events: a client that reports its own opinion of a stream would hide what it forgives.

Also here, because `chat` needs it too: a server of our own in a process of its own, and text made safe to print.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import requests
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.client import (
    DONE,
    Client,
    ConnectionFailed,
    EndstopError,
    GenerationError,
    IncompleteStream,
    ProtocolError,
    ServerSentEvent,
    SSEParser,
    json_object,
    parse_event,
    receive,
    why_unanswered,
)

ROOT = Path(__file__).resolve().parent.parent
SERVE_COMMAND = (sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app")

# A hub model may have to be downloaded first. A server that cannot start is noticed at once all the same.
READY_LIMIT_S = 600.0
READY_POLL_S = 0.1
# The server drains for 20 s by default, and gunicorn gives it 5 more.
STOP_LIMIT_S = 30.0
LOG_TAIL_BYTES = 3000

# The contract says 10 s of wall clock; 2 more for a busy machine and a slow network.
SILENCE_LIMIT_S = 12.0
# The contract says 100 ms from acceptance, which no client can see. Later than this it is not the network.
HELD_BACK_S = 1.0
MAX_RECORDED_BYTES = 64 * 1024 * 1024
JOIN_S = 2.0

STOP_REASONS = ("EOS", "MAX_TOKENS", "STOP_SEQUENCE")  # CANCELLED ends well too, but nobody cancelled
FINISH_REASONS = ("stop", "length", "tool_calls")
ERROR_CODES = (
    "INVALID_REQUEST",
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
)

# Everything that a terminal may take for a command, escape first; a model's text is no reason to obey.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


def printable(text: str) -> str:
    """Text from a server, safe for a terminal."""
    return text.translate(_CONTROLS)


# --- A server of our own ---


class SpawnFailed(Exception):
    """The server that we started did not become ready; carries the end of its log."""


@dataclass(frozen=True)
class SpawnedServer:
    """A server in a process of its own."""

    url: str
    log: IO[bytes]

    def log_tail(self) -> str:
        """The end of what it has written so far."""
        # pread, because the server writes through the same file description: a seek would move its position.
        size = os.fstat(self.log.fileno()).st_size
        start = max(0, size - LOG_TAIL_BYTES)
        return os.pread(self.log.fileno(), LOG_TAIL_BYTES, start).decode("utf-8", "replace").strip()


@contextlib.contextmanager
def spawned_server(
    worker_class: str | None = None,
    *,
    command: Sequence[str] = SERVE_COMMAND,
    ready_limit_s: float = READY_LIMIT_S,
    stop_limit_s: float = STOP_LIMIT_S,
) -> Iterator[SpawnedServer]:
    """Run a real server in a process of its own while the block lasts.

    Raises:
        SpawnFailed: It exited, died while loading, or was not ready within `ready_limit_s`.
    """
    port = _free_port()
    environment = os.environ | {"PORT": str(port), "ENDSTOP_HOST": "127.0.0.1"}
    if worker_class is not None:
        environment["ENDSTOP_WORKER_CLASS"] = worker_class
    with tempfile.TemporaryFile() as log, _ending_by_signal_unwinds():
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # else Ctrl-C, which in `chat` stops an answer, would stop the server
        )
        try:
            server = SpawnedServer(f"http://127.0.0.1:{port}", log)
            _wait_until_ready(server, process, ready_limit_s)
            yield server
        finally:
            _stop(process, stop_limit_s)


@contextlib.contextmanager
def announced_server(console: Console, worker_class: str | None = None) -> Iterator[SpawnedServer]:
    """`spawned_server` for people: says what they wait for, at both ends."""
    with console.status("starting a server") as status, spawned_server(worker_class) as server:
        status.stop()
        try:
            yield server
        finally:
            status.update("stopping the server")
            status.start()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _ending_by_signal_unwinds() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does: by default they would leave the server behind."""

    def unwind(signum: int, _: object) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted by them
        return
    before = {signum: signal.signal(signum, unwind) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _wait_until_ready(server: SpawnedServer, process: subprocess.Popen[bytes], limit_s: float) -> None:
    def failure(what: str) -> SpawnFailed:
        return SpawnFailed(f"the server {what}; its log ends with\n{server.log_tail()}")

    give_up_at = time.monotonic() + limit_s
    with Client(server.url, connect_timeout_s=1.0, idle_timeout_s=5.0) as client:
        while True:
            try:
                readiness = client.ready()
            except ConnectionFailed:
                state = "it does not answer"
            except EndstopError as error:
                raise failure(f"answers GET /ready with {error}") from error
            else:
                if readiness:
                    return
                if readiness.state == "DEAD":
                    raise failure("could not load its model")
                state = readiness.state
            if time.monotonic() > give_up_at:
                raise failure(f"is not ready after {limit_s:g} s ({state})")
            try:
                status = process.wait(READY_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            raise failure(f"exited with status {status} before it was ready")


def _stop(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """SIGTERM, and SIGKILL to its whole group when that takes too long or the user is tired of waiting."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(limit_s)
    except BaseException as interruption:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(interruption, subprocess.TimeoutExpired):
            raise


# --- Recording ---


@dataclass(frozen=True)
class Recording:
    """All that a server sent in answer to one request.

    Attributes:
        status: The HTTP status; None when there was no answer.
        headers: With names in lower case.
        reads: (seconds since the request was sent, bytes), as the reads of the socket brought them.
        ending: "eof", "cut", or "stopped" when the checker had to give up.
        ended_at_s: When, in the seconds of `reads`.
        detail: Why it was cut or stopped, or why there was no answer.
    """

    status: int | None
    headers: Mapping[str, str]
    reads: Sequence[tuple[float, bytes]]
    ending: str
    ended_at_s: float
    detail: str = ""


def record(
    session: requests.Session,
    method: str,
    url: str,
    fields: Mapping[str, Any] | None = None,
    *,
    limit_s: float,
    show: Callable[[ServerSentEvent], None] = lambda event: None,
) -> Recording:
    """Send one request and write down what comes, for at most `limit_s`.

    A thread reads, so that the limit holds wherever the server stops talking, in the middle of a header too, and
    so that a slow terminal is not taken for a slow server. `show` is called in the caller's thread.
    """
    sent_at = time.monotonic()
    # (seconds, bytes), and last (seconds, (ending, detail)).
    inbox: queue.SimpleQueue[tuple[float, bytes | tuple[str, str]]] = queue.SimpleQueue()
    answers: list[requests.Response] = []  # none or one, set by the reader before it reads the body

    def put(item: bytes | tuple[str, str]) -> None:
        inbox.put((time.monotonic() - sent_at, item))

    def read() -> None:
        num_bytes = 0
        try:
            response = session.request(
                method, url, json=fields, stream=True, timeout=(limit_s, limit_s), allow_redirects=False
            )
        except requests.exceptions.RequestException as error:
            put(("cut", why_unanswered(error, limit_s, limit_s)))
            return
        answers.append(response)
        try:
            with response:
                while data := receive(response):
                    num_bytes += len(data)
                    if num_bytes > MAX_RECORDED_BYTES:
                        put(("stopped", f"it is longer than {MAX_RECORDED_BYTES} bytes"))
                        return
                    put(data)
            put(("eof", ""))
        except IncompleteStream as cut:
            put(("cut", str(cut)))

    reader = threading.Thread(target=read, name="endstop-check-reader", daemon=True)
    parser = SSEParser(max_event_bytes=MAX_RECORDED_BYTES)
    reads: list[tuple[float, bytes]] = []
    ending, detail, ended_at_s = "stopped", f"it had not ended within {limit_s:.3g} s", limit_s
    reader.start()
    try:
        while True:
            at_s, item = inbox.get(timeout=max(0.0, limit_s - (time.monotonic() - sent_at)))
            if at_s > limit_s:
                break  # by the time of its arrival: ours may be later, when the terminal is slow
            if isinstance(item, tuple):
                (ending, detail), ended_at_s = item, at_s
                break
            reads.append((at_s, item))
            for event in parser.push(item):
                show(event)
    except queue.Empty:
        pass  # the limit, in silence
    finally:
        for response in answers:
            # Wakes a reader that is still blocked; it then closes the connection. Closing it from here would not.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                response.raw.shutdown()
        reader.join(JOIN_S)
    status = answers[0].status_code if answers else None
    headers = {name.lower(): value for name, value in answers[0].headers.items()} if answers else {}
    return Recording(status, headers, reads, ending, ended_at_s, detail)


# --- What a recording says ---


@dataclass(frozen=True)
class Frame:
    """One event of a recording, with the time at which its last byte came."""

    at_s: float
    sse: ServerSentEvent

    @property
    def is_done(self) -> bool:
        return self.sse.data == DONE

    @cached_property
    def payload(self) -> dict[str, Any]:
        """Its JSON object; empty when it carries none."""
        return json_object(self.sse.data) or {}

    @property
    def type(self) -> str:
        """The `type` of a native event."""
        value = self.payload.get("type")
        return value if isinstance(value, str) else ""

    @property
    def choice(self) -> dict[str, Any]:
        """The first choice of an OpenAI chunk; empty when there is none."""
        choices = self.payload.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        return choice if isinstance(choice, dict) else {}

    @property
    def delta(self) -> dict[str, Any]:
        value = self.choice.get("delta")
        return value if isinstance(value, dict) else {}

    @property
    def text(self) -> str:
        """The text that it brings, in either format."""
        if self.type == "token":
            value = self.payload.get("t")
        else:
            # Some servers put a model's thinking beside its answer; it is output all the same.
            value = self.delta.get("content") or self.delta.get("reasoning_content")
        return value if isinstance(value, str) else ""

    @property
    def num_tokens(self) -> int:
        """How many tokens of a native stream it brings."""
        value = self.payload.get("n", 1)
        return value if isinstance(value, int) else 1

    @property
    def is_finish(self) -> bool:
        return self.choice.get("finish_reason") is not None

    @property
    def is_usage(self) -> bool:
        """OpenAI's chunk that has no choices and carries the usage."""
        return self.payload.get("choices") == [] and isinstance(self.payload.get("usage"), dict)

    def __str__(self) -> str:
        shown = self.sse.data if len(self.sse.data) <= 60 else f"{self.sse.data[:57]}..."
        return f"{shown!r}"


class Transcript:
    """A recording, read as events.

    Attributes:
        frames: All events.
        events: Those before the first [DONE].
        after_done: Those behind it.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        parser = SSEParser(max_event_bytes=MAX_RECORDED_BYTES)
        self.frames = [Frame(at_s, sse) for at_s, data in recording.reads for sse in parser.push(data)]
        dones = [n for n, frame in enumerate(self.frames) if frame.is_done]
        self.has_done = bool(dones)
        self.events = self.frames[: dones[0]] if dones else self.frames
        self.after_done = self.frames[dones[0] + 1 :] if dones else []
        self.body = b"".join(data for _, data in recording.reads).replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def of_type(self, *types: str) -> list[Frame]:
        return [frame for frame in self.events if frame.type in types]

    @property
    def finishes(self) -> list[Frame]:
        """The endings of an OpenAI stream: finish reasons and errors."""
        return [frame for frame in self.events if frame.is_finish or "error" in frame.payload]

    @property
    def texts(self) -> list[Frame]:
        return [frame for frame in self.events if frame.text]


# --- The rules ---
#
# A rule is a promise and a function that yields what breaks it. One broken thing should break one rule, so that the
# report names the cause; each has a test that goes red without it.

Problems = Iterator[str]


@dataclass(frozen=True)
class Rule:
    promise: str
    problems: Callable[[Transcript], Problems]


def _ends_cleanly(transcript: Transcript) -> Problems:
    if transcript.recording.ending != "eof":
        yield transcript.recording.detail
    elif transcript.body and not transcript.body.endswith(b"\n\n"):
        tail = transcript.body.rpartition(b"\n\n")[2]
        yield f"behind the last event there are bytes that are no event: {tail[:60]!r}"


def _done_is_last(transcript: Transcript) -> Problems:
    if not transcript.has_done:
        yield "there is no [DONE]"
    if transcript.after_done:
        yield f"{transcript.after_done[0]} came after [DONE]"


def _is_prompt(transcript: Transcript) -> Problems:
    first_at_s = transcript.frames[0].at_s if transcript.frames else 0.0
    if first_at_s > HELD_BACK_S:
        yield f"the first event came after {first_at_s:.1f} s; it has to leave within 100 ms, before any token"


def _is_alive(transcript: Transcript) -> Problems:
    silence_s = longest_silence_s(transcript.recording)
    if silence_s > SILENCE_LIMIT_S:
        yield f"not a byte for {silence_s:.1f} s; a keep-alive is due every 10 s"


def _has_no_empty_blocks(transcript: Transcript) -> Problems:
    has_data = False
    for line in transcript.body.split(b"\n")[:-1]:
        if line == b"" and not has_data:
            yield "a blank line without an event before it (behind a comment?) breaks common clients"
            return
        has_data = line != b"" and (has_data or line.startswith(b"data"))


def _is_json(transcript: Transcript) -> Problems:
    yield from (f"{frame} is not a JSON object" for frame in transcript.events if not frame.payload)


def _native_fields(transcript: Transcript) -> Problems:
    for frame in transcript.events:
        if not frame.payload:
            continue  # said already
        try:
            parse_event(frame.sse)
        except ProtocolError as error:
            yield str(error)
        except GenerationError as error:
            if error.code not in ERROR_CODES:
                yield f"error code {error.code!r} is not in the contract"
            if not error.message:
                yield "an error event has no message"
            if not isinstance(frame.payload.get("usage"), dict):
                yield "an error event has no usage"


def _native_ids(transcript: Transcript) -> Problems:
    for expected, frame in enumerate(transcript.events):
        if frame.sse.id != str(expected):
            yield f"{frame} has id {frame.sse.id!r}, {expected} was due"
            return


def _native_starts(transcript: Transcript) -> Problems:
    types = [frame.type for frame in transcript.events]
    if not types or types[0] != "started":
        yield f"the first event is {transcript.events[0] if types else 'missing'}"
    elif types.count("started") > 1:
        yield f"there are {types.count('started')} started events"


def _native_one_terminal(transcript: Transcript) -> Problems:
    terminals = transcript.of_type("end", "error")
    if not terminals:
        yield "there is neither an end nor an error"
    elif len(terminals) > 1:
        yield f"there are {len(terminals)}: {', '.join(frame.type for frame in terminals)}"


def _native_terminal_is_last(transcript: Transcript) -> Problems:
    terminals = transcript.of_type("end", "error")
    if terminals:
        behind = transcript.events[transcript.events.index(terminals[0]) + 1 :]
        others = [frame for frame in behind if frame not in terminals]
        if others:
            yield f"{others[0]} came after the terminal event"


def _native_tokens(transcript: Transcript) -> Problems:
    expected = 0
    for frame in transcript.of_type("token"):
        index = frame.payload.get("i")
        if not isinstance(index, int):
            return  # said already
        if index != expected:
            yield f"{frame} has index {index}, {expected} was due: tokens were lost, repeated or reordered"
            return
        expected += frame.num_tokens
    for frame in transcript.of_type("end")[:1]:
        tokens_out = frame.payload.get("tokens_out")
        if isinstance(tokens_out, int) and tokens_out < expected:
            yield f"the end counts {tokens_out} tokens, {expected} came"


def _native_metrics(transcript: Transcript) -> Problems:
    num_metrics = len(transcript.of_type("metrics"))
    if transcript.of_type("end") and num_metrics != 1:
        yield f"there are {num_metrics} metrics events, one was due"


def _native_succeeds(transcript: Transcript) -> Problems:
    for frame in transcript.of_type("end", "error")[:1]:
        payload = frame.payload
        if frame.type == "error":
            yield f"it failed with {payload.get('code')}: {payload.get('message')}"
            return
        if payload.get("stop_reason") not in STOP_REASONS:
            yield f"its stop_reason is {payload.get('stop_reason')!r}"
    if not transcript.texts:
        yield "no text came"


def _native_headers(transcript: Transcript) -> Problems:
    for name, due in (("cache-control", "no-cache"), ("x-accel-buffering", "no")):
        if due not in transcript.recording.headers.get(name, ""):
            yield f"the header {name} is {transcript.recording.headers.get(name)!r}, {due!r} was due"


def _openai_chunks(transcript: Transcript) -> Problems:
    ids = set()
    for frame in transcript.events:
        if not frame.payload or "error" in frame.payload:
            continue
        if frame.payload.get("object") != "chat.completion.chunk" or not isinstance(frame.payload.get("choices"), list):
            yield f"{frame} is not a chat.completion.chunk with choices"
            return
        ids.add(str(frame.payload.get("id")))
    if len(ids) > 1 or "None" in ids:
        yield f"the chunks of one answer have the ids {', '.join(sorted(ids))}"


def _openai_plain(transcript: Transcript) -> Problems:
    for frame in transcript.frames:
        if frame.sse.id is not None or frame.sse.event != "message":
            yield f"{frame} has an id: or an event: line, which common clients do not expect"
            return


def _openai_role(transcript: Transcript) -> Problems:
    first = next((frame for frame in transcript.events if "error" not in frame.payload), None)
    if first is not None and first.delta.get("role") != "assistant":
        yield f"the first chunk is {first}"


def _openai_one_ending(transcript: Transcript) -> Problems:
    if not transcript.finishes:
        yield "there is neither a finish_reason nor an error"
    elif len(transcript.finishes) > 1:
        yield f"there are {len(transcript.finishes)}"


def _openai_ending_is_last(transcript: Transcript) -> Problems:
    finishes = transcript.finishes
    if finishes:
        behind = transcript.events[transcript.events.index(finishes[0]) + 1 :]
        others = [frame for frame in behind if frame not in finishes and not frame.is_usage]
        if others:
            yield f"{others[0]} came after the ending"


def _openai_usage(transcript: Transcript) -> Problems:
    finish = next((frame for frame in transcript.events if frame.is_finish), None)
    if finish is None:
        return
    usages = [frame for frame in transcript.events if frame.is_usage]
    if len(usages) != 1:
        yield f"there are {len(usages)} usage chunks, one was asked for"
    elif transcript.events.index(usages[0]) < transcript.events.index(finish):
        yield "the usage came before the finish_reason"


def _openai_error_fields(transcript: Transcript) -> Problems:
    for frame in transcript.events:
        if "error" in frame.payload:
            error = frame.payload["error"]
            if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= error.keys():
                yield f"{frame} is not an error with message, type, param and code"


def _openai_succeeds(transcript: Transcript) -> Problems:
    for frame in transcript.finishes[:1]:
        if "error" in frame.payload:
            error = frame.payload["error"]
            yield f"it failed with {error.get('message') if isinstance(error, dict) else error}"
            return
        if frame.choice["finish_reason"] not in FINISH_REASONS:
            yield f"its finish_reason is {frame.choice['finish_reason']!r}"
    if not transcript.texts:
        yield "no text came"


NATIVE_RULES = (
    Rule("the first event leaves at once", _is_prompt),
    Rule("the first event is started, and the only one", _native_starts),
    Rule("ids count from 0 without gaps", _native_ids),
    Rule("every event is a JSON object", _is_json),
    Rule("with the fields of its type", _native_fields),
    Rule("tokens are whole and in order", _native_tokens),
    Rule("keep-alives come in time", _is_alive),
    Rule("and end in one newline", _has_no_empty_blocks),
    Rule("metrics once", _native_metrics),
    Rule("exactly one terminal event", _native_one_terminal),
    Rule("nothing after it but [DONE]", _native_terminal_is_last),
    Rule("[DONE], and nothing after it", _done_is_last),
    Rule("a clean end of file", _ends_cleanly),
    Rule("headers that keep proxies from buffering", _native_headers),
    Rule("text comes, and no failure", _native_succeeds),
)

OPENAI_RULES = (
    Rule("the first chunk leaves at once", _is_prompt),
    Rule("the first chunk brings the role", _openai_role),
    Rule("no id: and no event: lines", _openai_plain),
    Rule("every event is a JSON object", _is_json),
    Rule("chunks have OpenAI's shape", _openai_chunks),
    Rule("errors have OpenAI's shape", _openai_error_fields),
    Rule("keep-alives come in time", _is_alive),
    Rule("and end in one newline", _has_no_empty_blocks),
    Rule("exactly one finish_reason or error", _openai_one_ending),
    Rule("nothing after it but usage and [DONE]", _openai_ending_is_last),
    Rule("usage once, when asked for", _openai_usage),
    Rule("[DONE], and nothing after it", _done_is_last),
    Rule("a clean end of file", _ends_cleanly),
    Rule("text comes, and no failure", _openai_succeeds),
)


# --- The verdict ---


@dataclass(frozen=True)
class Verdict:
    """What the rules say about one stream, and what was measured on it.

    Attributes:
        outcomes: Each promise with what breaks it; kept when that is nothing.
        terminal: How the stream says it ended.
    """

    route: str
    outcomes: Sequence[tuple[str, Sequence[str]]]
    terminal: str = "none"
    num_tokens: int = 0
    first_event_s: float | None = None
    ttft_s: float | None = None
    longest_gap_s: float | None = None
    longest_silence_s: float | None = None
    duration_s: float | None = None

    @property
    def problems(self) -> list[str]:
        return [f"{promise}: {problem}" for promise, problems in self.outcomes for problem in problems]


def judge_native(recording: Recording, route: str = "POST /execute") -> Verdict:
    """Hold a native stream against the contract."""
    return _judge(recording, route, NATIVE_RULES)


def judge_openai(recording: Recording, route: str = "POST /v1/chat/completions") -> Verdict:
    """Hold a chat completion stream, asked for with `include_usage`, against the contract."""
    return _judge(recording, route, OPENAI_RULES)


def _judge(recording: Recording, route: str, rules: Sequence[Rule]) -> Verdict:
    refusal = _refusal(recording)
    if refusal:
        return Verdict(route, [("it answers with an event stream", [refusal])])
    transcript = Transcript(recording)
    texts_at_s = [frame.at_s for frame in transcript.texts]
    return Verdict(
        route,
        [(rule.promise, list(rule.problems(transcript))) for rule in rules],
        terminal=_terminal(transcript),
        num_tokens=_num_tokens(transcript),
        first_event_s=transcript.frames[0].at_s if transcript.frames else None,
        ttft_s=texts_at_s[0] if texts_at_s else None,
        longest_gap_s=max((b - a for a, b in pairwise(texts_at_s)), default=None),
        longest_silence_s=longest_silence_s(recording),
        duration_s=recording.ended_at_s,
    )


def _refusal(recording: Recording) -> str:
    """Why there is nothing to judge; empty when there is."""
    if recording.status is None:
        return recording.detail
    content_type = recording.headers.get("content-type", "")
    if recording.status == 200 and content_type.startswith("text/event-stream"):
        return ""
    body = b"".join(data for _, data in recording.reads)[:200].decode("utf-8", "replace").strip()
    return f"it answered {recording.status}, {content_type or 'without a content type'}: {body or '(nothing)'}"


def _terminal(transcript: Transcript) -> str:
    for frame in transcript.of_type("end", "error")[:1]:
        return f"{frame.type} {frame.payload.get('stop_reason') or frame.payload.get('code')}"
    for frame in transcript.finishes[:1]:
        return f"finish_reason {frame.choice['finish_reason']}" if frame.is_finish else "error"
    return "none"


def _num_tokens(transcript: Transcript) -> int:
    for frame in transcript.events:
        if frame.is_usage and isinstance(frame.payload["usage"].get("completion_tokens"), int):
            return int(frame.payload["usage"]["completion_tokens"])
    return sum(frame.num_tokens for frame in transcript.texts)


def longest_silence_s(recording: Recording) -> float:
    """The longest time without a single byte, from the request to the end."""
    instants = [0.0, *(at_s for at_s, _ in recording.reads), recording.ended_at_s]
    return max(b - a for a, b in pairwise(instants))


# --- The command ---


def run_check(
    url: str | None,
    *,
    worker_class: str | None = None,
    prompt: str = "Once upon a time",
    max_tokens: int = 64,
    limit_s: float = 30.0,
    api_key: str | None = None,
    console: Console | None = None,
) -> bool:
    """Check the server at `url`, or one that is started for it; say what was found; return whether all is well.

    `limit_s` is for both streams together. Starting the server does not count.
    """
    console = console or Console()
    with contextlib.ExitStack() as stack:
        server = None
        if url is None:
            try:
                server = stack.enter_context(announced_server(console, worker_class))
            except SpawnFailed as error:
                console.print(Text(f"FAILED: {printable(str(error))}", style="red"))
                return False
            url = server.url
        verdicts = _streams(url, prompt, max_tokens, limit_s, api_key, console)
        for verdict in verdicts:
            console.print(_table(verdict))
        problems = [f"{verdict.route}: {problem}" for verdict in verdicts for problem in verdict.problems]
        for problem in problems:
            console.print(Text(printable(problem), style="red"))
        if problems and server is not None:
            console.print(Text(f"the server's log ends with\n{printable(server.log_tail())}", style="dim"))
        console.print(Text("FAILED", style="bold red") if problems else Text("PASSED", style="bold green"))
    return not problems


def _streams(
    url: str, prompt: str, max_tokens: int, limit_s: float, api_key: str | None, console: Console
) -> list[Verdict]:
    """Ask for both streams, showing their text; judge them."""
    give_up_at = time.monotonic() + limit_s

    def show(event: ServerSentEvent) -> None:
        console.file.write(printable(Frame(0.0, event).text))
        console.file.flush()

    def ask(method: str, path: str, fields: dict[str, Any] | None = None) -> Recording:
        remaining_s = give_up_at - time.monotonic()
        if remaining_s <= 0:
            return Recording(None, {}, [], "stopped", 0.0, f"no time is left of the limit of {limit_s:g} s")
        return record(client.session, method, client.base_url + path, fields, limit_s=remaining_s, show=show)

    def stream(path: str, fields: dict[str, Any]) -> Recording:
        console.print(Text(f"POST {path}", style="bold"))
        recording = ask("POST", path, fields)
        console.print()
        return recording

    verdicts = []
    # An OpenAI client's base URL ends with /v1; ours does not.
    with Client(re.sub("/v1/?$", "", url), api_key=api_key) as client:
        native = stream("/execute", {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0})
        if native.status in (404, 405):
            console.print(Text(f"no native route ({native.status}): only the OpenAI route is checked", style="dim"))
        else:
            verdicts.append(judge_native(native))
        chat = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        model = _first_model(ask("GET", "/v1/models"))
        verdicts.append(judge_openai(stream("/v1/chat/completions", chat | ({"model": model} if model else {}))))
    return verdicts


def _first_model(listing: Recording) -> str | None:
    """The first model that a server lists; None when it lists none, and then the request names none."""
    try:
        name = (json_object(b"".join(data for _, data in listing.reads)) or {})["data"][0]["id"]
    except (LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _table(verdict: Verdict) -> Table:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value * 1000:.0f} ms"

    table = Table(title=verdict.route, title_justify="left", show_header=False, min_width=60)
    table.add_row("tokens received", str(verdict.num_tokens))
    table.add_row("time to first event", seconds(verdict.first_event_s))
    table.add_row("time to first token", seconds(verdict.ttft_s))
    table.add_row("longest gap between tokens", seconds(verdict.longest_gap_s))
    table.add_row("longest silence", seconds(verdict.longest_silence_s))
    table.add_row("duration", seconds(verdict.duration_s))
    table.add_row("terminal event", Text(printable(verdict.terminal)), end_section=True)
    for promise, problems in verdict.outcomes:
        table.add_row(Text(promise), Text("FAILED", style="red") if problems else Text("ok", style="green"))
    return table
