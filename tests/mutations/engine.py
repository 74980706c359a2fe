"""Guards of the engine: who is accepted, how a stream ends, how the engine does."""

from tests.mutations.mutation import Mutation, taking_from

engine = taking_from("worker/engine/engine.py", "tests/engine/test_engine.py")
admission = taking_from("worker/engine/admission.py", "tests/engine/test_engine.py")
supervisor = taking_from("worker/engine/supervisor.py", "tests/engine/test_engine.py")
log = taking_from("worker/observe/log.py", "tests/engine/test_engine.py")
_OUTSIDE = "tests/engine/test_from_outside.py"

_ADMISSION = [
    admission(
        "the lock in submit: checked and queued at once",
        """\
        with self.lock:
            self._check_room(len(sequences), sum(len(sequence.prompt_ids) for sequence in sequences))
""",
        """\
        if True:
            self._check_room(len(sequences), sum(len(sequence.prompt_ids) for sequence in sequences))
""",
        "test_a_submit_is_wholly_before_or_wholly_after_a_shutdown",
    ),
    admission(
        "nothing is accepted while the engine loads, drains or is dead",
        """\
        if not self.is_accepting or self._is_leaving():
            raise self._not_ready()
""",
        "",
        "test_behind_a_stop_nothing_is_accepted",
    ),
    admission(
        "requests are bounded in number",
        "        if (too_many_requests := num_open + num_requests - settings.max_streams) > 0:\n",
        "        if (too_many_requests := 1) > 1:\n",
        "test_overloaded_at_the_limit_and_not_before",
    ),
    admission(
        "what waits is bounded in tokens",
        "        if num_waiting_tokens and too_many > 0:",
        "        if num_waiting_tokens < 0:",
        "tests/test_jobs.py::test_prompts_that_wait_are_bounded_in_tokens",
    ),
    admission(
        "into an empty queue any prompt may go",
        "        if num_waiting_tokens and too_many > 0:",
        "        if too_many > 0:",
        "tests/test_jobs.py::test_a_prompt_above_the_limit_is_accepted_when_nothing_waits",
    ),
    engine(
        "a submit wakes an idle engine",
        """\
        self._admission.submit(*sequences)
        self._waiter.wake()
""",
        "        self._admission.submit(*sequences)\n",
        "test_an_idle_engine_hears_a_cancel_and_a_submit_at_once",
    ),
    engine(
        "the loop arms before it looks",
        """\
            self._waiter.arm()
            if self._supervisor.is_stopping:  # behind `arm`: a stop in between would be slept over
                return
            now = self._supervisor.begin(Phase.SCHEDULING)
            self._take_inbox()
            self._end_unwanted(now)
            self._drain_if_asked(now)
            narrate_places(self._scheduler.waiting)
            rows = self._scheduler.schedule()
""",
        """\
            if self._supervisor.is_stopping:  # behind `arm`: a stop in between would be slept over
                return
            now = self._supervisor.begin(Phase.SCHEDULING)
            self._take_inbox()
            self._end_unwanted(now)
            self._drain_if_asked(now)
            narrate_places(self._scheduler.waiting)
            rows = self._scheduler.schedule()
            self._waiter.arm()
""",
        "test_a_submit_between_the_look_and_the_sleep_is_heard",
    ),
    engine(
        "a token that the model does not know ends its own request",
        "        return self._model is None or (min(token_ids) >= 0 and max(token_ids) < self._model.vocab_size)\n",
        "        return True\n",
        "test_a_prompt_with_a_token_that_the_model_does_not_know_fails_alone",
    ),
]

