"""What only shows where gevent has patched the threads. Run by `patched.py`, which test_stress.py starts.

Sources: docs/design.md on wake-ups; gevent#2013 on locks that real threads and greenlets share.
"""

import _thread
import os
import queue
import random
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent._hub_local import get_hub_if_exists
from gevent.event import AsyncResult

from tests.streams.flood import flood, flood_jittered, flood_merged, switching_often
from tests.streams.threads import (
    PATIENCE_S,
    ShownWakeup,
    drain,
    receive_woken,
    start_consumer,
    start_native,
    the_wakeup,
)
from worker.streams import native
from worker.streams.channel import (
    ChannelBroken,
    EndOfChannel,
    ReceiveChannel,
    SendChannel,
    merge,
    open_channel,
)
from worker.streams.wakeup import GeventWakeup, Wakeup

WELL_BEFORE_ANY_TIMER_S = PATIENCE_S / 4


def open_any(wakeup: Wakeup) -> tuple[SendChannel[Any, str], ReceiveChannel[Any, str]]:
    return open_channel(wakeup, "dropped")


def test_threads_are_greenlets_here(wakeup: Wakeup) -> None:
    assert native.is_gevent_patched()
    assert isinstance(wakeup, GeventWakeup)
    assert start_consumer(_thread.get_native_id).result() == _thread.get_native_id()


# Wake-ups from a native thread.


def start_when_the_hub_sleeps(call: Callable[[], object]) -> None:
    """Have a native thread make the call when nothing but a watcher can bring the hub back."""
    gevent.sleep(0.001)  # out of the part of the loop's turn in which it looks for work: that comes before the watcher
    is_asleep = native.new_lock()
    is_asleep.acquire()

    def wait_and_call() -> None:
        assert is_asleep.acquire(True, PATIENCE_S)
        call()

    def fall_asleep() -> None:
        watcher.stop()
        is_asleep.release()

    # libev calls it last before it blocks: after gevent's own, which is where gevent looks for work.
    watcher = gevent.get_hub().loop.prepare()
    watcher.priority = watcher.loop.MINPRI
    watcher.start(fall_asleep)
    native.start_thread(wait_and_call)


def test_a_put_on_a_patched_queue_wakes_nobody() -> None:
    # The trap. The item is there as soon as anything else ticks: with a keep-alive of 15 s, up to 15 s late.
    items: queue.Queue[str] = queue.Queue()
    happened: list[str] = []

    def get() -> None:
        happened.append(items.get())

    def put() -> None:
        happened.append("put")
        items.put("got")

    consumer = gevent.spawn(get)
    gevent.sleep(0)
    tick = gevent.get_hub().loop.timer(0.3, 0.3)
    tick.start(lambda: happened.append("tick"))
    start_when_the_hub_sleeps(put)
    try:
        consumer.get()
    finally:
        tick.close()
    assert happened[-3:] == ["put", "tick", "got"]


