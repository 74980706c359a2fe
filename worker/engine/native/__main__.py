"""`python -m worker.engine.native`: build the native kernels. Part of `make setup`."""

# ruff: noqa: T201 a program of the terminal prints

import sys

from worker.engine.native import CannotBuild, build

try:
    print(f"native kernels: {build().name}")
except CannotBuild as reason:
    print(f"no native kernels, torch computes instead and decodes more slowly: {reason}", file=sys.stderr)
    # `make` holds the environment for done: it does not come here again.
    print(f"{sys.executable} -m worker.engine.native tries again", file=sys.stderr)
