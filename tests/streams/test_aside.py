"""Work beside the server. Under threads here; test_stress.py runs this file under gevent too."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.streams.threads import PATIENCE_S
from worker.streams import native
from worker.streams.aside import Aside, GeventAside, ThreadAside, new_aside


@pytest.fixture
def aside() -> Iterator[Aside]:
    aside = new_aside()
    yield aside
    if isinstance(aside, GeventAside):
        aside._pool.kill()  # its thread


def test_the_place_follows_what_gevent_has_patched() -> None:
    assert type(new_aside()) is (GeventAside if native.is_gevent_patched() else ThreadAside)


def test_work_gives_back_its_result(aside: Aside) -> None:
    assert aside.run(lambda: 7) == 7
    assert aside.run(lambda: None) is None


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
def test_work_raises_its_error(aside: Aside, error: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        aside.run(fail)
    assert raised.value is error
    assert aside.run(lambda: 7) == 7
    assert capfd.readouterr().err == "", "an error that somebody handles is nothing to print"


def test_one_piece_of_work_is_done_at_a_time(aside: Aside) -> None:
    now, most = 0, 0

    def work() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        native.native_sleep(0.005)
        now -= 1

    threads = [threading.Thread(target=aside.run, args=(work,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert (now, most) == (0, 1)


def test_everybody_else_goes_on(aside: Aside) -> None:
    """The work waits, natively, for something that another thread or greenlet does meanwhile."""
    gate = native.new_lock()
    gate.acquire()
    done: list[bool] = []
    working = threading.Thread(target=lambda: done.append(aside.run(lambda: gate.acquire(True, PATIENCE_S))))
    working.start()
    time.sleep(0)  # the hub's turn, under gevent
    gate.release()
    working.join(PATIENCE_S)
    assert done == [True]
