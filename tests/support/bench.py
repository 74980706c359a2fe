"""An engine over a scripted runner: submitted to without any HTTP, and what it said."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tests.support.engines import NUM_BLOCKS, PATIENT, WAIT_S, Reply, new_sequence, wait_until
from tests.support.random_models import VOCAB_SIZE, byte_level_tokenizer
from tests.support.runners import ScriptedRunner
from worker.engine.admission import EngineState
from worker.engine.engine import Engine
from worker.engine.loader import LoadedModel
from worker.engine.sequence import Deadlines, SequenceState
from worker.engine.tokenizer import Tokenizer
from worker.events import End, Event, Failure, Metrics, StopReason, Token
from worker.observe.log import LogLine, Outcome, Record
from worker.settings import Settings
from worker.streams.channel import EndOfChannel
from worker.streams.wakeup import ThreadWakeup

TOKENIZER = Tokenizer(byte_level_tokenizer())


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


class Bench:
    """A started engine over a scripted runner, and what it has said."""

    def __init__(self, engine: Engine, runner: ScriptedRunner) -> None:
        self.engine = engine
        self.runner = runner
        self.gate = runner.gate
        self._records: list[Record] = []

    def submit(self, prompt_ids: list[int], deadlines: Deadlines = PATIENT, **params: Any) -> Reply:
        reply = new_sequence(prompt_ids, deadlines, TOKENIZER, **params)
        self.engine.submit(reply.sequence)
        return reply

    def submit_together(self, prompts: list[list[int]], **params: Any) -> list[Reply]:
        """Queue several between two steps, so that the same step finds all of them."""
        replies = [new_sequence(prompt_ids, PATIENT, TOKENIZER, **params) for prompt_ids in prompts]
        admission = self.engine._admission
        with admission.lock:
            for _ in replies:
                admission._service_rate.came(time.monotonic())
            admission._open |= {reply.sequence for reply in replies}
            admission.inbox.extend([reply.sequence for reply in replies])  # at once: one call under the GIL
        self.engine._waiter.wake()
        return replies

    def alone(self, prompt_ids: list[int], **params: Any) -> list[int]:
        """The tokens of a request that has the engine for itself."""
        reply = self.submit(prompt_ids, **params)
        end_of(reply)
        return reply.sequence.output_ids

    def records(self) -> list[Record]:
        try:
            self._records += self.engine.records.take()
        except EndOfChannel:
            pass
        return self._records

    def outcomes(self, *replies: Reply) -> list[str]:
        """The outcomes of these requests as `kind{detail}`, in the order of the requests; each must have one."""
        found: list[Outcome] = []

        def are_there() -> bool:
            everything = [record for record in self.records() if isinstance(record, Outcome)]
            found[:] = everything
            return {reply.sequence.request_id for reply in replies} <= {one.request_id for one in everything}

        wait_until(are_there)
        said = []
        for reply in replies:
            (one,) = [one for one in found if one.request_id == reply.sequence.request_id]
            assert one.usage == reply.sequence.usage
            assert one.total_ms >= one.queue_ms >= 0
            said.append(f"{one.outcome}{{{one.detail}}}")
        return said

    def log(self) -> str:
        return "\n".join(record.text for record in self.records() if isinstance(record, LogLine))


@contextmanager
def bench(
    runner: ScriptedRunner | None = None,
    eos_ids: frozenset[int] = frozenset(),
    num_blocks: int = NUM_BLOCKS,
    **settings: Any,
) -> Iterator[Bench]:
    """An engine that is READY, and stopped behind the test."""
    runner = runner or ScriptedRunner()
    chosen = replace(Settings(), **{"max_slots": 4, **settings})
    engine = Engine(chosen, ThreadWakeup(), lambda settings, report: model_of(runner, eos_ids, num_blocks))
    engine.start()
    try:
        wait_until(lambda: engine.state is not EngineState.LOADING)
        assert engine.state is EngineState.READY, engine.reason
        yield Bench(engine, runner)
    finally:
        runner.gate.open()
        assert engine.stop(WAIT_S)


def model_of(
    runner: ScriptedRunner, eos_ids: frozenset[int] = frozenset(), num_blocks: int = NUM_BLOCKS
) -> LoadedModel:
    return LoadedModel(runner, TOKENIZER, eos_ids, 512, num_blocks, VOCAB_SIZE, "cpu", "a scripted model")


def end_of(reply: Reply) -> End | Failure:
    """The terminal event, after checking the shape of the whole stream."""
    events = reply.events()
    *before, metrics, terminal = events
    assert isinstance(terminal, End | Failure)
    assert isinstance(metrics, Metrics)
    assert all(isinstance(event, Token) for event in before)
    assert terminal.usage == reply.sequence.usage
    assert_indices(before)
    # After its stream, if it was overdue in a step that took long: that is ended from outside.
    wait_until(lambda: reply.sequence.state is SequenceState.FINISHED)
    return terminal


def assert_indices(events: list[Event]) -> None:
    at = 0
    for event in events:
        assert isinstance(event, Token)
        assert event.index == at
        assert event.text
        at += event.count


def stop_reason(reply: Reply) -> StopReason:
    terminal = end_of(reply)
    assert isinstance(terminal, End), terminal
    return terminal.stop_reason


def code(reply: Reply) -> str:
    terminal = end_of(reply)
    assert isinstance(terminal, Failure), terminal
    return terminal.code


def texts(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))
