"""A narrator must not be able to end, delay or fail a request."""

import pytest

from tests.streams.threads import drain, start_native
from worker.events import Event, Narration
from worker.streams.channel import EndOfChannel, ReceiveChannel, SendChannel, open_channel
from worker.streams.narration import Narrator
from worker.streams.wakeup import Wakeup


def open_narration(wakeup: Wakeup) -> tuple[Narrator, ReceiveChannel[Event, None]]:
    sender: SendChannel[Event, None]
    receiver: ReceiveChannel[Event, None]
    sender, receiver = open_channel(wakeup, None)
    return Narrator("job", sender), receiver


def test_what_is_said_is_received(wakeup: Wakeup) -> None:
    narrator, receiver = open_narration(wakeup)
    start_native(lambda: narrator.say("engine", "prefill", "prompt", "reading the prompt")).result()
    narrator.close()
    narrator.close()
    assert drain(receiver) == [Narration("engine", "prefill", "prompt", "reading the prompt", "job")]


def test_nobody_listens(wakeup: Wakeup) -> None:
    narrator, receiver = open_narration(wakeup)
    receiver.close()
    narrator.say("engine", "prefill", "prompt", "unheard")
    narrator.close()
    narrator.say("engine", "prefill", "prompt", "unheard")


def test_a_dropped_narrator_ends_its_channel(wakeup: Wakeup) -> None:
    narrator, receiver = open_narration(wakeup)
    del narrator
    with pytest.raises(EndOfChannel):
        receiver.take()
