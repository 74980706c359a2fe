"""Shows a person or a log how far loading is. An ordinary thread, or a greenlet under gevent."""

import logging
import sys
import time
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

logger = logging.getLogger("endstop")

TICK_S = 0.1
# Between two lines of a log about the same phase.
LOG_S = 10.0
# Characters that all of the columns need.
WIDE = 72


class _Progress(Protocol):
    @property
    def phase(self) -> str: ...
    @property
    def done_bytes(self) -> int | None: ...
    @property
    def total_bytes(self) -> int | None: ...


class Loading(Protocol):
    """What this needs of an engine."""

    @property
    def progress(self) -> _Progress | None: ...
    @property
    def state(self) -> str: ...
    def liveness(self) -> str: ...


class BytesColumn(ProgressColumn):
    """Bytes, rate and time left, for what is counted in bytes."""

    def render(self, task: Task) -> Text:
        """One cell."""
        if task.total is None:
            return Text("")
        speed = task.finished_speed or task.speed
        return Text(how_far(int(task.completed), int(task.total), speed), style="cyan")


def how_far(done: int, total: int, bytes_per_s: float | None) -> str:
    """Bytes, rate and time left in words."""
    parts = [f"{decimal(done)} of {decimal(total)}"]
    if bytes_per_s:
        parts.append(f"{decimal(int(bytes_per_s))}/s")
        if done < total:
            minutes, seconds = divmod(round((total - done) / bytes_per_s), 60)
            parts.append(f"{minutes}:{seconds:02} left")
    return ", ".join(parts)


def new_bar() -> Progress:
    """A progress bar on the terminal. No refresh thread: under gevent it would be one more greenlet that only ticks."""
    console = Console(stderr=True)
    # In a narrow terminal the bar becomes shorter and the time that has gone is left out: of a second line, drawn again
    # and again, pieces stay behind.
    whole = Column(no_wrap=True)
    columns = [TextColumn("{task.description:<13}", table_column=whole), BarColumn(), BytesColumn(table_column=whole)]
    if console.width >= WIDE:
        columns.insert(2, TimeElapsedColumn(table_column=whole))
    return Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)


def show_loading(engine: Loading) -> None:
    """A progress bar on a terminal, log lines elsewhere, until loading is over or takes too long."""
    if sys.stderr.isatty():
        _show_bar(engine)
    else:
        _log_phases(engine)


def _is_loading(engine: Loading) -> bool:
    return engine.state == "LOADING" and not engine.liveness()


def _show_bar(engine: Loading) -> None:
    shown = None
    with new_bar() as bar:
        task = bar.add_task("loading", total=None)
        while _is_loading(engine):
            if (progress := engine.progress) is not None:
                if progress.phase != shown:
                    shown = progress.phase
                    bar.reset(task, total=None, description=shown)
                bar.update(task, total=progress.total_bytes, completed=progress.done_bytes or 0)
            bar.refresh()
            time.sleep(TICK_S)


def _log_phases(engine: Loading) -> None:
    shown = None
    began_at = said_at = 0.0
    first_bytes = 0
    while _is_loading(engine):
        progress, now = engine.progress, time.monotonic()
        if progress is not None and progress.phase != shown:
            shown = progress.phase
            began_at = said_at = now
            first_bytes = progress.done_bytes or 0
            logger.info("loading %s", shown)
        elif progress is not None and progress.total_bytes and progress.done_bytes and now - said_at >= LOG_S:
            said_at = now
            speed = (progress.done_bytes - first_bytes) / (now - began_at)
            logger.info("loading %s: %s", shown, how_far(progress.done_bytes, progress.total_bytes, speed))
        time.sleep(TICK_S)
