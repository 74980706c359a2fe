"""Guards of the client that is copied to where it is needed."""

from tests.mutations.mutation import Mutation, taking_from

FILE = "worker/client.py"
endings = taking_from(FILE, "tests/client/test_endings.py")
resume = taking_from(FILE, "tests/client/test_resume.py")
retries = taking_from(FILE, "tests/client/test_retries.py")
jobs = taking_from(FILE, "tests/client/test_jobs.py")
refusals = taking_from(FILE, "tests/client/test_refusals.py")
streams = taking_from(FILE, "tests/client/test_streams.py")
chat = taking_from("worker/chat.py", "tests/test_chat.py")

_ENDINGS = [
    endings(
        "a stream without a terminal event is no success for the client",
        "                raise IncompleteStream(message, last_event_id, is_done=is_done)\n",
        "                IncompleteStream(message, last_event_id, is_done=is_done)\n",
        "test_a_stream_without_a_terminal_event_is_incomplete[clean_eof]",
    ),
    endings(
        "what follows the end is an error for the client",
        "                    if is_done or (has_ended and sse.data != DONE):\n",
        "                    if False:\n",
        "test_whatever_follows_the_end_is_an_error[before [DONE]-token]",
    ),
    endings(
        "an error event is that error, however incomplete",
        "    except ProtocolError:\n        usage = None\n",
        "    except ZeroDivisionError:\n        usage = None\n",
        "test_an_error_with_missing_fields_is_still_that_error[event0]",
    ),
    endings(
        "the client counts events",
        "    if event_id is not None and event_id.isdecimal() and event_id != due:\n",
        "    if False:\n",
        "test_events_are_numbered_without_gaps[numbers0-event 3 came where 2 was due]",
    ),
    endings(
        "the answer of a cancelled job is no answer",
        '        if end.stop_reason == "CANCELLED":\n',
        "        if False:\n",
        "test_the_answer_of_a_cancelled_job_is_no_answer",
    ),
    jobs(
        "that nothing comes behind a place is the job's word",
        " and self._has_ended(job_id):\n",
        ":\n",
        "test_nothing_comes_behind_the_last_event[RUNNING-None-IncompleteStream]",
    ),
    jobs(
        "at the beginning of a job [DONE] alone is no ending",
        " and bool(last_event_id)\n",
        "\n",
        "test_done_alone_is_no_ending[None]",
    ),
    jobs(
        "behind an event of a stream [DONE] alone is no ending",
        "failure.is_done and not has_begun and",
        "failure.is_done and",
        "test_done_alone_is_no_ending[0]",
    ),
    jobs(
        "a head that was cut is no answer",
        "    if not body:\n",
        "    if False:\n",
        "test_an_answer_whose_head_is_cut[HTTP/1.1 200]",
    ),
    streams(
        "a stream that is left closes its connection",
        "        with response, _named(response):\n            content_type",
        "        self.kept = response\n        with _named(response):\n            content_type",
        "test_closing_the_generator_closes_the_connection",
    ),
]

_RETRIES = [
    refusals(
        "what cannot be written down is an error of the client",
        "        except (requests.exceptions.RequestException, ValueError) as error:",
        "        except requests.exceptions.RequestException as error:",
        "test_what_cannot_be_sent_is_said_once",
    ),
    refusals(
        "what cannot be sent is not tried again",
        "        case ConnectionFailed(__cause__=ValueError()):\n            return False",
        "        case ConnectionFailed(__cause__=ZeroDivisionError()):\n            return False",
        "test_what_cannot_be_sent_is_said_once",
    ),
    refusals(
        "a key that cannot be sent is not repeated",
        "    if is_ours or isinstance(error, UnicodeError):",
        "    if isinstance(error, UnicodeError):",
        "test_what_cannot_be_sent_is_said_once",
    ),
    refusals(
        "an address that is none is an error of the first request",
        "    except ValueError:  # it is no URL",
        "    except ZeroDivisionError:  # it is no URL",
        "test_what_cannot_be_sent_is_said_once",
    ),
    refusals(
        "a date that is none is no time to come back",
        "    except (ValueError, OverflowError):\n        return None\n    at =",
        "    except ValueError:\n        return None\n    at =",
        "test_when_to_come_back",
    ),
    streams(
        "a type may be written with capitals",
        "content_type.lower().startswith",
        "content_type.startswith",
        "test_a_type_may_be_written_with_capitals",
    ),
    resume(
        "a job of any name is taken up",
        ", errors='surrogatepass')",
        ")",
        "test_a_job_of_any_name_and_place_is_taken_up",
    ),
    resume(
        "a place of any name is taken up",
        '= last_event_id.encode("utf-8", "replace")',
        "= last_event_id",
        "test_a_job_of_any_name_and_place_is_taken_up",
    ),
    retries(
        "what may have begun is not sent again without a key",
        "            return is_harmless or failure.is_unsent\n",
        "            return True\n",
        "test_a_stream_that_may_have_begun_is_not_asked_for_again[reset]",
    ),
    retries(
        "a gateway that lost the answer may have begun",
        "        case RequestRefused(status=502 | 504):\n            return is_harmless\n",
        "        case RequestRefused(status=502 | 504):\n            return True\n",
        "test_a_stream_that_may_have_begun_is_not_asked_for_again[502]",
    ),
    retries(
        "a 503 of somebody else may have begun",
        "            return is_harmless or failure.retry_after_s is not None\n",
        "            return True\n",
        "test_a_stream_that_may_have_begun_is_not_asked_for_again[503]",
    ),
    retries(
        "a request that cannot have arrived is sent again",
        '        if names & {"ConnectTimeout", "ConnectTimeoutError", "NewConnectionError"}:\n',
        "        if False:\n",
        "test_a_server_that_is_not_there_is_asked_a_few_times[2-stream]",
    ),
    retries(
        "all tries of a run have one key",
        "fields=fields, headers=key)\n",
        "fields=fields, headers={KEY_HEADER: uuid.uuid4().hex})\n",
        "test_a_run_that_has_not_begun_is_asked_for_with_the_same_key[reset]",
    ),
    retries(
        "a submit has a key",
        "        headers = {KEY_HEADER: idempotency_key or uuid.uuid4().hex}\n",
        "        headers = {KEY_HEADER: idempotency_key} if idempotency_key else {}\n",
        "test_a_lost_answer_is_asked_for_with_the_same_key[reset]",
    ),
    retries(
        "an answer that was cut is asked for again",
        "        body = self._retried(call, self.max_retries, is_harmless=True)  # POST has a key here\n",
        "        body = call()\n",
        "test_a_lost_answer_is_asked_for_with_the_same_key[cut]",
    ),
    retries(
        "retries have an end",
        "                if num_failures >= max_retries or not",
        "                if num_failures >= 50 or not",
        "test_a_server_that_is_not_there_is_asked_a_few_times[2-submit]",
    ),
    retries(
        "nobody comes back before the server said",
        "    return max(random.uniform(0.5, 1) * longest_s, told_s or 0)\n",
        "    return random.uniform(0.5, 1) * longest_s\n",
        "test_a_server_that_is_full_is_asked_again_when_it_said",
    ),
    retries(
        "nobody waits for minutes",
        "        case RequestRefused(retry_after_s=float() as pause_s) if pause_s > LONGEST_RETRY_AFTER_S:\n",
        "        case RequestRefused(retry_after_s=float() as pause_s) if pause_s < 0:\n",
        "test_who_is_told_to_come_back_much_later_is_told_so_at_once",
    ),
    retries(
        "many do not come back together",
        "    return max(random.uniform(0.5, 1) * longest_s",
        "    return max(longest_s",
        "test_pauses_grow_to_their_limit_and_differ",
    ),
    retries(
        "pauses have a limit",
        "    longest_s = min(LONGEST_PAUSE_S, ",
        "    longest_s = min(1e6, ",
        "test_pauses_grow_to_their_limit_and_differ",
    ),
    chat(
        "the chat shows what the server says, and asks once",
        "Client(url, api_key=api_key, max_retries=0)",
        "Client(url, api_key=api_key)",
        "test_the_chat_command_asks_once",
    ),
]

