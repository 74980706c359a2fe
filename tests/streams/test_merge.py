"""Several sources as one. The first test is the bug that the project exists for; the rest is what `merge` promises."""

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams.interleave import Steps, play_every_step
from tests.streams.threads import (
    LookingWaiter,
    ShownWakeup,
    SleeplessWakeup,
    drain,
    receive_woken,
    start_consumer,
    start_native,
    the_wakeup,
)
from worker.streams.channel import (
    ChannelBroken,
    ChannelClosed,
    EndOfChannel,
    ReceiveChannel,
    Receiver,
    SendChannel,
    merge,
    open_channel,
)
from worker.streams.wakeup import Wakeup


def open_any(wakeup: Wakeup) -> tuple[SendChannel[str, str], ReceiveChannel[str, str]]:
    return open_channel(wakeup, "dropped")


def each(receiver: Receiver[str, Any]) -> Iterator[str]:
    """The items of one source until its end: what one would chain."""
    while True:
        try:
            yield from receive_woken(receiver)
        except EndOfChannel:
            return


def end_of(receiver: Receiver[str, Any]) -> Any:
    """Why the stream ended. (Not `pytest.raises`: it would keep the frames alive.)"""
    try:
        items = receiver.take()
    except EndOfChannel as end:
        return end.reason
    raise AssertionError(f"received {items} where the end was due")


# The bug.


@pytest.mark.slow
def test_chained_sources_hang_where_merged_ones_end(wakeup: Wakeup) -> None:
    # The narrator sits in a thread-local of the thread that took the request. Nobody drops it, and the thread that
    # generates cannot reach it to close it.
    context = threading.local()

    def take_request() -> tuple[ReceiveChannel[str, str], ReceiveChannel[str, str]]:
        context.narrator, narration = open_any(wakeup)
        context.narrator.send("reading the prompt")
        sender, tokens = open_any(wakeup)

        def generate() -> None:
            assert not hasattr(context, "narrator")
            for token in ("to", "ken", "s"):
                sender.send(token)
            sender.close("eos")

        start_native(generate).result()
        return narration, tokens

    narration, tokens = take_request()
    received: list[str] = []

    def read_chained() -> None:
        for item in itertools.chain(each(narration), each(tokens)):
            received.append(item)

    reading = start_consumer(read_chained)
    assert not reading.is_done(0.3)
    assert received == ["reading the prompt"]
    assert tokens.statistics().num_waiting == 3  # all there, and the end too
    del context.narrator  # what nobody does
    reading.result()
    assert received == ["reading the prompt", "to", "ken", "s"]

    narration, tokens = take_request()
    merged = merge(wakeup, tokens, narration)
    assert start_consumer(lambda: drain(merged)).result() == ["reading the prompt", "to", "ken", "s"]
    assert end_of(merged) == "eos"
    context.narrator.send("still there")


# Items.


