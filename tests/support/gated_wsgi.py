"""An app whose model computes a step only when a test allows it, for tests of real servers without a clock.

Everything is the product's own but the model's arithmetic. Control routes: `POST /gate/<n>` allows n more steps,
`POST /gate/open` allows all, `POST /gate/close` none, `POST /fault/<name>` makes the next step
raise, `GET /gate` counts.
"""

import os
from typing import Any

import torch
from flask import Blueprint, jsonify
from torch import Tensor

from app import create_app
from tests.support.engines import loaded_model
from tests.support.random_models import VOCAB_SIZE
from worker.engine.engine import Engine
from worker.engine.loader import LoadedModel, LoadingProgress
from worker.engine.scheduler import Row
from worker.settings import Settings
from worker.streams.native import native_sleep, new_lock
from worker.streams.wakeup import new_wakeup

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class GatedRunner:
    """Every row's next token is the next letter of the alphabet, when the gate lets the step through."""

    def __init__(self, letter_ids: list[int]) -> None:
        self._letter_ids = letter_ids
        self._gate = new_lock()
        self._gate.acquire()
        self._allowed = 0
        self.is_open = False
        self.num_steps = 0
        self.fault: BaseException | None = None

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
        self.is_open = False

    def _knock(self) -> None:
        try:
            self._gate.release()
        except RuntimeError:
            pass  # open already

    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        while not self.is_open and self._allowed <= 0:
            self._gate.acquire(True, 60)
        self._allowed -= 1
        self.num_steps += 1
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        sampled = [row for row in rows if row.is_sampled]
        logits = torch.zeros(len(sampled), VOCAB_SIZE)
        for i, row in enumerate(sampled):
            logits[i, self._letter_ids[len(row.sequence.output_ids) % len(LETTERS)]] = 50.0
        return sampled, logits

    def scrub(self, slot: int) -> None:
        pass


def _load(settings: Settings, report: Any) -> LoadedModel:
    report(LoadingProgress("weights", 0.5))
    native_sleep(float(os.environ.get("GATED_LOAD_S", "0")))
    model = loaded_model(runner, max_context=settings.max_context)
    runner._letter_ids = [model.tokenizer.encode(letter)[0] for letter in LETTERS]
    return model


runner = GatedRunner([])
settings = Settings.from_env(os.environ)
engine = Engine(settings, new_wakeup(), _load)
app = create_app(settings, engine)
gate = Blueprint("gate", __name__)

FAULTS: dict[str, type[BaseException]] = {
    "error": RuntimeError,
    "oom": torch.OutOfMemoryError,
    "fatal": SystemExit,  # not an Exception: it passes the step's own handler and kills the loop
}


@gate.post("/gate/<int:steps>")
def allow(steps: int) -> Any:
    runner.allow(steps)
    return jsonify(ok=True)


@gate.post("/gate/open")
def open_gate() -> Any:
    runner.open()
    return jsonify(ok=True)


@gate.post("/gate/close")
def close_gate() -> Any:
    runner.close()
    return jsonify(ok=True)


@gate.get("/gate")
def show() -> Any:
    from worker.web.context import context

    return jsonify(
        steps=runner.num_steps,
        open=engine.num_open,
        running=engine.num_running,
        streams=context().streams.num_open,
        outcomes={f"{o}{{{d}}}": n for (o, d), n in context().records.outcomes.items()},
        fds=len(os.listdir("/proc/self/fd")),
    )


@gate.post("/fault/<name>")
def fault(name: str) -> Any:
    runner.fault = FAULTS[name]("injected")
    return jsonify(ok=True)


app.register_blueprint(gate)
engine.start()
