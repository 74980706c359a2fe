"""The laws of one channel, each alone, and then all of them against a plain model.

"At any step" means at every bytecode, see `interleave.py`. All of it also runs under gevent, see test_stress.py.
"""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.streams.interleave import Steps, play_every_step
from tests.streams.threads import (
    PATIENCE_S,
    LookingWaiter,
    ShownWakeup,
    SleeplessWakeup,
    drain,
    receive_woken,
    start_consumer,
    start_native,
    the_wakeup,
)
from worker.events import Event, Metrics, Narration, Started, Token, merge_waiting
from worker.streams.channel import (
    ChannelBroken,
    ChannelClosed,
    EndOfChannel,
    ReceiveChannel,
    SendChannel,
    open_channel,
)
from worker.streams.wakeup import Wakeup

Sender = SendChannel[Any, str]
Receiver = ReceiveChannel[Any, str]

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def open_any(wakeup: Wakeup) -> tuple[Sender, Receiver]:
    return open_channel(wakeup, "dropped")


def end_of(receiver: Receiver, call: Callable[[], list[Any]] | None = None) -> Any:
    """Why the channel ended. It must have been drained. (Not `pytest.raises`: it would keep the frames alive.)"""
    try:
        items = (call or receiver.take)()
    except EndOfChannel as end:
        return end.reason
    raise AssertionError(f"received {items} where the end was due")


# What was sent is received, in order, and then the end is.


