"""Faults that strike one request in a running server, by name: the one with the seed MARK.

Lives in the tests: the product has no hook for it, so it cannot be on in production.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worker.engine.endings import INCOMPLETE
from worker.engine.engine import Engine
from worker.engine.scheduler import Row
from worker.engine.sequence import Sequence
from worker.events import Failure
from worker.streams.channel import SendChannel, open_channel
from worker.streams.wakeup import ThreadWakeup

MARK = 666


def is_marked(sequence: Sequence) -> bool:
    return sequence.params.seed == MARK


class Strikes:
    """Arms faults. Called from handlers while the gate is shut, so that nothing moves meanwhile."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._of_a_step: Callable[[], BaseException] | None = None
        self._is_nan = False

    def arm(self, name: str) -> None:
        """Have the named fault strike the marked request."""
        getattr(self, "_" + name)()

    def disarm(self) -> None:
        self._of_a_step, self._is_nan = None, False

    def before_step(self, rows: list[Row]) -> None:
        """At the beginning of each forward pass."""
        if self._of_a_step is not None and any(is_marked(row.sequence) for row in rows):
            raise self._of_a_step()

    def change(self, row: Row, logits: Tensor) -> None:
        """At the end of each forward pass, for each row that is sampled."""
        if self._is_nan and is_marked(row.sequence):
            logits.fill_(float("nan"))

    def _marked(self) -> list[Sequence]:
        return [sequence for sequence in tuple(self._engine._open) if is_marked(sequence)]

    def _nothing(self) -> None:
        pass

    def _forward(self) -> None:
        self._of_a_step = lambda: RuntimeError("injected")

    def _memory(self) -> None:
        self._of_a_step = lambda: torch.OutOfMemoryError("injected")

    def _logits(self) -> None:
        self._is_nan = True

    def _scheduler(self) -> None:
        """Not one request's fault: the loop's."""

        def schedule() -> list[Row]:
            raise RuntimeError("injected")

        self._engine._scheduler.schedule = schedule  # type: ignore[method-assign]

    def _sampler(self) -> None:
        class Broken:
            seed = MARK

            def __getattr__(self, name: str) -> Any:
                if name == "temperature":
                    raise RuntimeError("injected")
                return getattr(params, name)

        for sequence in self._marked():
            params = sequence.params
            sequence.params = Broken()  # type: ignore[assignment]

    def _detokenizer(self) -> None:
        class Broken:
            def push(self, token_id: int) -> str:
                raise RuntimeError("injected")

            flush = push

        for sequence in self._marked():
            sequence.detokenizer = Broken()  # type: ignore[assignment]

    def _encoder(self) -> None:
        """An event that no wire format knows."""
        event: Any = object()
        for sequence in self._marked():
            sequence.sender.send(event)

    def _forgotten(self) -> None:
        """A sender that is dropped unclosed."""
        for sequence in self._marked():
            other: SendChannel[Any, Any]
            other, receiver = open_channel(ThreadWakeup(), INCOMPLETE)
            sequence.sender = other
            self._kept = receiver  # or the engine would take the client for gone

    def _closed_twice(self) -> None:
        """By somebody else, and then by the engine."""
        for sequence in self._marked():
            sequence.sender.close(Failure("STALLED", "injected", sequence.usage))

    def _endless_narration(self) -> None:
        for sequence in self._marked():
            if sequence.narrator is not None:
                sequence.narrator.close = lambda: None  # type: ignore[method-assign]
