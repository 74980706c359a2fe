"""Guards of jobs: the journal and its readers, who leaves, keys, what is forgotten when; and of encoding."""

from tests.mutations.mutation import Mutation, taking_from

jobs = taking_from("worker/jobs.py", "tests/test_jobs.py")
job = taking_from("worker/job.py", "tests/test_jobs.py")
prompts = taking_from("worker/prompts.py", "tests/test_jobs.py")
tokenizer = taking_from("worker/engine/tokenizer.py", "tests/engine/test_tokenizer.py")
span = taking_from("worker/engine/token_span.py", "tests/engine/test_token_span.py")
panics = taking_from("worker/engine/panics.py", "tests/engine/test_tokenizer.py")
aside = taking_from("worker/streams/aside.py", "tests/streams/test_aside.py")

_TOKENS = [
    prompts(
        "a token that the model does not have is refused",
        "        if id_ >= vocab_size\n",
        "        if id_ > vocab_size\n",
        "test_what_the_model_cannot_do_is_refused_by_name",
    ),
    prompts(
        "an answer that would have to be longer than it may is refused",
        "    if request.min_tokens > max_tokens:\n",
        "    if False:\n",
        "test_what_the_model_cannot_do_is_refused_by_name",
    ),
]

_JOURNAL = [
    job(
        "the lock around the journal",
        """\
        with self._lock:
            self._write_down()
            return self._journal[number:], self.ended_at is not None
""",
        """\
        if True:
            self._write_down()
            return self._journal[number:], self.ended_at is not None
""",
        "test_between_taking_and_writing_down_nobody_looks[read]",
    ),
    job(
        "the lock around the journal, of the housekeeper",
        """\
            with self._lock:
                self._write_down()
        elif""",
        """\
            if True:
                self._write_down()
        elif""",
        "test_between_taking_and_writing_down_nobody_looks[expire]",
    ),
    job(
        "the terminal event is written down",
        "        self._append([terminal])\n",
        "",
        "TestJournal",
    ),
    job(
        "the terminal event is written down once",
        """\
        if self.ended_at is not None:
            return
        terminal: Terminal
""",
        "        terminal: Terminal\n",
        "TestJournal",
    ),
    job(
        "a journal knows that it is complete",
        "        self.ended_at = time.monotonic()\n",
        "",
        "TestJournal",
    ),
    job(
        "nobody reads behind an event that is not there yet",
        "            if not -1 <= after < len(self._journal):\n",
        "            if False:\n",
        "TestJournal",
    ),
    job(
        "a reader arms before it looks",
        """\
            self._waiter.arm()
            if self.is_closed or self.is_done:  # behind `arm`: a close in between would be slept over
                break
            events = self.poll()
""",
        """\
            if self.is_closed or self.is_done:  # behind `arm`: a close in between would be slept over
                break
            events = self.poll()
            self._waiter.arm()
""",
        "test_an_event_between_the_look_and_the_sleep_is_read",
    ),
    job(
        "a reader who has everything does not wait",
        "            if self.is_done or remaining_s <= 0:",
        "            if remaining_s <= 0:",
        "test_who_comes_back_with_the_last_number_does_not_wait",
    ),
    job(
        "a reader does not wait without a limit",
        "            if self.is_done or remaining_s <= 0:",
        "            if self.is_done:",
        "test_looking_is_not_waiting",
    ),
    job(
        "a reader who was closed reads nothing more",
        "            if self.is_closed or self.is_done:  # behind",
        "            if self.is_done:  # behind",
        "TestJournal",
    ),
    job(
        "a close ends a read in another thread",
        """\
        self.job._leave(self)
        self._waiter.wake()
""",
        "        self.job._leave(self)\n",
        "test_a_close_ends_a_read_in_another_thread",
    ),
    job(
        "a reader who has left is not woken any more",
        "        self._receiver.unlisten(self._waiter)\n",
        "",
        "test_a_reader_who_has_left_is_not_woken_any_more",
    ),
    job(
        "a look at a job is not a read",
        "        if self._receiver.peek_end() is not None:\n            with self._lock:\n",
        "        if True:\n            with self._lock:\n",
        "test_looking_at_a_job_does_not_look_like_reading_it",
    ),
    job(
        "a job does not keep the sender alive",
        "        self._sequence = weakref.ref(sequence)\n",
        "        self._sequence = lambda: sequence\n",
        "test_a_job_does_not_keep_a_forgotten_stream_open",
    ),
    job(
        "what a bug has dropped cannot be cancelled and harms nobody",
        """\
        if sequence is not None:
            self._engine.cancel(sequence, by)
""",
        "        self._engine.cancel(sequence, by)\n",
        "test_a_job_does_not_keep_a_forgotten_stream_open",
    ),
]

