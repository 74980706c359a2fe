"""Guards at the front door: what is let in, the bytes of a stream, its body, probes, and the housekeeper."""

from tests.mutations.mutation import Mutation, taking_from

sse = taking_from("worker/web/sse.py", "tests/web/test_sse.py")
body = taking_from("worker/web/sse.py", "tests/web/test_body.py")
native = taking_from("worker/web/native.py", "tests/web/test_admission.py")
answers = taking_from("worker/web/answers.py", "tests/web/test_body.py")
chat = taking_from("worker/web/chat_completions.py", "tests/web/test_body.py")
openai = taking_from("worker/web/openai.py", "tests/web/test_body.py")
context = taking_from("worker/web/context.py", "tests/web/test_admission.py")
bytes_in = taking_from("worker/body.py", "tests/test_request.py")
ops = taking_from("worker/web/ops.py", "tests/web/test_ops.py")
app = taking_from("app.py", "tests/test_app.py")
tokens = taking_from("worker/web/tokenization.py", "tests/web/test_tokenize.py")
tokenize = taking_from("worker/jobs.py", "tests/web/test_tokenize.py")
document = taking_from("worker/web/openapi.py", "tests/web/test_openapi.py")
page = taking_from("worker/web/openapi.py", "tests/web/test_docs_page.py")

