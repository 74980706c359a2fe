"""An app in this process, with a model that waits at a gate, for tests that need no server."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flask import Flask

from app import create_app
from tests.support.engines import loaded_model, wait_until
from tests.support.gated_runner import GatedRunner
from worker.engine.engine import Engine
from worker.settings import Settings
from worker.streams.wakeup import new_wakeup


@contextmanager
def app_in_process(**changed: Any) -> Iterator[Flask]:
    """The app, READY; `extensions["runner"]` is the gate. Everything is ended behind the test."""
    settings = replace(Settings(), **{"max_slots": 2, "max_queue": 2, "max_context": 128, **changed})
    runner = GatedRunner()
    engine = Engine(
        settings, new_wakeup(), lambda s, report: runner.adopt(loaded_model(runner, max_context=s.max_context))
    )
    app = create_app(settings, engine)
    app.extensions["runner"] = runner
    engine.start()
    wait_until(lambda: engine.state == "READY")
    try:
        yield app
    finally:
        runner.open()
        assert engine.stop(10)
