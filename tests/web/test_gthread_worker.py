"""What the threaded worker does where gunicorn's own would wait for itself."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from worker.web.gthread_worker import EndstopThreadWorker

WAIT_S = 10.0


def test_a_sigquit_that_interrupts_a_submit_does_not_wait_for_it() -> None:
    """The handler runs on the thread that it interrupts, which may hold the pool's lock."""
    told = threading.Event()
    worker = EndstopThreadWorker.__new__(EndstopThreadWorker)
    worker.cfg = SimpleNamespace(worker_int=lambda worker: told.set())
    worker.tpool = worker.probe_pool = ThreadPoolExecutor(1)
    has_left = threading.Event()

    def interrupted() -> None:
        with worker.tpool._shutdown_lock:  # as in `submit`
            with pytest.raises(SystemExit, match=r"^0$"):
                worker.handle_quit(3, None)
            has_left.set()

    threading.Thread(target=interrupted, daemon=True).start()
    assert has_left.wait(WAIT_S), "it waits for itself"
    assert told.is_set()
    assert not worker.alive


@pytest.mark.parametrize(
    ("request_line", "pool"),
    [
        (b"GET /health", "probe"),
        (b"GET /ready?x", "probe"),
        (b"HEAD /v1/models", "probe"),
        (b"DELETE /v1/jobs/a", "probe"),
        (b"GET /v1/models", "others"),
        (b"POST /health", "others"),
    ],
)
def test_what_is_short_and_must_not_wait_has_threads_of_its_own(request_line: bytes, pool: str) -> None:
    worker: Any = EndstopThreadWorker.__new__(EndstopThreadWorker)
    worker.probe_pool, worker.tpool, given = "probe", "others", list[str]()
    worker._give_thread = lambda conn, pool: given.append(pool)
    worker._look_at(SimpleNamespace(received=bytearray(request_line + b" HTTP/1.1\r\n\r\n"), head=None, timeout=0))
    assert given == [pool]