_DRAIN = [
    engine(
        "a drain accepts nothing more",
        """\
            self._admission.stop_accepting()
            self._drain_at = now
""",
        "            self._drain_at = now\n",
        "test_a_drain_refuses_and_lets_the_others_finish",
    ),
    engine(
        "a drain has a limit",
        """\
        if now - self._drain_at >= self._drain_limit_s and self.num_open:
            self._end_everyone(ShuttingDown(SHUTTING_DOWN))
""",
        "",
        "test_a_drain_ends_what_still_runs_behind_its_limit",
    ),
    engine(
        "a second drain never lengthens the first",
        "        if self._drain_limit_s is None or limit_s < self._drain_limit_s:\n",
        "        if True:\n",
        "test_a_second_drain_shortens_and_never_lengthens",
    ),
    engine(
        "the process is asked whether to drain",
        """\
        if self._drain_limit_s is None and self.should_drain():
            self._drain_limit_s = self._settings.drain_s
""",
        "",
        "test_the_process_is_asked_whether_to_drain",
    ),
    engine(
        "a stop accepts nothing more",
        """\
            self._admission.stop_accepting()
            is_given_up""",
        "            is_given_up",
        "test_behind_a_stop_nothing_is_accepted",
    ),
    admission(
        "the lock in a shutdown",
        """\
        with self.lock:
            self.is_accepting = False
""",
        """\
        if True:
            self.is_accepting = False
""",
        "test_a_submit_is_wholly_before_or_wholly_after_a_shutdown",
    ),
    engine(
        "a stop ends everyone",
        """\
            self._end_everyone(self._supervisor.death if is_given_up else ShuttingDown(SHUTTING_DOWN))
        except BaseException""",
        """\
            pass
        except BaseException""",
        "test_stop_ends_everyone_and_the_thread",
    ),
    engine(
        "who came just before a shutdown is ended too",
        """\
    def _end_everyone(self, error: GenerationFailed) -> None:
        self._take_inbox()
""",
        """\
    def _end_everyone(self, error: GenerationFailed) -> None:
""",
        "test_who_came_while_the_last_step_ran_is_ended_too",
    ),
    engine(
        "a drain wakes an idle engine",
        """\
            self._drain_limit_s = limit_s
            self._waiter.wake()
""",
        "            self._drain_limit_s = limit_s\n",
        "test_an_idle_engine_hears_a_cancel_and_a_submit_at_once",
    ),
]

