"""An engine with a model, and requests for it, without any HTTP."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.support.random_models import VOCAB_SIZE, byte_level_tokenizer
from worker.engine.endings import INCOMPLETE
from worker.engine.engine import Engine
from worker.engine.kv_cache import num_blocks_for
from worker.engine.loader import LoadedModel
from worker.engine.model_runner import ModelRunner, new_runner
from worker.engine.sequence import Deadlines, Sequence
from worker.engine.tokenizer import Tokenizer
from worker.events import Event, Terminal, Token
from worker.request import SamplingParams
from worker.settings import Settings
from worker.streams.channel import EndOfChannel, ReceiveChannel, SendChannel, open_channel
from worker.streams.wakeup import ThreadWakeup

NUM_BLOCKS = 512
WAIT_S = 60.0  # a bound for a test, not a measure

PATIENT = Deadlines(600, 600, 600, 600, 600, 600)

_request_numbers = itertools.count()


class Reply:
    """The reader's side of one submitted sequence."""

    def __init__(self, sequence: Sequence, receiver: "ReceiveChannel[Event, Terminal]") -> None:
        self.sequence = sequence
        self.receiver = receiver

    def events(self) -> list[Event]:
        """All events, the terminal last."""
        events: list[Event] = []
        while True:
            try:
                items = self.receiver.receive(WAIT_S)
            except EndOfChannel as end:
                return [*events, end.reason]
            assert items, "no event in time"
            events += items

    def text(self) -> str:
        """The text of the whole answer."""
        return "".join(event.text for event in self.events() if isinstance(event, Token))


def loaded_model(runner: ModelRunner, eos_ids: frozenset[int] = frozenset(), max_context: int = 512) -> LoadedModel:
    """What the loader would give for this runner."""
    tokenizer = Tokenizer(byte_level_tokenizer())
    num_blocks = max(NUM_BLOCKS, 8 * num_blocks_for(max_context))
    return LoadedModel(runner, tokenizer, eos_ids, max_context, num_blocks, VOCAB_SIZE, "cpu", "a test model")


def new_engine(
    model: Any = None,
    *,
    runner: ModelRunner | None = None,
    eos_ids: frozenset[int] = frozenset(),
    **settings: Any,
) -> Engine:
    """A started engine for a model or a runner. Stop it: the leak fixture looks."""
    chosen = replace(Settings(), **settings)

    def load(settings: Settings, report: object) -> LoadedModel:
        used = runner if runner is not None else new_runner(model, lambda _: NUM_BLOCKS)[0]
        return loaded_model(used, eos_ids)

    engine = Engine(chosen, ThreadWakeup(), load)
    engine.start()
    wait_until(lambda: engine.state != "LOADING")
    assert engine.state == "READY", engine.records.take()
    return engine


def new_sequence(
    prompt_ids: list[int], deadlines: Deadlines = PATIENT, tokenizer: Tokenizer | None = None, **params: Any
) -> Reply:
    """A sequence that nobody has submitted yet, and its reader."""
    sender: SendChannel[Event, Terminal]
    receiver: ReceiveChannel[Event, Terminal]
    sender, receiver = open_channel(ThreadWakeup(), INCOMPLETE, None)
    sequence = Sequence(
        request_id=f"test-{next(_request_numbers)}",
        prompt_ids=prompt_ids,
        params=SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **params}),
        sender=sender,
        detokenizer=(tokenizer or Tokenizer(byte_level_tokenizer())).new_detokenizer(),
        deadlines=deadlines,
    )
    return Reply(sequence, receiver)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread to make something true. Fails after WAIT_S."""
    import threading
    import time

    deadline = time.monotonic() + WAIT_S
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        tick.wait(0.002)
