"""The front door: wires the rooms together. docs/design.md draws them."""

import logging
import os
import threading
import time

from flask import Flask

from worker.config import read_settings
from worker.engine.engine import Engine
from worker.engine.loader import load
from worker.jobs import Jobs
from worker.observe.history import History
from worker.observe.log import Outcome, RecordWriter
from worker.observe.metrics import Metrics, WebNumbers
from worker.observe.telemetry import open_telemetry
from worker.settings import Settings
from worker.streams.channel import EndOfChannel
from worker.streams.wakeup import new_wakeup
from worker.web import (
    allowance,
    auth,
    chat_completions,
    completions,
    cors,
    messages,
    native,
    openai,
    openapi,
    operations,
    ops,
    page,
    refusals,
    request_id,
    responses,
    tokenization,
)
from worker.web.context import EXTENSION, Context, count_response, limit_writes
from worker.web.sse import OpenStreams, close_lost_bodies

logger = logging.getLogger("endstop")

HOUSEKEEPING_S = 1.0


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> Flask:
    """Make the app and start loading the model.

    Call it in the process that will serve, after any fork: threads do not survive one.

    Args:
        settings: Default: from the environment.
        engine: Default: a new one for these settings. One that is given must be started by the caller.

    Raises:
        SettingsError: The environment holds an unknown or bad setting, or what it asks for is not installed.
    """
    if settings is None:
        settings = read_settings(os.environ)
    wakeup = new_wakeup()
    is_ours = engine is None
    if engine is None:
        engine = Engine(settings, wakeup, load)
    jobs = Jobs(settings, engine, wakeup)
    streams = OpenStreams(settings.max_streams)
    metrics = Metrics(
        settings.model_name,
        settings.max_context,
        {"slots": settings.max_slots, "streams": settings.max_streams},
        engine.numbers,
        engine.tallies,
        lambda: WebNumbers(streams.num_open, jobs.num_jobs, *jobs.num_grammars),
    )
    history = History(engine.numbers, engine.tallies)

    telemetry = open_telemetry(settings, os.environ)

    def note_outcome(outcome: Outcome) -> str:
        metrics.note_outcome(outcome)
        history.note_outcome(outcome)
        return telemetry.note_outcome(outcome)

    records = RecordWriter(engine.records, note_outcome)

    app = Flask("endstop", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    # A greenlet under gevent, a thread elsewhere: it writes what the generation thread may not.
    housekeeper = threading.Thread(target=_keep_house, args=(jobs, records, history), name="housekeeper", daemon=True)
    shared = Context(settings, engine, jobs, streams, records, metrics, history, telemetry, housekeeper)
    app.extensions[EXTENSION] = shared
    apis = (native, openai, chat_completions, completions, responses, messages, tokenization)
    for room in (*apis, ops, operations, openapi, page):
        app.register_blueprint(room.blueprint)
    refusals.install(app)
    request_id.install(app)
    app.after_request(count_response)
    app.before_request(limit_writes)
    cors.install(app, settings.cors_origins)
    auth.install(app, settings.api_keys)
    allowance.install(app)
    app.teardown_request(close_lost_bodies)

    housekeeper.start()
    if is_ours:
        engine.start()
    return app


def _keep_house(jobs: Jobs, records: RecordWriter, history: History) -> None:
    """Write the engine's records, look how it is doing and forget old jobs, until the engine is gone."""
    while True:
        try:
            records.write_waiting(HOUSEKEEPING_S)
            history.sample(time.monotonic())
            jobs.sweep()
        except EndOfChannel:
            return
        except Exception:  # the house must be kept for as long as streams are served
            logger.exception("housekeeping failed; going on")
