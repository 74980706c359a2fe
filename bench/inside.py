"""The engine without the server around it: in this process, asked directly."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from worker.engine import kernels
from worker.engine.admission import EngineState
from worker.engine.endings import INCOMPLETE
from worker.engine.engine import Engine
from worker.engine.loader import load
from worker.engine.sequence import Deadlines, Sequence
from worker.events import Event, Terminal
from worker.request import SamplingParams
from worker.settings import Settings
from worker.streams.channel import EndOfChannel, ReceiveChannel, SendChannel, open_channel
from worker.streams.wakeup import ThreadWakeup

WAIT_S = 600.0
_PATIENT = Deadlines(WAIT_S, WAIT_S, WAIT_S, WAIT_S, WAIT_S, WAIT_S)


@contextmanager
def running_engine(settings: Settings) -> Iterator[Engine]:
    """An engine that is ready, while the block lasts."""
    num_threads = torch.get_num_threads()
    engine = Engine(settings, ThreadWakeup(), load)
    engine.start()
    while engine.state is EngineState.LOADING:
        engine.wait_ended(0.01)
    try:
        yield engine
    finally:
        engine.stop(WAIT_S)
        kernels.set_threads(0)
        torch.set_num_threads(num_threads)


def answers(engine: Engine, prompts: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
    """The tokens of one answer for each prompt. All are asked at once, and nobody reads before the end."""
    submitted = []
    for number, (prompt, chosen) in enumerate(zip(prompts, params, strict=True)):
        sender: SendChannel[Event, Terminal]
        receiver: ReceiveChannel[Event, Terminal]
        sender, receiver = open_channel(ThreadWakeup(), INCOMPLETE, None)
        detokenizer = engine.model.tokenizer.new_detokenizer()
        sequence = Sequence(str(number), prompt, chosen, sender, detokenizer, _PATIENT)
        engine.submit(sequence)
        submitted.append((sequence, receiver))
    for _, receiver in submitted:
        try:
            while receiver.receive(WAIT_S):
                pass
        except EndOfChannel:
            continue
    return [sequence.output_ids for sequence, _ in submitted]
