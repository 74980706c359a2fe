"""What the threaded worker does where gunicorn's own would wait for itself."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

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
