"""A model runner that a test scripts: what it answers, when a step may run, and how it fails."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.blocks import TokenCache
from tests.support.engines import WAIT_S
from tests.support.random_models import VOCAB_SIZE
from worker.engine.scheduler import Row


class Gate:
    """Lets steps through all, or up to a number. The generation thread comes here at the beginning of each."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limit: int | None = None
        self.num_arrived = 0

    def arrive(self) -> int:
        """On the generation thread. Returns the number of the step, from 1."""
        with self._changed:
            self.num_arrived += 1
            number = self.num_arrived
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._limit is None or number <= self._limit, WAIT_S)
            return number

    def let(self, num_steps: int) -> None:
        """Let this many more steps run than have arrived, and hold the next one at its beginning."""
        with self._changed:
            self._limit = self.num_arrived + num_steps
            self._changed.notify_all()

    def hold(self) -> None:
        """Hold the next step at its beginning. Steps that are running end."""
        self.let(0)

    def pass_and_hold(self) -> None:
        """Let the step that is held run, and hold the next."""
        with self._changed:
            self._limit = self.num_arrived
            self._changed.notify_all()

    def open(self) -> None:
        """Let everything through."""
        with self._changed:
            self._limit = None
            self._changed.notify_all()

    def wait_until_held(self) -> int:
        """Wait until a step is held. Returns its number."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._limit is not None and self.num_arrived > self._limit, WAIT_S), (
                "no step came"
            )
            return self.num_arrived


class ScriptedRunner:
    """Logits are a function of the request alone: of its prompt and of how far it is.

    Attributes:
        answers: By first prompt id, the tokens that a greedy request gets; others get pseudo-random logits.
        before_step: Called with the number of the step, from 1, and its rows. May raise.
        is_poisoned: Rows whose logits are NaN.
        is_forgotten: Rows that are computed but never come back, as if the model had lost them.
        forgotten: The first blocks of those who have left.
    """

    is_packed = True

    def __init__(self, answers: dict[int, list[int]] | None = None) -> None:
        self.gate = Gate()
        self.answers = answers or {}
        self.before_step: Callable[[int, list[Row]], None] = lambda number, rows: None
        self.is_poisoned: Callable[[Row], bool] = lambda row: False
        self.is_forgotten: Callable[[Row], bool] = lambda row: False
        self.forgotten: list[int] = []
        self._cache = TokenCache()

    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        number = self.gate.arrive()
        self.before_step(number, rows)
        self._cache.compute(rows)
        sampled = [row for row in rows if row.is_sampled and not self.is_forgotten(row)]
        if not sampled:
            return [], torch.empty(0, VOCAB_SIZE)
        return sampled, torch.stack([self._logits(row) for row in sampled])

    def forget(self, blocks: list[int]) -> None:
        self.forgotten.append(blocks[0])

    def _logits(self, row: Row) -> Tensor:
        prompt_ids = row.sequence.prompt_ids
        position = row.end - len(prompt_ids)
        answer = self.answers.get(prompt_ids[0])
        if self.is_poisoned(row):
            return torch.full((VOCAB_SIZE,), float("nan"))
        if answer is not None:
            logits = torch.zeros(VOCAB_SIZE)
            logits[answer[position % len(answer)]] = 50.0
            return logits
        generator = torch.Generator().manual_seed(hash((*prompt_ids, position)) % 2**31)
        return torch.randn(VOCAB_SIZE, generator=generator) * 2
