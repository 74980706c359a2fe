"""The language of answers that have to call, as text; that models keep to it is in tests/web/test_tools.py."""

import json
from typing import Any

import pytest

from worker.answer import AnswerFormat, CallFormat
from worker.call_grammar import structure_of_calls
from worker.errors import InvalidRequest
from worker.request import GenerateRequest
from worker.structure import json_rule

SPECIAL = {"[TOOL_CALLS]": 5, "[ARGS]": 6}
CITY: Any = {"properties": {"city": {"type": "string"}}}
CITY_RULE = json_rule({"type": "object", **CITY})
NOTHING_RULE = json_rule({"type": "object", "additionalProperties": False})
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "time"}},
]


def grammar(format: AnswerFormat, field: str = "tools", **fields: Any) -> list[str] | None:
    """The rules, one a line."""
    asked = {"messages": [{"role": "user", "content": "hello"}], "tools": TOOLS, "tool_choice": "required", **fields}
    request = GenerateRequest.model_validate(asked)
    structure = structure_of_calls(request, format.of_request(request, "<think>" if format.is_reasoning else ""))
    if structure is None:
        return None
    assert structure.field == field
    return structure.grammar.split("\n")


def test_hermes() -> None:
    assert grammar(AnswerFormat(calls=CallFormat.HERMES)) == [
        'start: call ("\\n" call)*',
        "call: call_0 | call_1",
        r'call_0: "<tool_call>\n{\"name\": \"weather\", \"arguments\": " arguments_0 "}\n</tool_call>"',
        f"arguments_0: {CITY_RULE}",
        r'call_1: "<tool_call>\n{\"name\": \"time\", \"arguments\": " arguments_1 "}\n</tool_call>"',
        f"arguments_1: {NOTHING_RULE}",
    ]


def test_llama3() -> None:
    rules = grammar(AnswerFormat(calls=CallFormat.LLAMA3), tools=TOOLS[1:])
    assert rules == [
        'start: call ("; " call)*',
        "call: call_0",
        r'call_0: "{\"name\": \"time\", \"parameters\": " arguments_0 "}"',
        f"arguments_0: {NOTHING_RULE}",
    ]


def test_mistral() -> None:
    rules = grammar(AnswerFormat(calls=CallFormat.MISTRAL, special_marks=SPECIAL), tools=TOOLS[1:])
    assert rules == [
        'start: <[5]> "[" call (", " call)* "]"',
        "call: call_0",
        r'call_0: "{\"name\": \"time\", \"arguments\": " arguments_0 "}"',
        f"arguments_0: {NOTHING_RULE}",
    ]


def test_mistral_with_names() -> None:
    rules = grammar(AnswerFormat(calls=CallFormat.MISTRAL_NAMED, special_marks=SPECIAL), tools=TOOLS[1:])
    assert rules == [
        "start: call ( call)*",
        "call: call_0",
        'call_0: <[5]> "time" <[6]> arguments_0',
        f"arguments_0: {NOTHING_RULE}",
    ]


STRICT: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "time"}},
]


IN_TEXT = "start: (said calls)* any_text"
TEXT = r"/(.|\n)*/"


@pytest.mark.parametrize(
    ("format", "start", "call"),
    [
        (
            AnswerFormat(calls=CallFormat.HERMES),
            [IN_TEXT, "calls: call", f'said[suffix="<tool_call>"]: {TEXT}', f"any_text: {TEXT}"],
            r'"\n{\"name\": \"weather\", \"arguments\": " arguments_0 "}\n</tool_call>"',
        ),
        (
            AnswerFormat(calls=CallFormat.MISTRAL, special_marks=SPECIAL),
            [IN_TEXT, 'calls: "[" call (", " call)* "]"', f"said: {TEXT} <[5]>", f"any_text: {TEXT}"],
            r'"{\"name\": \"weather\", \"arguments\": " arguments_0 "}"',
        ),
        (
            AnswerFormat(calls=CallFormat.MISTRAL_NAMED, special_marks=SPECIAL),
            [IN_TEXT, "calls: call", f"said: {TEXT} <[5]>", f"any_text: {TEXT}"],
            '"weather" <[6]> arguments_0',
        ),
        (
            AnswerFormat(calls=CallFormat.LLAMA3),
            ['start: (call ("; " call)* | NO_CALL)', rf'NO_CALL: {TEXT} & ~/[ \t\r\n]*\{{[ \t\r\n]*"name(.|\n)*/'],
            r'"{\"name\": \"weather\", \"parameters\": " arguments_0 "}"',
        ),
    ],
)
def test_where_calls_may_be_those_of_strict_tools_fit(format: AnswerFormat, start: list[str], call: str) -> None:
    found = grammar(format, tools=STRICT, tool_choice="auto", field="tools.0.function.strict")
    assert found is not None
    rules = [*start, "call: call_0 | call_1", f"call_0: {call}", f"arguments_0: {CITY_RULE}"]
    assert found[: len(rules)] == rules
    assert found[-1] == f"arguments_1: {json_rule({'type': 'object'})}"


