"""Guards of channels, and of several as one."""

from tests.mutations.mutation import Mutation, taking_from

channel = taking_from("worker/streams/channel.py", "tests/streams/test_channel.py")
merge = taking_from("worker/streams/channel.py", "tests/streams/test_merge.py")

MUTATIONS: list[Mutation] = [
    channel(
        "what is sent behind the end is refused",
        """\
            if shared.sentinel is not None:
                raise ChannelClosed
""",
        "",
        "test_send_after_close_is_refused",
    ),
    channel(
        "what is sent to a receiver that is gone is refused",
        """\
            if shared.is_broken:
                raise ChannelBroken
""",
        "",
        "test_a_closed_receiver_breaks_the_channel",
    ),
    channel(
        "the first close wins",
        """\
            if shared.sentinel is not None:
                return False
""",
        "",
        "test_the_first_close_wins",
    ),
    channel(
        "the end travels in the queue",
        "            shared.queue.append(shared.sentinel)\n",
        "",
        "test_items_come_in_order_and_then_the_end",
    ),
    channel(
        "the lock around a send",
        """\
        with shared.lock:
            if shared.sentinel is not None:
                raise ChannelClosed
""",
        """\
        if True:
            if shared.sentinel is not None:
                raise ChannelClosed
""",
        "test_no_item_lands_behind_the_end",
    ),
    channel(
        "the lock around a close",
        """\
        with shared.lock:
            if shared.sentinel is not None:
                return False
""",
        """\
        if True:
            if shared.sentinel is not None:
                return False
""",
        "test_the_first_close_wins_at_any_step_of_another",
    ),
    channel(
        "the lock around a take",
        """\
        with shared.lock:
            waiting, shared.queue = shared.queue, []
""",
        """\
        if True:
            waiting, shared.queue = shared.queue, []
""",
        "test_a_take_at_any_step_of_the_sender_loses_nothing",
    ),
    channel(
        "the lock around the statistics",
        """\
        with self.lock:
            # The length once""",
        """\
        if True:
            # The length once""",
        "test_a_send_at_any_step_of_statistics_is_in_all_of_them_or_in_none",
    ),
    channel(
        "the lock around the list of listeners",
        """\
        with self._shared.lock:
            self._shared.listeners = (*self._shared.listeners, waiter)
""",
        """\
        if True:
            self._shared.listeners = (*self._shared.listeners, waiter)
""",
        "test_two_may_begin_to_listen_at_once",
    ),
    channel(
        "the lock around the list of listeners, of one that leaves",
        """\
        with self._shared.lock:
            self._shared.listeners = tuple(""",
        """\
        if True:
            self._shared.listeners = tuple(""",
        "test_one_may_begin_to_listen_while_another_ceases",
    ),
    channel(
        "the lock may be taken again by a finalizer",
        "        self.lock = new_reentrant_lock()\n",
        "        from worker.streams.native import new_lock\n\n        self.lock = new_lock()\n",
        "test_the_sender_may_be_collected_at_any_step_of_the_receiver[take]",
    ),
    channel(
        "a collector inside the statistics does not bend them",
        "isinstance(queue[num_queued - 1], _Sentinel)",
        "isinstance(queue[-1], _Sentinel)",
        "test_the_sender_may_be_collected_at_any_step_of_the_receiver[statistics]",
    ),
    channel(
        "a sender that is dropped closes itself",
        "        self.close(self._if_dropped)\n",
        "        pass\n",
        "test_a_dropped_sender_closes_itself",
    ),
    channel(
        "a receiver that is dropped breaks the channel",
        """\
    def __del__(self) -> None:
        self.close()
""",
        """\
    def __del__(self) -> None:
        pass
""",
        "test_a_dropped_receiver_breaks_the_channel",
    ),
    channel(
        "a receiver that closes breaks the channel",
        "            self._shared.is_broken = True\n",
        "",
        "test_a_closed_receiver_breaks_the_channel",
    ),
    channel(
        "a receiver that closes leaves nothing waiting",
        """\
            thrown_away, self._shared.queue = self._shared.queue, []
            self._shared.waiting_since = None
        del thrown_away""",
        """\
            self._shared.waiting_since = None
        pass""",
        "test_what_is_thrown_away_is_freed_outside_the_lock",
    ),
    channel(
        "what is thrown away is freed outside the lock",
        """\
            thrown_away, self._shared.queue = self._shared.queue, []
            self._shared.waiting_since = None
        del thrown_away""",
        """\
            self._shared.queue = []
            self._shared.waiting_since = None
        pass""",
        "test_what_is_thrown_away_is_freed_outside_the_lock",
    ),
    channel(
        "a receiver that closes wakes its consumer",
        """\
        for waiter in self._shared.listeners:  # a consumer in another thread must not wait on
            waiter.wake()
""",
        "",
        "test_a_receivers_close_at_any_step_of_receive_is_seen",
    ),
    channel(
        "the change comes before the wake-up",
        """\
            shared.queue.append(item)
            shared.num_sent += 1
        for waiter in shared.listeners:
            waiter.wake()
""",
        """\
            for waiter in shared.listeners:
                waiter.wake()
            shared.queue.append(item)
            shared.num_sent += 1
""",
        "test_the_change_comes_before_the_wake_up",
    ),
    channel(
        "a close wakes the receiver",
        """\
        for waiter in shared.listeners:
            waiter.wake()
        return True
""",
        "        return True\n",
        "test_a_close_at_any_step_of_receive_is_received",
    ),
    channel(
        "what was sent comes before the end",
        "        if not items and self._end is not None:\n            raise EndOfChannel(self._end.reason)\n",
        "        if self._end is not None:\n            raise EndOfChannel(self._end.reason)\n",
        "test_items_come_in_order_and_then_the_end",
    ),
    channel(
        "the end is a new exception each time, whose traceback keeps nothing alive",
        "        if not items and self._end is not None:\n            raise EndOfChannel(self._end.reason)\n",
        "        if not items and self._end is not None:\n            raise self._end\n",
        "test_an_ended_receiver_is_freed_when_dropped",
    ),
    channel(
        "an end that we closed gives nothing out",
        """\
        if self._is_closed:
            raise ChannelClosed
""",
        "",
        "test_take_and_receive_after_close_are_refused",
    ),
    channel(
        "a receiver arms before it looks",
        """\
            self._waiter.arm()
            items = self.take()
""",
        """\
            items = self.take()
            self._waiter.arm()
""",
        "test_a_send_at_any_step_of_receive_is_received",
    ),
    channel(
        "a receiver does not wait without a limit",
        "            if items or remaining_s <= 0:\n",
        "            if items:\n",
        "test_receive_gives_up_in_time",
    ),
    channel(
        "a receiver that was woken for nothing waits on",
        "            self._waiter.wait(remaining_s)\n",
        "            self._waiter.wait(remaining_s)\n            return self.take()\n",
        "test_a_wake_up_for_nothing_is_not_the_end_of_the_wait",
    ),
    merge(
        "of merged sources the main one is looked at first",
        """\
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
""",
        """\
        main: list[T] = []
        items: list[T] = []
        for source in tuple(self._others):
            try:
                items += source.take()
            except (EndOfChannel, ChannelClosed):
                self._others.remove(source)
        try:
            main = self._main.take()
        except EndOfChannel as end:
            self._end = EndOfChannel(end.reason)  # a new one: this one's traceback would keep us alive
""",
        "test_what_is_said_before_mains_end_is_received_before_it",
    ),
    merge(
        "the main source's end is the end, whatever the others do",
        "        if self._end is not None and not items:\n",
        "        if self._end is not None and not items and not self._others:\n",
        "test_mains_end_is_the_end_and_is_told_again",
    ),
    merge(
        "behind the main source's end nothing is received",
        """\
        if self._end is not None:
            raise EndOfChannel(self._end.reason)
        # The main source first""",
        "        # The main source first",
        "test_what_waits_is_received_before_the_end",
    ),
    merge(
        "a side source may end",
        "            except (EndOfChannel, ChannelClosed):\n",
        "            except ChannelClosed:\n",
        "test_a_side_source_may_end",
    ),
    merge(
        "a side source may be closed on our side",
        "            except (EndOfChannel, ChannelClosed):\n",
        "            except EndOfChannel:\n",
        "test_a_side_source_may_be_closed_on_our_side",
    ),
    merge(
        "several side sources may end in one look",
        "        for source in tuple(self._others):\n",
        "        for source in self._others:\n",
        "test_several_side_sources_may_end_in_one_look",
    ),
    merge(
        "merged sources do not keep themselves alive by the end's traceback",
        "self._end = EndOfChannel(end.reason)  # a new one: this one's traceback would keep us alive",
        "self._end = end",
        "test_dropping_drops_every_source",
    ),
    merge(
        "every one of the merged sources wakes the consumer",
        """\
        for source in (self._main, *self._others):
            source.listen(waiter)
""",
        "        self._main.listen(waiter)\n",
        "test_a_send_at_any_step_of_receive_is_received[side]",
    ),
    merge(
        "a close closes every one of the merged sources",
        """\
        for source in (self._main, *self._others):
            source.close()
""",
        "        self._main.close()\n",
        "test_close_closes_every_source",
    ),
]
