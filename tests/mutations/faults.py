"""Guards against what goes wrong in a step, against steps that do not come back, and against waits without a limit."""

from tests.mutations.mutation import Mutation, taking_from

engine = taking_from("worker/engine/engine.py", "tests/engine/test_engine.py")
admission = taking_from("worker/engine/admission.py", "tests/engine/test_engine.py")
supervisor = taking_from("worker/engine/supervisor.py", "tests/engine/test_engine.py")
endings = taking_from("worker/engine/endings.py", "tests/engine/test_engine.py")
sequence = taking_from("worker/engine/sequence.py", "tests/engine/test_engine.py")
watchdog = taking_from("worker/observe/watchdog.py", "tests/observe/test_watchdog.py")

_FAULTS = [
    engine(
        "a fault of a step does not end the loop",
        "        except Exception as error:  # whatever a model's code raises must not end the engine\n",
        "        except ZeroDivisionError as error:\n",
        "test_every_step_may_fail_and_requests_still_end",
    ),
    engine(
        "a group that fails is computed in parts",
        """\
            if error is not None and len(group) == 1:
                self._fail(group[0].sequence, error)
            elif error is not None:
""",
        """\
            for row in group if error is not None else []:
                self._fail(row.sequence, error)
            if False:
""",
        "test_a_step_too_large_for_the_memory_is_computed_in_parts",
    ),
    engine(
        "rows count as computed only when they are",
        """\
            sampled, logits = self._model.runner.forward(rows)
            for row in rows:
                self._scheduler.computed(row)
""",
        """\
            sampled, logits = self._model.runner.forward(rows)
            for row in rows[1:]:
                self._scheduler.computed(row)
""",
        "test_a_prompt_in_chunks_is_sampled_once",
    ),
    engine(
        "a runner that cannot compute rows again is given them one by one",
        "        groups = [rows] if self._model.runner.is_packed else [[row] for row in rows]\n",
        "        groups = [rows]\n",
        "test_a_runner_that_cannot_compute_rows_again_is_given_them_one_by_one",
    ),
    engine(
        "a lost device ends the process and not one request after the other",
        """\
        except torch.AcceleratorError:
            raise  # the device is lost for this process: nothing that comes after it would succeed
""",
        "",
        "test_a_lost_device_ends_everyone_and_the_process",
    ),
    engine(
        "want of memory has a code of its own",
        """\
            if is_out_of_memory(error):
                return OutOfMemory("the device has no memory left for this step")
""",
        "",
        "test_a_fault_of_a_row_ends_that_row_alone",
    ),
    engine(
        "a row that could not be drawn fails",
        """\
                if i in tokens.failures:
                    raise tokens.failures[i]
""",
        "",
        "test_a_row_without_usable_logits_ends_alone",
    ),
    engine(
        "a fault in delivering ends its own row",
        "            except Exception as error:  # a detokenizer that raises, say: this row's own fault\n",
        "            except ZeroDivisionError as error:\n",
        "test_a_detokenizer_that_raises_ends_its_row_alone",
    ),
    engine(
        "a reader that leaves in the middle of a step is a cancel",
        """\
            except ChannelBroken:
                self._cancel(sequence, "client")
""",
        "",
        "test_a_reader_that_leaves_in_the_middle_of_a_step_is_a_cancel_and_no_failure",
    ),
    engine(
        "a stream that was ended from outside is no fault of the model",
        """\
            except ChannelClosed:
                self._fail(sequence, EngineDead("the stream was ended from outside"))
""",
        "",
        "test_a_stream_that_was_ended_from_outside_costs_only_its_own_row",
    ),
    engine(
        "a runner is told who has left",
        "            self._model.runner.forget(blocks)\n",
        "            pass\n",
        "test_a_fault_of_a_row_ends_that_row_alone",
    ),
]