def test_items_come_in_order_and_then_the_end(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    sender.send(1)
    sender.send(2)
    assert receiver.take() == [1, 2]
    assert receiver.take() == []
    sender.send(3)
    sender.close("done")
    assert receiver.take() == [3]
    assert end_of(receiver) == "done"


def test_the_end_is_told_again_on_every_later_call(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    sender.close("done")
    for _ in range(3):
        assert end_of(receiver) == "done"
        with pytest.raises(EndOfChannel) as end:
            receive_woken(receiver)
        assert end.value.reason == "done"


@pytest.mark.parametrize("item", [None, False, 0, "", [], EndOfChannel("not yet")])
def test_an_item_is_never_mistaken_for_an_end_or_for_nothing(wakeup: Wakeup, item: object) -> None:
    sender, receiver = open_any(wakeup)
    sender.send(item)
    assert receiver.statistics().num_waiting == 1
    assert receive_woken(receiver) == [item]
    sender.close("done")
    assert end_of(receiver) == "done"


def test_receive_wakes_for_an_item_and_for_the_end(wakeup: Wakeup) -> None:
    shown = ShownWakeup(wakeup)
    sender, receiver = open_any(shown)
    consumer = start_consumer(lambda: drain(receiver))
    shown.wait_until_asleep()
    start_native(lambda: sender.send("item")).result()
    shown.wait_until_asleep()
    start_native(lambda: sender.close("done")).result()
    assert consumer.result() == ["item"]


def test_a_send_at_any_step_of_receive_is_received(wakeup: Wakeup) -> None:
    steps = Steps(at_least=50)

    def play() -> None:
        has_sent = False

        def send() -> None:
            nonlocal has_sent
            if not has_sent:
                has_sent = True
                sender.send("item")

        sender, receiver = open_any(SleeplessWakeup(at_sleep=send))
        received: list[str] = []
        steps.run(lambda: received.extend(receive_woken(receiver)), send)
        assert received == ["item"] or receiver.take() == ["item"]

    play_every_step(steps, play)


def test_a_close_at_any_step_of_receive_is_received(wakeup: Wakeup) -> None:
    steps = Steps(at_least=50)

    def play() -> None:
        sender, receiver = open_any(SleeplessWakeup(at_sleep=lambda: sender.close("done")))

        def receive() -> None:
            with pytest.raises(EndOfChannel, match="done"):
                receive_woken(receiver)

        steps.run(receive, lambda: sender.close("done"))

    play_every_step(steps, play)


def test_the_change_comes_before_the_wake_up(wakeup: Wakeup) -> None:
    # The other order loses the wake-up of a consumer that looks at once and goes to sleep again.
    sender, receiver = open_any(wakeup)
    seen: list[Any] = []

    def look() -> None:
        try:
            seen.append(receiver.take())
        except (EndOfChannel, ChannelClosed) as end:
            seen.append(type(end))

    receiver.listen(LookingWaiter(look))
    sender.send("item")
    assert seen == [["item"]]
    sender.close("done")
    assert seen == [["item"], EndOfChannel]
    receiver.close()
    assert seen == [["item"], EndOfChannel, ChannelClosed]


def test_unlisten_ends_the_wake_ups(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    woken: list[str] = []
    one, two = LookingWaiter(lambda: woken.append("one")), LookingWaiter(lambda: woken.append("two"))
    receiver.listen(one)
    receiver.listen(two)
    sender.send("item")
    receiver.unlisten(one)
    sender.send("item")
    assert woken == ["one", "two", "two"]


def test_two_may_begin_to_listen_at_once(wakeup: Wakeup) -> None:
    # Two readers of one job come: whoever is left out of the list is never woken.
    steps = Steps()

    def play() -> None:
        sender, receiver = open_any(wakeup)
        woken: list[str] = []
        one, two = LookingWaiter(lambda: woken.append("one")), LookingWaiter(lambda: woken.append("two"))

        def listen_in_another_thread() -> None:
            others.append(start_native(lambda: receiver.listen(two)))
            others[-1].is_done(0.02)  # inside the lock it has to wait for us

        others: list[Any] = []
        if not steps.run(lambda: receiver.listen(one), listen_in_another_thread):
            receiver.listen(two)
        for other in others:
            other.result()
        sender.send("item")
        assert sorted(woken) == ["one", "two"]

    play_every_step(steps, play)


def test_one_may_begin_to_listen_while_another_ceases(wakeup: Wakeup) -> None:
    steps = Steps()

    def play() -> None:
        sender, receiver = open_any(wakeup)
        woken: list[str] = []
        one, two = LookingWaiter(lambda: woken.append("one")), LookingWaiter(lambda: woken.append("two"))
        receiver.listen(one)

        def listen_in_another_thread() -> None:
            others.append(start_native(lambda: receiver.listen(two)))
            others[-1].is_done(0.02)

        others: list[Any] = []
        if not steps.run(lambda: receiver.unlisten(one), listen_in_another_thread):
            receiver.listen(two)
        for other in others:
            other.result()
        sender.send("item")
        assert woken == ["two"]

    play_every_step(steps, play)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["send", "close"])
def test_a_take_at_any_step_of_the_sender_loses_nothing(wakeup: Wakeup, call: str) -> None:
    steps = Steps()

    def play() -> None:
        sender, receiver = open_any(wakeup)
        received: list[str] = []

        def take() -> None:
            try:
                received.extend(receiver.take())
            except EndOfChannel as end:
                received.append(end.reason)

        def take_in_another_thread() -> None:
            others.append(start_native(take))
            others[-1].is_done(0.02)  # inside the lock it has to wait for us

        others: list[Any] = []
        steps.run(
            lambda: sender.send("item") if call == "send" else sender.close("done"),
            take_in_another_thread,
        )
        for other in others:
            other.result()
        if not received:
            take()
        assert received == ["item" if call == "send" else "done"]

    play_every_step(steps, play)


# The sender never waits.


def test_nobody_has_to_read(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)

    def send_all() -> None:
        for i in range(10_000):
            sender.send(i)
        sender.close("done")

    start_native(send_all).result()
    assert drain(receiver) == list(range(10_000))


def test_a_slow_merge_does_not_hold_up_the_sender(wakeup: Wakeup) -> None:
    is_merging, may_end = threading.Event(), threading.Event()

    def merge_slowly(items: list[int]) -> list[int]:
        is_merging.set()
        assert may_end.wait(PATIENCE_S)
        return items

    sender, receiver = open_channel(wakeup, "dropped", merge_slowly)
    sender.send(1)
    sender.send(2)
    consumer = start_consumer(lambda: receive_woken(receiver))
    assert is_merging.wait(PATIENCE_S)
    start_native(lambda: sender.send(3)).result()
    may_end.set()
    assert consumer.result() == [1, 2]
    assert receiver.take() == [3]


# The end is closed once: the first reason wins.


def test_the_first_close_wins(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    assert sender.close("first")
    assert not sender.close("second")
    del sender
    assert end_of(receiver) == "first"
    assert end_of(receiver) == "first"


def test_the_first_close_wins_among_threads(wakeup: Wakeup) -> None:
    for _ in range(20):
        sender, receiver = open_any(wakeup)
        racing = [start_native(lambda i=i, close=sender.close: close(str(i))) for i in range(8)]  # type: ignore[misc]
        winners = [str(i) for i, close in enumerate(racing) if close.result()]
        assert winners == [end_of(receiver)]


@pytest.mark.slow
def test_the_first_close_wins_at_any_step_of_another(wakeup: Wakeup) -> None:
    steps = Steps()

    def play() -> None:
        sender, receiver = open_any(wakeup)
        wins: list[str] = []

        def close(reason: str) -> None:
            if sender.close(reason):
                wins.append(reason)

        def close_in_another_thread() -> None:
            others.append(start_native(lambda: close("other")))
            others[-1].is_done(0.02)  # inside the lock it has to wait for us

        others: list[Any] = []
        steps.run(lambda: close("one"), close_in_another_thread)
        for other in others:
            other.result()
        assert len(wins) == 1
        assert end_of(receiver) == wins[0]
        assert end_of(receiver) == wins[0]

    play_every_step(steps, play)


@pytest.mark.slow
def test_no_item_lands_behind_the_end(wakeup: Wakeup) -> None:
    # At any step of send() another thread closes, and the consumer drains up to the end. An item that send()
    # has accepted is among what was received, and one that was refused is not.
    steps = Steps()
    num_accepted = num_refused = 0

    def play() -> None:
        nonlocal num_accepted, num_refused
        sender, receiver = open_any(wakeup)
        received: list[str] = []
        was_accepted = False

        def send() -> None:
            nonlocal was_accepted
            try:
                sender.send("item")
            except ChannelClosed:
                return
            was_accepted = True

        def close_and_drain() -> None:
            sender.close("done")
            received.extend(drain(receiver))

        others: list[Any] = []

        def in_another_thread() -> None:
            others.append(start_native(close_and_drain))
            others[-1].is_done(0.02)  # inside the lock it has to wait for us

        if not steps.run(send, in_another_thread):
            close_and_drain()
        for other in others:
            other.result()
        assert received == (["item"] if was_accepted else [])
        num_accepted += was_accepted
        num_refused += not was_accepted

    play_every_step(steps, play)
    assert num_accepted
    assert num_refused


@pytest.mark.slow
def test_closing_from_another_thread_loses_nothing_that_was_accepted(wakeup: Wakeup) -> None:
    for _ in range(20):
        sender, receiver = open_any(wakeup)

        def send_until_closed(sender: Sender = sender) -> list[int]:
            sent: list[int] = []
            while True:
                try:
                    sender.send(len(sent))
                except ChannelClosed:
                    return sent
                sent.append(len(sent))

        sending = start_native(send_until_closed)
        received = receive_woken(receiver)
        assert start_native(lambda close=sender.close: close("done")).result()  # type: ignore[misc]
        received += drain(receiver)
        assert received == sending.result()
        assert end_of(receiver) == "done"


def test_send_after_close_is_refused(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    sender.send("item")
    sender.close("done")
    with pytest.raises(ChannelClosed):
        sender.send("late")
    assert receiver.take() == ["item"]
    assert end_of(receiver) == "done"
    with pytest.raises(ChannelClosed):
        sender.send("later")


# A sender that is dropped unclosed closes itself.


def test_a_dropped_sender_closes_itself(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    sender.send("item")
    del sender
    assert receive_woken(receiver) == ["item"]
    assert end_of(receiver) == "dropped"


def test_a_sender_dropped_elsewhere_wakes_the_consumer(wakeup: Wakeup) -> None:
    shown = ShownWakeup(wakeup)
    sender, receiver = open_any(shown)
    held = [sender]
    del sender
    consumer = start_consumer(lambda: drain(receiver))
    shown.wait_until_asleep()
    start_native(held.clear).result()
    assert consumer.result() == []
    assert end_of(receiver) == "dropped"


def test_a_sender_dies_with_a_thread_that_fails(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)

    def generate(sender: Sender) -> None:
        sender.send("item")
        raise ArithmeticError

    held = [sender]
    del sender
    generating = start_native(lambda: generate(held.pop()))
    with pytest.raises(ArithmeticError) as failure:
        generating.result()
    assert receiver.take() == ["item"]
    assert receiver.take() == []  # the traceback still holds the frame that holds the sender
    failure.value.__traceback__ = None
    del failure, generating
    gc.collect()
    assert end_of(receiver) == "dropped"


class Cycle:
    """Garbage that only the collector frees, and then whatever it holds."""

    def __init__(self, held: object) -> None:
        self.held = held
        self.itself = self


def drop_in_a_cycle(holder: list[Any]) -> None:
    """Have the collector free what `holder` holds, here and now, in this thread."""
    assert not gc.isenabled()  # so that what is young stays in the generation that is looked at
    cycle = Cycle(holder.pop())
    is_alive = weakref.ref(cycle.held)
    del cycle
    gc.collect(0)
    assert is_alive() is None


@pytest.fixture
def no_gc() -> Any:
    """The collector runs when the test says so."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_gc")
def test_a_sender_in_a_reference_cycle_closes_itself(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    sender.send("item")
    holder = [sender]
    del sender
    drop_in_a_cycle(holder)
    assert receiver.take() == ["item"]
    assert end_of(receiver) == "dropped"


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("look", ["take", "statistics", "close"])
def test_the_sender_may_be_collected_at_any_step_of_the_receiver(wakeup: Wakeup, look: str) -> None:
    # The collector runs at any allocation, also inside the channel's lock, in the thread that holds it.
    steps = Steps()

    def play() -> None:
        sender, receiver = open_any(wakeup)
        sender.send("item")
        holder = [sender]
        del sender
        items: list[str] = []
        num_waiting: list[int] = []
        calls: dict[str, Callable[[], object]] = {
            "take": lambda: items.extend(receiver.take()),
            "statistics": lambda: num_waiting.append(receiver.statistics().num_waiting),
            "close": receiver.close,
        }
        if not steps.run(lambda: calls[look](), lambda: drop_in_a_cycle(holder)):
            drop_in_a_cycle(holder)
        if look == "close":
            with pytest.raises(ChannelClosed):
                receiver.take()
        else:
            items += drain(receiver)
            assert items == ["item"]
            assert end_of(receiver) == "dropped"
        assert num_waiting == ([1] if look == "statistics" else [])

    play_every_step(steps, play)


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("call", ["send", "close"])
def test_the_receiver_may_be_collected_at_any_step_of_the_sender(wakeup: Wakeup, call: str) -> None:
    steps = Steps()

    def play() -> None:
        sender, receiver = open_any(wakeup)
        holder = [receiver]
        del receiver

        def send() -> None:
            try:
                sender.send("item")
            except ChannelBroken:
                pass

        steps.run(
            send if call == "send" else lambda: sender.close("done"),
            lambda: drop_in_a_cycle(holder),
        )
        holder.clear()
        assert sender.is_broken
        with pytest.raises(ChannelBroken if call == "send" else ChannelClosed):
            sender.send("late")

    play_every_step(steps, play)


def test_what_is_thrown_away_is_freed_outside_the_lock(wakeup: Wakeup) -> None:
    # An item's finalizer is foreign code: inside the lock, one that waits for a thread that sends waits for ever.
    sender, receiver = open_any(wakeup)
    outcomes: list[object] = []

    class Item:
        def __del__(self) -> None:
            try:
                start_native(lambda: sender.close("freed")).result(timeout_s=0.5)
            except TimeoutError as error:
                outcomes.append(type(error))
            else:
                outcomes.append("freed")

    sender.send(Item())
    receiver.close()
    assert outcomes == ["freed"]


# A receiver that is gone is seen by the sender.


def test_a_closed_receiver_breaks_the_channel(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    sender.send("unread")
    receiver.close()
    receiver.close()
    assert sender.is_broken
    with pytest.raises(ChannelBroken):
        sender.send("item")
    assert sender.close("done")  # nobody hears it, but it is no error
    with pytest.raises(ChannelClosed):
        sender.send("item")


def test_a_dropped_receiver_breaks_the_channel(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    assert receiver.receive(0) == []  # so that it listens
    sender.send("unread")
    del receiver
    assert sender.is_broken
    with pytest.raises(ChannelBroken):
        sender.send("item")


@pytest.mark.usefixtures("no_gc")
def test_a_receiver_in_a_reference_cycle_breaks_the_channel(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    holder = [receiver]
    del receiver
    drop_in_a_cycle(holder)
    assert sender.is_broken


@pytest.mark.usefixtures("no_gc")
def test_an_ended_receiver_is_freed_when_dropped(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    sender.close("done")
    assert end_of(receiver) == "done"
    assert end_of(receiver) == "done"
    is_alive = weakref.ref(receiver)
    del receiver
    assert is_alive() is None
    assert sender.is_broken


def test_take_and_receive_after_close_are_refused(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    sender.send("unread")
    sender.close("done")
    receiver.close()
    with pytest.raises(ChannelClosed):
        receiver.take()
    with pytest.raises(ChannelClosed):
        receive_woken(receiver)


def test_close_wakes_a_consumer_in_another_thread(wakeup: Wakeup) -> None:
    shown = ShownWakeup(wakeup)
    sender, receiver = open_any(shown)
    consumer = start_consumer(lambda: receive_woken(receiver))
    shown.wait_until_asleep()
    receiver.close()
    with pytest.raises(ChannelClosed):
        consumer.result()
    assert sender.is_broken


def test_a_receivers_close_at_any_step_of_receive_is_seen(wakeup: Wakeup) -> None:
    steps = Steps(at_least=50)

    def play() -> None:
        _sender, receiver = open_any(SleeplessWakeup(at_sleep=lambda: receiver.close()))

        def receive() -> None:
            with pytest.raises(ChannelClosed):
                receive_woken(receiver)

        steps.run(receive, receiver.close)

    play_every_step(steps, play)


# A receiver never waits without a limit.


def test_receive_gives_up_in_time(wakeup: Wakeup) -> None:
    _sender, receiver = open_any(wakeup)
    for timeout_s in (0.02, 0.0, -1.0):
        started_at = time.monotonic()
        assert receiver.receive(timeout_s) == []
        assert timeout_s <= time.monotonic() - started_at < PATIENCE_S


def test_receive_does_not_wait_for_what_is_there(wakeup: Wakeup) -> None:
    sender, receiver = open_any(SleeplessWakeup(at_sleep=lambda: pytest.fail("went to sleep")))
    sender.send("item")
    assert receiver.receive(0) == ["item"]
    sender.send("item")
    assert receive_woken(receiver) == ["item"]


def test_a_wake_up_for_nothing_is_not_the_end_of_the_wait(wakeup: Wakeup) -> None:
    num_sleeps = 0

    def wake_for_nothing() -> None:
        nonlocal num_sleeps
        num_sleeps += 1
        sender.send("item")
        if num_sleeps < 5:
            receiver.take()

    sender, receiver = open_any(SleeplessWakeup(at_sleep=wake_for_nothing))
    assert receive_woken(receiver) == ["item"]
    assert num_sleeps == 5


# What has piled up is merged on the receiver's side.


def test_merge_runs_on_a_backlog_only(wakeup: Wakeup) -> None:
    merged: list[list[str]] = []

    def merge(items: list[str]) -> list[str]:
        merged.append(items)
        return ["".join(items)]

    sender, receiver = open_channel(wakeup, "dropped", merge)
    sender.send("a")
    assert receiver.take() == ["a"]
    assert receiver.take() == []
    assert merged == []
    sender.send("b")
    sender.send("c")
    assert receive_woken(receiver) == ["bc"]
    assert merged == [["b", "c"]]
    sender.send("d")
    sender.close("done")
    assert receiver.take() == ["d"]  # the end is no item
    assert end_of(receiver) == "done"
    assert merged == [["b", "c"]]


def test_merge_runs_in_the_consumers_thread(wakeup: Wakeup) -> None:
    merged_in: list[int] = []

    def merge(items: list[str]) -> list[str]:
        merged_in.append(threading.get_ident())
        return items

    sender, receiver = open_channel(wakeup, "dropped", merge)

    def send_two() -> None:
        sender.send("a")
        sender.send("b")

    start_native(send_two).result()
    assert receive_woken(receiver) == ["a", "b"]
    assert merged_in == [threading.get_ident()]


# Statistics.


def test_statistics_count(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    before = sender.statistics()
    assert (before.num_waiting, before.num_sent, before.is_closed, before.is_broken) == (0, 0, False, False)
    assert before.last_take_at is None
    sender.send(1)
    sender.send(2)
    assert (sender.statistics().num_waiting, sender.statistics().num_sent) == (2, 2)
    sender.close("done")
    closed = receiver.statistics()
    assert (closed.num_waiting, closed.num_sent, closed.is_closed, closed.is_broken) == (2, 2, True, False)
    started_at = time.monotonic()
    receiver.take()
    taken = sender.statistics()
    assert (taken.num_waiting, taken.num_sent) == (0, 2)
    assert taken.last_take_at is not None
    assert started_at <= taken.last_take_at <= time.monotonic()
    receiver.close()
    assert sender.statistics().is_broken


def test_statistics_tell_since_when_items_wait(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    assert sender.statistics().waiting_since is None
    for _ in range(2):
        started_at = time.monotonic()
        sender.send("oldest")
        waiting_since = receiver.statistics().waiting_since
        assert waiting_since is not None
        assert started_at <= waiting_since <= time.monotonic()
        sender.send("younger")
        assert receiver.statistics().waiting_since == waiting_since
        receiver.take()
        assert receiver.statistics().waiting_since is None
    sender.send("unread")
    receiver.close()
    assert sender.statistics().waiting_since is None


def test_every_look_of_the_receiver_is_noted(wakeup: Wakeup) -> None:
    sender, receiver = open_any(wakeup)
    for _ in range(2):
        started_at = time.monotonic()
        receiver.take()
        last_take_at = sender.statistics().last_take_at
        assert last_take_at is not None
        assert last_take_at >= started_at


@pytest.mark.parametrize("num_sent", [0, 1])
def test_a_close_at_any_step_of_statistics_does_not_bend_the_count(wakeup: Wakeup, num_sent: int) -> None:
    steps = Steps()
    num_waiting: list[int] = []

    def play() -> None:
        sender, receiver = open_any(wakeup)
        for _ in range(num_sent):
            sender.send("item")

        def close_in_another_thread() -> None:
            others.append(start_native(lambda: sender.close("done")))
            others[-1].is_done(0.02)

        others: list[Any] = []
        steps.run(lambda: num_waiting.append(receiver.statistics().num_waiting), close_in_another_thread)
        for other in others:
            other.result()

    play_every_step(steps, play)
    assert set(num_waiting) == {num_sent}


def test_a_send_at_any_step_of_statistics_is_in_all_of_them_or_in_none(wakeup: Wakeup) -> None:
    steps = Steps()

    def play() -> None:
        sender, receiver = open_any(wakeup)

        def send_in_another_thread() -> None:
            others.append(start_native(lambda: sender.send("item")))
            others[-1].is_done(0.02)  # inside the lock it has to wait for us

        others: list[Any] = []
        seen: list[Any] = []
        steps.run(lambda: seen.append(receiver.statistics()), send_in_another_thread)
        for other in others:
            other.result()
        (statistics,) = seen
        assert statistics.num_waiting == statistics.num_sent
        assert (statistics.waiting_since is not None) == bool(statistics.num_sent)

    play_every_step(steps, play)


# All of it against a model.


class ChannelMachine(RuleBasedStateMachine):
    """One channel, used in any order by one thread, beside a list and four variables."""

    def __init__(self) -> None:
        super().__init__()
        self.num_merges = 0
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        self.open()

    @precondition(lambda self: self.sender is None and self.receiver is None)
    @rule()
    def open(self) -> None:
        sender, receiver = open_channel(the_wakeup(), "dropped", self.merge)
        self.sender, self.receiver = sender, receiver
        self.waiting: list[Any] = []
        self.num_sent = 0
        self.reason: str | None = None
        self.has_ended = False
        self.is_closed_by_receiver = False
        self.is_broken = False
        self.has_looked = False

    def merge(self, items: list[Any]) -> list[Any]:
        self.num_merges += 1
        return items

    @precondition(lambda self: self.sender is not None)
    @rule(item=st.one_of(st.none(), st.integers(), st.text(max_size=2)))
    def send(self, item: Any) -> None:
        assert self.sender is not None
        if self.reason is not None:
            with pytest.raises(ChannelClosed):
                self.sender.send(item)
        elif self.is_broken:
            with pytest.raises(ChannelBroken):
                self.sender.send(item)
        else:
            self.sender.send(item)
            self.waiting.append(item)
            self.num_sent += 1

    @precondition(lambda self: self.sender is not None)
    @rule(reason=st.sampled_from(["eos", "cancelled"]))
    def close(self, reason: str) -> None:
        assert self.sender is not None
        assert self.sender.close(reason) == (self.reason is None)
        self.reason = self.reason or reason

    @precondition(lambda self: self.sender is not None)
    @rule()
    def drop_sender(self) -> None:
        self.sender = None
        self.reason = self.reason or "dropped"

    @precondition(lambda self: self.receiver is not None)
    @rule(is_take=st.booleans())
    def look(self, is_take: bool) -> None:
        receiver = self.receiver
        assert receiver is not None
        call = receiver.take if is_take else lambda: receiver.receive(0)
        num_merges = self.num_merges
        if self.is_closed_by_receiver:
            with pytest.raises(ChannelClosed):
                call()
            return
        self.has_looked = True
        if self.has_ended or (self.reason is not None and not self.waiting):
            assert end_of(receiver, call) == self.reason
            self.has_ended = True
            return
        assert call() == self.waiting
        assert self.num_merges - num_merges == (len(self.waiting) > 1)
        self.waiting = []
        self.has_ended = self.reason is not None

    @precondition(lambda self: self.receiver is not None)
    @rule()
    def close_receiver(self) -> None:
        assert self.receiver is not None
        self.receiver.close()
        self.is_closed_by_receiver = self.is_broken = True
        self.waiting = []

    @precondition(lambda self: self.receiver is not None)
    @rule()
    def drop_receiver(self) -> None:
        self.receiver = None
        self.is_broken = True
        self.waiting = []

    @invariant()
    def both_ends_tell_the_same(self) -> None:
        for end in (self.sender, self.receiver):
            if end is not None:
                statistics = end.statistics()
                assert statistics.num_waiting == len(self.waiting)
                assert statistics.num_sent == self.num_sent
                assert statistics.is_closed == (self.reason is not None)
                assert statistics.is_broken == self.is_broken
                assert (statistics.last_take_at is not None) == self.has_looked
                assert (statistics.waiting_since is not None) == bool(self.waiting)
        if self.sender is not None:
            assert self.sender.is_broken == self.is_broken


TestChannelMachine = pytest.mark.slow(ChannelMachine.TestCase)
TestChannelMachine.settings = settings(repeatable, max_examples=100, stateful_step_count=20)


# The merge of a stream's events.

tokens = st.builds(
    Token, text=st.text(max_size=3), index=st.integers(0, 1000), count=st.integers(min_value=1, max_value=5)
)
other_events = st.sampled_from(
    [
        Started("job", "model", "2025-01-01T00:00:00Z"),
        Narration("engine", "prefill", "prompt", "reading", "job"),
        Metrics(1.0, 0, 0.0, None),
    ]
)
backlogs: st.SearchStrategy[list[Event]] = st.lists(st.one_of(tokens, tokens, other_events), max_size=12)


def runs(events: list[Event]) -> list[Any]:
    """Lists of neighbouring tokens, and the other events between them."""
    parts: list[Any] = []
    for event in events:
        if not isinstance(event, Token):
            parts.append(event)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(event)
        else:
            parts.append([event])
    return parts


@repeatable
@given(backlogs)
def test_merge_waiting_joins_each_run_of_tokens(events: list[Event]) -> None:
    before, merged = runs(events), merge_waiting(events)
    assert len(merged) == len(before)
    for event, part in zip(merged, before, strict=True):
        if not isinstance(part, list):
            assert event is part
            continue
        assert isinstance(event, Token)
        assert event.text == "".join(token.text for token in part)
        assert event.index == part[0].index
        assert event.count == sum(token.count for token in part)


@repeatable
@given(backlogs, st.data())
def test_merge_waiting_does_not_care_how_the_backlog_was_cut(events: list[Event], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(events)))
    assert merge_waiting(merge_waiting(events[:cut]) + merge_waiting(events[cut:])) == merge_waiting(events)


@pytest.mark.slow
@repeatable
@given(st.lists(st.tuples(st.text(max_size=3), st.integers(1, 5)), max_size=12), backlogs)
def test_merged_tokens_still_follow_each_other(sizes: list[tuple[str, int]], between: list[Event]) -> None:
    events: list[Event] = []
    index = 0
    for text, count in sizes:
        events.append(Token(text, index, count))
        index += count
        events += [event for event in between[:1] if not isinstance(event, Token)]
        between = between[1:]
    next_index = 0
    for event in merge_waiting(events):
        if isinstance(event, Token):
            assert event.index == next_index
            next_index += event.count
    assert next_index == index


def test_merge_waiting_leaves_its_argument_and_lone_tokens_alone() -> None:
    events: list[Event] = [Token("a", 0), Narration("a", "b", "c", "d", "e"), Token("b", 1)]
    copy = list(events)
    merged = merge_waiting(events)
    assert events == copy
    assert all(event is same for event, same in zip(merged, copy, strict=True))
    assert merge_waiting([]) == []
