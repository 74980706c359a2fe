"""A request that is sent behind another one, before that one is answered, holds up nobody else."""

import json
import time
from pathlib import Path

import pytest

from tests.support.servers import WORKER_CLASSES, RawStream, running_server

pytestmark = pytest.mark.slow

SHORT = {"prompt": "hello", "max_tokens": 2, "temperature": 0}


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_pipelined_bytes_do_not_stop_the_accept_loop(tmp_path: Path, worker_class: str) -> None:
    """Else nobody is accepted and no heartbeat is sent for 2 x slow_consumer_s: 120 s by default, and gunicorn kills
    a worker without a heartbeat after 60 s, with every stream in it."""
    with running_server(tmp_path, worker_class, env={"ENDSTOP_SLOW_CONSUMER_S": "60"}) as server:
        server.allow("open")
        body = json.dumps(SHORT).encode()
        second = b"POST /execute HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        with RawStream(server, "POST", "/execute", body + second, Content_Length=str(len(body))) as stream:
            stream.read_all()
            until = time.monotonic() + 2
            while time.monotonic() < until:
                assert server.get("/health").status_code == 200