def test_a_send_on_a_channel_wakes_the_greenlet(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    sent_at: list[float] = []

    def send() -> None:
        sent_at.append(time.monotonic())
        sender.send("item")

    start_when_the_hub_sleeps(send)
    assert receive_woken(receiver) == ["item"]
    assert time.monotonic() - sent_at[0] < WELL_BEFORE_ANY_TIMER_S


def test_a_close_of_a_channel_wakes_the_greenlet(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    started_at = time.monotonic()
    start_when_the_hub_sleeps(lambda: sender.close("done"))
    with pytest.raises(EndOfChannel):
        receive_woken(receiver)
    assert time.monotonic() - started_at < WELL_BEFORE_ANY_TIMER_S


def test_a_sleeping_consumer_does_not_stop_the_hub(wakeup: Wakeup) -> None:
    shown = ShownWakeup(wakeup)
    sender, receiver = open_any(shown)
    consumer = start_consumer(lambda: receive_woken(receiver))
    shown.wait_until_asleep()
    assert [gevent.spawn(lambda i=i: i).get() for i in range(3)] == [0, 1, 2]
    sender.send("item")
    assert consumer.result() == ["item"]


def test_one_send_wakes_all_that_have_become_ready(wakeup: Wakeup) -> None:
    # libev folds the calls of send() into one before the hub looks.
    pairs = [open_any(wakeup) for _ in range(50)]
    consumers = [gevent.spawn(receive_woken, receiver) for _, receiver in pairs]
    gevent.sleep(0)

    def send_to_all() -> None:
        for i, (sender, _) in enumerate(pairs):
            sender.send(i)

    start_native(send_to_all).result()  # the hub stands still meanwhile
    sent_at = time.monotonic()
    assert [consumer.get() for consumer in consumers] == [[i] for i in range(50)]
    assert time.monotonic() - sent_at < WELL_BEFORE_ANY_TIMER_S


def test_a_greenlet_that_makes_another_ready_in_its_turn(wakeup: Wakeup) -> None:
    first_sender, first = open_any(wakeup)
    second_sender, second = open_any(wakeup)

    def pass_on() -> None:
        second_sender.send(receive_woken(first)[0])

    passing = gevent.spawn(pass_on)
    consumer = gevent.spawn(receive_woken, second)
    gevent.sleep(0)
    sent_at = time.monotonic()
    start_native(lambda: first_sender.send("item")).result()
    assert consumer.get() == ["item"]
    assert time.monotonic() - sent_at < WELL_BEFORE_ANY_TIMER_S
    passing.get()


# A greenlet that leaves receive() by an exception.


class Leave(Exception):
    """Thrown into a waiting greenlet."""


def let_the_hub_resume(wakeup: Wakeup) -> None:
    """Returns when everybody who has been woken so far has had a turn."""
    shown = ShownWakeup(wakeup)
    sender, receiver = open_any(shown)
    consumer = gevent.spawn(receive_woken, receiver)
    shown.wait_until_asleep()
    start_native(lambda: sender.send("after the others")).result()
    assert consumer.get()


def test_a_late_wake_up_does_not_reach_a_greenlet_that_has_left(wakeup: Wakeup) -> None:
    shown = ShownWakeup(wakeup)
    sender, receiver = open_any(shown)
    answer = AsyncResult()
    has_left = threading.Event()

    def receive_then_ask() -> Any:
        with pytest.raises(Leave):
            receive_woken(receiver)
        has_left.set()
        return answer.get()

    greenlet = gevent.spawn(receive_then_ask)
    shown.wait_until_asleep()
    greenlet.kill(Leave, block=False)
    assert has_left.wait(PATIENCE_S)
    gevent.sleep(0)  # now it waits for the answer
    start_native(lambda: sender.send("late")).result()
    let_the_hub_resume(wakeup)
    assert not greenlet.ready()
    answer.set("the answer")
    assert greenlet.get() == "the answer"
    assert receiver.take() == ["late"]


def test_a_wake_up_on_its_way_does_not_reach_a_greenlet_that_has_left(wakeup: Wakeup) -> None:
    # The same with the other order: woken first, thrown out before the hub resumes it.
    shown = ShownWakeup(wakeup)
    sender, receiver = open_any(shown)
    answer = AsyncResult()

    def receive_then_ask() -> Any:
        with pytest.raises(Leave):
            receive_woken(receiver)
        return answer.get()

    greenlet = gevent.spawn(receive_then_ask)
    shown.wait_until_asleep()
    greenlet.kill(Leave, block=False)
    start_native(lambda: sender.send("item")).result()
    let_the_hub_resume(wakeup)
    assert not greenlet.ready()
    answer.set("the answer")
    assert greenlet.get() == "the answer"
    assert receiver.take() == ["item"]


def test_the_timer_of_a_wait_ends_with_it(wakeup: Wakeup) -> None:
    # Or each token would leave a timer behind that holds the greenlet, and disturbs its later waits.
    waiter = wakeup.new_waiter()
    waiter.arm()
    waiter.wake()
    assert waiter.wait(0.02)
    waiter.arm()
    consumer = gevent.spawn(waiter.wait, PATIENCE_S)
    gevent.sleep(0.03)  # timers run in order, so the other one would have come first
    assert not consumer.ready()
    waiter.wake()
    assert consumer.get()


def test_a_killed_consumer_takes_no_item_with_it(wakeup: Wakeup) -> None:
    shown = ShownWakeup(wakeup)
    sender, receiver = open_any(shown)
    greenlet = gevent.spawn(receive_woken, receiver)
    shown.wait_until_asleep()
    start_native(lambda: sender.send("item")).result()
    greenlet.kill()
    sender.close("done")
    assert drain(receiver) == ["item"]


def test_a_timeout_of_gevent_passes_through(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    for item in range(3):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            receive_woken(receiver)
        sender.send(item)
        assert receive_woken(receiver) == [item]


# The operating system's own.


def test_start_thread_starts_a_real_thread() -> None:
    may_end = native.new_lock()
    may_end.acquire()

    def block() -> int:
        assert may_end.acquire(True, PATIENCE_S)
        return _thread.get_native_id()

    blocked = start_native(block)
    # The hub turns while a call that knows nothing of gevent blocks.
    assert [gevent.spawn(lambda i=i: i).get() for i in range(3)] == [0, 1, 2]
    gevent.sleep(0.001)
    assert not blocked.is_done()
    may_end.release()
    assert blocked.result() != _thread.get_native_id()


def test_the_locks_are_not_gevents() -> None:
    for lock in (native.new_lock(), native.new_reentrant_lock()):
        assert type(lock).__module__ == "_thread"
        with lock:
            assert not start_native(lambda lock=lock: lock.acquire(False)).result()  # type: ignore[misc]
    reentrant = native.new_reentrant_lock()
    with reentrant, reentrant:
        pass


def test_native_epoll_is_there_though_gevent_removes_it() -> None:
    assert not hasattr(select, "epoll")
    read_end, write_end = os.pipe()
    epoll = native.native_epoll()
    try:
        epoll.register(read_end, select.POLLIN)
        assert epoll.poll(0) == []
        polling = start_native(lambda: epoll.poll(PATIENCE_S))
        os.write(write_end, b"x")
        assert polling.result() == [(read_end, select.POLLIN)]
    finally:
        epoll.close()
        os.close(read_end)
        os.close(write_end)


def test_native_poll_blocks_its_own_thread_only() -> None:
    read_end, write_end = os.pipe()
    try:
        poll = native.native_poll()
        poll.register(read_end, select.POLLIN)
        polling = start_native(lambda: poll.poll(PATIENCE_S * 1000))
        assert gevent.spawn(lambda: "the hub turns").get() == "the hub turns"
        os.write(write_end, b"x")
        assert polling.result() == [(read_end, select.POLLIN)]
    finally:
        os.close(read_end)
        os.close(write_end)


def test_native_sleep_makes_no_hub() -> None:
    def sleep() -> object:
        native.native_sleep(0.001)
        return get_hub_if_exists()

    assert start_native(sleep).result() is None


def test_a_program_is_spawned_and_awaited_without_a_hub() -> None:
    read_end, write_end = os.pipe()

    def spawn_and_wait() -> tuple[int, object]:
        pid = native.native_spawn([sys.executable, "-c", "print('hi')"], {}, write_end)
        done, status = native.native_waitpid(pid, 0)
        assert done == pid
        return os.waitstatus_to_exitcode(status), get_hub_if_exists()

    try:
        assert start_native(spawn_and_wait).result() == (0, None)
        assert os.read(read_end, 10) == b"hi\n"
    finally:
        os.close(read_end)
        os.close(write_end)


# Under load.


@pytest.mark.slow
def test_a_million_items_into_greenlets() -> None:
    flood(1_000_000, num_channels=50)


@pytest.mark.slow
@pytest.mark.parametrize("num_channels", [1, 4])
def test_any_change_of_threads_is_survived(num_channels: int) -> None:
    flood_jittered(4_000, num_channels)


@pytest.mark.slow
def test_two_threads_may_wake_one_greenlet() -> None:
    flood_merged(50_000, num_consumers=20)


class KillableStream:
    """One stream of the kill test. A doomed one goes on until it is killed."""

    def __init__(self, rnd: random.Random, is_doomed: bool) -> None:
        self.is_doomed = is_doomed
        self.is_killed = False
        self.num_items = sys.maxsize if is_doomed else rnd.randrange(20, 300)
        self.kill_at = rnd.randrange(300)
        self.num_sent = 0
        self.num_received = 0
        self.sender, tokens = open_any(the_wakeup())
        self.narrator, narration = open_any(the_wakeup())
        self.receiver = merge(the_wakeup(), tokens, narration)
        self.greenlet = gevent.spawn(self.consume, random.Random(self.kill_at))

    def consume(self, rnd: random.Random) -> str:
        try:
            while True:
                items = [item for item in receive_woken(self.receiver) if item is not None]
                assert items == list(range(self.num_received, self.num_received + len(items)))
                self.num_received += len(items)
                if rnd.random() < 0.05:
                    gevent.sleep(0)
        except EndOfChannel as end:
            return str(end.reason)
        finally:
            # What a body does that is closed: it still waits for other things while the sender goes on. gevent
            # raises InvalidSwitchError if anybody else switches into this wait.
            for _ in range(3):
                gevent.sleep(0.0005)
            self.receiver.close()

    def send_some(self, rnd: random.Random) -> bool:
        """Returns whether there is more to send. Native thread."""
        try:
            self.narrator.send(None)
            for _ in range(min(rnd.choice((1, 1, 3)), self.num_items - self.num_sent)):
                self.sender.send(self.num_sent)
                self.num_sent += 1
        except ChannelBroken:
            return False
        if self.num_sent == self.num_items:
            self.sender.close("done")
            return False
        return True


@pytest.mark.slow
def test_greenlets_killed_at_random_harm_nobody() -> None:
    num_streams, max_live = 600, 48
    rnd = random.Random(5)
    starting: list[KillableStream] = []
    is_over = False

    def send_to_all() -> None:
        sending: list[KillableStream] = []
        sender_rnd = random.Random(6)
        while sending or starting or not is_over:
            while starting:
                sending.append(starting.pop())
            sending = [stream for stream in sending if stream.send_some(sender_rnd)]
            native.native_sleep(1e-5)

    streams: list[KillableStream] = []
    with switching_often():
        engine = start_native(send_to_all)
        deadline = time.monotonic() + 4 * PATIENCE_S
        live: list[KillableStream] = []
        while live or len(streams) < num_streams:
            assert time.monotonic() < deadline
            while len(live) < max_live and len(streams) < num_streams:
                stream = KillableStream(rnd, is_doomed=rnd.random() < 0.5)
                streams.append(stream)
                live.append(stream)
                starting.append(stream)
            gevent.sleep(0.0005)
            for stream in live:
                if stream.is_doomed and not stream.is_killed and stream.num_received >= stream.kill_at:
                    stream.is_killed = True
                    stream.greenlet.kill(block=False)
            live = [stream for stream in live if not stream.greenlet.ready()]
        is_over = True
        engine.result()

    for stream in streams:
        outcome = stream.greenlet.get()  # raises what the greenlet has raised
        if stream.is_doomed:
            assert isinstance(outcome, gevent.GreenletExit)
        else:
            assert (outcome, stream.num_received) == ("done", stream.num_items)