_LEAVING = [
    job(
        "readers are counted",
        "            self._num_readers += 1\n",
        "",
        "TestJournal",
    ),
    job(
        "a reader leaves once",
        """\
            if reader.is_closed:
                return
            reader.is_closed = True
""",
        "            reader.is_closed = True\n",
        "TestJournal",
    ),
    job(
        "only the last reader who leaves cancels",
        "            is_last = self._num_readers == 0\n",
        "            is_last = True\n",
        "test_only_the_last_reader_who_leaves_cancels",
    ),
    job(
        "who has been told the end does not cancel",
        'self.on_disconnect == "cancel" and self._receiver.peek_end() is None:',
        'self.on_disconnect == "cancel":',
        "test_who_has_been_told_the_end_does_not_cancel_by_leaving",
    ),
    job(
        "a job that is to go on is not cancelled by leaving",
        'if is_last and self.on_disconnect == "cancel" and',
        "if is_last and",
        "test_a_job_that_is_to_go_on_is_not_cancelled_by_leaving",
    ),
    job(
        "the last reader who leaves cancels",
        '            self.cancel("client")\n',
        "            pass\n",
        "test_only_the_last_reader_who_leaves_cancels",
    ),
    job(
        "a job that nobody reads is cancelled",
        '            self.cancel("orphan")\n',
        "            pass\n",
        "test_the_time_without_readers_begins_when_the_last_one_leaves",
    ),
    job(
        "a job with a reader is no orphan",
        " and self._num_readers == 0 and now - self._unread_since > orphan_ttl_s:\n",
        " and now - self._unread_since > orphan_ttl_s:\n",
        "test_the_time_without_readers_begins_when_the_last_one_leaves",
    ),
    job(
        "the time without readers begins when the last one leaves",
        "            self._num_readers -= 1\n            self._unread_since = time.monotonic()\n",
        "            self._num_readers -= 1\n",
        "test_the_time_without_readers_begins_when_the_last_one_leaves",
    ),
    jobs(
        "a job that is to go on has no deadline for its readers",
        "            claim_s=math.inf if goes_on else settings.claim_timeout_s,\n"
        "            slow_consumer_s=math.inf if goes_on else settings.slow_consumer_s,\n",
        "            claim_s=settings.claim_timeout_s,\n            slow_consumer_s=settings.slow_consumer_s,\n",
        "test_only_a_job_that_ends_with_its_reader_has_deadlines_for_it",
    ),
    jobs(
        "a job that ends with its reader has deadlines for it",
        "            claim_s=math.inf if goes_on else settings.claim_timeout_s,\n"
        "            slow_consumer_s=math.inf if goes_on else settings.slow_consumer_s,\n",
        "            claim_s=math.inf,\n            slow_consumer_s=math.inf,\n",
        "test_only_a_job_that_ends_with_its_reader_has_deadlines_for_it",
    ),
]

