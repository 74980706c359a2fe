"""Guards of structured output: what may be drawn, and grammars that nobody should send."""

from tests.mutations.mutation import Mutation, taking_from

_ENGINE = "tests/engine/test_constraints.py"
constraint = taking_from("worker/engine/constraints.py", _ENGINE)
matcher = taking_from("worker/engine/matcher.py", _ENGINE)
vet = taking_from("worker/engine/vet.py", _ENGINE)
sampler = taking_from("worker/engine/sampler.py", _ENGINE)
engine = taking_from("worker/engine/engine.py", _ENGINE)
delivery = taking_from("worker/engine/delivery.py", _ENGINE)
scheduler = taking_from("worker/engine/scheduler.py", _ENGINE)
grammars = taking_from("worker/grammars.py", "tests/test_grammars.py")
structure = taking_from("worker/structure.py", "tests/test_structure.py")
request = taking_from("worker/request.py", "tests/test_structure.py")

MUTATIONS: list[Mutation] = [
    constraint(
        "a panic while a mask is found is told to who waits",
        "        except BaseException as fault:  # a panic",
        "        except Exception as fault:  # a panic",
        "test_whoever_waits_for_a_mask_is_told_of_a_fault",
    ),
    constraint(
        "a panic at a token does not end the generation thread",
        '    @without_panics("llguidance")\n    def advance(',
        "    def advance(",
        "test_a_panic_on_the_generation_thread_is_an_error",
    ),
    constraint(
        "nobody waits for a mask for ever",
        "self._is_found.acquire(True, MASK_LIMIT_S)",
        "self._is_found.acquire(True, 3600)",
        "test_nobody_waits_for_ever",
    ),
    constraint(
        "the model may end where the text is whole",
        "        if self._can_end:\n            for end_id",
        "        if False:\n            for end_id",
        "test_the_end_is_allowed_exactly_where_the_text_is_whole",
    ),
    constraint(
        "an end that the grammar names too early is a failure",
        "        if is_end and not self._matcher.is_accepting():\n",
        "        if False:\n",
        "test_a_grammar_that_goes_on_behind_such_a_token_fails_by_name",
    ),
    matcher(
        "a text that loses its first space begins with none",
        "    for token_id in (*shut_ids, vocab_size):",
        "    for token_id in (vocab_size,):",
        "test_of_a_text_that_loses_its_first_space_none_begins_with_one",
    ),
    matcher(
        "the mask of a matcher at its end is not believed",
        "    if matcher.is_error():  # of which",
        "    if False:  # of which",
        "test_the_mask_of_a_matcher_that_is_at_its_end_is_not_believed",
    ),
    matcher(
        "a grammar that holds no text is refused",
        "    if mask.count(0) == len(mask) and not matcher.is_accepting():\n",
        "    if False:\n",
        "test_a_hostile_grammar_is_refused_in_time",
    ),
    matcher(
        "no token is forced",
        "grammar + _OPTIONS",
        "grammar",
        "test_a_grammar_cannot_have_tokens_forced",
    ),
    vet(
        "a grammar has a limit of time",
        "        signal.setitimer(signal.ITIMER_PROF, limit_s)",
        "        signal.setitimer(signal.ITIMER_PROF, 3600)",
        "test_a_grammar_that_takes_too_long_is_refused",
    ),
    vet(
        "a grammar has a limit of memory",
        "    resource.setrlimit(resource.RLIMIT_AS, (num_bytes + limit_bytes,) * 2)\n",
        "",
        "test_a_grammar_that_takes_too_much_memory_is_refused",
    ),
    vet(
        "a process that somebody has ended says nothing of a grammar",
        "        if reason is None:\n",
        "        if False:\n",
        "test_a_process_that_somebody_ends_is_no_fault_of_the_grammar",
    ),
    vet(
        "the process goes with who has started it",
        "        if self._pid and not sys.is_finalizing():",
        "        if False:",
        "test_the_process_goes_with_who_has_started_it",
    ),
    sampler(
        "what is not allowed is not drawn",
        '        logits[shut_in] = torch.where(allowed, logits[shut_in], float("-inf"))\n',
        "",
        "test_only_what_is_allowed_is_drawn_and_neighbours_do_not_notice",
    ),
    sampler(
        "a row in which nothing is left fails by name",
        "        elif not numbers[len(rows) + i]:\n",
        "        elif False:\n",
        "test_a_row_in_which_nothing_is_left_fails_by_name_and_alone",
    ),
    sampler(
        "a grammar at fault ends its own row",
        "        except InferenceFailed as error:\n            failures[i] = error\n",
        "        except ZeroDivisionError as error:\n            failures[i] = error  # type: ignore[assignment]\n",
        "test_a_row_whose_grammar_is_at_fault_fails_alone",
    ),
    engine(
        "an answer that is found to be complete ends",
        "                if i in tokens.complete:\n",
        "                if False:\n",
        "test_an_answer_ends_by_itself_where_the_model_has_no_end",
    ),
    engine(
        "the grammar sees every token",
        "            sequence.constraint.advance(token_id)\n",
        "            pass\n",
        "test_an_answer_is_the_same_alone_and_in_company",
        "test_an_answer_that_is_complete_with_its_last_token_is_not_cut",
    ),
    delivery(
        "an answer ends with the token behind which nothing can follow",
        "    is_last = ending is not None or is_complete or num_tokens",
        "    is_last = ending is not None or num_tokens",
        "test_an_answer_that_is_complete_takes_no_further_step",
    ),
    delivery(
        "a complete answer is not said to be cut",
        "(StopReason.EOS if is_complete else StopReason.MAX_TOKENS)",
        "StopReason.MAX_TOKENS",
        "test_an_answer_that_is_complete_with_its_last_token_is_not_cut",
    ),
    scheduler(
        "nothing is guessed where there is a grammar",
        "[] if sequence.constraint else sequence.lookup",
        "sequence.lookup",
        "test_what_follows_in_a_grammar_is_not_guessed",
    ),
    grammars(
        "only so many new grammars wait",
        "            if len(self._waiting) >= MAX_WAITING:\n",
        "            if False:\n",
        "test_new_ones_wait_for_each_other_and_known_ones_for_nobody",
    ),
    grammars(
        "a known grammar does not wait for new ones",
        "        if compiler is None or not compiler.has_tried(structure):\n",
        "        if True:\n",
        "test_new_ones_wait_for_each_other_and_known_ones_for_nobody",
    ),
    grammars(
        "a tokenizer whose tokens say nothing alone is refused",
        "        if model.tokenizer.drops_first_space is None:\n",
        "        if False:\n",
        "test_a_model_whose_tokens_say_nothing_alone_has_none",
    ),
    structure(
        "a grammar has a limit of length",
        "    if len(structure.grammar) > MAX_GRAMMAR_CHARACTERS:\n",
        "    if False:\n",
        "test_a_grammar_has_a_limit_that_is_named",
    ),
    structure(
        "a schema cannot change how it is read",
        "    if _OPTIONS in schema:\n",
        "    if False:\n",
        "test_a_schema_cannot_change_how_it_is_read",
    ),
    request(
        "only one form may be asked for",
        "        if len(given) > 1:\n",
        "        if False:\n",
        "test_only_one_may_be_given",
    ),
    request(
        "what could cut an answer is refused beside its form",
        "        return _cuts_in(data, given[0]) if given else []\n",
        "        return []\n",
        "test_what_could_cut_the_answer_is_refused",
    ),
]
