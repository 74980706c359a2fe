"""How far loading is, for a person and for a log."""

import io
import logging
import time
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from worker.engine.loader import LoadingProgress
from worker.observe.loading import how_far, new_bar, show_loading


@pytest.mark.parametrize(
    ("done", "total", "speed", "words"),
    [
        (0, 10, None, "0 bytes of 10 bytes"),
        (1_000_000, 3_000_000, 500_000.0, "1.0 MB of 3.0 MB, 500.0 kB/s, 0:04 left"),
        (1, 601_000_001, 1e6, "1 byte of 601.0 MB, 1.0 MB/s, 10:01 left"),
        (3_000_000, 3_000_000, 1e6, "3.0 MB of 3.0 MB, 1.0 MB/s"),
    ],
)
def test_bytes_rate_and_time_left(done: int, total: int, speed: float | None, words: str) -> None:
    assert how_far(done, total, speed) == words


@dataclass
class Engine:
    """Goes through its progress, a step with each look at it."""

    steps: list[LoadingProgress]
    state: str = "LOADING"
    shown: list[LoadingProgress] = field(default_factory=list)

    @property
    def progress(self) -> LoadingProgress | None:
        if len(self.steps) == 1:
            self.state = "READY"
        return self.steps.pop(0)

    def liveness(self) -> str:
        return ""


def test_a_log_hears_of_a_long_download_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(time, "sleep", lambda s: None)
    steps = [LoadingProgress("download", 0.1, n * 4_000_000, 100_000_000) for n in range(8)]
    with caplog.at_level(logging.INFO, "endstop"):
        show_loading(Engine([*steps, LoadingProgress("weights", 0.9)]))
    assert caplog.messages == [
        "loading download",
        "loading download: 12.0 MB of 100.0 MB, 1.0 MB/s, 1:28 left",
        "loading download: 24.0 MB of 100.0 MB, 1.0 MB/s, 1:16 left",
        "loading weights",
    ]


@pytest.mark.parametrize(("width", "has_elapsed"), [(60, False), (80, True), (200, True)])
def test_the_bar_is_one_line_in_a_narrow_terminal_too(
    monkeypatch: pytest.MonkeyPatch, width: int, has_elapsed: bool
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    bar = new_bar()
    bar.add_task("configuration", total=999_000_000, completed=888_000_000)
    bar.tasks[0].finished_speed = 10_000.0
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as shown:
        console.print(bar.get_renderable())
    [line] = shown.get().splitlines()
    assert line.startswith("configuration ")
    assert "888.0 MB of 999.0 MB, 10.0 kB/s, 185:00 left" in line
    assert ("0:00:00" in line) == has_elapsed
