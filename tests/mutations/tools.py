"""Guards of tools and reasoning: what a call is, how conversations are written, and what is refused."""

from tests.mutations.mutation import Mutation, taking_from

answer = taking_from("worker/answer.py", "tests/test_answer.py")
parser = taking_from("worker/answer_parser.py", "tests/test_answer.py")
conversation = taking_from("worker/engine/conversation.py", "tests/engine/test_conversation.py")
call_grammar = taking_from("worker/call_grammar.py", "tests/test_call_grammar.py")
chat = taking_from("worker/web/chat_completions.py", "tests/web/test_tools.py")
jobs = taking_from("worker/jobs.py", "tests/web/test_tools.py")
prompts = taking_from("worker/prompts.py", "tests/web/test_tools.py")
message = taking_from("worker/message.py", "tests/test_request.py")
request = taking_from("worker/request.py", "tests/test_request.py")

_ANSWERS = [
    parser(
        "what may be the beginning of a mark is held back",
        '            end, mark = min(found, default=(_undecided_from(self._rest, marks), ""))\n',
        '            end, mark = min(found, default=(len(self._rest), ""))\n',
        "test_how_the_text_is_cut_makes_no_difference",
    ),
    parser(
        "white space in front of a call is no text",
        "            self._say(len(self._rest[:end].rstrip(_SPACES)) if opening else end)\n",
        "            self._say(end)\n",
        "test_text_may_be_around_calls_and_space_beside_them_is_not_text",
    ),
    parser(
        "only a tool that was offered is called",
        "                if name not in self._format.tool_names:\n                    return is_begun\n",
        "",
        "test_what_is_no_call_is_text",
    ),
    parser(
        "a bracket in a string closes nothing",
        "            elif character == '\"':\n                self._is_in_string = True\n",
        "            elif character == '\"':\n                pass\n",
        "test_a_call_of_each_format",
    ),
    parser(
        "a call that is cut is not complete",
        "        return self._num_ended if self._num_ended == self._num_begun else 0\n",
        "        return self._num_ended\n",
        "test_of_several_calls_one_that_is_cut_makes_none_complete",
    ),
    parser(
        "a call whose arguments are no JSON is not complete",
        "        if is_json_object(given):\n",
        "        if True:\n",
        "test_a_call_whose_arguments_are_no_json_is_not_complete",
    ),
    parser(
        "a special token that is no part of a call is not shown",
        "                if mark in self._format.special_marks:\n",
        "                if False:\n",
        "test_a_special_token_that_is_no_part_of_a_call_is_not_shown",
    ),
    parser(
        "if there may be one call the answer is over behind it",
        "        return self._num_begun > 0 and not self._format.has_many_calls\n",
        "        return False\n",
        "test_if_there_may_be_one_call_the_answer_is_over_behind_it",
    ),
    parser(
        "a name that does not end is not waited for",
        "            if len(self._rest) > at + _MAX_STRING or not (yield from self._more()):\n",
        "            if not (yield from self._more()):\n",
        "test_a_string_that_does_not_end_is_text_before_the_answer_ends",
    ),
    parser(
        "logprobs of markup are not told with the text",
        "        self._num_taken += num\n",
        "        self._num_taken += num * bool(self._parts)\n",
        "test_logprobs_stay_with_the_text_that_their_token_begins",
    ),
]

_GRAMMARS = [
    call_grammar(
        "of a named tool there is one call",
        "        is_one = isinstance(choice, NamedTool) or not answer_format.has_many_calls\n",
        "        is_one = not answer_format.has_many_calls\n",
        "test_one_call_if_there_may_be_one_or_it_is_named",
    ),
    call_grammar(
        "strict tools are kept to where calls may be",
        "    elif strict:\n",
        "    elif False:\n",
        "tests/web/test_tools.py::test_a_call_of_a_strict_tool_fits_its_schema",
    ),
    call_grammar(
        "an answer of a given form is no call by accident",
        "        if not _MARKS[answer_format.calls]:\n",
        "        if False:\n",
        "test_an_answer_whose_form_is_given_is_that_or_calls",
    ),
    call_grammar(
        "a grammar of calls is not too long",
        "    check_length(structure)\n",
        "",
        "test_a_schema_says_nothing_to_the_server_and_is_not_too_long",
    ),
    call_grammar(
        "a special token is named by its id",
        "        special = self._format.special_marks\n",
        "        special = dict[str, int]()\n",
        "tests/web/test_tools.py::test_a_call_that_has_to_be_is_made_and_fits_the_schema",
    ),
    call_grammar(
        "reasoning may be in front of calls that have to be",
        '        if self._format.reasoning is None:\n            return ""\n',
        '        return ""\n',
        "tests/web/test_tools.py::test_a_call_that_has_to_be_is_made_behind_the_reasoning",
    ),
    answer(
        "an answer of a given form has no reasoning",
        "        reasoning = None if request.has_form else self.reasoning\n",
        "        reasoning = self.reasoning\n",
        "tests/web/test_tools.py::test_an_answer_of_a_given_form_has_no_reasoning",
    ),
    request(
        "what could cut a call that has to be does not go with it",
        '            found += _cuts_in(data, "tool_choice")\n',
        "            pass\n",
        "test_what_does_not_go_together_with_tools",
    ),
]

_REQUESTS = [
    conversation(
        "Mistral's templates get ids of nine characters",
        '    has_short_ids = "[TOOL_CALLS]" in (template or "")\n',
        "    has_short_ids = False\n",
        "test_mistrals_templates_get_ids_of_nine_characters",
    ),
    conversation(
        "a user has one turn at a time",
        '        if i > 0 and message.role == messages[i - 1].role == "tool":',
        "        if False:",
        "test_for_a_template_that_knows_no_tools_calls_and_answers_are_text",
    ),
    chat(
        "a limit that is reached reads length, behind a call too",
        '    return "tool_calls" if parser.num_calls and finish_reason == "stop" else finish_reason\n',
        '    return "tool_calls" if parser.num_calls else finish_reason\n',
        "test_a_whole_call_behind_which_the_limit_is_reached_reads_length[hermes]",
    ),
    jobs(
        "a prompt may have begun the reasoning",
        'model.tokenizer.decode(prompt_ids[-MARK_TOKENS:]) if request.messages is not None else ""',
        '""',
        "test_reasoning_is_apart_from_the_text",
    ),
    prompts(
        "tools whose calls are not understood are refused",
        "    if request.offered_tools and format.calls is None:\n",
        "    if False:\n",
        "test_tools_of_a_model_whose_calls_are_not_understood_are_refused",
    ),
    message(
        "half of a surrogate pair in the arguments of a call is no text",
        "        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()",
        "        json.dumps(value, ensure_ascii=False, allow_nan=False)",
        "test_messages_that_are_refused",
    ),
    message(
        "a message says something",
        '        if value is None and not info.data.get("tool_calls"):\n',
        "        if False:\n",
        "test_messages_that_are_refused",
    ),
    request(
        "of tools with one name none is called",
        "        if number > 1:\n",
        "        if False:\n",
        "test_what_does_not_go_together_with_tools",
    ),
]

MUTATIONS: list[Mutation] = [*_ANSWERS, *_GRAMMARS, *_REQUESTS]
