"""Many items from native threads to consumers of the worker class, with nothing else that could wake anybody.

A wake-up that is lost shows as a receive that took all the time it was given, which is far more than any needs. The
sender waits on some channels until each item has been received: only a consumer that is about to sleep can be
missed, and any further item would bring it back unseen.
"""

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.streams.interleave import call_jittered
from tests.streams.threads import receive_woken, start_consumer, start_native, the_wakeup
from worker.streams import native
from worker.streams.channel import EndOfChannel, ReceiveChannel, SendChannel, merge, open_channel

LIMIT_S = 100.0


@contextmanager
def switching_often() -> Iterator[None]:
    """Let the interpreter change threads every few lines."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Flow:
    """One channel of the flood. Its items are 0, 1, 2, ..., or what `encode` makes of them.

    A tight one has no more than one item under way.
    """

    def __init__(self, num_items: int, is_tight: bool, encode: Callable[[int], int] = int) -> None:
        self.num_items = num_items
        self._windows = (1,) if is_tight else (1, 1, 4, 256)
        self._encode = encode
        self.num_sent = 0
        self.num_received = 0
        self.sender: SendChannel[int, str]
        self.receiver: ReceiveChannel[int, str]
        self.sender, self.receiver = open_channel(the_wakeup(), "dropped")

    def check(self, items: list[int]) -> None:
        """Note what came; it must be exactly what comes next."""
        first = self.num_received
        assert items == list(range(first, first + len(items)))
        self.num_received = first + len(items)

    def send_some(self, rnd: random.Random) -> None:
        """Send a few, if the consumer has received all but a few."""
        end = min(self.num_items, self.num_received + rnd.choice(self._windows))
        for index in range(self.num_sent, end):
            self.sender.send(self._encode(index))
            self.num_sent += 1


def send_all(flows: list[Flow], seed: int) -> None:
    """The native thread. Ends early for a consumer that has failed."""
    rnd = random.Random(seed)
    flowing = list(flows)
    while flowing:
        num_before = sum(flow.num_sent for flow in flowing)
        for flow in flowing:
            flow.send_some(rnd)
        if sum(flow.num_sent for flow in flowing) == num_before:
            native.native_sleep(1e-5)  # let somebody else run
        for flow in flowing:
            if flow.num_sent == flow.num_items:
                flow.sender.close("done")
        flowing = [flow for flow in flowing if flow.num_sent < flow.num_items and not flow.sender.is_broken]


def receive_all(flow: Flow) -> Any:
    """A consumer. Returns the reason of the end."""
    try:
        while True:
            flow.check(receive_woken(flow.receiver))
            time.sleep(0)  # a greenlet that always finds something would leave the others no turn
    except EndOfChannel as end:
        return end.reason
    finally:
        flow.receiver.close()


def flood(num_items: int, num_channels: int) -> None:
    """One native thread, a consumer per channel."""
    with switching_often():
        num_tight = num_items // num_channels // 16
        num_wide = 2 * num_items // num_channels - num_tight
        flows = [Flow(num_tight if i % 2 else num_wide, is_tight=bool(i % 2)) for i in range(num_channels)]
        consumers = [start_consumer(lambda flow=flow: receive_all(flow)) for flow in flows]  # type: ignore[misc]
        sending = start_native(lambda: send_all(flows, seed=1))
        assert [consumer.result(LIMIT_S) for consumer in consumers] == ["done"] * num_channels
        sending.result()
    assert sum(flow.num_received for flow in flows) == num_items


def flood_jittered(num_items: int, num_channels: int) -> None:
    """The same with fewer items, and a change of threads at random places on both sides."""
    with switching_often():
        flows = [Flow(num_items // num_channels, is_tight=True) for _ in range(num_channels)]
        consumers = [
            start_consumer(lambda flow=flow, i=i: call_jittered(lambda: receive_all(flow), i))  # type: ignore[misc]
            for i, flow in enumerate(flows)
        ]
        sending = start_native(lambda: call_jittered(lambda: send_all(flows, seed=3), -1))
        assert [consumer.result(LIMIT_S) for consumer in consumers] == ["done"] * num_channels
        sending.result()
    assert sum(flow.num_received for flow in flows) == num_items


def receive_both(one: Flow, two: Flow) -> None:
    """A consumer of two flows that two threads send to, so that both may wake it at once."""
    quiet = Flow(0, is_tight=True)
    merged = merge(the_wakeup(), quiet.receiver, one.receiver, two.receiver)
    try:
        while one.num_received < one.num_items or two.num_received < two.num_items:
            items = receive_woken(merged)
            one.check([item for item in items if item >= 0])
            two.check([~item for item in items if item < 0])
            time.sleep(0)
    finally:
        merged.close()


def flood_merged(num_items: int, num_consumers: int) -> None:
    """Two native threads, and consumers that listen to both."""
    with switching_often():
        num_each = num_items // num_consumers // 2
        ones = [Flow(num_each, is_tight=True) for _ in range(num_consumers)]
        twos = [Flow(num_each, is_tight=True, encode=lambda index: ~index) for _ in range(num_consumers)]
        consumers = [
            start_consumer(lambda one=one, two=two: receive_both(one, two))  # type: ignore[misc]
            for one, two in zip(ones, twos, strict=True)
        ]
        senders = [start_native(lambda flows=flows: send_all(flows, seed=2)) for flows in (ones, twos)]  # type: ignore[misc]
        for running in consumers + senders:
            running.result(LIMIT_S)
    assert sum(flow.num_received for flow in ones + twos) == num_items
