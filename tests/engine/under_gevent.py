"""`python -m tests.engine.under_gevent MODEL`: an engine in a process that gevent has patched, as in a worker.

Whatever the generation thread uses of what gevent has patched, once it is READY, is noted. Prints one line of JSON.
"""

# The order of the imports is the point, and the report goes to stdout.
# ruff: noqa: E402, I001, T201

import sys

import worker.engine.loader  # as worker/process.py: torch and transformers make their locks before the patch

from gevent import monkey

monkey.patch_all()

import _thread
import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import gevent

from tests.support.engines import PATIENT
from worker.engine.endings import INCOMPLETE
from worker.engine.admission import EngineState
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.events import End, Event, Terminal, Token
from worker.observe.log import RecordWriter
from worker.request import SamplingParams
from worker.settings import Settings
from worker.streams.channel import EndOfChannel, ReceiveChannel, SendChannel, open_channel
from worker.streams.native import start_thread
from worker.streams.wakeup import GeventWakeup, new_wakeup

NUM_REQUESTS = 32
LIMIT_S = 90.0
PATCHED_FILES = ("threading.py", "queue.py", "/logging/__init__.py", "/gevent/", "_bootstrap>")

native_ident: Callable[[], int] = monkey.get_original("_thread", "get_ident")
main_ident = native_ident()
used: set[str] = set()
is_watching = False


def note(what: str) -> None:
    """Note a use by any OS thread but the one of the hub."""
    if is_watching and native_ident() != main_ident:
        used.add(what)


def watch_methods(owner: Any, name: str, *methods: str) -> Any:
    """A subclass whose methods note their use, put where everybody looks the class up."""
    base = getattr(owner, name)

    def noted(method: str) -> Callable[..., Any]:
        original = getattr(base, method)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            note(f"{base.__module__}.{name}.{method}")
            return original(self, *args, **kwargs)

        return call

    watched = type(name, (base,), {method: noted(method) for method in methods})
    setattr(owner, name, watched)
    return watched


def watch_function(owner: Any, name: str) -> None:
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        note(f"{owner.__name__}.{name}")
        return original(*args, **kwargs)

    setattr(owner, name, call)


class WatchedLock:
    """gevent's lock, which cannot be subclassed."""

    def __init__(self) -> None:
        self._lock = patched_lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        note("Lock.acquire")
        return bool(self._lock.acquire(blocking, timeout))

    def release(self) -> None:
        note("Lock.release")
        self._lock.release()

    def locked(self) -> bool:
        note("Lock.locked")
        return bool(self._lock.locked())

    def __enter__(self) -> bool:
        note("Lock.__enter__")
        return bool(self._lock.acquire())

    def __exit__(self, *args: object) -> None:
        note("Lock.__exit__")
        self._lock.release()


patched_lock: Any = threading.Lock


def watch() -> None:
    """Instrument what gevent has patched."""
    for owner, name in ((threading, "Lock"), (threading, "_allocate_lock"), (_thread, "allocate_lock")):
        setattr(owner, name, WatchedLock)
    watch_function(threading, "RLock")
    watch_methods(threading, "Condition", "__enter__", "wait", "notify")
    watch_methods(threading, "Event", "set", "wait", "clear")
    watch_methods(queue, "Queue", "put", "get")
    watch_methods(queue, "SimpleQueue", "put", "get")
    watch_function(logging.Logger, "handle")
    watch_function(time, "sleep")


