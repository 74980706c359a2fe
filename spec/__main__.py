"""`make spec`: SPIN proves the models of this folder, and rejects every mutant of them.

Needs `spin` and a C compiler. A search that was cut short proves nothing and counts as a failure; so does a statement
that no search has reached, because what was proved does not speak of it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = {"spin": "spin", "cc": "gcc libc6-dev"}
MEMORY_LIMIT_MB = 1024
DEPTH_LIMIT = 100_000
SEARCH_LIMIT_S = 300

# Assertions and deadlocks: the whole of the model, without a formula.
SAFETY = "safety"


@dataclass(frozen=True, slots=True)
class Model:
    """A model in one configuration, and what holds of it: SAFETY or the name of a formula."""

    file: str
    switches: tuple[str, ...]
    properties: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join([self.file, *self.switches])


@dataclass(frozen=True, slots=True)
class Mutant:
    """A switch that puts a fault into a model, and the property that it breaks."""

    switch: str
    file: str
    breaks: str
    switches: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join([self.file, *self.switches, self.switch])


MODELS = (
    Model("channel", (), (SAFETY, "ends", "arrives")),
    Model("channel", ("GEVENT",), (SAFETY, "ends", "arrives")),
    Model("shutdown", (), (SAFETY, "ends", "hears")),
    Model("shutdown", ("TWO_ABANDON",), (SAFETY, "ends")),
    Model("shutdown", ("COMPANY",), (SAFETY, "ends")),
    Model("shutdown", ("LEAVER",), (SAFETY, "ends")),
    Model("journal", (), (SAFETY, "ends", "arrives")),
    Model("journal", ("WATCHED",), (SAFETY, "ends")),
)

MUTANTS = (
    Mutant("FORGET_TO_CLOSE", "channel", "ends"),
    Mutant("DROP_WITHOUT_CLOSE", "channel", "ends"),
    Mutant("CLOSE_WITHOUT_TEST", "channel", SAFETY),
    Mutant("CHECK_WITHOUT_LOCK", "channel", SAFETY),
    Mutant("END_BESIDE_QUEUE", "channel", SAFETY),
    Mutant("WAKE_BEFORE_APPEND", "channel", "arrives"),
    Mutant("WAKE_BEFORE_END", "channel", "ends"),
    Mutant("LEAVE_WITHOUT_WAKE", "channel", "arrives"),
    Mutant("LOOK_BEFORE_ARM", "channel", "ends"),
    Mutant("MARK_BEFORE_CLEAR", "channel", "ends"),
    Mutant("SIGNAL_BEFORE_READY", "channel", "ends", ("GEVENT",)),
    Mutant("YIELD_BEFORE_WAIT", "channel", "ends", ("GEVENT",)),
    Mutant("CHECK_WITHOUT_LOCK", "shutdown", "ends"),
    Mutant("WAKE_BEFORE_ENQUEUE", "shutdown", "ends"),
    Mutant("FORGET_TO_END", "shutdown", "ends"),
    Mutant("END_BEFORE_REFUSING", "shutdown", "ends"),
    Mutant("CLOSE_WITHOUT_TEST", "shutdown", SAFETY),
    Mutant("RECORDS_ALWAYS_CLOSED", "shutdown", SAFETY),
    Mutant("NO_DEBTS", "shutdown", SAFETY, ("LEAVER",)),
    Mutant("NO_WATCHDOG", "shutdown", "ends"),
    Mutant("WATCHDOG_LOOKS_TWICE", "shutdown", SAFETY),
    Mutant("ABANDON_GOES_ON_ACCEPTING", "shutdown", "ends"),
    Mutant("STOP_BEFORE_ARM", "shutdown", "hears"),
    Mutant("PUMP_WITHOUT_LOCK", "journal", SAFETY),
    Mutant("TERMINAL_BESIDE_JOURNAL", "journal", SAFETY),
    Mutant("RESUME_AT_LAST", "journal", SAFETY),
    Mutant("WAKE_ONE", "journal", "ends"),
    Mutant("LISTEN_AFTER_LOOK", "journal", "ends"),
    Mutant("LOOK_BEFORE_ARM", "journal", "ends"),
    Mutant("LEAVE_WITHOUT_TEST", "journal", SAFETY, ("WATCHED",)),
    Mutant("LEAVE_WITHOUT_WAKE", "journal", "ends", ("WATCHED",)),
    Mutant("CLOSED_BEFORE_ARM", "journal", "ends", ("WATCHED",)),
)


class CannotCheck(Exception):
    """A tool is missing or failed: nothing was proved or rejected."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one search found.

    Attributes:
        error: What is wrong with the model, in the checker's words; empty if nothing is.
        unreached: Statements that no path comes to. Known for SAFETY only: a formula ends a search early by design.
        trace: The steps that lead to the error.
    """

    num_states: int
    error: str
    unreached: tuple[str, ...]
    trace: str


def search(file: str, switches: Sequence[str], property_name: str, is_short: bool = False) -> Verdict:
    """Check one property of one model.

    Args:
        is_short: An error is expected soon, so compiling fast is worth more than a fast search.

    Raises:
        CannotCheck: A tool is missing or failed, or the search was cut short without an error.
    """
    with tempfile.TemporaryDirectory(prefix="endstop-spec-") as folder:
        defines = [f"-D{switch}" for switch in switches]
        for source in HERE.glob("*.pml"):
            shutil.copy(source, folder)
        said = _run(folder, "spin", *defines, "-a", f"{file}.pml")
        if not (Path(folder) / "pan.c").exists():  # spin exits with 0 after some errors
            raise CannotCheck(f"spin cannot read {file}.pml:\n{said}")
        limits = [f"-DMEMLIM={MEMORY_LIMIT_MB}", "-DNFAIR=3"]
        kind = ["-DNOCLAIM", "-DSAFETY"] if property_name == SAFETY else []
        _run(folder, "cc", "-O0" if is_short else "-O2", "-w", *limits, *kind, "-o", "pan", "pan.c")
        how = [] if property_name == SAFETY else ["-a", "-f", "-N", property_name]  # -f: weak fairness
        size = "-w18" if is_short else "-w22"  # of the hash table at first, 2 to this power: it grows when it must
        report = _run(folder, "./pan", f"-m{DEPTH_LIMIT}", size, *how)
        error = re.search(r"^pan:\d+: (.*) \(at depth", report, re.MULTILINE)
        states = re.search(r"^\s*(\d+) states, stored", report, re.MULTILINE)
        if states is None:
            raise CannotCheck(f"pan did not finish:\n{report}")
        trace = ""
        if error is None:
            if re.search(r"Search not completed|max search depth too small|reached -DMEMLIM|out of memory", report):
                raise CannotCheck(f"the search was cut short:\n{report}")
            if "errors: 0" not in report:
                raise CannotCheck(f"pan gave no verdict:\n{report}")
        elif not is_short:
            trace = _run(folder, "spin", *defines, "-t", "-p", "-g", "-l", f"{file}.pml", is_replay=True)
        return Verdict(
            num_states=int(states[1]),
            error=error[1] if error else "",
            unreached=() if error or property_name != SAFETY else _unreached(report),
            trace=trace,
        )


def _unreached(report: str) -> tuple[str, ...]:
    """The statements that pan says it never came to. The end of a process that goes on for ever is none."""
    process = ""
    found = []
    for line in report.splitlines():
        if line.startswith("unreached in "):
            process = line.removeprefix("unreached in ")
        elif ", state " in line and '"-end-"' not in line and not process.startswith("claim"):
            found.append(f"{process}: {line.strip()}")
    return tuple(found)


def _run(folder: str, *command: str, is_replay: bool = False) -> str:
    name = command[0]
    if name in PACKAGES and shutil.which(name) is None:
        raise CannotCheck(f"no {name} here; on Debian: apt-get install {' '.join(PACKAGES.values())}")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SEARCH_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotCheck(f"{' '.join(command)} took longer than {SEARCH_LIMIT_S} s") from error
    output = done.stdout + done.stderr
    if done.returncode != 0 and not is_replay:
        raise CannotCheck(f"{' '.join(command)} failed:\n{output}")
    return output


def check_model(model: Model, property_name: str) -> tuple[str, bool]:
    """One row of the table of models, and whether all is well."""
    verdict = search(model.file, model.switches, property_name)
    text = "holds"
    if verdict.error:
        text = f"FAILS: {verdict.error}\n{verdict.trace}"
    elif verdict.unreached:
        text = "\n  ".join(["UNREACHED:", *verdict.unreached])
    return f"{model.name:<22} {property_name:<8} {verdict.num_states:>9,}  {text}", text == "holds"


def check_mutant(mutant: Mutant) -> tuple[str, bool]:
    """One row of the table of mutants, and whether this one was rejected."""
    verdict = search(mutant.file, (*mutant.switches, mutant.switch), mutant.breaks, is_short=True)
    return f"{mutant.name:<44} {mutant.breaks:<8} {verdict.error or 'SURVIVES'}", bool(verdict.error)


def main() -> int:
    """Check everything and print it.

    Returns:
        The exit status: 1 if a model fails or a mutant survives, 2 if something could not be checked.
    """
    parser = argparse.ArgumentParser(prog="python -m spec", description=__doc__)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="searches at the same time")
    options = parser.parse_args()
    begun_at = time.monotonic()
    is_well = True
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            models = [pool.submit(check_model, model, name) for model in MODELS for name in model.properties]
            mutants = [pool.submit(check_mutant, mutant) for mutant in MUTANTS]
            print(f"{'model':<22} {'property':<8} {'states':>9}  verdict")
            for row in models:
                text, is_good = row.result()
                print(text, flush=True)
                is_well &= is_good
            print(f"\n{'mutant':<44} {'property':<8} rejected by")
            for row in mutants:
                text, is_good = row.result()
                print(text, flush=True)
                is_well &= is_good
    except CannotCheck as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{'all is well' if is_well else 'FAILED'}, {time.monotonic() - begun_at:.0f} s")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
