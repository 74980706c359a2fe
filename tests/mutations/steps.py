"""Guards of what a step is made of: slots, budgets, draws; and of what is said about how long to wait."""

from tests.mutations.mutation import Mutation, taking_from

scheduler = taking_from("worker/engine/scheduler.py", "tests/engine/test_scheduler.py")
slots = taking_from("worker/engine/kv_cache.py", "tests/engine/test_scheduler.py")
sampler = taking_from("worker/engine/sampler.py", "tests/engine/test_sampler.py")
service_rate = taking_from("worker/engine/service_rate.py", "tests/engine/test_service_rate.py")
log = taking_from("worker/observe/log.py", "tests/observe/test_log.py")

_SCHEDULING = [
    scheduler(
        "a slot is given back",
        "            self._slots.give_back(slot)\n",
        "",
        "test_leaving_in_every_state_gives_the_slot_back",
    ),
    scheduler(
        "a sequence leaves once",
        "        sequence.state = SequenceState.FINISHED\n",
        "",
        "test_the_laws_hold_in_any_order_of_events",
    ),
    scheduler(
        "prompts advance even when decodes fill the budget",
        "max(self._step_tokens - len(rows), MIN_PREFILL_TOKENS)",
        "self._step_tokens - len(rows)",
        "test_prompts_advance_even_when_decodes_fill_the_budget",
    ),
    scheduler(
        "the budget of a step holds",
        "min(budget, sequence.num_tokens - sequence.num_computed)",
        "sequence.num_tokens - sequence.num_computed",
        "test_a_long_prompt_is_cut_and_does_not_stop_the_decodes",
    ),
    scheduler(
        "first come, first served",
        "self._start(self.waiting.popleft())",
        "self._start(self.waiting.pop())",
        "tests/engine/test_engine.py::test_more_requests_than_slots_are_all_served_in_order",
    ),
    scheduler(
        "prompts that have begun go first",
        """\
            if prefilling:
                sequence = prefilling.pop(0)
            elif self.waiting and self._slots.num_free:
                sequence = self._start(self.waiting.popleft())
""",
        """\
            if self.waiting and self._slots.num_free:
                sequence = self._start(self.waiting.popleft())
            elif prefilling:
                sequence = prefilling.pop(0)
""",
        "test_the_laws_hold_in_any_order_of_events",
    ),
    scheduler(
        "nobody starts without a slot",
        "            elif self.waiting and self._slots.num_free:\n",
        "            elif self.waiting:\n",
        "test_who_waits_gets_the_slot_of_who_left_in_the_next_step",
    ),
    slots(
        "a slot has one owner",
        "        if slot in self._free or not 0 <= slot < self.num_slots:\n",
        "        if False:\n",
        "test_the_lowest_free_slot_is_taken",
    ),
]

_SAMPLING = [
    sampler(
        "a device that is lost while drawing is no fault of a row",
        """\
    if isinstance(error, torch.AcceleratorError):
        raise error  # the device is lost for this process: that is no fault of a row
""",
        "",
        "test_a_lost_device_is_no_fault_of_a_row",
    ),
    sampler(
        "nothing is drawn from what is no number",
        "        logits = torch.where(torch.tensor(is_usable, device=logits.device)[:, None], logits, 0.0)\n",
        "        pass\n",
        "test_nothing_is_drawn_from_what_is_no_number",
    ),
    sampler(
        "a row without usable logits fails alone",
        "        if not is_usable[i]\n",
        "        if False\n",
        "test_one_bad_number_fails_its_row_alone",
    ),
    sampler(
        "a row that cannot be drawn does not cost the others theirs",
        "                if len(part) > 1:  # whose fault is it? Draw each alone\n",
        "                if False:\n",
        "test_a_draw_that_fails_fails_its_own_row_and_the_others_keep_their_random_numbers",
    ),
    sampler(
        "a row that is drawn again takes no second random number",
        "[points[i] for i in part]",
        "[rows[i].rng.random() for i in part]",
        "test_a_draw_that_fails_fails_its_own_row_and_the_others_keep_their_random_numbers",
    ),
    sampler(
        "a penalty that fails fails its own row",
        "            except Exception as error:  # this row's own fault\n",
        "            except ZeroDivisionError as error:\n",
        "test_a_penalty_that_fails_fails_its_own_row",
    ),
    sampler(
        "a temperature near zero does not overflow",
        "    if params.temperature < 1e-5:\n",
        "    if params.temperature == 0:\n",
        "test_a_temperature_near_zero_is_greedy",
    ),
]

_RETRY_AFTER = [
    service_rate(
        "Retry-After grows when nobody leaves any more",
        "        elapsed_s = self._clock(now) - left[0][0]\n",
        "        elapsed_s = left[-1][0] - left[0][0]\n",
        "test_when_nobody_leaves_any_more_it_grows",
    ),
    service_rate(
        "time without work does not count for Retry-After",
        "            self._worked_s, self._working_since = self._clock(now), None\n",
        "            pass\n",
        "test_time_without_work_does_not_count",
    ),
    service_rate(
        "Retry-After is at least a second",
        "        return max(1, min(NEVER_LONGER_S, math.ceil(wait_s)))",
        "        return min(NEVER_LONGER_S, math.floor(wait_s))",
        "test_it_is_a_whole_number_within_bounds",
    ),
    service_rate(
        "Retry-After has an upper bound",
        "        return max(1, min(NEVER_LONGER_S, math.ceil(wait_s)))",
        "        return max(1, math.ceil(wait_s))",
        "test_it_is_a_whole_number_within_bounds",
    ),
    service_rate(
        "Retry-After forgets the distant past",
        "deque([(0.0, 0)], maxlen=WINDOW)",
        "deque([(0.0, 0)])",
        "test_the_distant_past_is_forgotten",
    ),
    service_rate(
        "Retry-After can be told before anybody has left",
        "elapsed_s / max(1, len(left) - 1)",
        "elapsed_s / (len(left) - 1)",
        "test_before_anybody_has_left_it_is_at_least_what_has_passed",
    ),
]

_LOG = [
    log(
        "a client that is cut off for not reading is no error in the log",
        "    return not (record.exc_info and isinstance(record.exc_info[1], TimeoutError))\n",
        "    return True\n",
        "test_a_client_that_was_cut_off_is_no_news",
    ),
]

MUTATIONS: list[Mutation] = [*_SCHEDULING, *_SAMPLING, *_RETRY_AFTER, *_LOG]
