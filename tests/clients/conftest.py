"""A real server with the embedded model, for clients that other people have written."""

from collections.abc import Iterator

import pytest

from tests.support.servers import Server, running_server

MODEL = "endstop-tiny"
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Ready to be asked, at `served.url`."""
    with running_server(tmp_path_factory.mktemp("clients"), app="wsgi:app") as server:
        yield server
