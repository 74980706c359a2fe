"""Schemathesis asks what /openapi.json says may be asked, and what it says may not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import running_server

pytestmark = pytest.mark.slow

# Whether a request fits depends on the model: its context, and the number of its tokens, are not in the schema.
# And DELETE of a job cancels it: it can be asked for until it expires.
EXCLUDED = "positive_data_acceptance,use_after_free"
# Answers are short, so that many fit into the time.
LIMITS = {"ENDSTOP_MAX_CONTEXT": "64"}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
def test_no_server_error_and_no_undocumented_answer(tmp_path: Path, worker_class: str) -> None:
    """Every status, media type, header and body is as documented, of streams each event; bad input is refused."""
    with running_server(tmp_path, worker_class, app="wsgi:app", env=LIMITS) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        bounds = ["--max-examples=10", "--max-time=45", "--request-timeout=30", "--seed=1", "--no-shrink"]
        checks = ["--checks=all", f"--exclude-checks={EXCLUDED}", "--continue-on-failure", "--no-color"]
        done = subprocess.run(
            [*command, *bounds, *checks], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
        paths = server.get("/openapi.json").json()["paths"].values()
        num_routes = sum(len(methods) for methods in paths) - 1  # the document itself is left out
        assert f"Tested: {num_routes}" in done.stdout, done.stdout[-3000:]
        assert server.get("/ready").status_code == 200
        assert "failed" not in server.log()
