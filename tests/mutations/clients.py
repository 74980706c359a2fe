"""Guards against clients: those who leave, and those who cost more than their share."""

from tests.mutations.mutation import Mutation, taking_from

sse = taking_from("worker/web/sse.py", "tests/web/test_sse.py")
disconnect = taking_from("worker/web/disconnect.py", "tests/web/test_disconnect.py")
context = taking_from("worker/web/context.py", "tests/web/test_context.py")
patience = taking_from("worker/web/patience.py", "tests/web/test_context.py")
refusals = taking_from("worker/web/refusals.py", "tests/web/test_context.py")
app = taking_from("app.py", "tests/test_app.py")

_LEAVES = [
    sse(
        "readers are bounded in number",
        "        if self._num_open >= self._limit:\n",
        "        if False:\n",
        "test_places_are_bounded_in_number",
    ),
    sse(
        "a place is counted before there is a reader",
        "            self._num_open += 1\n",
        "            pass\n",
        "test_places_are_bounded_in_number",
    ),
    sse(
        "who fails to read frees its place",
        """\
        if kind is not None:
            self.close()
""",
        "        pass\n",
        "test_who_fails_to_read_frees_its_place",
    ),
    sse(
        "who comes too early is told how long a place has lately been taken",
        "                self._service_rate.retry_after_s(time.monotonic(), too_many, 0),\n",
        "                1,\n",
        "test_when_to_come_back_is_how_long_a_place_has_lately_been_taken",
    ),
    sse(
        "a reader that ends is counted out",
        "            self._num_open -= 1\n",
        "",
        "test_a_reader_is_counted_out_once",
    ),
    sse(
        "a reader is counted out once",
        "            place.is_free = True\n",
        "",
        "test_a_reader_is_counted_out_once",
    ),
    sse(
        "a connection is watched",
        "            self._fd = self._watcher.watch(sock, reader.close)\n",
        "            pass\n",
        "test_a_client_that_leaves_closes_its_reader",
    ),
    sse(
        "the watch ends before the reader does",
        """\
            if self._fd >= 0:
                self._watcher.unwatch(self._fd)
            self._reader.close()
""",
        """\
            self._reader.close()
            if self._fd >= 0:
                self._watcher.unwatch(self._fd)
""",
        "test_the_watch_ends_before_the_reader_does",
    ),
    sse(
        "a reader that ends is closed",
        "                self._watcher.unwatch(self._fd)\n            self._reader.close()\n",
        "                self._watcher.unwatch(self._fd)\n",
        "test_a_reader_is_counted_out_once",
    ),
    disconnect(
        "an event of a descriptor's former life is not told",
        """\
            if not poll.poll(0):  # an event of the descriptor's former life
                self._epoll.modify(fd, _EVENTS | select.EPOLLONESHOT)
                return None
""",
        "",
        "test_an_event_of_a_descriptors_former_life_is_not_told",
    ),
    disconnect(
        "a descriptor in its new life is watched on",
        """\
                self._epoll.modify(fd, _EVENTS | select.EPOLLONESHOT)
                return None
""",
        "                return None\n",
        "test_an_event_of_a_descriptors_former_life_is_not_told",
    ),
    disconnect(
        "the lock around who is watched",
        """\
        with self._lock:
            if fd not in self._callbacks:
""",
        """\
        if True:
            if fd not in self._callbacks:
""",
        "test_a_reader_may_end_in_the_moment_of_the_leave",
    ),
    disconnect(
        "an event of nobody is not told",
        """\
            if fd not in self._callbacks:
                return None
""",
        "",
        "test_an_event_of_nobody_is_not_told",
    ),
    disconnect(
        "a callback that raises does not blind the watcher",
        "            except Exception:  # one callback's bug must not blind the watcher; the log is not ours to take\n",
        "            except ZeroDivisionError:\n",
        "test_a_callback_that_raises_does_not_blind_the_watcher",
    ),
    disconnect(
        "a leave is told once",
        "            return self._callbacks.pop(fd)\n",
        "            self._epoll.register(fd, _EVENTS | select.EPOLLONESHOT)\n            return self._callbacks[fd]\n",
        "test_a_leave_is_told_once",
    ),
    disconnect(
        "who is not watched any more is not told",
        "            if self._callbacks.pop(fd, None) is not None:\n",
        "            if False:\n",
        "test_who_is_not_watched_any_more_is_not_told",
    ),
    disconnect(
        "a socket that was closed meanwhile can be unwatched",
        "                except OSError:\n                    pass  # closed already, which has removed it\n",
        "                except ZeroDivisionError:\n                    pass\n",
        "test_a_socket_that_was_closed_meanwhile_can_be_unwatched",
    ),
    disconnect(
        "a socket that is closed already is told at once",
        """\
        if fd < 0:
            on_gone()
            return fd
""",
        "",
        "test_a_socket_that_is_closed_already_is_told_at_once",
    ),
    disconnect(
        "a second watch replaces the first",
        "            except FileExistsError:\n                self._epoll.modify",
        "            except ZeroDivisionError:\n                self._epoll.modify",
        "test_a_second_watch_replaces_the_first",
    ),
]

