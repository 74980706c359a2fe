"""Packages from npm, for tests that hold the product against what others have written."""

import shutil
import subprocess
from pathlib import Path

import pytest

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node and npm")
INSTALL_S = 240.0


def installed(source: Path, folder: Path) -> Path:
    """A copy of `source` in `folder`, with the packages that its lock file has."""
    copy = folder / source.name
    shutil.copytree(source, copy)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=copy, capture_output=True, timeout=INSTALL_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return copy