_DEATH = [
    engine(
        "the lock in a death",
        """\
        with admission.lock:
            admission.is_accepting = False
            admission.state = EngineState.DEAD
""",
        """\
        if True:
            admission.is_accepting = False
            admission.state = EngineState.DEAD
""",
        "test_who_comes_in_the_moment_of_a_death_is_ended[itself]",
    ),
    engine(
        "the lock around becoming ready",
        """\
        with admission.lock:
            if admission.state is EngineState.DEAD:  # given up already
""",
        """\
        if True:
            if admission.state is EngineState.DEAD:  # given up already
""",
        "test_an_engine_that_is_given_up_while_it_becomes_ready_is_dead",
    ),
    engine(
        "a fault of the loop is caught, whatever it is",
        "        except BaseException as error:  # law 7",
        "        except Exception as error:  # law 7",
        "test_a_fault_of_the_loop_ends_everyone_and_marks_the_engine_dead",
    ),
    engine(
        "a fault of the loop ends everyone",
        """\
            self._end_everyone(self._supervisor.death)
        except""",
        """\
            pass
        except""",
        "test_a_fault_of_the_loop_ends_everyone_and_marks_the_engine_dead",
    ),
    engine(
        "an engine that dies accepts nothing more",
        """\
            admission.is_accepting = False
            admission.state = EngineState.DEAD
""",
        "            admission.state = EngineState.DEAD\n",
        "test_while_a_dying_engine_ends_everyone_nothing_is_accepted",
    ),
    engine(
        "a fault while everyone is ended leaves the rest to the watchdog",
        "        except BaseException as fault:  # the watchdog ends those who are left\n",
        "        except ZeroDivisionError as fault:\n",
        "test_a_thread_that_dies_while_it_ends_everyone_leaves_nobody_waiting",
    ),
    engine(
        "one stream that cannot be ended well does not cost the others their ending",
        """\
            except Exception as fault:  # one stream that cannot be ended well must not cost the others their ending
                self._admission.close(sequence, failure_event(error, sequence.usage))
""",
        """\
            except ZeroDivisionError as fault:
                self._admission.close(sequence, failure_event(error, sequence.usage))
""",
        "test_one_stream_that_cannot_be_ended_well_does_not_cost_the_others_their_ending",
    ),
    engine(
        "the finally that lets the model go with its thread",
        "            self._model = None  # frees the tensors on this thread\n",
        "",
        "test_the_model_is_let_go_with_the_thread",
    ),
    engine(
        "the finally that says that the thread is gone",
        "            self._supervisor.done.release()\n",
        "",
        "test_the_model_is_let_go_with_the_thread",
    ),
    admission(
        "the records end with the thread",
        "            self._records.close()\n",
        "            pass\n",
        "test_stop_ends_everyone_and_the_thread",
    ),
    admission(
        "the records of a dead engine stay open for the watchdog",
        "        if self._has_ended and not self._num_debtors and self.state is not EngineState.DEAD:\n",
        "        if self._has_ended and not self._num_debtors:\n",
        "test_a_thread_that_dies_while_it_ends_everyone_leaves_nobody_waiting",
    ),
    admission(
        "the records stay open for who still ends a stream",
        "        if self._has_ended and not self._num_debtors and self.state is not EngineState.DEAD:\n",
        "        if self._has_ended and self.state is not EngineState.DEAD:\n",
        f"{_OUTSIDE}::test_no_outcome_is_lost_when_the_step_comes_back_while_everyone_is_ended",
    ),
    admission(
        "who still ends a stream closes the records in the end",
        """\
            self._num_debtors -= 1
            self._close_records()
""",
        "            self._num_debtors -= 1\n",
        f"{_OUTSIDE}::test_no_outcome_is_lost_when_the_step_comes_back_while_everyone_is_ended",
    ),
    engine(
        "one stall has one code",
        "self._supervisor.death if is_given_up else ShuttingDown(SHUTTING_DOWN)",
        "ShuttingDown(SHUTTING_DOWN)",
        f"{_OUTSIDE}::test_one_stall_has_one_code_though_the_step_comes_back_meanwhile",
    ),
    admission(
        "who leaves accepts nobody though a step is under way",
        "        if not self.is_accepting or self._is_leaving():\n",
        "        if not self.is_accepting:\n",
        f"{_OUTSIDE}::test_who_leaves_accepts_nobody_though_a_step_is_under_way",
        f"{_OUTSIDE}::test_a_drain_that_is_asked_for_refuses_at_once",
    ),
    admission(
        "who is refused because the process leaves is told so",
        "        if self._is_leaving() and self.state is not EngineState.DEAD:\n",
        "        if False:\n",
        f"{_OUTSIDE}::test_who_leaves_accepts_nobody_though_a_step_is_under_way",
    ),
    supervisor(
        "nobody comes after those who are ended because the process leaves",
        """\
        self._admission.stop_accepting()
        self.is_stopping = True
""",
        "        self.is_stopping = True\n",
        f"{_OUTSIDE}::test_who_is_ended_because_the_process_leaves_is_ended_once_and_nobody_comes_after",
    ),
    admission(
        "the lock around a look for room",
        """\
        with self.lock:
            self._check_room(1, 0)
            if client is not None:
""",
        """\
        if True:
            self._check_room(1, 0)
            if client is not None:
""",
        f"{_OUTSIDE}::test_room_is_looked_for_under_the_lock",
    ),
    engine(
        "an engine that was given up does not become ready",
        """\
            if admission.state is EngineState.DEAD:  # given up already
                return
""",
        "",
        "test_a_load_that_takes_too_long_is_given_up_for_good",
    ),
    admission(
        "an engine that was given up stays dead",
        """\
            self.is_accepting = False
            if self.state is not EngineState.DEAD:
""",
        """\
            self.is_accepting = False
            if True:
""",
        "test_a_step_that_does_not_come_back_ends_every_stream_from_outside",
    ),
    supervisor(
        "loading has a limit",
        """\
            return f"the model is still loading after {limit_s:g} s" if now - self.started_at > limit_s else ""
""",
        """\
            return ""
""",
        "test_a_load_that_takes_too_long_is_given_up_for_good",
    ),
    log(
        "nobody who reads the records harms nobody",
        """\
        except ChannelBroken:
            pass  # nobody writes a log any more""",
        """\
        except ZeroDivisionError:
            pass  # nobody writes a log any more""",
        "test_requests_end_though_nobody_writes_the_log",
    ),
]

