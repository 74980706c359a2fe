"""Guards of how a native thread wakes a waiting one, under both worker classes, and of narration."""

from tests.mutations.mutation import Mutation, taking_from

wakeup = taking_from("worker/streams/wakeup.py", "tests/streams/test_wakeup.py")
in_gevent = taking_from("worker/streams/wakeup.py", "tests/streams/under_gevent.py")
native = taking_from("worker/streams/native.py", "tests/streams/under_gevent.py")
narration = taking_from("worker/streams/narration.py", "tests/streams/test_narration.py")

MUTATIONS: list[Mutation] = [
    wakeup(
        "a waiter forgets earlier wake-ups before it is marked as armed",
        """\
        self._acquire(False)
        self._is_armed = True
""",
        """\
        self._is_armed = True
        self._acquire(False)
""",
        "test_late_wakes_at_any_step_of_arm_do_not_cost_the_next_one",
    ),
    wakeup(
        "two may wake one waiter at once",
        "            except RuntimeError:  # two threads woke us at once: one release is enough\n",
        "            except KeyError:\n",
        "test_two_senders_may_wake_at_once",
    ),
    wakeup(
        "a waiter's mark is cleared before it is woken",
        """\
            self._is_armed = False
            try:
                self._release()
            except RuntimeError:  # two threads woke us at once: one release is enough
                pass
""",
        """\
            try:
                self._release()
            except RuntimeError:  # two threads woke us at once: one release is enough
                pass
            self._is_armed = False
""",
        "test_a_late_wake_may_itself_be_interrupted_anywhere",
    ),
    in_gevent(
        "a late wake-up does not reach a greenlet that has left",
        "            self._greenlet = None\n            timer.stop()\n",
        "            timer.stop()\n",
        "test_a_late_wake_up_does_not_reach_a_greenlet_that_has_left",
        "test_a_wake_up_on_its_way_does_not_reach_a_greenlet_that_has_left",
        is_gevent=True,
    ),
    in_gevent(
        "the timer of a wait ends with it",
        "            timer.stop()\n            timer.close()\n",
        "            pass\n",
        "test_the_timer_of_a_wait_ends_with_it",
        is_gevent=True,
    ),
    in_gevent(
        "a greenlet's wait is over in time",
        "        timer.start(self.resume, False)\n",
        "",
        "tests/streams/test_wakeup.py::test_wait_is_over_in_time",
        is_gevent=True,
    ),
    in_gevent(
        "a native thread's wake-up goes through the hub",
        """\
        self._ready.append(waiter)
        self._watcher.send()
""",
        "        self._ready.append(waiter)\n",
        "test_a_send_on_a_channel_wakes_the_greenlet",
        is_gevent=True,
    ),
    native(
        "the primitives are the operating system's under gevent too",
        "        return monkey.get_original(module, name)\n",
        "        pass\n",
        "test_the_locks_are_not_gevents",
        is_gevent=True,
    ),
    narration(
        "a narrator without a listener harms nobody",
        "        except (ChannelClosed, ChannelBroken):\n",
        "        except ChannelClosed:\n",
        "test_nobody_listens",
    ),
    narration(
        "a narrator that has been closed harms nobody",
        "        except (ChannelClosed, ChannelBroken):\n",
        "        except ChannelBroken:\n",
        "test_nobody_listens",
    ),
]
