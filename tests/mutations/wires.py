"""Guards of responses and messages: numbers that every reader sees, who goes on, what is found again, what ends."""

from tests.mutations.mutation import Mutation, taking_from

responses = taking_from("worker/web/responses.py", "tests/web/test_responses.py")
items = taking_from("worker/web/responses_translator.py", "tests/web/test_translators.py")
messages = taking_from("worker/web/messages.py", "tests/web/test_messages.py")
message_bodies = taking_from("worker/web/messages_request.py", "tests/web/test_messages.py")
blocks = taking_from("worker/web/messages.py", "tests/web/test_translators.py")
job = taking_from("worker/job.py", "tests/test_jobs.py")
refusals = taking_from("worker/web/refusals.py", "tests/web/test_messages.py")

_RESPONSES = [
    items(
        "whoever comes back gets no event twice",
        "        if number > self._starting_after:\n",
        "        if number >= self._starting_after:\n",
        "test_whoever_comes_back_sees_the_same_calls",
    ),
    items(
        "an event that is not sent has its number all the same",
        "        self.num_events += 1\n        if number > self._starting_after:\n",
        "        if number > self._starting_after:\n            self.num_events += 1\n",
        "test_whoever_comes_back_sees_the_same_calls",
    ),
    responses(
        "an event that is not there yet is refused",
        "        _check_is_there(job, asked, starting_after)\n",
        "",
        "test_events_that_are_not_there_yet_are_refused[gthread]",
    ),
    responses(
        "HEAD makes no reader of a response",
        '    if request.method == "HEAD":',
        "    if False:",
        "test_head_of_a_response_makes_no_reader",
    ),
    responses(
        "a response in the background goes on without its client",
        '            on_disconnect="continue" if body.background else "cancel",\n',
        '            on_disconnect="cancel",\n',
        "test_a_client_that_leaves_a_background_response_cancels_nothing[gthread]",
    ),
    responses(
        "a response in the background is no orphan",
        "        job.is_detached = body.background\n",
        "",
        "test_a_response_in_the_background_is_no_orphan",
    ),
    responses(
        "what is not to be stored is not found",
        "        if body.store:\n",
        "        if True:\n",
        "test_what_is_not_stored_is_not_found[gthread]",
    ),
    responses(
        "a job of another route is no response",
        "    if job is None or not isinstance(job.note, Asked) or ",
        "    if job is None or ",
        "test_a_job_of_another_route_is_no_response[gthread]",
    ),
    responses(
        "a response of another client is not found",
        "jobs.get(response_id.removeprefix(ID_PREFIX), client())",
        "jobs._jobs.get(response_id.removeprefix(ID_PREFIX), client() and None)",
        "test_a_response_is_that_of_its_key_alone",
    ),
    responses(
        "a deleted response is not found while somebody reads it",
        "    job.note = None\n",
        "",
        "test_who_reads_a_deleted_response_is_told_the_end[gthread]",
    ),
    responses(
        "a deleted response is cancelled",
        '    job, _ = _find(response_id)\n    job.cancel("delete")\n',
        "    job, _ = _find(response_id)\n",
        "test_who_reads_a_deleted_response_is_told_the_end[gthread]",
    ),
    responses(
        "a cancelled response is told when it has ended",
        "    job.wait_end(CANCEL_WAIT_S)\n",
        "",
        "test_who_cancels_is_told_of_the_end",
    ),
    responses(
        "a response that runs is not continued",
        "    if terminal is None:\n        raise _refuse_previous",
        "    if False:\n        raise _refuse_previous",
        "test_a_response_without_an_answer_is_not_continued[gthread]",
    ),
    responses(
        "a response that failed is not continued",
        "    if failure_of(terminal) is not None:\n",
        "    if False:\n",
        "test_a_response_without_an_answer_is_not_continued[gthread]",
    ),
    responses(
        "a conversation does not grow without a limit",
        "    if len(asked.conversation) > MAX_MESSAGES:\n",
        "    if False:\n",
        "test_a_conversation_does_not_grow_without_a_limit",
    ),
    items(
        "a call that is cut off is not complete",
        ' or self._is_in("function_call")',
        "",
        "test_a_call_that_is_not_closed_is_not_complete",
    ),
    responses(
        "a call that is cut off is not continued",
        ' if item["type"] != "function_call" or item["status"] == "completed"]',
        "]",
        "tests/web/test_translators.py::test_a_call_that_is_cut_off_is_nothing_to_be_continued",
    ),
]

_MESSAGES = [
    blocks(
        "a call that is cut off is not called",
        "                self._cut_calls.add(len(self._content) - 1)\n",
        "                pass\n",
        "test_a_call_that_is_cut_off_is_not_complete",
    ),
    messages(
        "the context that ends an answer is not its limit",
        "            case StopReason.MAX_TOKENS if end.usage.completion_tokens < self._max_tokens:\n"
        '                return "model_context_window_exceeded"\n',
        "",
        "test_every_event_is_what_its_type_declares[gthread-fields2-model_context_window_exceeded-None-None]",
    ),
    message_bodies(
        "an answer that is begun is refused",
        '        if isinstance(last, dict) and last.get("role") == "assistant":\n',
        "        if False:\n",
        "test_what_is_not_supported_is_refused_by_name[gthread-fields6-the last message is the assistant's]",
    ),
    messages(
        "thinking is not turned off where it is not",
        "    if context().engine.model.tokenizer.answer_format.reasoning is not None:\n",
        "    if False:\n",
        "test_thinking_is_not_turned_off_where_the_model_may_think",
    ),
    messages(
        "nothing follows the end of a message",
        'done = b""',
        'done = b"data: [DONE]\\n\\n"',
        "test_every_event_is_what_its_type_declares[gthread-fields0-max_tokens-None-abc]",
    ),
    refusals(
        "Anthropic's route refuses in its shape",
        '    ("/v1/messages", _in_anthropic_shape),\n',
        "",
        "test_each_refusal_has_its_type[gthread]",
    ),
]

_JOBS = [
    job(
        "a job that is detached is no orphan",
        "        elif not self.is_detached and self._num_readers == 0",
        "        elif self._num_readers == 0",
        "test_a_job_that_is_detached_is_no_orphan",
    ),
    job(
        "the note of the request that made a job stays",
        "            if self.note is None:\n",
        "            if True:\n",
        "test_what_is_kept_with_a_job_weighs_and_the_first_of_it_stays",
    ),
    job(
        "a note weighs",
        "                self.num_bytes += num_bytes\n",
        "                pass\n",
        "test_what_is_kept_with_a_job_weighs_and_the_first_of_it_stays",
    ),
    job(
        "who has waited for the end is not woken any more",
        "            self._receiver.unlisten(waiter)\n\n    def cancel",
        "            pass\n\n    def cancel",
        "test_who_waits_for_the_end_takes_nothing_and_is_woken_by_it",
    ),
]

MUTATIONS: list[Mutation] = [*_RESPONSES, *_MESSAGES, *_JOBS]