_STALL = [
    supervisor(
        "an engine that lives cannot be abandoned",
        """\
        if not reason:
            return False
        admission = self._admission
        with admission.lock:
""",
        "        admission = self._admission\n        with admission.lock:\n",
        "test_an_engine_that_lives_is_not_abandoned",
    ),
    supervisor(
        "the lock in giving an engine up",
        """\
        with admission.lock:
            is_stalled = admission.state is not EngineState.DEAD
""",
        """\
        if True:
            is_stalled = admission.state is not EngineState.DEAD
""",
        "tests/engine/test_from_outside.py::test_who_is_given_up_in_the_moment_it_has_loaded_is_dead",
    ),
    supervisor(
        "an abandoned engine accepts nothing more",
        """\
            admission.is_accepting = False
            admission.state, admission.reason = EngineState.DEAD, reason
""",
        "            admission.state, admission.reason = EngineState.DEAD, reason\n",
        "test_a_step_that_does_not_come_back_ends_every_stream_from_outside",
    ),
    supervisor(
        "an abandoned engine stops when its step comes back",
        "        self.is_stopping = True  # should the step come back after all\n",
        "",
        "test_a_step_that_does_not_come_back_ends_every_stream_from_outside",
    ),
    supervisor(
        "a stall is told from a death",
        "            if is_stalled:  # whoever",
        "            if False:  # whoever",
        "test_a_step_that_does_not_come_back_ends_every_stream_from_outside",
    ),
    supervisor(
        "two who give a stalled engine up say the same",
        "lambda sequence: failure_event(self.death, sequence.usage)",
        'lambda sequence: failure_event(self.death if is_stalled else EngineDead("dead"), sequence.usage)',
        "test_two_who_give_up_a_stalled_engine_at_once_say_the_same",
    ),
    admission(
        "the rate of those who leave is written under the lock",
        "            self._take_out(sequence)\n        self._tell(sequence, terminal, vram_bytes)\n",
        "        self._take_out(sequence)\n        self._tell(sequence, terminal, vram_bytes)\n",
        "test_the_rate_of_those_who_leave_is_written_under_the_lock_it_is_read_under",
    ),
    admission(
        "every stream of an abandoned engine is ended",
        "                self._tell(sequence, terminal)\n"
        "            except Exception as fault:  # one stream that cannot be ended well must not cost the others their"
        " ending\n"
        "                self._records.log",
        "                pass\n            except Exception as fault:\n                self._records.log",
        "test_one_stream_that_cannot_be_abandoned_well_does_not_cost_the_others_their_ending",
    ),
    admission(
        "one stream that cannot be abandoned well does not cost the others their ending",
        "            except Exception as fault:  # one stream that cannot be ended well must not cost the others their"
        " ending\n                self._records.log",
        "            except ZeroDivisionError as fault:\n                self._records.log",
        "test_one_stream_that_cannot_be_abandoned_well_does_not_cost_the_others_their_ending",
    ),
    supervisor(
        "a stall leaves the stacks of all threads",
        """\
        if is_stalled:
            self._records.log(logging.CRITICAL, all_stacks())
""",
        "",
        "test_a_step_that_does_not_come_back_ends_every_stream_from_outside",
    ),
    watchdog(
        "a process that stood still has its step's time once more",
        "            self._resumed = stamp, now\n",
        "            pass\n",
        "test_a_process_that_stood_still_is_not_taken_for_a_stuck_step",
        "tests/test_process.py::test_a_process_that_was_stopped_goes_on_where_it_was[gthread]",
    ),
    watchdog(
        "a standstill is forgiven once",
        "        if is_late and (self._resumed is None or self._resumed[0] is not stamp):\n",
        "        if is_late:\n",
        "test_a_step_that_is_stuck_in_a_process_that_stood_still_is_noticed_in_the_end",
    ),
    watchdog(
        "nobody judges a step before the watchdog has looked",
        """\
        if self.looked_at is not None and now - self.looked_at > STANDSTILL_S:
            return ""  # the watchdog says when it has looked
""",
        "",
        "test_a_process_that_stood_still_is_not_taken_for_a_stuck_step",
    ),
    watchdog(
        "a step may take longer in proportion to its tokens",
        "step_limit_s * max(1.0, self.num_tokens / TOKENS_PER_LIMIT)",
        "step_limit_s",
        "tests/engine/test_engine.py::test_a_long_prefill_is_no_stall",
    ),
    watchdog(
        "a step of few tokens has the whole limit",
        "max(1.0, self.num_tokens / TOKENS_PER_LIMIT)",
        "(self.num_tokens / TOKENS_PER_LIMIT)",
        "tests/engine/test_engine.py::test_a_long_prefill_is_no_stall",
    ),
    watchdog(
        "a step of very many tokens has a limit too",
        ", max(step_limit_s, longest_s))\n",
        ", math.inf)\n",
        "tests/engine/test_from_outside.py::test_a_step_of_many_tokens_is_stuck_at_the_latest_when_nobody_may_wait_for_it",
    ),
    watchdog(
        "the watchdog looks who is overdue",
        "                engine.end_overdue()\n",
        "                pass\n",
        "tests/engine/test_from_outside.py::test_a_deadline_does_not_wait_for_the_step_that_is_under_way",
    ),
    watchdog(
        "neither loading nor the end is a stall",
        """\
        if self.phase in (Phase.LOADING, Phase.ENDED):  # the one has its own limit, the other is no wait
            return ""
""",
        "",
        "test_loading_and_the_end_are_no_stall",
    ),
    watchdog(
        "a stall ends the watch although the thread has not ended",
        "        if was_abandoned:\n",
        "        if was_abandoned and has_ended:\n",
        "test_a_stall_is_cleaned_up_though_the_thread_does_not_end",
    ),
    watchdog(
        "the watchdog waits for the end of the thread",
        "    while not has_ended:\n",
        "    for _ in range(1):\n",
        "test_a_thread_that_has_died_is_cleaned_up_behind",
    ),
    watchdog(
        "an engine that has ended well is left alone",
        "        if was_abandoned:\n",
        "        if has_ended or was_abandoned:\n",
        "test_a_thread_that_ends_well_is_left_alone",
    ),
    watchdog(
        "the process is replaced when ending everyone fails",
        """\
            engine.gone()
            raise
""",
        "            raise\n",
        "test_the_process_is_replaced_though_not_everyone_could_be_told",
    ),
    watchdog(
        "who is left by a dead thread is told before the process goes",
        "            was_abandoned = engine.abandon()\n",
        """\
            engine.gone()
            was_abandoned = engine.abandon()
""",
        "test_a_thread_that_has_died_is_cleaned_up_behind",
    ),
]

