"""Real servers under both worker classes, one per test module and class."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import WORKER_CLASSES, Server, running_server


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def gated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model computes when the test says so: two slots, a queue of two, quick pings."""
    folder: Path = tmp_path_factory.mktemp("server")
    limits = {
        "ENDSTOP_MAX_SLOTS": "2",
        "ENDSTOP_MAX_QUEUE": "2",
        "ENDSTOP_KEEP_ALIVE_S": "0.2",
        "ENDSTOP_MAX_CONTEXT": "256",
        "ENDSTOP_MAX_BODY_BYTES": "65536",
        "ENDSTOP_BODY_TIMEOUT_S": "1",
    }
    with running_server(folder, request.param, env=limits) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no open request, no running sequence, no open stream."""
    yield
    if "gated" in request.fixturenames:
        server: Server = request.getfixturevalue("gated")
        if server.process.poll() is None:
            server.allow(1000)
            server.wait_for(
                lambda: all(server.stats()[name] == 0 for name in ("open", "running", "streams")), "nothing left open"
            )
            server.post("/gate/close")
