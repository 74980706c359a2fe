"""The client against a server that says exactly what each test needs, good and bad."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.scripted_server import (
    HELLO,
    WAIT_S,
    Peer,
    Script,
    ScriptedServer,
    says,
)
from tests.support.servers import Server, running_server
from worker.client import (
    Client,
    Usage,
)

Serve = Callable[..., Client]
COUNTS = Usage(3, 2, 5)  # what USAGE says
REFUSING = "http://127.0.0.1:1"  # nobody listens there: only root may


def cut_chunked(peer: Peer) -> None:
    """Two events of HELLO, and no more."""
    peer.head()
    peer.chunk(HELLO[0])
    peer.chunk(HELLO[1])


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a scripted server and a client of it: serve(script) plays the script for POST /execute.

    The client asks once, if the test does not say otherwise.
    """
    opened: list[tuple[ScriptedServer, Client]] = []

    def start(script: Script | None = None, *, scripts: dict[str, Script] | None = None, **options: Any) -> Client:
        server = ScriptedServer(scripts or {"POST /execute": script or says(HELLO)})
        server.__enter__()
        client = Client(server.url, **{"idle_timeout_s": WAIT_S, "max_retries": 0, "max_resumes": 0, **options})
        opened.append((server, client))
        return client

    yield start
    for server, client in opened:
        client.close()
        server.__exit__()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with the embedded model."""
    with running_server(tmp_path_factory.mktemp("served"), app="wsgi:app") as server:
        yield server
