"""The `models` command: which models are on this machine; bring one, remove one.

They lie in the cache of the hub's client, which other programs share: what is listed may have been brought by another
program, and what is removed is gone for it too.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from worker.config import did_you_mean
from worker.engine.download import HUB_ID, download, in_cache
from worker.errors import ModelLoadError
from worker.observe.loading import how_far, new_bar
from worker.settings import EMBEDDED_MODEL

EMBEDDED_NAME = EMBEDDED_MODEL.name
_FOLDER_PREFIX = "models--"


class CannotDo(Exception):
    """Says in one line what is not possible and what is."""


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    Attributes:
        name: What `--model` takes.
        num_bytes: On the disk.
        is_whole: It can be served; else a download was broken off, or some of its files have been asked for.
        used_at: When something last read it, in seconds since the epoch; None: unknown.
        folder: Where it lies.
    """

    name: str
    num_bytes: int
    is_whole: bool
    used_at: float | None
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "bytes": self.num_bytes,
            "whole": self.is_whole,
            "used_at": None if self.used_at is None else int(self.used_at),
            "folder": str(self.folder),
        }


def cache_folder() -> Path:
    """Where the hub's client keeps what it has brought."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def local_models() -> list[LocalModel]:
    """The embedded model and those of the cache, by name."""
    size = sum(file.stat().st_size for file in EMBEDDED_MODEL.iterdir() if file.is_file())
    found = [LocalModel(EMBEDDED_NAME, size, True, None, EMBEDDED_MODEL)]
    for folder in sorted(cache_folder().glob(f"{_FOLDER_PREFIX}*")):
        # Names of owners and models have single hyphens only in the middle, and the hub forbids double ones. A folder
        # that somebody has made by another name is listed all the same: it takes room, and `remove` removes it.
        name = folder.name.removeprefix(_FOLDER_PREFIX).replace("--", "/")
        blobs = [file.stat() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
        used_at = max((stat.st_atime for stat in blobs), default=None)
        found.append(LocalModel(name, sum(stat.st_size for stat in blobs), bool(in_cache(name)), used_at, folder))
    return found


def show_models(console: Console) -> None:
    """A table of them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("used", no_wrap=True)
    table.add_column("folder", style="dim", overflow="fold")
    models = local_models()
    for model in models:
        name = model.name if model.is_whole else f"{model.name} [yellow](incomplete)[/]"
        used = "" if model.used_at is None else _ago(time.time() - model.used_at)
        table.add_row(name, decimal(model.num_bytes), used, str(model.folder))
    console.print(table)
    if len(models) == 1:
        console.print("\nNo others. `python -m worker models download OWNER/NAME` brings one.", style="dim")


def download_model(name: str, console: Console) -> None:
    """Bring a model, or what is missing of it.

    Raises:
        CannotDo: There is no way to it; says why.
    """
    _check_name(name)
    with new_bar() as bar:
        task = bar.add_task("asking", total=None)
        bar.refresh()
        last_at = 0.0
        began_at = time.monotonic()
        num_bytes = 0

        def report(done: int, total: int) -> None:
            nonlocal last_at, num_bytes
            num_bytes = done
            bar.update(task, description="download", completed=done, total=total)
            if done == total or time.monotonic() - last_at > 0.1:
                last_at = time.monotonic()
                bar.refresh()

        try:
            found = download(name, math.inf, report)
        except ModelLoadError as error:
            raise CannotDo(f"{name}: {error}") from error
        took_s = time.monotonic() - began_at
    how = how_far(num_bytes, num_bytes, num_bytes / took_s).partition(" of ")[2] if num_bytes else "nothing was missing"
    if found.why_cached:
        how = f"as it lies in the cache, for the hub could not be asked: {found.why_cached}"
    lines = [f"{name}: {how}", found.folder, "", f"Serve it: python -m worker serve --model {name}"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def find_model(name: str) -> LocalModel:
    """The model of this name, for its removal.

    Raises:
        CannotDo: It is not in the cache, or only a link is.
    """
    if name == EMBEDDED_NAME:
        raise CannotDo(f"{name} is part of Endstop and stays")
    models = {model.name: model for model in local_models()[1:]}
    if name not in models:
        _check_name(name)
        raise CannotDo(f"there is no {name} in {cache_folder()}{did_you_mean(name, models)}")
    folder = models[name].folder
    if folder.is_symlink():
        raise CannotDo(f"{folder} is a link to {folder.readlink()}; it is yours to remove")
    return models[name]


def remove_model(model: LocalModel) -> None:
    """Delete it from the disk.

    Raises:
        CannotDo: The disk does not let us.
    """
    try:
        shutil.rmtree(model.folder)
    except OSError as error:
        raise CannotDo(f"{error.filename}: {error.strerror}") from error
    shutil.rmtree(cache_folder() / ".locks" / model.folder.name, ignore_errors=True)


def _check_name(name: str) -> None:
    if not HUB_ID.fullmatch(name):
        raise CannotDo(f"{name!r} is no name of a model; it is OWNER/NAME, as on the hub")


def _ago(seconds: float) -> str:
    for size_s, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size_s:
            number = int(seconds // size_s)
            return f"{number} {unit}{'' if number == 1 else 's'} ago"
    return "just now"
