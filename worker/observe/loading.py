"""Shows a person or a log how far loading is. An ordinary thread, or a greenlet under gevent."""

import logging
import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

logger = logging.getLogger("endstop")

TICK_S = 0.1


class _Progress(Protocol):
    phase: str
    fraction: float


class Loading(Protocol):
    """What this needs of an engine."""

    @property
    def progress(self) -> _Progress | None: ...
    @property
    def state(self) -> str: ...
    def liveness(self) -> str: ...


def show_loading(engine: Loading) -> None:
    """A progress bar on a terminal, a log line per phase elsewhere, until loading is over or takes too long."""
    if sys.stderr.isatty():
        _show_bar(engine)
    else:
        _log_phases(engine)


def _show_bar(engine: Loading) -> None:
    columns = (TextColumn("loading {task.fields[phase]:<13}"), BarColumn(), TimeElapsedColumn())
    # No refresh thread: under gevent it would be one more greenlet that only ticks.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=1.0, phase="")
        while engine.state == "LOADING" and not engine.liveness():
            if engine.progress is not None:
                bar.update(task, completed=engine.progress.fraction, phase=engine.progress.phase)
            bar.refresh()
            time.sleep(TICK_S)


def _log_phases(engine: Loading) -> None:
    shown = None
    while engine.state == "LOADING" and not engine.liveness():
        phase = engine.progress.phase if engine.progress is not None else None
        if phase != shown:
            shown = phase
            logger.info("loading %s", phase)
        time.sleep(TICK_S)
