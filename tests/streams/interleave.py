"""Steps into a call at every one of its bytecodes: each place where another thread or the garbage collector may.

A race needs two things to meet within a microsecond, so hunting it with threads proves little. Here the second
thing is put into the first at a chosen bytecode, one after the other, until all have been tried: no luck, no sleep.

Source: `sys.settrace` with `f_trace_opcodes`; a trace function is not traced itself, and its errors reach the call.
"""

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import worker.streams
from tests.streams.threads import PATIENCE_S, start_native
from worker.streams import native

T = TypeVar("T")


def call_traced(call: Callable[[], T], at_opcode: Callable[[], None]) -> T:
    """Run `call`, and `at_opcode` just before every bytecode of worker/streams in it, in this thread only.

    The greenlets of a thread share what `sys.settrace` sets: among several, the first to end ends it for all.
    """
    traced_dir = str(Path(worker.streams.__path__[0]))

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(traced_dir):
            return None
        if event == "call":
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode":
            at_opcode()
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(None if getattr(outer, "__name__", "") == trace.__name__ else outer)


def call_with_step(call: Callable[[], object], step: int, at_step: Callable[[], object]) -> bool:
    """Run `call`, and `at_step` just before the bytecode number `step` of worker/streams in it.

    Returns:
        Whether the call was long enough for that.
    """
    num_steps = 0

    def count() -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == step:
            at_step()

    call_traced(call, count)
    return num_steps >= step


def call_jittered(call: Callable[[], T], seed: int) -> T:
    """Run `call`, and let another thread go on at random bytecodes of worker/streams in it.

    The interpreter alone rarely does: a thread that is woken, works for 10 us and sleeps again is not interrupted.
    """
    rnd = random.Random(seed)

    def jitter() -> None:
        if rnd.random() < 0.02:
            native.native_sleep(0)

    return call_traced(call, jitter)


class Steps:
    """Counts through the bytecodes of a call that is made afresh for each.

        for step in steps:
            ...
            steps.run(call, at_step)

    Ends after the first round whose call was shorter than its step, so the last round is without a step.
    """

    def __init__(self, at_least: int = 8) -> None:
        self._at_least = at_least  # a trace that sees nothing would prove nothing
        self._step = 0
        self._is_over = False

    def __iter__(self) -> Iterator[int]:
        while not self._is_over:
            self._step += 1
            self._is_over = True  # a round that forgets to run ends the loop, and fails below
            yield self._step
        assert self._step > self._at_least, f"only {self._step - 1} steps were seen"

    def run(self, call: Callable[[], object], at_step: Callable[[], object]) -> bool:
        """Run this round. Returns whether `at_step` was reached."""
        was_reached = call_with_step(call, self._step, at_step)
        self._is_over = not was_reached
        return was_reached


def play_every_step(steps: Steps, play: Callable[[], None]) -> None:
    """One round of `play` per step, in a native thread: one that waits for itself fails, and does not hang us."""

    def play_all() -> None:
        for _ in steps:
            play()

    start_native(play_all).result()


class Halted:
    """A call in a native thread that halts before one of its bytecodes until `finish`."""

    def __init__(self, call: Callable[[], object], step: int) -> None:
        self._has_halted_or_ended = native.new_lock()
        self._has_halted_or_ended.acquire()
        self._go_on = native.new_lock()
        self._go_on.acquire()
        self._is_going = False
        self._call = call
        self._step = step
        self._running = start_native(self._run)
        assert self._has_halted_or_ended.acquire(True, PATIENCE_S)
        self.is_halted = not self._is_going

    def _run(self) -> None:
        try:
            call_with_step(self._call, self._step, self._halt)
        finally:
            if not self._is_going:
                self._is_going = True
                self._has_halted_or_ended.release()

    def _halt(self) -> None:
        self._has_halted_or_ended.release()
        assert self._go_on.acquire(True, PATIENCE_S)

    def finish(self) -> None:
        """Let it run to its end. Idempotent."""
        if not self._is_going:
            self._is_going = True
            self._go_on.release()
        self._running.result()
