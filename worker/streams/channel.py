"""A channel with two ends, from one sender to one receiver, across threads and greenlets.

Laws: the sender never waits. What was sent is received, in order, and then the end is. The end is closed once:
the first reason wins, and a sender that is dropped unclosed closes itself. A receiver never waits without a limit.

The end travels inside the queue as a sentinel, so "drained, then ended" needs no second look at a flag.
Endings have three names: `ChannelClosed` (you closed it), `ChannelBroken` (the other side is gone),
`EndOfChannel` (no more data).

The lock inside is a native one, held for a few lines that neither block nor yield. It orders `send` against a
`close` from another thread: without it an item could land behind the sentinel and be lost without a word. It is
reentrant because an end's `__del__` closes, and the garbage collector may run it inside the lock.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from worker.streams.native import new_reentrant_lock
from worker.streams.wakeup import Waiter, Wakeup

T = TypeVar("T")  # items
R = TypeVar("R")  # the reason of the end


class ChannelClosed(Exception):
    """This end was closed by its own side."""


class ChannelBroken(Exception):
    """The receiver is gone: nobody will read what is sent."""


class EndOfChannel(Exception):
    """Everything has been received. `reason` says why the sender closed."""

    def __init__(self, reason: Any) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Statistics:
    """A look at a channel, from any thread, a moment old at best."""

    num_waiting: int
    num_sent: int
    is_closed: bool
    is_broken: bool
    last_take_at: float | None  # monotonic; None until the receiver has looked for the first time
    waiting_since: float | None  # monotonic; when the oldest waiting item was sent


class _Sentinel(Generic[R]):
    """Marks the end inside the queue."""

    __slots__ = ("reason",)

    def __init__(self, reason: R) -> None:
        self.reason = reason


class _Shared(Generic[T, R]):
    """What both ends hold. Holds neither of them, so that dropping an end is noticed."""

    __slots__ = ("is_broken", "last_take_at", "listeners", "lock", "num_sent", "queue", "sentinel", "waiting_since")

    def __init__(self) -> None:
        self.lock = new_reentrant_lock()
        self.queue: list[T | _Sentinel[R]] = []
        self.sentinel: _Sentinel[R] | None = None
        self.is_broken = False
        self.num_sent = 0
        self.last_take_at: float | None = None
        self.waiting_since: float | None = None
        self.listeners: tuple[Waiter, ...] = ()

    def statistics(self) -> Statistics:
        with self.lock:
            # The length once: the garbage collector may close the channel at any step here, on this very thread.
            queue = self.queue
            num_queued = len(queue)
            is_end_queued = num_queued > 0 and isinstance(queue[num_queued - 1], _Sentinel)
            return Statistics(
                num_waiting=num_queued - is_end_queued,
                num_sent=self.num_sent,
                is_closed=self.sentinel is not None,
                is_broken=self.is_broken,
                last_take_at=self.last_take_at,
                waiting_since=self.waiting_since,
            )


class SendChannel(Generic[T, R]):
    """The sending end. Any thread; nothing here blocks."""

    def __init__(self, shared: _Shared[T, R], if_dropped: R) -> None:
        self._shared = shared
        self._if_dropped = if_dropped

    def send(self, item: T) -> None:
        """Put one item in the queue and wake the receiver.

        Raises:
            ChannelClosed: This end has been closed.
            ChannelBroken: The receiver has closed or was dropped.
        """
        shared = self._shared
        with shared.lock:
            if shared.sentinel is not None:
                raise ChannelClosed
            if shared.is_broken:
                raise ChannelBroken
            if not shared.queue:
                shared.waiting_since = time.monotonic()
            shared.queue.append(item)
            shared.num_sent += 1
        for waiter in shared.listeners:
            waiter.wake()

    def close(self, reason: R) -> bool:
        """End the channel behind everything sent so far. The first close wins.

        Returns:
            Whether this call was the first.
        """
        shared = self._shared
        with shared.lock:
            if shared.sentinel is not None:
                return False
            shared.sentinel = _Sentinel(reason)
            shared.queue.append(shared.sentinel)
        for waiter in shared.listeners:
            waiter.wake()
        return True

    @property
    def is_broken(self) -> bool:
        """Whether the receiver is gone."""
        return self._shared.is_broken

    def statistics(self) -> Statistics:
        """Counts of this channel."""
        return self._shared.statistics()

    def __del__(self) -> None:
        self.close(self._if_dropped)


class Receiver(Generic[T, R]):
    """Something that can be received from: one channel, or several merged."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._waiter: Waiter | None = None

    def take(self) -> list[T]:
        """Everything that waits now, perhaps nothing. Never blocks.

        Raises:
            EndOfChannel: Everything has been taken and the sender has closed. Raised again on every later call.
            ChannelClosed: This end has been closed.
        """
        raise NotImplementedError

    def peek_end(self) -> R | None:
        """Why the sender has closed, or None while it has not. Items may wait in front of the end. Takes nothing."""
        raise NotImplementedError

    def listen(self, waiter: Waiter) -> None:
        """Have `waiter` woken on every send and on the close, until `unlisten`."""
        raise NotImplementedError

    def unlisten(self, waiter: Waiter) -> None:
        """Undo `listen`."""
        raise NotImplementedError

    def close(self) -> None:
        """Say that nobody will read any more. Idempotent. The sender sees it as `ChannelBroken`."""
        raise NotImplementedError

    def receive(self, timeout_s: float) -> list[T]:
        """Everything that waits, after waiting for the first of it if need be.

        Args:
            timeout_s: How long to wait. There is no way to wait for ever.

        Returns:
            The items, or an empty list when the time was over.

        Raises:
            EndOfChannel, ChannelClosed: As `take`.

        Thread: one consumer at a time.
        """
        if self._waiter is None:
            self._waiter = self._wakeup.new_waiter()
            self.listen(self._waiter)
        deadline = time.monotonic() + timeout_s
        while True:
            self._waiter.arm()
            items = self.take()
            remaining_s = deadline - time.monotonic()
            if items or remaining_s <= 0:
                return items
            self._waiter.wait(remaining_s)


