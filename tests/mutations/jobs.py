"""Guards of worker/jobs.py: the journal and its readers, who leaves, keys, and what is forgotten when."""

from tests.mutations.mutation import Mutation, taking_from

jobs = taking_from("worker/jobs.py", "tests/test_jobs.py")

_JOURNAL = [
    jobs(
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
    jobs(
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
    jobs(
        "the terminal event is written down",
        "            self._append([end.reason])\n",
        "",
        "TestJournal",
    ),
    jobs(
        "the terminal event is written down once",
        """\
        if self.ended_at is not None:
            return
        try:
""",
        "        try:\n",
        "TestJournal",
    ),
    jobs(
        "a journal knows that it is complete",
        "            self.ended_at = time.monotonic()\n",
        "            pass\n",
        "TestJournal",
    ),
    jobs(
        "nobody reads behind an event that is not there yet",
        "            if not -1 <= after < len(self._journal):\n",
        "            if False:\n",
        "TestJournal",
    ),
    jobs(
        "a reader arms before it looks",
        """\
            self._waiter.arm()
            if self.is_closed or self.is_done:  # behind `arm`: a close in between would be slept over
                break
            events, self.is_done = self.job._events_from(self._next)
""",
        """\
            if self.is_closed or self.is_done:  # behind `arm`: a close in between would be slept over
                break
            events, self.is_done = self.job._events_from(self._next)
            self._waiter.arm()
""",
        "test_an_event_between_the_look_and_the_sleep_is_read",
    ),
    jobs(
        "a reader who has everything does not wait",
        "            if self.is_done or remaining_s <= 0:",
        "            if remaining_s <= 0:",
        "test_who_comes_back_with_the_last_number_does_not_wait",
    ),
    jobs(
        "a reader does not wait without a limit",
        "            if self.is_done or remaining_s <= 0:",
        "            if self.is_done:",
        "test_looking_is_not_waiting",
    ),
    jobs(
        "a reader who was closed reads nothing more",
        "            if self.is_closed or self.is_done:  # behind",
        "            if self.is_done:  # behind",
        "TestJournal",
    ),
    jobs(
        "a close ends a read in another thread",
        """\
        self.job._leave(self)
        self._waiter.wake()
""",
        "        self.job._leave(self)\n",
        "test_a_close_ends_a_read_in_another_thread",
    ),
    jobs(
        "a reader who has left is not woken any more",
        "        self._receiver.unlisten(self._waiter)\n",
        "",
        "test_a_reader_who_has_left_is_not_woken_any_more",
    ),
    jobs(
        "a look at a job is not a read",
        "        if self._receiver.peek_end() is not None:\n            with self._lock:\n",
        "        if True:\n            with self._lock:\n",
        "test_looking_at_a_job_does_not_look_like_reading_it",
    ),
    jobs(
        "a job does not keep the sender alive",
        "        self._sequence = weakref.ref(sequence)\n",
        "        self._sequence = lambda: sequence\n",
        "test_a_job_does_not_keep_a_forgotten_stream_open",
    ),
    jobs(
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
    jobs(
        "readers are counted",
        "            self._num_readers += 1\n",
        "",
        "TestJournal",
    ),
    jobs(
        "a reader leaves once",
        """\
            if reader.is_closed:
                return
            reader.is_closed = True
""",
        "            reader.is_closed = True\n",
        "TestJournal",
    ),
    jobs(
        "only the last reader who leaves cancels",
        "            is_last = self._num_readers == 0\n",
        "            is_last = True\n",
        "test_only_the_last_reader_who_leaves_cancels",
    ),
    jobs(
        "who has been told the end does not cancel",
        'self.on_disconnect == "cancel" and self._receiver.peek_end() is None:',
        'self.on_disconnect == "cancel":',
        "test_who_has_been_told_the_end_does_not_cancel_by_leaving",
    ),
    jobs(
        "a job that is to go on is not cancelled by leaving",
        'if is_last and self.on_disconnect == "cancel" and',
        "if is_last and",
        "test_a_job_that_is_to_go_on_is_not_cancelled_by_leaving",
    ),
    jobs(
        "the last reader who leaves cancels",
        '            self.cancel("client")\n',
        "            pass\n",
        "test_only_the_last_reader_who_leaves_cancels",
    ),
    jobs(
        "a job that nobody reads is cancelled",
        '            self.cancel("orphan")\n',
        "            pass\n",
        "test_the_time_without_readers_begins_when_the_last_one_leaves",
    ),
    jobs(
        "a job with a reader is no orphan",
        "        elif self._num_readers == 0 and now - self._unread_since > orphan_ttl_s:\n",
        "        elif now - self._unread_since > orphan_ttl_s:\n",
        "test_the_time_without_readers_begins_when_the_last_one_leaves",
    ),
    jobs(
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
            known = self._keyed.get(key)
""",
        """\
        if True:
            known = self._keyed.get(key)
""",
        "test_while_a_job_is_made_its_key_is_taken",
    ),
    jobs(
        "the lock around the keys, of the housekeeper",
        """\
        with self._keys_lock:
            self._keyed = {""",
        """\
        if True:
            self._keyed = {""",
        "test_a_key_that_comes_while_old_ones_are_forgotten_is_kept",
    ),
    jobs(
        "a key belongs to its request",
        "        if known[1] != digest:\n",
        "        if False:\n",
        "test_a_key_belongs_to_its_request",
    ),
    jobs(
        "a key makes one job",
        "            if known is None or known[0].id not in self._jobs:\n",
        "            if True:\n",
        "test_the_same_key_and_request_are_one_job",
    ),
    jobs(
        "the key of a job that is not there any more is free",
        "            if known is None or known[0].id not in self._jobs:\n",
        "            if known is None:\n",
        "test_the_key_of_a_job_that_was_just_forgotten_is_free",
    ),
    jobs(
        "keys are forgotten with their jobs",
        "{key: known for key, known in self._keyed.items() if known[0].id in self._jobs}",
        "{key: known for key, known in self._keyed.items()}",
        "test_keys_are_forgotten_with_their_jobs",
    ),
]

_ADMISSION = [
    jobs(
        "a full server refuses before it encodes",
        "        self._engine.check_room()  # before the work of encoding\n",
        "",
        "test_a_full_server_refuses_before_it_encodes",
    ),
    jobs(
        "a prompt that can never fit is refused",
        "        if left < 1:\n",
        "        if False:\n",
        "test_what_can_never_fit_is_refused",
    ),
    jobs(
        "a prompt and an answer that never fit together are refused",
        "        if request.max_tokens > left:\n",
        "        if False:\n",
        "test_what_can_never_fit_is_refused",
    ),
    jobs(
        "a deadline above the server's is refused",
        "            if request.deadline_s > total_s:\n",
        "            if False:\n",
        "test_what_can_never_fit_is_refused",
    ),
    jobs(
        "a prompt without a token is refused",
        "        if not prompt_ids:\n",
        "        if False:\n",
        "test_a_prompt_without_a_token_is_refused",
    ),
]

MUTATIONS: list[Mutation] = [*_JOURNAL, *_LEAVING, *_FORGETTING, *_KEYS, *_ADMISSION]