def profile(frame: FrameType, event: str, argument: Any) -> None:
    """Note calls into what is patched, whoever made the object. On the generation thread only."""
    if event == "call" and any(part in frame.f_code.co_filename for part in PATCHED_FILES):
        note(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
    elif event == "c_call" and str(getattr(type(argument.__self__), "__module__", "")).startswith("gevent"):
        note(f"{type(argument.__self__).__name__}.{argument.__name__}")


def canary() -> list[str]:
    """What the instruments see of a thread that does all of it."""
    lock, condition, event, items = threading.Lock(), threading.Condition(), threading.Event(), queue.Queue[int]()
    is_done = []

    def misuse() -> None:
        try:
            with lock:
                pass
            with condition:
                pass
            event.set()
            items.put(1)
            logging.getLogger("canary").critical("a line")
            time.sleep(0)
        finally:
            is_done.append(True)

    start_thread(misuse)
    while not is_done:
        gevent.sleep(0.001)
    seen = sorted(used)
    used.clear()
    return seen


class YieldingHandler(logging.Handler):
    """As a handler whose stream is a socket."""

    def emit(self, record: logging.LogRecord) -> None:
        gevent.sleep(0)


def main() -> None:
    global is_watching
    watch()
    logger = logging.getLogger("endstop")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(YieldingHandler())
    logging.getLogger("canary").addHandler(logging.NullHandler())
    is_watching = True
    seen_by_canary = canary()
    is_watching = False

    wakeup = new_wakeup()
    assert isinstance(wakeup, GeventWakeup)
    settings = replace(Settings(), model=sys.argv[1], max_slots=8, max_context=128, step_tokens=32)
    engine = Engine(settings, wakeup, worker.engine.loader.load)
    loop = engine._loop

    def profiled_loop() -> None:
        sys.setprofile(profile)
        try:
            loop()
        finally:
            sys.setprofile(None)

    engine._loop = profiled_loop  # type: ignore[method-assign]
    engine.start()
    while engine.state is EngineState.LOADING:
        gevent.sleep(0.01)
    assert engine.state is EngineState.READY, engine.reason
    tokenizer = engine.model.tokenizer
    writer = RecordWriter(engine.records)
    shared_lock = threading.Lock()

    def write_records() -> None:
        try:
            while True:
                writer.write_waiting(1.0)
        except EndOfChannel:
            pass

    def serve(number: int) -> tuple[str, int]:
        sender: SendChannel[Event, Terminal]
        receiver: ReceiveChannel[Event, Terminal]
        sender, receiver = open_channel(wakeup, INCOMPLETE)
        prompt_ids = tokenizer.encode(f"the quick brown fox jumps over dog {number} " * (1 + number % 3))
        params = SamplingParams(max_tokens=12, temperature=1.0, seed=number, stop=("zzz",))
        detokenizer = tokenizer.new_detokenizer()
        engine.submit(Sequence(f"request-{number}", prompt_ids, params, sender, detokenizer, PATIENT))
        del sender
        num_tokens = 0
        while True:
            try:
                events = receiver.receive(LIMIT_S)
            except EndOfChannel as end:
                terminal: Terminal = end.reason
                return (terminal.stop_reason.value if isinstance(terminal, End) else terminal.code), num_tokens
            if not events:
                return "no event in time", num_tokens
            num_tokens += sum(event.count for event in events if isinstance(event, Token))
            with shared_lock:
                gevent.sleep(0)
            logger.info("request %d has %d tokens", number, num_tokens)

    housekeeper = gevent.spawn(write_records)
    is_watching = True
    greenlets = [gevent.spawn(serve, number) for number in range(NUM_REQUESTS)]
    gevent.joinall(greenlets, timeout=LIMIT_S)
    ended = [greenlet.value for greenlet in greenlets]
    engine.drain(0)
    while str(engine.state) == "READY":  # it has something to say about that
        gevent.sleep(0.01)
    is_stopped = engine.stop(20)
    is_watching = False
    housekeeper.join(5)
    outcomes = {f"{kind}{{{detail}}}": count for (kind, detail), count in writer.outcomes.items()}
    print(
        json.dumps(
            {
                "canary": seen_by_canary,
                "used": sorted(used),
                "ended": ended,
                "is_stopped": is_stopped,
                "outcomes": outcomes,
            }
        )
    )


if __name__ == "__main__":
    main()