_RESUMES = [
    resume(
        "a lost stream is taken up behind its last event",
        'stream", last_event_id=last_event_id)\n                try:',
        'stream")\n                try:',
        "test_the_whole_answer_comes_over_many_connections",
    ),
    resume(
        "a new event begins the count of losses again",
        "                            has_begun, num_failures, last_event_id = True, 0, event.id\n",
        "                            has_begun, last_event_id = True, event.id\n",
        "test_a_job_is_read_to_its_end_over_many_connections",
    ),
    resume(
        "a stream that stays lost is given up",
        "                    if num_failures >= limit or not has_place",
        "                    if not has_place",
        "test_a_stream_that_stays_lost_is_given_up[3]",
    ),
    resume(
        "a stream without numbers is not taken up",
        "not has_begun or (job_id is not None and last_event_id is not None)\n",
        "not has_begun or job_id is not None\n",
        "test_a_stream_without_numbers_is_not_taken_up",
    ),
    resume(
        "a job that was not named is not asked for again behind its first event",
        "not has_begun or (job_id is not None and last_event_id is not None)\n",
        "not has_begun or last_event_id is not None\n",
        "test_a_job_that_was_not_named_is_not_taken_up",
    ),
    resume(
        "a stream that is given up names its place",
        "                        raise IncompleteStream(message, last_event_id, job_id) from failure\n",
        "                        raise\n",
        "test_a_server_that_goes_away_is_given_up_with_the_place",
    ),
    resume(
        "who leaves a run cancels its job",
        "                self._cancel_left(job_id)\n",
        "                pass\n",
        "test_closing_a_run_cancels_its_job",
    ),
    resume(
        "the connection goes before the job does",
        "                    with closing(events):\n",
        "                    if True:\n",
        "test_closing_a_run_cancels_its_job",
    ),
    resume(
        "an answer that is interrupted is left",
        "        with closing(self.run(**fields)) as events:\n",
        "        self.kept = events = self.run(**fields)\n        if True:\n",
        "test_an_interrupt_of_the_caller_cancels_the_job",
    ),
    resume(
        "who only reads a job leaves it alone",
        "            if is_ours and job_id is not None",
        "            if job_id is not None",
        "test_who_reads_the_job_of_somebody_else_leaves_it_alone",
    ),
    resume(
        "a job that is over is not cancelled",
        "and not is_over and not isinstance(left, EndstopError):\n",
        "and not isinstance(left, EndstopError):\n",
        "test_a_job_that_is_over_is_not_cancelled[end]",
    ),
    resume(
        "a cancel that fails hides nothing",
        "        except Exception:\n            pass\n",
        "        except ZeroDivisionError:\n            pass\n",
        "test_a_cancel_that_fails_holds_nobody_up[reset]",
    ),
    resume(
        "a cancel that gets no answer holds nobody up",
        "timeout_s=LEAVE_TIMEOUT_S).close()\n",
        "timeout_s=None).close()\n",
        "test_a_cancel_that_fails_holds_nobody_up[silence]",
    ),
]

MUTATIONS: list[Mutation] = [*_ENDINGS, *_RETRIES, *_RESUMES]