_FORGETTING = [
    jobs(
        "a job that somebody reads is not forgotten with another reader",
        "        if not job.has_readers:\n",
        "        if True:\n",
        "test_a_job_that_somebody_reads_is_not_forgotten_with_another_reader",
        "tests/web/test_admission.py::test_a_reader_of_a_chat_reads_on_when_its_client_leaves",
    ),
    job(
        "who reads a job that is forgotten is told an ending",
        "        except ChannelClosed:",
        "        except ZeroDivisionError:",
        "test_who_reads_a_job_that_is_forgotten_is_told_an_ending",
    ),
    jobs(
        "an ended job is forgotten after its time",
        "            if is_old or num_jobs",
        "            if num_jobs",
        "test_an_ended_job_is_forgotten_after_its_time",
    ),
    jobs(
        "ended jobs are bounded in number",
        "is_old or num_jobs > settings.max_ended_jobs or",
        "is_old or",
        "test_ended_jobs_are_capped_in_number_and_the_oldest_goes_first",
    ),
    jobs(
        "ended jobs are bounded in bytes",
        " or num_bytes > settings.max_journal_bytes:",
        ":",
        "test_ended_jobs_are_capped_in_bytes_and_the_oldest_goes_first",
    ),
    jobs(
        "a job that runs is never forgotten",
        "            if job.ended_at is not None:\n                ended.append(job)\n",
        "            ended.append(job)\n",
        "test_a_job_that_runs_is_never_forgotten",
    ),
    jobs(
        "a job that is forgotten tells its sender",
        "            job.close()\n",
        "            pass\n",
        "test_a_job_that_is_forgotten_is_forgotten_once_and_tells_its_sender",
    ),
    jobs(
        "a job may be forgotten twice",
        "        if self._jobs.pop(job.id, None) is not None:\n",
        "        if self._jobs.pop(job.id) is not None:\n",
        "test_a_job_that_is_forgotten_is_forgotten_once_and_tells_its_sender",
    ),
]

_KEYS = [
    jobs(
        "the lock around the keys",
        """\
            with self._keys_lock:
                known = self._known(place)
                if known""",
        """\
            if True:
                known = self._known(place)
                if known""",
        "test_while_a_job_is_made_its_key_is_taken",
    ),
    jobs(
        "the lock around the keys, of the housekeeper",
        """\
        with self._keys_lock:
            self._keyed = {key""",
        """\
        if True:
            self._keyed = {key""",
        "test_a_key_that_comes_while_old_ones_are_forgotten_is_kept",
    ),
    jobs(
        "a key belongs to its request",
        "        if known[1] != digest:\n",
        "        if False:\n",
        "test_a_key_belongs_to_its_request",
    ),
    jobs(
        "a request that is sent again needs no room",
        "        if known is None:\n            # Outside",
        "        if True:\n            # Outside",
        "test_a_request_that_is_sent_again_needs_no_room",
    ),
    jobs(
        "of two that come together one makes the job",
        "                if known is None:\n",
        "                if True:\n",
        "test_of_two_that_encode_with_one_key_the_later_gets_the_job_of_the_first",
    ),
    jobs(
        "the key of a job that is not there any more is free",
        "return known if known is not None and all(job.id in self._jobs for job in known[0]) else None",
        "return known",
        "test_the_key_of_a_job_that_was_just_forgotten_is_free",
    ),
    jobs(
        "keys are forgotten with their jobs",
        "{key: known for key, known in self._keyed.items() if self._known(key)}",
        "{key: known for key, known in self._keyed.items()}",
        "test_keys_are_forgotten_with_their_jobs",
    ),
]

_ADMISSION = [
    jobs(
        "a full server refuses before it encodes",
        "        self._engine.check_room(client)  # before the work of encoding\n",
        "",
        "test_a_full_server_refuses_before_it_encodes",
    ),
    prompts(
        "a prompt that can never fit is refused",
        "    if num_prompt_tokens >= max_context:\n",
        "    if False:\n",
        "test_what_can_never_fit_is_refused",
    ),
    prompts(
        "a prompt and an answer that never fit together are refused",
        "    if request.max_tokens > left:\n",
        "    if False:\n",
        "test_what_can_never_fit_is_refused",
    ),
    jobs(
        "a deadline above the server's is refused",
        "            if request.deadline_s > total_s:\n",
        "            if False:\n",
        "test_what_can_never_fit_is_refused",
    ),
    prompts(
        "a prompt without a token is refused",
        "        if not prompt_ids:\n",
        "        if False:\n",
        "test_a_prompt_without_a_token_is_refused",
    ),
    prompts(
        "a prompt that is far too long is not encoded",
        '            check_fits(request, tokenizer.min_tokens(prompt), model.max_context, "at least ")\n',
        "",
        "test_what_is_far_too_long_is_refused_and_not_encoded",
    ),
    prompts(
        "a conversation that is far too long is not encoded",
        'check_fits(request, num_at_least(), model.max_context, "at least ")\n',
        "pass\n",
        "test_what_is_far_too_long_is_refused_and_not_encoded",
    ),
    prompts(
        "what is long is encoded aside",
        "        if num_characters <= SHORT_CHARACTERS and tokenizer.is_shareable:\n",
        "        if True:\n",
        "test_only_what_is_long_is_encoded_aside_and_what_is_very_long_further_aside",
    ),
    prompts(
        "a tokenizer in plain Python is used by one thread at a time",
        "        if num_characters <= SHORT_CHARACTERS and tokenizer.is_shareable:\n",
        "        if num_characters <= SHORT_CHARACTERS:\n",
        "test_only_what_is_long_is_encoded_aside_and_what_is_very_long_further_aside",
    ),
    prompts(
        "what is long does not wait for what is very long",
        "        is_far = num_characters > LONG_CHARACTERS and model.tokenizer.is_shareable\n",
        "        is_far = False\n",
        "test_only_what_is_long_is_encoded_aside_and_what_is_very_long_further_aside",
    ),
    prompts(
        "a default never makes a request too long",
        "min(left, default_max_tokens)\n",
        "default_max_tokens\n",
        "test_a_default_never_makes_a_request_too_long",
    ),
    prompts(
        "a limit of many digits is not repeated whole",
        "shorten(str(request.max_tokens))",
        "request.max_tokens",
        "test_a_limit_of_many_digits_is_not_repeated_whole",
    ),
]