_DEADLINES = [
    sequence(
        "the deadline of the whole",
        "        if now - self.submitted_at > limits.total_s:\n",
        "        if False:\n",
        "test_deadlines_by_the_clock",
    ),
    sequence(
        "the deadline in the queue",
        "            if now - self.submitted_at > limits.queue_s:\n",
        "            if False:\n",
        "test_deadlines_by_the_clock",
    ),
    sequence(
        "the deadline of the first token",
        "            if now - self.scheduled_at > limits.first_token_s:\n",
        "            if False:\n",
        "test_deadlines_by_the_clock",
    ),
    sequence(
        "the deadline between two tokens",
        "        elif now - self.last_token_at > limits.token_s:\n",
        "        elif False:\n",
        "test_deadlines_by_the_clock",
    ),
    sequence(
        "the deadline of a stream that nobody claims",
        'return "unclaimed" if now - self.submitted_at > limits.claim_s else None',
        "return None",
        "test_deadlines_by_the_clock",
    ),
    sequence(
        "the deadline of a slow consumer",
        "if statistics.waiting_since is not None and now - statistics.waiting_since > limits.slow_consumer_s:\n",
        "if False:\n",
        "test_deadlines_by_the_clock",
    ),
    sequence(
        "a reader that waits for a slow model is not slow",
        "if statistics.waiting_since is not None and now - statistics.waiting_since > limits.slow_consumer_s:\n",
        "if now - statistics.last_take_at > limits.slow_consumer_s:\n",
        "test_a_consumer_that_waits_for_a_slow_model_is_not_slow",
    ),
    engine(
        "the loop looks at deadlines",
        "            elif is_deadline_tick and (terminal := overdue_event(sequence, now)):\n",
        "            elif False and (terminal := overdue_event(sequence, now)):\n",
        "test_timeout_of_a_request_that_goes_on_and_on",
    ),
    endings(
        "a stream that nobody claims is cancelled",
        """\
        sequence.cancelled_by = sequence.cancelled_by or overdue
        return end_event(sequence, StopReason.CANCELLED)
""",
        "        return None\n",
        "test_a_stream_that_nobody_claims_is_cancelled",
    ),
    supervisor(
        "nobody is ended from outside while tokens are delivered",
        """\
        if self._is_computing and now - self.stamp.at > LONG_STEP_S:
            self._end_from_outside(lambda sequence: overdue_event(sequence, now) if self._is_computing else None)
""",
        """\
        if now - self.stamp.at > LONG_STEP_S:
            self._end_from_outside(lambda sequence: overdue_event(sequence, now))
""",
        "tests/engine/test_from_outside.py::test_nobody_is_ended_from_outside_while_tokens_are_delivered",
    ),
    supervisor(
        "a step that is over when its turn comes is left to the generation thread",
        "(lambda sequence: overdue_event(sequence, now) if self._is_computing else None)",
        "(lambda sequence: overdue_event(sequence, now))",
        "tests/engine/test_from_outside.py::test_nobody_is_ended_from_outside_when_the_step_is_over_meanwhile",
    ),
    supervisor(
        "a short step is left to the generation thread",
        " and now - self.stamp.at > LONG_STEP_S:",
        ":",
        "tests/engine/test_from_outside.py::test_a_short_step_is_left_to_the_generation_thread",
    ),
    engine(
        "nothing is delivered to who was ended from outside",
        """\
            if sequence.is_ended:
                continue
""",
        "",
        "tests/engine/test_from_outside.py::test_a_deadline_does_not_wait_for_the_step_that_is_under_way",
    ),
    engine(
        "the slot of who was ended from outside is freed",
        "                self._free(sequence)\n            elif",
        "                pass\n            elif",
        "tests/engine/test_from_outside.py::test_a_deadline_does_not_wait_for_the_step_that_is_under_way",
    ),
    engine(
        "a step in many parts looks between them who has left",
        "                self._end_unwanted(time.monotonic())\n",
        "                pass\n",
        "test_a_step_in_many_parts_looks_between_them_who_has_left",
    ),
    engine(
        "who has left is not computed in the rest of a step",
        "[row for row in groups.pop() if row.sequence.state is SequenceState.RUNNING]",
        "list(groups.pop())",
        "test_a_step_in_many_parts_looks_between_them_who_has_left",
    ),
    engine(
        "what a failed step held is let go before a smaller one",
        """\
            if is_out_of_memory(error):
                return OutOfMemory("the device has no memory left for this step")
""",
        """\
            if is_out_of_memory(error):
                return OutOfMemory("the device has no memory left for this step").with_traceback(error.__traceback__)
""",
        "test_what_a_failed_step_held_is_free_when_a_smaller_one_is_tried",
    ),
]

MUTATIONS: list[Mutation] = [*_FAULTS, *_STALL, *_DEADLINES]
