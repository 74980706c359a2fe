"""The watcher of connections, without a server: who leaves is told once, and nobody else."""

import select
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engines import wait_until
from worker.web.disconnect import DisconnectWatcher


@pytest.fixture(scope="module")
def watcher() -> DisconnectWatcher:
    """One for all: its thread runs for as long as the process."""
    return DisconnectWatcher()


class Pair:
    """A connection and how often its peer was told to have left."""

    def __init__(self) -> None:
        self.ours, self.peer = socket.socketpair()
        self.num_told = 0

    def on_gone(self) -> None:
        self.num_told += 1


@pytest.fixture
def pairs(watcher: DisconnectWatcher) -> Iterator[tuple[Pair, Pair]]:
    """Two connections, closed behind the test."""
    both = Pair(), Pair()
    yield both
    for pair in both:
        if pair.ours.fileno() >= 0:
            watcher.unwatch(pair.ours.fileno())
        pair.ours.close()
        pair.peer.close()


def leaves(watcher: DisconnectWatcher, pair: Pair) -> None:
    """The peer leaves, and is told to have. Everything that happened before has been looked at then."""
    watcher.watch(pair.ours, pair.on_gone)
    pair.peer.close()
    wait_until(lambda: pair.num_told == 1)


def test_a_leave_is_told_once(watcher: DisconnectWatcher, pairs: tuple[Pair, Pair]) -> None:
    one, other = pairs
    watcher.watch(one.ours, one.on_gone)
    one.peer.shutdown(socket.SHUT_WR)
    wait_until(lambda: one.num_told == 1)
    one.peer.close()
    leaves(watcher, other)
    assert one.num_told == 1
    assert watcher._callbacks == {}


def test_who_is_not_watched_any_more_is_not_told(watcher: DisconnectWatcher, pairs: tuple[Pair, Pair]) -> None:
    one, other = pairs
    watcher.unwatch(watcher.watch(one.ours, one.on_gone))
    one.peer.close()
    leaves(watcher, other)
    assert one.num_told == 0


def test_an_event_of_a_descriptors_former_life_is_not_told(
    watcher: DisconnectWatcher, pairs: tuple[Pair, Pair]
) -> None:
    """The event was fetched, then the descriptor was closed and used again: nobody has left, and the watch goes on."""
    one, _ = pairs
    fd = watcher.watch(one.ours, one.on_gone)
    watcher._epoll.modify(fd, select.EPOLLONESHOT)  # an event that was fetched has disarmed it
    assert watcher._claim(fd) is None
    one.peer.shutdown(socket.SHUT_WR)
    wait_until(lambda: one.num_told == 1)


def test_an_event_of_nobody_is_not_told(watcher: DisconnectWatcher) -> None:
    assert watcher._claim(10**6) is None


def test_a_reader_may_end_in_the_moment_of_the_leave(
    watcher: DisconnectWatcher, pairs: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pairs
    fd = watcher.watch(one.ours, one.on_gone)
    watcher._epoll.modify(fd, 0)  # the event is told by hand
    one.peer.shutdown(socket.SHUT_WR)
    ending = threading.Thread(target=watcher.unwatch, args=(fd,))

    class Overtaken:
        def register(self, fd: int, events: int) -> None:
            ending.start()
            ending.join(0.05)  # it has to wait until the event is claimed

        def poll(self, timeout: int) -> list[tuple[int, int]]:
            return [(fd, select.EPOLLRDHUP)]

    monkeypatch.setattr("worker.web.disconnect.native_poll", Overtaken)
    assert watcher._claim(fd) == one.on_gone
    ending.join()
    assert watcher._callbacks == {}


def test_a_callback_that_raises_does_not_blind_the_watcher(
    watcher: DisconnectWatcher, pairs: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pairs
    shown: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: shown.append(error))

    def fail() -> None:
        raise RuntimeError("a callback's bug")

    watcher.watch(one.ours, fail)
    one.peer.close()
    leaves(watcher, other)
    assert "a callback's bug" in str(shown)


def test_a_socket_that_is_closed_already_is_told_at_once(watcher: DisconnectWatcher, pairs: tuple[Pair, Pair]) -> None:
    one, _ = pairs
    one.ours.close()
    assert watcher.watch(one.ours, one.on_gone) < 0
    assert one.num_told == 1


def test_a_socket_that_was_closed_meanwhile_can_be_unwatched(
    watcher: DisconnectWatcher, pairs: tuple[Pair, Pair]
) -> None:
    one, _ = pairs
    fd = watcher.watch(one.ours, one.on_gone)
    one.ours.close()
    watcher.unwatch(fd)
    assert watcher._callbacks == {}


def test_a_second_watch_replaces_the_first(watcher: DisconnectWatcher, pairs: tuple[Pair, Pair]) -> None:
    one, other = pairs
    watcher.watch(one.ours, one.on_gone)
    watcher.watch(one.ours, other.on_gone)
    one.peer.close()
    wait_until(lambda: other.num_told == 1)
    assert one.num_told == 0
