"""An app whose model computes a step only when a test allows it, for tests of real servers without a clock.

Everything is the product's own but the model's arithmetic. Control routes: `POST /gate/<n>` allows n more steps,
`/gate/open` all, `/gate/close` none, `/gate/pace/<ms>` one every so often; `/gate/loaded` ends a load that
`GATED_LOAD_S` makes long; `POST /fault/<name>` makes the next step raise, `POST /strike/<name>` strikes one request
(tests/support/strikes.py); `GET /gate` counts. With `GATED_TEMPLATE`, the name of one in tests/support/templates.py,
the model says what its prompt asks for (tests/support/speakers.py).
"""

import gc
import os
from dataclasses import replace
from typing import Any

import torch
from flask import Blueprint, jsonify

from app import create_app
from tests.support import templates
from tests.support.engines import loaded_model
from tests.support.gated_runner import GatedRunner
from tests.support.speakers import speaking_model
from tests.support.strikes import Strikes, is_marked, stage_of
from worker import process
from worker.config import read_settings
from worker.engine.engine import Engine
from worker.engine.loader import LoadedModel, LoadingProgress
from worker.engine.sequence import Sequence
from worker.job import JobReader
from worker.settings import Settings
from worker.streams.channel import SendChannel
from worker.streams.native import new_lock
from worker.streams.wakeup import new_wakeup


def _load(settings: Settings, report: Any) -> LoadedModel:
    report(LoadingProgress("weights", 0.5))
    loading.acquire(True, float(os.environ.get("GATED_LOAD_S", "0")))
    if template := os.environ.get("GATED_TEMPLATE"):
        speaking = speaking_model(getattr(templates, template))
        runner.speaker = speaking.runner
        return replace(speaking, runner=runner)
    return runner.adopt(loaded_model(runner, max_context=settings.max_context))


loading = new_lock()
loading.acquire()
runner = GatedRunner()
settings = process.settings or read_settings(os.environ)
engine = Engine(settings, new_wakeup(), _load)
app = create_app(settings, engine)
strikes = runner.strikes = Strikes(engine)
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


@gate.post("/gate/pace/<int:step_ms>")
def set_pace(step_ms: int) -> Any:
    runner.pace_s = step_ms / 1000
    runner.open()
    return jsonify(ok=True)


@gate.post("/gate/close")
def close_gate() -> Any:
    runner.close()
    return jsonify(ok=True)


@gate.post("/gate/loaded")
def end_loading() -> Any:
    loading.release()
    return jsonify(ok=True)


@gate.get("/gate")
def show() -> Any:
    from worker.web.context import context

    return jsonify(
        steps=runner.num_steps,
        at_gate=runner.is_at_gate,  # behind the count, see there
        open=engine.num_open,
        wanted=sum(sequence.cancelled_by is None for sequence in tuple(engine._admission._open)),
        running=engine.num_running,
        streams=context().streams.num_open,
        outcomes={f"{o}{{{d}}}": n for (o, d), n in context().records.outcomes.items()},
        fds=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        num_accepted=num_accepted,
        waiting=len(engine._scheduler.waiting) + len(engine._admission.inbox),
        marked=[_place(sequence) for sequence in tuple(engine._admission._open) if is_marked(sequence)],
        stages=[stage_of(sequence) for sequence in tuple(engine._admission._open)],
        struck=strikes.struck,
    )


submit = engine.submit
num_accepted = 0


def _submit(*sequences: Sequence) -> None:
    global num_accepted
    submit(*sequences)
    num_accepted += len(sequences)


engine.submit = _submit  # type: ignore[method-assign]


def _place(sequence: Sequence) -> dict[str, Any]:
    return {
        "stage": stage_of(sequence),
        "in_queue": sequence in tuple(engine._scheduler.waiting),
        "unread": sequence.sender.statistics().num_waiting,
        "prompt": len(sequence.prompt_ids),
        "computed": sequence.num_computed,
        "output": len(sequence.output_ids),
    }


@gate.get("/gate/objects")
def count_objects() -> Any:
    """What the garbage collector knows of. Slow."""
    gc.collect()
    alive = gc.get_objects()
    return jsonify(
        channels=sum(isinstance(one, SendChannel) for one in alive),
        readers=sum(isinstance(one, JobReader) for one in alive),
        sequences=sum(isinstance(one, Sequence) for one in alive),
        greenlets=sum(type(one).__name__ == "Greenlet" and not one.dead for one in alive),
    )


@gate.post("/strike/<name>")
def strike(name: str) -> Any:
    if name == "nothing":
        strikes.disarm()
    strikes.arm(name)
    return jsonify(ok=True)


@gate.post("/fault/<name>")
def fault(name: str) -> Any:
    runner.fault = FAULTS[name]("injected")
    return jsonify(ok=True)


app.register_blueprint(gate)
engine.start()