def test_items_come_as_they_happen(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    shown = ShownWakeup(wakeup)
    merged = merge(shown, tokens, narration)
    received: list[str] = []

    def read() -> str:
        while True:
            try:
                received.extend(receive_woken(merged))
            except EndOfChannel as end:
                return str(end.reason)

    reading = start_consumer(read)
    for send, item in [(sender.send, "a"), (narrator.send, "n"), (sender.send, "b"), (narrator.send, "m")]:
        shown.wait_until_asleep()
        send(item)
    shown.wait_until_asleep()
    assert received == ["a", "n", "b", "m"]
    start_native(lambda: sender.close("eos")).result()
    assert reading.result() == "eos"


def test_a_backlog_keeps_the_order_of_each_source(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    for i in range(3):
        sender.send(f"t{i}")
        narrator.send(f"n{i}")
    items = merged.take()
    assert sorted(items) == ["n0", "n1", "n2", "t0", "t1", "t2"]
    assert [item for item in items if item[0] == "t"] == ["t0", "t1", "t2"]
    assert [item for item in items if item[0] == "n"] == ["n0", "n1", "n2"]
    assert merged.take() == []


def test_each_source_merges_its_own_backlog(wakeup: Wakeup) -> None:
    sender, tokens = open_channel(wakeup, "dropped", lambda items: ["".join(items)])
    narrator, narration = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    for item in "abc":
        sender.send(item)
        narrator.send(item.upper())
    assert sorted(merged.take()) == ["A", "B", "C", "abc"]


def test_one_source_alone(wakeup: Wakeup) -> None:
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens)
    sender.send("a")
    sender.close("eos")
    assert drain(merged) == ["a"]


def test_merged_sources_can_be_merged(wakeup: Wakeup) -> None:
    sender, tokens = open_any(wakeup)
    narrator, narration = open_any(wakeup)
    warner, warnings = open_any(wakeup)
    merged = merge(wakeup, merge(wakeup, tokens, narration), warnings)
    sender.send("t")
    narrator.send("n")
    warner.send("w")
    assert sorted(receive_woken(merged)) == ["n", "t", "w"]
    sender.close("eos")
    assert drain(merged) == []
    assert end_of(merged) == "eos"


@pytest.mark.parametrize("source", ["main", "side"])
def test_a_send_at_any_step_of_receive_is_received(source: str) -> None:
    steps = Steps(at_least=100)

    def play() -> None:
        has_sent = False

        def send() -> None:
            nonlocal has_sent
            if not has_sent:
                has_sent = True
                sending.send("item")

        sleepless = SleeplessWakeup(at_sleep=send)
        sender, tokens = open_any(sleepless)
        narrator, narration = open_any(sleepless)
        sending = sender if source == "main" else narrator
        merged = merge(sleepless, tokens, narration)
        received: list[str] = []
        steps.run(lambda: received.extend(receive_woken(merged)), send)
        assert received == ["item"] or merged.take() == ["item"]

    play_every_step(steps, play)


# The end.


def test_mains_end_is_the_end_and_is_told_again(wakeup: Wakeup) -> None:
    _narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    sender.close("eos")
    for _ in range(3):
        assert end_of(merged) == "eos"
        with pytest.raises(EndOfChannel, match="eos"):
            receive_woken(merged)


def test_what_waits_is_received_before_the_end(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    narrator.send("n")
    sender.send("t")
    sender.close("eos")
    assert sorted(merged.take()) == ["n", "t"]
    assert end_of(merged) == "eos"
    narrator.send("after the end")
    assert end_of(merged) == "eos"


def test_only_a_side_source_had_something_to_say(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    narrator.send("n")
    sender.close("eos")
    assert merged.take() == ["n"]
    assert end_of(merged) == "eos"


def test_a_dropped_main_ends_a_sleeping_consumer(wakeup: Wakeup) -> None:
    shown = ShownWakeup(wakeup)
    _narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    held = [sender]
    del sender
    merged = merge(shown, tokens, narration)
    reading = start_consumer(lambda: drain(merged))
    shown.wait_until_asleep()
    start_native(held.clear).result()
    assert reading.result() == []
    assert end_of(merged) == "dropped"


@pytest.mark.parametrize("last_token", [[], ["last token"]])
def test_what_is_said_before_mains_end_is_received_before_it(wakeup: Wakeup, last_token: list[str]) -> None:
    # At any step of take(), one and the same thread narrates and then ends the main source.
    steps = Steps(at_least=50)

    def play() -> None:
        narrator, narration = open_any(wakeup)
        sender, tokens = open_any(wakeup)
        merged = merge(wakeup, tokens, narration)
        received: list[str] = []

        def take() -> None:
            try:
                received.extend(merged.take())
            except EndOfChannel:
                pass

        def say_and_end() -> None:
            narrator.send("last words")
            for token in last_token:
                sender.send(token)
            sender.close("eos")

        if not steps.run(take, say_and_end):
            say_and_end()
        received.extend(drain(merged))
        assert sorted(received) == [*last_token, "last words"]
        assert end_of(merged) == "eos"

    play_every_step(steps, play)


# A side source that ends, breaks or never ends does not matter.


def test_a_side_source_may_end(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    narrator.send("n")
    narrator.close("said all")
    assert merged.take() == ["n"]
    assert merged.take() == []
    sender.send("t")
    assert receive_woken(merged) == ["t"]
    sender.close("eos")
    assert end_of(merged) == "eos"


def test_a_side_source_may_be_dropped(wakeup: Wakeup) -> None:
    shown = ShownWakeup(wakeup)
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    held = [narrator]
    del narrator
    merged = merge(shown, tokens, narration)
    reading = start_consumer(lambda: drain(merged))
    shown.wait_until_asleep()
    start_native(held.clear).result()
    shown.wait_until_asleep()
    sender.send("t")
    sender.close("eos")
    assert reading.result() == ["t"]


def test_a_side_source_may_be_over_before_the_merge(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    narrator.close("said nothing")
    assert end_of(narration) == "said nothing"
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    assert merged.take() == []
    sender.send("t")
    sender.close("eos")
    assert drain(merged) == ["t"]


def test_a_side_source_may_be_closed_on_our_side(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    warner, warnings = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, warnings, narration)
    warner.send("w")
    narration.close()
    with pytest.raises(ChannelBroken):
        narrator.send("n")
    assert merged.take() == ["w"]
    sender.send("t")
    sender.close("eos")
    assert drain(merged) == ["t"]
    assert end_of(merged) == "eos"


@pytest.mark.parametrize("speaker", range(4))
def test_several_side_sources_may_end_in_one_look(wakeup: Wakeup, speaker: int) -> None:
    # The main source ends in the same look, so nobody will look again: none of them may be passed over.
    sides = [open_any(wakeup) for _ in range(4)]
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, *(narration for _, narration in sides))
    for i, (narrator, _) in enumerate(sides):
        if i != speaker:
            narrator.close("said all")
    sides[speaker][0].send("n")
    sender.close("eos")
    assert merged.take() == ["n"]
    assert end_of(merged) == "eos"


def test_a_side_source_that_talks_for_ever_does_not_hold_up_the_end(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    sender.send("t")
    sender.close("eos")
    received: list[str] = []

    def look_again() -> None:
        for _ in range(4):
            narrator.send("n")
            received.extend(merged.take())

    with pytest.raises(EndOfChannel, match="eos"):
        look_again()
    assert received.count("t") == 1


# Closing and dropping.


def test_close_closes_every_source(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    merged.close()
    merged.close()
    assert narrator.is_broken
    assert sender.is_broken
    with pytest.raises(ChannelClosed):
        merged.take()
    with pytest.raises(ChannelClosed):
        receive_woken(merged)


def test_close_wakes_a_consumer_in_another_thread(wakeup: Wakeup) -> None:
    shown = ShownWakeup(wakeup)
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(shown, tokens, narration)
    reading = start_consumer(lambda: receive_woken(merged))
    shown.wait_until_asleep()
    merged.close()
    with pytest.raises(ChannelClosed):
        reading.result()
    assert narrator.is_broken
    assert sender.is_broken


@pytest.mark.parametrize("has_ended", [False, True])
def test_dropping_drops_every_source(wakeup: Wakeup, has_ended: bool) -> None:
    # At once and not when the collector comes by: the side source's sender lives on and must learn of it.
    gc.disable()
    try:
        narrator, narration = open_any(wakeup)
        sender, tokens = open_any(wakeup)
        merged = merge(wakeup, tokens, narration)
        del tokens, narration
        assert merged.take() == []
        narrator.send("n")
        if has_ended:
            sender.close("eos")
        assert merged.take() == ["n"]
        if has_ended:
            assert end_of(merged) == "eos"
            assert end_of(merged) == "eos"
        is_alive = weakref.ref(merged)
        del merged
        assert is_alive() is None
        assert narrator.is_broken
        assert sender.is_broken
    finally:
        gc.enable()


def test_unlisten_ends_the_wake_ups_of_every_source(wakeup: Wakeup) -> None:
    narrator, narration = open_any(wakeup)
    sender, tokens = open_any(wakeup)
    merged = merge(wakeup, tokens, narration)
    woken: list[str] = []
    waiter = LookingWaiter(lambda: woken.append("woken"))
    merged.listen(waiter)
    narrator.send("n")
    sender.send("t")
    assert len(woken) == 2
    merged.unlisten(waiter)
    narrator.send("n")
    sender.send("t")
    assert len(woken) == 2


# Any script of one thread.


@pytest.mark.slow
@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["main", "side", "end side", "take", "close side"]), max_size=15))
def test_any_script_loses_nothing_and_ends(script: list[str]) -> None:
    narrator, narration = open_any(the_wakeup())
    sender, tokens = open_any(the_wakeup())
    merged = merge(the_wakeup(), tokens, narration)
    sent: dict[str, list[str]] = {"main": [], "side": []}
    received: list[str] = []
    is_side_open = True
    for i, action in enumerate(script):
        if action == "main":
            sender.send(f"main {i}")
            sent["main"].append(f"main {i}")
        elif action == "side" and is_side_open:
            narrator.send(f"side {i}")
            sent["side"].append(f"side {i}")
        elif action == "end side":
            narrator.close("said all")
            is_side_open = False
        elif action == "take":
            received += merged.take()
    sender.close("eos")
    received += drain(merged)
    assert [item for item in received if item.startswith("main")] == sent["main"]
    assert [item for item in received if item.startswith("side")] == sent["side"]
    assert end_of(merged) == "eos"
