"""As many streams at once as the server is told to take."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.servers import WORKER_CLASSES, RawStream, assert_ended_once, running_server

NUM_STREAMS = 256
PROMPT = {"prompt": "hello", "max_tokens": 4, "temperature": 0}


@pytest.mark.slow
@pytest.mark.parametrize("num_slots", [NUM_STREAMS, 16])
@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_every_stream_of_a_crowd_is_served(tmp_path: Path, worker_class: str, num_slots: int) -> None:
    """All of them are open before the first is read: they generate together, or wait for a slot."""
    limits = {"ENDSTOP_MAX_SLOTS": str(num_slots), "ENDSTOP_MAX_QUEUE": str(NUM_STREAMS - num_slots)}
    with running_server(tmp_path, worker_class, env=limits) as server, ExitStack() as stack:
        streams = [stack.enter_context(RawStream(server, "POST", "/execute", PROMPT)) for _ in range(NUM_STREAMS)]
        server.wait_for(lambda: server.stats()["open"] == NUM_STREAMS, "every stream to be open")
        one_more = stack.enter_context(RawStream(server, "POST", "/execute", PROMPT))
        assert one_more.head()[0] == 429
        server.allow("open")
        for stream in streams:
            terminal = assert_ended_once(stream.read_all())
            assert (terminal["type"], terminal["usage"]["completion_tokens"]) == ("end", 4)
        server.wait_for(lambda: server.stats()["streams"] == 0, "nothing left open")