_TOKENIZER = [
    panics(
        "a panic of the library is an error",
        "            except BaseException as panic:",
        "            except ZeroDivisionError as panic:",
        "test_a_panic_of_the_library_is_an_error_here",
        "test_a_panic_at_the_name_of_a_token_is_an_error_here",
        "tests/web/test_admission.py::test_a_prompt_that_the_tokenizer_fails_at_is_answered_in_the_shape_of_its_route",
    ),
    tokenizer(
        "a panic while decoding is an error",
        "    @_without_panics\n    def _decode(",
        "    def _decode(",
        "test_a_panic_of_the_library_is_an_error_here",
    ),
    tokenizer(
        "a panic at the name of a token is an error",
        "_without_panics(self._decode_copy.id_to_token)",
        "self._decode_copy.id_to_token",
        "test_a_panic_at_the_name_of_a_token_is_an_error_here",
    ),
    panics(
        "an exit passes",
        "            except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit):\n",
        "            except Exception:\n",
        "test_an_exit_passes",
    ),
    tokenizer(
        "a conversation is measured as the template writes it",
        "self.min_tokens(self._write(messages, tools, add_generation_prompt))",
        'self.min_tokens("".join(message.content for message in messages))',
        "test_a_conversation_is_measured_as_the_template_writes_it",
    ),
    span(
        "a model that does not know every byte has no bound",
        "        not _spells_bytes(model, [*normalizers, *pre_tokenizers])\n        or None in factors\n",
        "        None in factors\n",
        "test_a_model_that_does_not_know_every_byte_has_none",
    ),
    span(
        "a normalizer that may shorten has no bound",
        "        or None in factors\n",
        "",
        "test_what_may_drop_text_has_no_bound",
    ),
    span(
        "a pre-tokenizer that drops text has no bound",
        "        or not all(_keeps_text(part) for part in pre_tokenizers)\n",
        "",
        "test_what_may_drop_text_has_no_bound",
    ),
    span(
        "a token that swallows spaces has no bound",
        '        or any(token["lstrip"] or token["rstrip"] for token in added)\n',
        "",
        "test_what_may_drop_text_has_no_bound",
    ),
    span(
        "a normalizer that shortens to a part counts",
        "        longest *= factor or 1\n",
        "        pass\n",
        "test_what_keeps_text_has_a_bound",
    ),
    aside(
        "one piece of work is done at a time",
        """\
        with self._lock:
            return work()
""",
        "        return work()\n",
        "test_one_piece_of_work_is_done_at_a_time",
    ),
    aside(
        "one piece of work is done at a time, for greenlets",
        "ThreadPool(1, hub=gevent.get_hub())",
        "ThreadPool(8, hub=gevent.get_hub())",
        "test_one_piece_of_work_is_done_at_a_time",
        is_gevent=True,
    ),
]

MUTATIONS: list[Mutation] = [*_TOKENS, *_JOURNAL, *_LEAVING, *_FORGETTING, *_KEYS, *_ADMISSION, *_TOKENIZER]