_ENDINGS = [
    admission(
        "a stream is ended and noted once",
        """\
            if sequence not in self._open:
                return
            self._take_out(sequence)
""",
        "            self._open.add(sequence)\n            self._take_out(sequence)\n",
        "test_a_step_that_does_not_come_back_ends_every_stream_from_outside",
    ),
    admission(
        "the lock around who ends a stream",
        """\
        with self.lock:
            if sequence not in self._open:
""",
        """\
        if True:
            if sequence not in self._open:
""",
        "test_of_two_who_end_one_stream_at_once_one_does",
    ),
    admission(
        "every stream is closed with its terminal event",
        "            sequence.sender.close(terminal)\n            if sequence.narrator",
        "            if sequence.narrator",
        "test_when_the_terminal_event_is_there_slot_and_place_are_free",
    ),
    admission(
        "the finally that closes a stream whose reader is gone",
        """\
        finally:
            sequence.sender.close(terminal)
""",
        """\
        else:
            sequence.sender.close(terminal)
""",
        "test_a_reader_that_is_gone_is_a_cancel",
    ),
    admission(
        "a stream that was ended from outside can be ended again",
        """\
        except (ChannelBroken, ChannelClosed):
            pass  # the reader is gone, or""",
        """\
        except ChannelBroken:
            pass  # the reader is gone, or""",
        "test_a_stream_that_was_ended_from_outside_costs_only_its_own_row",
    ),
    admission(
        "metrics come before the terminal event",
        "            sequence.sender.send(metrics_event(sequence, outcome, vram_bytes))\n",
        "            pass\n",
        "test_metrics_come_once_before_the_terminal",
    ),
    admission(
        "a narrator is closed with its stream",
        "                sequence.narrator.close()\n",
        "                pass\n",
        "test_narration_says_what_happens_and_ends_with_the_stream",
    ),
    admission(
        "each request has an outcome",
        "                sequence.narrator.close()\n            self._records.send(outcome)\n",
        "                sequence.narrator.close()\n",
        "test_max_tokens_is_a_length_stop",
    ),
    engine(
        "the slot is free before the terminal event is there",
        """\
        self._free(sequence)
        self._admission.close(sequence, terminal, self._vram_bytes())
""",
        """\
        self._admission.close(sequence, terminal, self._vram_bytes())
        self._free(sequence)
""",
        "test_when_the_terminal_event_is_there_slot_and_place_are_free",
    ),
    engine(
        "a reader that is gone is noticed in the queue",
        "            elif sequence.cancelled_by is not None or sequence.sender.is_broken:\n",
        "            elif sequence.cancelled_by is not None:\n",
        "test_a_reader_that_is_gone_is_a_cancel[queued]",
    ),
    engine(
        "a cancel ends the request",
        "            elif sequence.cancelled_by is not None or sequence.sender.is_broken:\n",
        "            elif sequence.sender.is_broken:\n",
        "test_text_held_back_at_a_cancel_is_not_sent",
    ),
    engine(
        "who cancelled first is named",
        """\
        if sequence.cancelled_by is None:
            sequence.cancelled_by = by
            self._waiter.wake()
""",
        "        sequence.cancelled_by = by\n",
        "test_a_second_cancel_and_one_behind_the_end_change_nothing",
    ),
    engine(
        "who cancelled is named, not who noticed",
        "        sequence.cancelled_by = sequence.cancelled_by or by\n",
        "        sequence.cancelled_by = by\n",
        "test_a_second_cancel_and_one_behind_the_end_change_nothing",
    ),
]

MUTATIONS: list[Mutation] = [*_ADMISSION, *_DRAIN, *_DEATH, *_ENDINGS]