_LIMITS = [
    app(
        "every write is limited",
        "    app.before_request(limit_writes)\n",
        "",
        "tests/web/test_context.py::test_every_write_is_limited",
    ),
    context(
        "a client that never reads again is cut",
        "        sock.settimeout(2 * context().settings.slow_consumer_s)\n",
        "        pass\n",
        "test_every_write_is_limited",
    ),
    context(
        "writes are limited behind the reads of a body too",
        "    finally:\n        limit_writes()\n",
        "    finally:\n        pass\n",
        "test_the_reads_of_a_body_are_limited_and_the_writes_behind_it",
    ),
    patience(
        "the body has a deadline",
        "    limit_reads(unreader, sock, limit_s)\n",
        "",
        "test_the_reads_of_a_body_are_limited_and_the_writes_behind_it",
    ),
    patience(
        "the deadline is for all reads together",
        "        remaining_s = deadline - time.monotonic()\n",
        "        remaining_s = deadline and limit_s\n",
        "test_a_limit_is_for_all_reads_together",
    ),
    patience(
        "no read begins behind the deadline",
        """\
        if remaining_s <= 0:
            raise TimeoutError
""",
        "",
        "test_a_limit_is_for_all_reads_together",
    ),
    patience(
        "the finally that takes a body's deadline from the next request",
        """\
    finally:
        unlimit_reads(unreader)
""",
        """\
    finally:
        pass
""",
        "test_the_reads_of_a_body_are_limited_and_the_writes_behind_it",
    ),
    context(
        "a body that does not come is told so",
        "        if isinstance(error.__context__, TimeoutError):",
        "        if False:",
        "tests/web/test_bad_input.py::test_a_body_that_does_not_come[gevent]",
    ),
    context(
        "a chunked body over the limit is refused and not cut short",
        "            if request.stream.read(1):\n",
        "            if False:\n",
        "tests/web/test_bad_input.py::test_a_body_over_the_limit[gthread-/execute-True]",
    ),
    context(
        "a body shorter than announced is refused",
        "    if request.content_length is not None and len(body) < request.content_length:\n",
        "    if False:\n",
        "tests/web/test_bad_input.py::test_a_body_shorter_than_announced[gthread]",
    ),
    app(
        "a body has an upper bound",
        '    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1\n',
        "",
        "tests/web/test_bad_input.py::test_a_body_of_fifty_megabytes_is_refused_and_not_read[gthread]",
    ),
    refusals(
        "a body that was not read costs its connection",
        '        response.headers["Connection"] = "close"  # the rest of the body will not be read\n',
        "        pass\n",
        "test_a_body_that_was_not_read_costs_its_connection",
    ),
    refusals(
        "a refusal says when to come back",
        '        response.headers["Retry-After"] = str(error.retry_after_s)\n',
        "        pass\n",
        "test_a_refusal_says_when_to_come_back",
    ),
    refusals(
        "a bug is told as one",
        "    app.register_error_handler(Exception, _refuse_bug)\n",
        "",
        "test_a_bug_is_told_as_one",
    ),
]

MUTATIONS: list[Mutation] = [*_LEAVES, *_LIMITS]
