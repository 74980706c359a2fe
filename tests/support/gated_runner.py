"""A model whose steps a test lets through, one by one if it likes."""

import torch
from torch import Tensor

from tests.support.random_models import VOCAB_SIZE
from tests.support.strikes import Strikes
from worker.engine.loader import LoadedModel
from worker.engine.model_runner import ModelRunner
from worker.engine.scheduler import Row
from worker.streams.native import native_sleep, new_lock

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class GatedRunner:
    """Every row's next token is the next letter of the alphabet, when the gate lets the step through.

    Attributes:
        speaker: What says it instead.
    """

    is_packed = True

    def __init__(self) -> None:
        self._letter_ids: list[int] = []
        self._gate = new_lock()
        self._gate.acquire()
        self._allowed = 0
        self.is_open = False
        self.pace_s = 0.0
        self.num_steps = 0
        self.is_at_gate = False  # a step is under way, and waits to be let through
        self.fault: BaseException | None = None
        self.strikes: Strikes | None = None
        self.speaker: ModelRunner | None = None

    def adopt(self, model: LoadedModel) -> LoadedModel:
        """Learn the ids of the letters from the model's tokenizer."""
        self._letter_ids = [model.tokenizer.encode(letter)[0] for letter in LETTERS]
        return model

    def allow(self, num_steps: int) -> None:
        """Let some more steps through."""
        self._allowed += num_steps
        self._knock()

    def open(self) -> None:
        """Let all steps through."""
        self.is_open = True
        self._knock()

    def close(self) -> None:
        """Let no step through."""
        self._allowed = 0
        self.pace_s = 0.0
        self.is_open = False

    def _knock(self) -> None:
        try:
            self._gate.release()
        except RuntimeError:
            pass  # open already

    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        while not self.is_open:
            if self._allowed > 0:
                self._allowed -= 1
                break
            self.is_at_gate = True
            self._gate.acquire(True, 60)
        self.is_at_gate = False  # before the count: who has seen that knows that the next one is a new step
        if self.pace_s:
            native_sleep(self.pace_s)
        self.num_steps += 1
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        if self.strikes is not None:
            self.strikes.before_step(rows)
        if self.speaker is not None:
            return self.speaker.forward(rows)
        sampled = [row for row in rows if row.is_sampled]
        logits = torch.zeros(len(sampled), VOCAB_SIZE)
        for i, row in enumerate(sampled):
            logits[i, self._letter_ids[len(row.sequence.output_ids) % len(LETTERS)]] = 50.0
            if self.strikes is not None:
                self.strikes.change(row, logits[i])
        return sampled, logits

    def forget(self, blocks: list[int]) -> None:
        pass