def test_a_schema_says_nothing_to_the_server_and_is_not_too_long() -> None:
    for parameters, constraint in (({"x-guidance": {}}, "not_supported"), ({"title": "x" * 200_000}, "too_long")):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        with pytest.raises(InvalidRequest) as refusal:
            grammar(AnswerFormat(calls=CallFormat.HERMES), tools=tools)
        assert [error.constraint for error in refusal.value.errors] == [constraint]


def test_one_call_if_there_may_be_one_or_it_is_named() -> None:
    hermes = AnswerFormat(calls=CallFormat.HERMES)
    alone = grammar(hermes, parallel_tool_calls=False)
    assert alone is not None
    assert alone[:2] == ["start: call", "call: call_0 | call_1"]
    named = grammar(hermes, tool_choice=TOOLS[1])
    assert named is not None
    assert named[:2] == ["start: call", "call: call_1"]
    assert "time" in named[2]


def test_reasoning_may_be_in_front() -> None:
    thinking = AnswerFormat(calls=CallFormat.HERMES, reasoning=("<think>", "</think>"))
    rules = grammar(thinking, parallel_tool_calls=False)
    assert rules is not None
    assert rules[:3] == [
        'start: ("<think>" reasoning)? call',
        r"reasoning: thought /\n{0,2}/",
        r'thought[suffix="</think>"]: /(.|\n)*/',
    ]
    begun = grammar(
        AnswerFormat(calls=CallFormat.HERMES, reasoning=("<think>", "</think>"), is_reasoning=True),
        parallel_tool_calls=False,
    )
    assert begun is not None
    assert begun[0] == "start: reasoning call"
    marks = {"[THINK]": 7, "[/THINK]": 8}
    special = grammar(
        AnswerFormat(calls=CallFormat.LLAMA3, reasoning=("[THINK]", "[/THINK]"), special_marks=marks),
        parallel_tool_calls=False,
    )
    assert special is not None
    assert special[0] == "start: (<[7]> reasoning)? call"
    assert special[2] == r"thought: /(.|\n)*/ <[8]>"


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_who_does_not_have_to_call_says_what_it_likes(choice: Any) -> None:
    assert grammar(AnswerFormat(calls=CallFormat.HERMES), tool_choice=choice) is None


def test_an_answer_whose_form_is_given_is_that_or_calls() -> None:
    asked: Any = {"tools": TOOLS, "tool_choice": "auto", "field": "response_format"}
    asked["response_format"] = {"type": "json_object"}
    rules = grammar(AnswerFormat(calls=CallFormat.HERMES, reasoning=("<think>", "</think>")), **asked)
    assert rules is not None
    assert rules[:2] == ['start: call ("\\n" call)* | answer', f"answer: {json_rule({'type': 'object'})}"]
    one = grammar(AnswerFormat(calls=CallFormat.MISTRAL, special_marks=SPECIAL), parallel_tool_calls=False, **asked)
    assert one is not None
    assert one[0] == 'start: <[5]> "[" call "]" | answer'
    with pytest.raises(InvalidRequest, match="without a mark") as refusal:
        grammar(AnswerFormat(calls=CallFormat.LLAMA3), **asked)
    assert [error.field for error in refusal.value.errors] == ["response_format"]


def test_references_in_a_schema_stay_at_its_root() -> None:
    schema = {"$defs": {"a": {"type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/a"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    rules = grammar(AnswerFormat(calls=CallFormat.HERMES), tools=tools)
    assert rules is not None
    written = json.loads(rules[-1].partition("%json ")[2])
    assert written["$defs"] == schema["$defs"]
