"""Guards of what is written: the bytes of a stream, its body, probes, and the housekeeper of the front door."""

from tests.mutations.mutation import Mutation, taking_from

sse = taking_from("worker/web/sse.py", "tests/web/test_sse.py")
body = taking_from("worker/web/sse.py", "tests/web/test_body.py")
native = taking_from("worker/web/native.py", "tests/web/test_native_streams.py")
openai = taking_from("worker/web/openai.py", "tests/web/test_body.py")
ops = taking_from("worker/web/ops.py", "tests/web/test_ops.py")
app = taking_from("app.py", "tests/test_app.py")

_STREAMS = [
    sse(
        "a ping is ONE line",
        'PING = b": ping\\n"\n',
        'PING = b": ping\\n\\n"\n',
        "test_a_ping_is_one_line",
    ),
    sse(
        "[DONE] follows the end",
        "    yield DONE\n",
        "    yield b''\n",
        "test_the_end_is_followed_by_done_and_by_nothing",
    ),
    sse(
        "a ping comes before the promise is broken",
        "PING_EARLY = 0.9\n",
        "PING_EARLY = 1.0\n",
        "test_a_ping_comes_before_the_promise_is_broken",
    ),
    sse(
        "a client that has left is cut and not told an end",
        '            raise ConnectionResetError(errno.ECONNRESET, "the client has left")\n',
        "            return\n",
        "test_a_client_that_has_left_is_cut_and_not_told_an_end",
        "tests/web/test_native_streams.py::test_a_client_that_closes_its_sending_half_is_cut_and_not_told_an_end[gthread]",
    ),
    sse(
        "each ping looks whether the engine lives",
        "                engine.abandon()  # nothing while it lives;",
        "                # nothing while it lives;",
        "test_each_ping_looks_whether_the_engine_lives",
    ),
    sse(
        "who waits for the whole looks whether the engine lives",
        "            engine.abandon()  # as in `stream_job`\n",
        "            pass\n",
        "test_who_waits_for_the_whole_looks_whether_the_engine_lives",
    ),
    sse(
        "who has left does not wait for the whole",
        "    while not (reader.is_done or reader.is_closed):\n",
        "    while not reader.is_done:\n",
        "test_who_has_left_does_not_wait_for_the_whole",
    ),
    sse(
        "who has had the end gets no ping",
        "            if reader.job.ended_at is None:",
        "            if True:",
        "test_who_has_had_the_end_gets_no_ping",
    ),
    sse(
        "an event that the format does not show is a sign of life",
        "        yield data or PING",
        "        yield data",
        "test_an_event_that_the_format_does_not_show_is_a_sign_of_life",
    ),
    sse(
        "an event that cannot be encoded ends the stream",
        "        except Exception:  # a bug of ours",
        "        except ZeroDivisionError:  # a bug of ours",
        "test_an_event_that_cannot_be_encoded_ends_the_stream_and_the_work",
    ),
    sse(
        "an event that cannot be encoded ends the work",
        '            reader.job.cancel("engine")\n',
        "",
        "test_an_event_that_cannot_be_encoded_ends_the_stream_and_the_work",
    ),
    native(
        "HEAD of a stream makes no reader",
        '    if request.method == "HEAD":',
        "    if False:",
        "tests/web/test_body.py::test_head_of_a_stream_makes_no_reader",
    ),
    native(
        "who names a key means to come back",
        '    job, is_known = jobs.start_once(key, body, "continue")\n',
        "    job, is_known = jobs.start_once(key, body, on_disconnect)\n",
        "test_a_post_that_is_sent_again_makes_one_job[gthread-/execute]",
    ),
]

_BODIES = [
    body(
        "a body is closed once",
        """\
        if self._is_closed:
            return
        self._is_closed = True
""",
        "",
        "test_close_runs_once_however_far_the_body_was_read",
    ),
    body(
        "the finally that cleans up behind a body",
        """\
        finally:
            self._on_close()
""",
        """\
        except ZeroDivisionError:
            pass
        self._on_close()
""",
        "test_the_clean_up_runs_though_the_stream_fails_to_close",
    ),
    body(
        "a body that is closed ends its stream",
        "                self._chunks.close()\n",
        "                pass\n",
        "test_a_close_ends_the_stream",
    ),
    body(
        "a body that is dropped closes itself",
        """\
    def __del__(self) -> None:
        self.close()
""",
        """\
    def __del__(self) -> None:
        pass
""",
        "test_a_body_that_is_dropped_closes_itself",
    ),
    body(
        "a body that a hook throws away is closed",
        """\
    if error is not None:
        for body in""",
        """\
    if False:
        for body in""",
        "test_a_body_that_a_hook_throws_away_frees_its_slot",
    ),
    app(
        "the teardown closes bodies",
        "    app.teardown_request(close_lost_bodies)\n",
        "",
        "tests/web/test_body.py::test_a_body_that_a_hook_throws_away_frees_its_slot",
    ),
    openai(
        "the finally that ends the reader of a whole answer",
        """\
        try:
            events = collect(reader, shared.engine, shared.settings.keep_alive_s)
        finally:
            close()
""",
        """\
        events = collect(reader, shared.engine, shared.settings.keep_alive_s)
        close()
""",
        "test_a_whole_answer_that_fails_frees_its_slot",
    ),
    openai(
        "a chat is forgotten when it has been answered",
        "        shared.jobs.forget(job)",
        "        pass",
        "test_a_chat_leaves_nothing_behind",
    ),
    openai(
        "the reader of a chat leaves when it has been answered",
        "        leave()\n",
        "",
        "test_a_chat_leaves_nothing_behind",
    ),
    openai(
        "half an answer is not told as a whole one",
        "    if not isinstance(terminal, End | Failure):\n",
        "    if False:\n",
        "test_a_whole_answer_whose_client_has_left_is_none",
    ),
]

_OPERATION = [
    ops(
        "liveness says that a step does not come back",
        """\
    if reason:
        return jsonify(status="dead", reason=reason), 503
""",
        "",
        "test_probes_say_that_a_step_does_not_come_back",
    ),
    ops(
        "readiness says that a step does not come back",
        "        if reason := engine.liveness():\n",
        '        if reason := "":\n',
        "test_probes_say_that_a_step_does_not_come_back",
    ),
    ops(
        "readiness ends where requests are refused",
        "        elif engine.num_open >= shared.settings.max_streams:\n",
        "        elif False:\n",
        "test_readiness_ends_where_requests_are_refused",
    ),
    ops(
        "the progress of a load that hangs ends",
        "not (engine.liveness() or engine.should_drain()):\n",
        "not engine.should_drain():\n",
        "test_the_progress_of_a_load_that_hangs_ends",
    ),
    app(
        "the housekeeper survives a bug",
        "        except Exception:  # the house must be kept for as long as streams are served\n",
        "        except ZeroDivisionError:\n",
        "test_the_housekeeper_survives_a_bug_and_ends_with_the_engine",
    ),
    app(
        "the housekeeper ends with the engine",
        """\
        except EndOfChannel:
            return
""",
        "",
        "test_the_housekeeper_survives_a_bug_and_ends_with_the_engine",
    ),
]

MUTATIONS: list[Mutation] = [*_STREAMS, *_BODIES, *_OPERATION]