_STREAMS = [
    sse(
        "a ping is ONE line",
        'PING = b": ping\\n"\n',
        'PING = b": ping\\n\\n"\n',
        "test_a_ping_is_one_line",
    ),
    sse(
        "[DONE] follows the end",
        "        yield translator.done\n",
        "        yield b''\n",
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
        "            if any(job.ended_at is None for job in reader.jobs):",
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
        '                one.cancel("engine")\n',
        "                pass\n",
        "test_an_event_that_cannot_be_encoded_ends_the_stream_and_the_work",
    ),
    native(
        "HEAD of a stream makes no reader",
        '    if request.method == "HEAD":',
        "    if False:",
        "tests/web/test_body.py::test_head_of_a_stream_makes_no_reader",
    ),
    context(
        "who names a key means to come back",
        '    found, are_known = jobs.start_once(key, requests, "continue", body=body, **asked)\n',
        "    found, are_known = jobs.start_once(key, requests, on_disconnect, body=body, **asked)\n",
        "test_a_chat_with_a_key_that_is_sent_again_is_one_job",
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
    answers(
        "the finally that ends the reader of a whole answer",
        """\
            try:
                events = collect(reader, shared.engine, shared.settings.keep_alive_s)
            finally:
                close()
""",
        """\
            try:
                events = collect(reader, shared.engine, shared.settings.keep_alive_s)
            except ZeroDivisionError:
                raise
            close()
""",
        "test_a_whole_answer_that_fails_frees_its_slot",
    ),
    answers(
        "a chat is forgotten when it has been answered",
        "                    shared.jobs.forget_unread(job)\n",
        "                    pass\n",
        "test_a_chat_leaves_nothing_behind",
    ),
    answers(
        "the reader of a chat leaves when it has been answered",
        "            place.close()\n",
        "            pass\n",
        "test_a_chat_leaves_nothing_behind",
    ),
    answers(
        "half an answer is not told as a whole one",
        "    if not reader.is_done:  # the last event may be the end of one answer of several\n",
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
        "        if reason := shared.engine.liveness():\n",
        '        if reason := "":\n',
        "test_probes_say_that_a_step_does_not_come_back",
    ),
    ops(
        "readiness is what a request would be told",
        "        shared.engine.check_room()\n",
        "",
        "test_readiness_is_what_a_request_would_be_told",
        "test_readiness_ends_where_requests_are_refused",
    ),
    ops(
        "readiness ends where no stream can be read",
        "        shared.streams.check_room()\n",
        "",
        "test_readiness_ends_where_no_stream_can_be_read",
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

_ADMISSION = [
    native(
        "who gets no place to read makes no job",
        """\
    with context().streams.reserve() as place:  # who gets no place to read makes no job, and uses up no key
        [job], headers = start_jobs([body], "cancel")
""",
        """\
    [job], headers = start_jobs([body], "cancel")
    with context().streams.reserve() as place:
""",
        "test_who_gets_no_place_to_read_makes_no_job_and_uses_up_no_key[/execute-body0]",
    ),
    answers(
        "who gets no place to read makes no job, of OpenAI's routes",
        """\
    with shared.streams.reserve() as place:  # who gets no place to read makes no job, and uses up no key
        jobs, headers = start_jobs(
            requests, on_disconnect, num_choices=num_choices, default_max_tokens=default_max_tokens
        )
""",
        """\
    jobs, headers = start_jobs(requests, on_disconnect, num_choices=num_choices, default_max_tokens=default_max_tokens)
    with shared.streams.reserve() as place:
""",
        "tests/web/test_admission.py::test_who_gets_no_place_to_read_makes_no_job_and_uses_up_no_key",
    ),
    answers(
        "a chat with a key is kept",
        "            if not can_come_back:",
        "            if True:",
        "tests/web/test_admission.py::test_a_chat_with_a_key_that_is_sent_again_is_one_job",
    ),
    chat(
        "a limit is called what the client has called it",
        'limit if field == "max_tokens" else field',
        "field",
        "tests/web/test_admission.py::test_a_limit_is_called_what_the_client_has_called_it",
    ),
    openai(
        "an error has the usage that was asked for",
        '                    chunk["usage"] = usage_fields(self._usage())\n',
        "                    pass\n",
        "tests/web/test_admission.py::test_an_error_in_mid_stream_has_the_usage_that_was_asked_for",
    ),
    context(
        "two keys are none",
        ' or "," in key:\n',
        ":\n",
        "test_a_key_that_is_none_or_two_is_refused",
    ),
    context(
        "a large body is parsed aside",
        "    return work() if num_bytes <= PIECE_BYTES else context().aside.run(work)\n",
        "    return work()\n",
        "test_a_large_body_is_read_in_turns_and_parsed_aside",
    ),
    context(
        "a large body is read in turns",
        "            time.sleep(TURN_S)\n",
        "            pass\n",
        "test_a_large_body_is_read_in_turns_and_parsed_aside",
    ),
]

_REQUESTS = [
    bytes_in(
        "values are bounded in number",
        "    if _has_too_many_values(body):\n",
        "    if False:\n",
        "test_values_are_bounded_in_number",
    ),
    bytes_in(
        "what is in a string is no value",
        '_num_values(_STRING.sub(b"", body)) > MAX_VALUES\n',
        "_num_values(body) > MAX_VALUES\n",
        "test_what_is_in_a_string_is_no_value",
    ),
    bytes_in(
        "a string that does not end reaches to the end",
        """(?:"|\\Z)', re.DOTALL)""",
        """"', re.DOTALL)""",
        "test_strings_that_do_not_end_are_refused_quickly",
    ),
    bytes_in(
        "nesting has a limit of its own",
        "    if _is_deeper_than(MAX_DEPTH, data):\n",
        "    if False:\n",
        "test_nesting_has_a_limit_of_its_own_which_is_named",
    ),
    bytes_in(
        "the reader's own limit of nesting is the same refusal",
        "    except RecursionError:\n        raise _too_deep() from None\n",
        "",
        "test_nesting_has_a_limit_of_its_own_which_is_named",
    ),
    bytes_in(
        "null for a refused field asks for nothing",
        "    known = schema.model_fields.keys() | schema.refused.keys()\n",
        "    known = schema.model_fields.keys()\n",
        "tests/test_api_table.py::test_null_for_a_refused_field_asks_for_nothing",
    ),
    bytes_in(
        "a field that is there twice is refused",
        "    if len(fields) < len(pairs):\n",
        "    if False:\n",
        "test_a_field_that_is_there_twice_is_refused_by_name",
    ),
    bytes_in(
        "a long name is not repeated whole",
        '        field = shorten(".".join(path)) or "body"\n',
        '        field = ".".join(path) or "body"\n',
        "test_a_long_name_of_an_unknown_field_is_not_repeated_whole",
    ),
]

_TOKENS = [
    tokens(
        "too many tokens are refused",
        "    if len(body.tokens) > model.max_context:\n",
        "    if False:\n",
        "test_too_many_tokens_are_refused",
    ),
    tokens(
        "tokens that the model has not are refused",
        '    check_known({"tokens": body.tokens}, model.vocab_size)\n',
        "",
        "test_tokens_that_the_model_has_not_are_named",
    ),
    tokenize(
        "what could not be generated from is not counted",
        "        check_fits(request, len(token_ids), model.max_context)\n",
        "",
        "test_what_could_not_be_generated_from_is_refused",
    ),
]

_DOCUMENT = [
    document(
        "in a body null asks for the default",
        "        _let_null_ask_for_defaults(components[body.__name__])\n",
        "        pass\n",
        "test_the_schema_of_a_body_says_what_parsing_it_says",
    ),
    document(
        "an answer has no field that the document has not",
        'return {"additionalProperties": False} | super().typed_dict_schema',
        "return super().typed_dict_schema",
        "test_a_schema_of_an_answer_is_closed",
    ),
    document(
        "names of tokens are the only ones",
        'return found | {"additionalProperties": False} if "patternProperties" in found else found\n',
        "return found\n",
        "test_the_schema_says_what_parsing_says_of",
    ),
    page(
        "the page asks no other host",
        """default-src 'none'; connect-src 'self'""",
        """default-src *; connect-src *""",
        "test_it_may_ask_no_other_host",
    ),
]

MUTATIONS: list[Mutation] = [*_STREAMS, *_BODIES, *_OPERATION, *_ADMISSION, *_REQUESTS, *_TOKENS, *_DOCUMENT]
