"""The native primitives without gevent. What they are for shows under gevent: see `under_gevent.py`."""

import _thread
import os
import select
import sys
import time

from tests.streams.threads import PATIENCE_S, start_native
from worker.streams import native


def test_nothing_is_patched_here() -> None:
    assert not native.is_gevent_patched()


def test_a_lock_is_one_among_threads_and_a_reentrant_one_is_not_to_its_own() -> None:
    for lock in (native.new_lock(), native.new_reentrant_lock()):
        with lock:
            assert not start_native(lambda lock=lock: lock.acquire(False)).result()  # type: ignore[misc]
    reentrant = native.new_reentrant_lock()
    with reentrant:
        assert reentrant.acquire(False)
        reentrant.release()
    lock = native.new_lock()
    with lock:
        assert not lock.acquire(False)


def test_start_thread_starts_a_thread() -> None:
    assert start_native(_thread.get_native_id).result() != _thread.get_native_id()


def test_epoll_and_poll_see_what_can_be_read() -> None:
    read_end, write_end = os.pipe()
    epoll, poll = native.native_epoll(), native.native_poll()
    try:
        for poller in (epoll, poll):
            poller.register(read_end, select.POLLIN)
            assert poller.poll(0) == []
        os.write(write_end, b"x")
        for poller in (epoll, poll):
            assert poller.poll(PATIENCE_S) == [(read_end, select.POLLIN)]
    finally:
        epoll.close()
        os.close(read_end)
        os.close(write_end)


def test_native_sleep_sleeps() -> None:
    started_at = time.monotonic()
    native.native_sleep(0.01)
    assert time.monotonic() - started_at >= 0.01


def test_a_spawned_program_writes_to_the_descriptor() -> None:
    read_end, write_end = os.pipe()
    try:
        pid = native.native_spawn(
            [sys.executable, "-c", "import os; print(os.environ['SAY'])"], {"SAY": "hi"}, write_end
        )
        done, status = native.native_waitpid(pid, 0)
        assert (done, os.waitstatus_to_exitcode(status)) == (pid, 0)
        assert os.read(read_end, 10) == b"hi\n"
    finally:
        os.close(read_end)
        os.close(write_end)
