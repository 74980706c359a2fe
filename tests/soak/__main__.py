"""`python -m tests.soak`: run the soak, print the table, exit with 1 if anything was found.

SOAK_S: seconds of load, 60 by default, shared by the worker classes. SOAK_SEED: makes the clients draw the same again.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.soak.report import is_well, show
from tests.soak.run import Result, soak
from tests.support.servers import WORKER_CLASSES

DEFAULT_S = "60"


def main() -> int:
    """Run and print. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--worker-class", choices=(*WORKER_CLASSES, "both"), default="both")
    parser.add_argument("--log-folder", type=Path, help="keep the servers' logs here")
    options = parser.parse_args()
    classes = WORKER_CLASSES if options.worker_class == "both" else (options.worker_class,)
    seconds = float(os.environ.get("SOAK_S", DEFAULT_S))
    seed = os.environ.get("SOAK_SEED") or str(random.SystemRandom().randrange(10**6))

    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"soak: {seconds:g} s of load, {' then '.join(classes)}, SOAK_SEED={seed}")
    # SIGTERM unwinds as Ctrl-C does, so that the server goes with us.
    signal.signal(signal.SIGTERM, _leave)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.log_folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results: list[Result] = []
        try:
            for name in classes:
                num_blows = sum(result.ledger.counts["workers replaced"] for result in results)
                results.append(Result(name, seed))
                asyncio.run(soak(results[-1], seconds / len(classes), folder, num_blows))
        except KeyboardInterrupt:
            console.print("interrupted: what there is of the run")
    show(results, console)
    return 0 if is_well(results) else 1


def _leave(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