class ReceiveChannel(Receiver[T, R]):
    """The receiving end of one channel."""

    def __init__(
        self, shared: _Shared[T, R], wakeup: Wakeup, merge_waiting: Callable[[list[T]], list[T]] | None
    ) -> None:
        super().__init__(wakeup)
        self._shared = shared
        self._merge_waiting = merge_waiting
        self._end: EndOfChannel | None = None
        self._is_closed = False

    def take(self) -> list[T]:
        if self._is_closed:
            raise ChannelClosed
        if self._end is not None:
            raise EndOfChannel(self._end.reason)
        shared = self._shared
        with shared.lock:
            waiting, shared.queue = shared.queue, []
            shared.last_take_at = time.monotonic()
            shared.waiting_since = None
        items: list[T] = []
        for item in waiting:
            if isinstance(item, _Sentinel):
                self._end = EndOfChannel(item.reason)
            else:
                items.append(item)
        if not items and self._end is not None:
            raise EndOfChannel(self._end.reason)
        if self._merge_waiting is not None and len(items) > 1:
            return self._merge_waiting(items)
        return items

    def peek_end(self) -> R | None:
        sentinel = self._shared.sentinel
        return None if sentinel is None else sentinel.reason

    def listen(self, waiter: Waiter) -> None:
        with self._shared.lock:
            self._shared.listeners = (*self._shared.listeners, waiter)

    def unlisten(self, waiter: Waiter) -> None:
        with self._shared.lock:
            self._shared.listeners = tuple(w for w in self._shared.listeners if w is not waiter)

    def close(self) -> None:
        self._is_closed = True
        with self._shared.lock:
            self._shared.is_broken = True
            thrown_away, self._shared.queue = self._shared.queue, []
            self._shared.waiting_since = None
        del thrown_away  # outside the lock: an item's finalizer is foreign code and may wait for a sender
        for waiter in self._shared.listeners:  # a consumer in another thread must not wait on
            waiter.wake()

    def statistics(self) -> Statistics:
        """Counts of this channel."""
        return self._shared.statistics()

    def __del__(self) -> None:
        self.close()


def open_channel(
    wakeup: Wakeup, if_dropped: R, merge_waiting: Callable[[list[T]], list[T]] | None = None
) -> tuple[SendChannel[T, R], ReceiveChannel[T, R]]:
    """Make a channel.

    Args:
        wakeup: How the receiver is woken.
        if_dropped: The reason of the end when the sender is dropped without a close.
        merge_waiting: Shortens what has piled up before it is received. It runs on the receiver's side: the
            sender is the generation thread and has no time.
    """
    shared: _Shared[T, R] = _Shared()
    return SendChannel(shared, if_dropped), ReceiveChannel(shared, wakeup, merge_waiting)


class MergedReceiver(Receiver[T, R]):
    """Several receivers as one: items come as they happen, and the first receiver's end is the end."""

    def __init__(self, wakeup: Wakeup, sources: Sequence[Receiver[T, Any]]) -> None:
        super().__init__(wakeup)
        self._main: Receiver[T, R] = sources[0]
        self._others: list[Receiver[T, Any]] = list(sources[1:])
        self._end: EndOfChannel | None = None

    def take(self) -> list[T]:
        if self._end is not None:
            raise EndOfChannel(self._end.reason)
        # The main source first: what the others said before its end has been sent by then, and is taken below.
        main: list[T] = []
        try:
            main = self._main.take()
        except EndOfChannel as end:
            self._end = EndOfChannel(end.reason)  # a new one: this one's traceback would keep us alive
        items: list[T] = []
        for source in tuple(self._others):
            try:
                items += source.take()
            except (EndOfChannel, ChannelClosed):
                self._others.remove(source)
        items += main
        if self._end is not None and not items:
            raise EndOfChannel(self._end.reason)
        return items

    def peek_end(self) -> R | None:
        return self._main.peek_end()

    def listen(self, waiter: Waiter) -> None:
        for source in (self._main, *self._others):
            source.listen(waiter)

    def unlisten(self, waiter: Waiter) -> None:
        for source in (self._main, *self._others):
            source.unlisten(waiter)

    def close(self) -> None:
        for source in (self._main, *self._others):
            source.close()


def merge(wakeup: Wakeup, main: Receiver[T, R], *others: Receiver[T, Any]) -> Receiver[T, R]:
    """Receive from several sources at once. The stream ends when `main` ends, whatever the others do.

    Not `chain`: a source that never ends must not stand in front of one that does. Endstop exists because
    of that bug; tests/streams/test_merge.py reproduces it.
    """
    return MergedReceiver(wakeup, (main, *others))
