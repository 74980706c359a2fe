"""The soak's app: everything is the product's own but the model's arithmetic.

Control routes: `GET /soak` shows counters, and with `?deep=1` collects garbage and counts objects first;
`POST /soak/calm` stops the faults, and what the next two do until then: `/soak/starve` lets new streams get no token,
`/soak/break` fails every stream that is in a step. `/soak/fatal` kills the generation thread in its next step,
`/soak/stuck` lets it never return from one.
"""

import gc
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from flask import Blueprint, jsonify, request

from app import create_app
from tests.soak.faults import CALM, Faults, Rates
from tests.soak.runner import SoakRunner, SoakTokenizer
from tests.support.random_models import VOCAB_SIZE, byte_level_tokenizer
from worker import process
from worker.config import read_settings
from worker.engine.engine import Engine
from worker.engine.loader import LoadedModel
from worker.engine.sequence import Sequence
from worker.settings import Settings
from worker.streams.wakeup import new_wakeup

STEP_S = 0.002

# What a request is made of. After the last one none of these may be left.
REQUEST_OBJECTS = ("Sequence", "Job", "JobReader", "StreamBody", "SendChannel", "ReceiveChannel", "Narrator")


class CountingEngine(Engine):
    """Counts what was accepted, to be held against the outcomes."""

    num_accepted = 0

    def submit(self, *sequences: Sequence) -> None:
        """Count what is taken; what is refused raises."""
        super().submit(*sequences)
        self.num_accepted += len(sequences)


# A third of what the slots could fill, so that the youngest streams give way (`run._fill_every_slot`). With fewer it
# would be for longer than a stream may go without a token, and count as stalled.
NUM_BLOCKS = 320


def _load(settings: Settings, report: Any) -> LoadedModel:
    tokenizer = SoakTokenizer(byte_level_tokenizer(), faults)
    eos_id = tokenizer.eos_id
    assert eos_id is not None
    runner.adopt(tokenizer.spelling(), eos_id)
    return LoadedModel(
        runner, tokenizer, frozenset({eos_id}), settings.max_context, NUM_BLOCKS, VOCAB_SIZE, "cpu", "the soak's model"
    )


faults = Faults(Rates())
runner = SoakRunner(faults, STEP_S)
settings = process.settings or read_settings(os.environ)
engine = CountingEngine(settings, new_wakeup(), _load)
app = create_app(settings, engine)
shared = app.extensions["endstop"]
for aside in (shared.aside, shared.jobs._encoder._aside, shared.jobs._encoder._far_aside):
    aside.run(int)  # its thread comes with the first work, and one that comes later would look like a leak
control = Blueprint("soak", __name__)


@control.get("/soak")
def show() -> Any:
    from worker.web.context import context

    counters: dict[str, Any] = {
        "pid": os.getpid(),
        "steps": runner.num_steps,
        "open": engine.num_open,
        "running": engine.num_running,
        "streams": context().streams.num_open,
        "accepted": engine.num_accepted,
        "preempted": engine._scheduler.num_preempted,
        "outcomes": {f"{o}{{{d}}}": n for (o, d), n in context().records.outcomes.items()},
        "faults": dict(faults.counts),
        **_threads(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "rss_bytes": _rss_bytes(),
    }
    if request.args.get("deep"):
        counters |= {"objects": _objects()}
    return jsonify(counters)


def _threads() -> dict[str, int]:
    """Threads of the process but for gunicorn's pool, which grows to its size and stays."""
    num_pool = sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())
    return {"threads": len(os.listdir("/proc/self/task")) - num_pool, "pool_threads": num_pool}


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _objects() -> dict[str, int]:
    """Living objects of requests, and greenlets but this one. Garbage does not count."""
    gc.collect()
    found: Counter[str] = Counter()
    greenlet = getattr(sys.modules.get("greenlet"), "greenlet", None)
    for one in gc.get_objects():
        kind = type(one)
        if kind.__name__ in REQUEST_OBJECTS and str(kind.__module__).startswith("worker."):
            found[kind.__name__] += 1
        elif greenlet is not None and issubclass(kind, greenlet) and not one.dead:
            found["greenlets"] += 1
    return dict(found)


@control.post("/soak/calm")
def calm() -> Any:
    faults.rates, faults.is_starving, faults.is_breaking = CALM, False, False
    return jsonify(ok=True)


@control.post("/soak/starve")
def starve() -> Any:
    faults.is_starving = True
    return jsonify(ok=True)


@control.post("/soak/break")
def break_all() -> Any:
    faults.is_breaking = True
    return jsonify(ok=True)


@control.post("/soak/fatal")
def fatal() -> Any:
    faults.is_fatal_due = True
    return jsonify(ok=True)


@control.post("/soak/stuck")
def stuck() -> Any:
    faults.is_stuck_due = True
    return jsonify(ok=True)


app.register_blueprint(control)
engine.start()
