"""Every rule of the schema, at the place where the bytes come in."""

import json
import time
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.body import MAX_DEPTH, MAX_VALUES, parse_body
from worker.errors import FieldError, InvalidRequest
from worker.message import MAX_MESSAGES, Message
from worker.request import STRUCTURES, GenerateRequest, SamplingFields, SamplingParams
from worker.schema import StrictModel
from worker.web.chat_completions import ChatCompletionRequest
from worker.web.completions import CompletionRequest

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=200)

HELLO = [{"role": "user", "content": "hello"}]
WEATHER: Any = {"type": "function", "function": {"name": "weather"}}
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CALLED: Any = {"role": "assistant", "tool_calls": [CALL]}


def body(**fields: Any) -> bytes:
    """A valid body with these fields on top."""
    if fields.keys() & {"tools", "tool_choice", "parallel_tool_calls"}:
        fields = {"messages": HELLO, "tools": [WEATHER], **fields}
    return json.dumps({**({} if "messages" in fields else {"prompt": "hello"}), **fields}).encode()


def parse(**fields: Any) -> GenerateRequest:
    return parse_body(GenerateRequest, body(**fields))


def errors_of(raw: bytes, schema: type[StrictModel] = GenerateRequest) -> list[FieldError]:
    with pytest.raises(InvalidRequest) as refusal:
        parse_body(schema, raw)
    assert (refusal.value.status, refusal.value.code) == (400, "INVALID_REQUEST")
    assert refusal.value.errors
    for error in refusal.value.errors:
        assert error.message
        assert error.constraint
        error.field.encode()  # it goes on the wire
        error.message.encode()
    return refusal.value.errors


def refused_fields(**fields: Any) -> list[str]:
    return [error.field for error in errors_of(body(**fields))]


# ---- defaults and translation


def test_defaults_are_neutral() -> None:
    request = parse()
    assert request.sampling(7) == SamplingParams(max_tokens=7)
    assert (request.max_tokens, request.on_disconnect, request.deadline_s, request.narrate) == (None, None, None, False)


@pytest.mark.parametrize("field", sorted(set(GenerateRequest.model_fields) - {"prompt"}))
def test_null_asks_for_the_default(field: str) -> None:
    raw = json.dumps({"prompt": "hello", field: None}).encode()
    assert parse_body(GenerateRequest, raw) == parse()


def test_every_sampling_field_arrives() -> None:
    chosen: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "seed": 42,
        "ignore_eos": True,
        "min_tokens": 2,
    }
    params = parse(**chosen, stop=["a", "b"], stop_token_ids=[5, 3, 5], logit_bias={"7": -100, "07": 1.5}).sampling(3)
    lists: dict[str, Any] = {"stop": ("a", "b"), "stop_token_ids": {3, 5}, "logit_bias": ((7, -100), (7, 1.5))}
    assert parse(logprobs=4).sampling(3).logprobs == 4
    assert params == SamplingParams(max_tokens=3, **lists, **chosen)
    others = {"max_tokens", "logprobs"}  # APIs name them differently
    assert set(SamplingFields.model_fields) - set(STRUCTURES) == set(SamplingParams.__slots__) - others, (
        "a parameter that nobody can set"
    )


def test_one_stop_string_may_come_without_a_list() -> None:
    assert parse(stop="END").sampling(1).stop == ("END",)


# ---- limits


def tool(name: Any, **fields: Any) -> Any:
    return {"type": "function", "function": {"name": name, **fields}}


ACCEPTED: list[tuple[str, list[Any]]] = [
    ("max_tokens", [1, 10**9]),
    ("temperature", [0, 0.0, 2, 2.0]),
    ("top_p", [1e-9, 1, 1.0]),
    ("top_k", [0, 1, 50]),
    ("min_p", [0, 1]),
    ("repetition_penalty", [0.5, 2]),
    ("presence_penalty", [-2, 0, 2.0]),
    ("frequency_penalty", [-2, 0, 2.0]),
    ("seed", [0, 2**64 - 1]),
    ("logit_bias", [{}, {"0": 1, "399": -100, "5": 0.5}, {str(i): 1 for i in range(1024)}]),
    ("stop_token_ids", [[], [0, 5], list(range(64))]),
    ("ignore_eos", [True, False]),
    ("min_tokens", [0, 1, 10**9]),
    ("stop", ["x", "x" * 100, ["a", "b", "c", "d"], []]),
    ("response_format", [{"type": "text"}, {"type": "json_object"}, {"type": "text", "json_schema": None}]),
    ("regex", ["a", "("]),
    ("choice", [["a"], ["a", "a"], ["x" * 1000]]),
    ("grammar", ["start: A"]),
    ("narrate", [True, False]),
    ("on_disconnect", ["cancel", "continue"]),
    ("deadline_s", [0.001, 1, 1e6]),
    ("logprobs", [0, 20]),
    ("prompt", ["x", "\u0000", "語🙂", [0], [5, 10**9]]),
    (
        "messages",
        [
            HELLO,
            [{"role": role, "content": ""} for role in ("system", "developer", "user", "assistant")],
            [{"role": "user", "content": [{"type": "text", "text": "x"}], "name": "y"}],
            [CALLED, CALLED | {"content": None}, CALLED | {"content": "x", "reasoning_content": "y"}],
            [{"role": "assistant", "content": "x", "reasoning_content": "y", "tool_calls": None}],
            [{"role": "tool", "tool_call_id": "call_1", "content": "x"}],
            # as openai-python sends an answer back
            [CALLED | {"content": None, "refusal": None, "annotations": None, "audio": None, "function_call": None}],
            [{"role": "assistant", "content": "{}", "parsed": {}}],
            [{"role": "assistant", "content": "x", "annotations": []}],  # as OpenAI answers
            [{"role": "assistant", "tool_calls": [CALL | {"index": 0}]}],
            [{"role": "assistant", "tool_calls": [CALL | {"function": CALL["function"] | {"parsed_arguments": {}}}]}],
        ],
    ),
    (
        "tools",
        [
            [WEATHER],
            [tool("a", description="b", parameters={"type": "object", "properties": {}}, strict=True), WEATHER],
            [tool("a", description=None, parameters=None, strict=None)],
            [tool("a", parameters={})],
            [tool(f"{i}._-") for i in range(128)],
        ],
    ),
    ("tool_choice", ["none", "auto", "required", WEATHER]),
    ("parallel_tool_calls", [True, False]),
]
REFUSED: list[tuple[str, list[Any]]] = [
    ("max_tokens", [0, -1, 1.0, 1.5, "7", True, [], {}]),
    ("temperature", [-0.01, 2.01, "1", True, float("nan"), float("inf"), 10**400, []]),
    ("top_p", [0, 0.0, -1, 1.01, float("nan"), float("-inf"), "1", True]),
    ("top_k", [-1, 1.0, "5", True]),
    ("min_p", [-0.01, 1.01, float("nan"), "0"]),
    ("repetition_penalty", [0, -1, 2.01, float("nan"), "1"]),
    ("presence_penalty", [-2.01, 2.01, float("nan"), "0"]),
    ("frequency_penalty", [-2.01, 2.01, float("inf"), "0"]),
    ("seed", [-1, 2**64, 1.0, "1", True, 10**400]),
    ("logit_bias", [{str(i): 1 for i in range(1025)}, [], [1], "5"]),
    ("stop_token_ids", [list(range(65)), 5, "5", {}]),
    ("ignore_eos", ["true", 1, 0]),
    ("min_tokens", [-1, 1.0, "1", True]),
    ("response_format", ["text", 1, [], True]),
    ("regex", ["", 1, ["a"]]),
    ("choice", [[], "a", {}]),
    ("grammar", ["", 1, []]),
    ("narrate", ["true", 1, 0]),
    ("on_disconnect", ["ignore", "", 1, True]),
    ("deadline_s", [0, -1, float("nan"), float("inf"), "5", True]),
    ("logprobs", [-1, 21, 1.0, True, "1"]),
    ("prompt", ["", 1, True, [], {}]),
    ("tools", [[], [WEATHER] + [tool(str(i)) for i in range(128)], {}, "weather"]),
    ("tool_choice", ["any", "", 1, []]),
    ("parallel_tool_calls", ["true", 1]),
]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ACCEPTED for value in values])
def test_what_is_accepted(field: str, value: Any) -> None:
    assert parse(**{field: value})


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in REFUSED for value in values])
def test_what_is_refused_names_its_field(field: str, value: Any) -> None:
    assert refused_fields(**{field: value}) == [field]


@pytest.mark.parametrize(
    ("stop", "field"),
    [
        ("", "stop.0"),
        (["a", ""], "stop.1"),
        ("x" * 101, "stop.0"),
        (["a", "b", "c", "d", "e"], "stop"),
        ([1], "stop.0"),
        (["a", None], "stop.1"),
        (7, "stop"),
        ({"a": 1}, "stop"),
    ],
)
def test_stop_strings_that_are_refused(stop: Any, field: str) -> None:
    assert refused_fields(stop=stop) == [field]


def called_with(arguments: str) -> Any:
    return CALL | {"function": {"name": "weather", "arguments": arguments}}


NO_CONTENT = ["messages.0.content"]  # nor calls that are any
BAD_ARGUMENTS = ["messages.0.tool_calls.0.function.arguments"]


def test_tokens_that_are_refused_are_named() -> None:
    assert refused_fields(stop_token_ids=[1, -1, True]) == ["stop_token_ids.1", "stop_token_ids.2"]
    assert refused_fields(choice=["a", "", "x" * 1001, 1]) == ["choice.1", "choice.2", "choice.3"]
    assert refused_fields(prompt=[1, -1, "x"]) == ["prompt.1", "prompt.2"]
    for name, bias in (("5", 101), ("5", float("nan")), ("5", "1"), ("-1", 1), ("x", 1), ("1.5", 1), ("1" * 10, 1)):
        (field,) = refused_fields(logit_bias={name: bias})
        assert field.startswith(f"logit_bias.{name}")


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ([], ["messages"]),
        ("hello", ["messages"]),
        ([{}], ["messages.0.role", "messages.0.content"]),
        ([{"role": "function", "content": "x"}], ["messages.0.role"]),
        ([{"role": "tool", "content": "x"}], ["messages.0.tool_call_id"]),
        ([{"role": "tool", "content": "x", "tool_call_id": ""}], ["messages.0.tool_call_id"]),
        ([{"role": "tool", "tool_call_id": "x"}], ["messages.0.content"]),
        ([HELLO[0] | {"tool_call_id": "x"}], ["messages.0.tool_call_id"]),
        ([HELLO[0] | {"tool_calls": [CALL]}], ["messages.0.tool_calls"]),
        ([HELLO[0] | {"reasoning_content": "x"}], ["messages.0.reasoning_content"]),
        ([HELLO[0] | {"parsed": {}}], ["messages.0.parsed"]),
        ([{"role": "assistant"}], ["messages.0.content"]),
        ([{"role": "assistant", "tool_calls": []}], ["messages.0.tool_calls", "messages.0.content"]),
        ([CALLED | {"refusal": "no"}], ["messages.0.refusal"]),
        ([CALLED | {"annotations": [{"type": "url_citation"}]}], ["messages.0.annotations"]),
        ([CALLED | {"function_call": {}}], ["messages.0.function_call"]),
        ([{"role": "assistant", "tool_calls": [CALL | {"id": ""}]}], ["messages.0.tool_calls.0.id", *NO_CONTENT]),
        ([{"role": "assistant", "tool_calls": [called_with("[]")]}], [*BAD_ARGUMENTS, *NO_CONTENT]),
        ([{"role": "assistant", "tool_calls": [called_with("{")]}], [*BAD_ARGUMENTS, *NO_CONTENT]),
        ([{"role": "assistant", "tool_calls": [called_with(r'{"a": "\ud800"}')]}], [*BAD_ARGUMENTS, *NO_CONTENT]),
        ([{"role": "assistant", "tool_calls": [called_with("[" * 100_000)]}], [*BAD_ARGUMENTS, *NO_CONTENT]),
        ([{"role": "user", "content": None}], ["messages.0.content"]),
        ([{"role": "user", "content": []}], ["messages.0.content"]),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            ["messages.0.content.0.type", "messages.0.content.0.text", "messages.0.content.0.image_url"],
        ),
        ([{"role": "user", "content": ["x"]}], ["messages.0.content.0"]),
        ([{"role": "user", "content": "x", "nick": "y"}], ["messages.0.nick"]),
        ([HELLO[0], 7], ["messages.1"]),
    ],
)
def test_messages_that_are_refused(messages: Any, fields: list[str]) -> None:
    assert refused_fields(messages=messages) == fields


def test_a_call_without_arguments_has_none() -> None:
    """Clients that join what was streamed have an empty text then."""
    (message,) = parse(messages=[CALLED | {"tool_calls": [called_with("")]}]).messages or []
    (call,) = message.tool_calls or []
    assert call.arguments == {}


def test_the_schema_and_the_tests_name_the_same_fields() -> None:
    tested = {field for field, _ in ACCEPTED}
    assert tested == set(GenerateRequest.model_fields)
    assert {field for field, _ in REFUSED} | {"stop", "messages"} == tested
    assert get_args(Message.model_fields["role"].annotation) == ("system", "developer", "user", "assistant", "tool")


# ---- tools


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "é"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a", "parameters": []}, "parameters"),
        ({"name": "a", "parameters": {"type": "string"}}, "parameters"),
        ({"name": "a", "strict": 1}, "strict"),
        ({"name": "a", "returns": {}}, "returns"),
    ],
)
def test_tools_that_are_refused(function: Any, field: str) -> None:
    assert refused_fields(tools=[{"type": "function", "function": function}]) == [f"tools.0.function.{field}"]


def test_tools_of_other_types_are_refused() -> None:
    assert refused_fields(tools=[WEATHER | {"type": "custom"}]) == ["tools.0.type"]
    assert refused_fields(tools=[WEATHER], tool_choice=WEATHER | {"type": "custom"}) == ["tool_choice.type"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": None, "tool_choice": "auto"}, "tool_choice is only allowed with tools"),
        ({"tools": None, "parallel_tool_calls": False}, "parallel_tool_calls is only allowed with tools"),
        ({"tools": [WEATHER, WEATHER]}, "2 tools have the name 'weather'"),
        ({"tool_choice": tool("time")}, "names 'time', which is none of the tools"),
        ({"prompt": "hello", "messages": None}, "tools go with messages"),
        ({"tool_choice": "required", "stop": "x"}, "stop does not go with tool_choice"),
        ({"tool_choice": WEATHER, "min_tokens": 5}, "min_tokens does not go with tool_choice"),
    ],
)
def test_what_does_not_go_together_with_tools(fields: dict[str, Any], words: str) -> None:
    (error,) = errors_of(body(**{"tools": [WEATHER], **fields}))
    assert (error.field, error.constraint) == ("body", "conflict")
    assert words in error.message


@pytest.mark.parametrize("form", ["response_format", "regex", "choice", "grammar"])
def test_an_answer_of_a_given_form_has_no_place_for_calls(form: str) -> None:
    def conflicts(**fields: Any) -> list[str]:
        return GenerateRequest.conflicts({"messages": HELLO, "tools": [WEATHER], **fields})

    assert form in conflicts(**{form: {"type": "json_object"}}, tool_choice="required")[0]
    if form != "response_format":  # an answer is that, or calls
        assert form in conflicts(**{form: {"type": "json_object"}})[0]
    assert conflicts(**{form: {"type": "json_object"}}, tool_choice="none") == []
    assert conflicts(**{form: {"type": "text"}}) == []
    assert GenerateRequest.conflicts({"messages": HELLO, form: {"type": "json_object"}}) == []


def test_a_call_that_may_be_may_be_cut() -> None:
    assert parse(tools=[WEATHER], tool_choice="auto", stop="x", min_tokens=5).stop == ["x"]


def test_what_the_model_sees_of_tools() -> None:
    assert [tool.function.name for tool in parse(tools=[WEATHER]).offered_tools] == ["weather"]
    assert parse(tools=[WEATHER], tool_choice="none").offered_tools == []
    assert parse().offered_tools == []
    choices: list[Any] = [None, "none", "auto", "required", WEATHER]
    assert [parse(tools=[WEATHER], tool_choice=choice).has_to_call for choice in choices] == [False] * 3 + [True] * 2


# ---- every bad field at once


def test_every_bad_field_is_reported_at_once() -> None:
    fields = refused_fields(temperature=9, top_p=0, max_tokens="x", stop=["", "y", ""], colour="red", top_k=-1)
    assert sorted(fields) == ["colour", "max_tokens", "stop.0", "stop.2", "temperature", "top_k", "top_p"]


@pytest.mark.parametrize("raw", [b"{}", b'{"temperature": 1}', b'{"prompt": null}'])
def test_without_an_input_nothing_can_be_done(raw: bytes) -> None:
    assert "prompt or messages" in errors_of(raw)[0].message


def test_two_inputs_are_one_too_many() -> None:
    assert "prompt or messages" in errors_of(body(prompt="x", messages=HELLO))[0].message


def test_a_missing_input_is_reported_beside_other_bad_fields() -> None:
    errors = errors_of(b'{"temperature": 9}')
    assert any("prompt or messages" in error.message for error in errors)
    assert any(error.field == "temperature" for error in errors)


def test_two_limits_are_reported_beside_other_bad_fields() -> None:
    raw = body(messages=HELLO, max_tokens=1, max_completion_tokens=2, temperature=9)
    errors = errors_of(raw, ChatCompletionRequest)
    assert any("max_completion_tokens" in error.message for error in errors)
    assert any(error.field == "temperature" for error in errors)


def test_a_message_names_the_limit_and_the_value() -> None:
    (error,) = errors_of(body(temperature=9))
    assert "2" in error.message
    assert "9" in error.message
    assert error.constraint == "less_than_equal"


def test_a_long_value_is_not_repeated_whole() -> None:
    (error,) = errors_of(body(on_disconnect="x" * 10_000))
    assert len(error.message) < 300


# ---- unknown fields


def test_an_unknown_field_is_refused_by_name_with_what_there_is() -> None:
    (error,) = errors_of(body(max_token=5))
    assert (error.field, error.constraint) == ("max_token", "unknown_field")
    assert "max_tokens" in error.message


@pytest.mark.parametrize("field", ["functions", "n_predict", "", "prompt ", "Prompt"])
def test_unknown_fields_are_refused_also_as_null(field: str) -> None:
    for value in (None, 1):
        (error,) = errors_of(body(**{field: value}))
        assert error.constraint == "unknown_field"
        assert error.field == field or not field


def test_fields_of_the_openai_routes_are_unknown_on_the_native_ones() -> None:
    assert refused_fields(stream=True, model="m") == ["stream", "model"]


# ---- bodies that are not requests


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"nul",
        b"{'a': 1}",
        b'{"prompt": "a",}',
        b"\xff\xfe\x00",
        b'{"prompt": "\xe9"}',
        b"\x00",
        b"{}{}",
    ],
)
def test_a_body_that_is_not_json(raw: bytes) -> None:
    (error,) = errors_of(raw)
    assert (error.field, error.constraint) == ("body", "json")


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"[]", "an array"),
        (b'"x"', "a string"),
        (b"1", "a number"),
        (b"1.5", "a number"),
        (b"null", "null"),
        (b"true", "a boolean"),
    ],
)
def test_a_body_that_is_not_an_object(raw: bytes, name: str) -> None:
    (error,) = errors_of(raw)
    assert error.field == "body"
    assert name in error.message


def test_an_integer_of_too_many_digits() -> None:
    assert errors_of(b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["array", "object"])
@pytest.mark.parametrize("field", ["prompt", "seed", "stop", "messages", "unknown", "prompt.deep"])
def test_nesting_of_any_depth_is_a_bad_request(field: str, shape: str) -> None:
    """Reading, validating and repeating the value each have their own limit; none may show as a crash."""
    for depth in [*range(2, 800, 50), *range(800, 1000), 10_000, 100_000]:
        opening, closing = ("[", "]") if shape == "array" else ('{"a":', "}")
        value = opening * depth + "1" + closing * depth
        name = field.removesuffix(".deep")
        raw = f'{{"{name}": {value}}}' if field == name else f'{{"prompt": "a", "messages": [{value}]}}'
        assert errors_of(raw.encode())


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    """An unknown field this deep: the object around it is one level. The escape has the text looked through."""
    value = opening * (depth - 1) + closing * (depth - 1)
    return f'{{"\\u0041": {value.replace(opening + closing, "{}" if closing == "}" else "[]")}}}'.encode()


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_has_a_limit_of_its_own_which_is_named(opening: str, closing: str) -> None:
    assert "json" not in [error.constraint for error in errors_of(nested(MAX_DEPTH, opening, closing))]
    for depth in (MAX_DEPTH + 1, 900, 960, 9_000):
        (error,) = errors_of(nested(depth, opening, closing))
        assert (error.field, error.constraint) == ("body", "json")
        assert f"more than {MAX_DEPTH} levels" in error.message


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "prompt"),
        (b'{"prompt": "a", "seed": 1, "temperature": 1, "seed": 1}', "seed"),
        (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
        (rb'{"\ud800": 1, "\ud800": 2}', "\\ud800"),
    ],
)
def test_a_field_that_is_there_twice_is_refused_by_name(raw: bytes, name: str) -> None:
    (error,) = errors_of(raw)
    assert (error.field, error.constraint) == (name, "duplicate")


def test_values_are_bounded_in_number() -> None:
    for raw in (
        b'{"messages":[' + b"1," * MAX_VALUES + b"1]}",
        b'{"prompt":"a","x":[' + b"[]," * MAX_VALUES + b"[]]}",
        b"{" + b",".join(b'"%d":"%d"' % (n, n) for n in range(MAX_VALUES + 2)) + b"}",
    ):
        (error,) = errors_of(raw)
        assert (error.field, error.constraint) == ("body", "too_many")
        assert str(MAX_VALUES) in error.message


def test_two_thousand_messages_are_accepted_and_no_more_than_openai_takes() -> None:
    assert len(parse(messages=HELLO * MAX_MESSAGES).messages or ()) == MAX_MESSAGES
    [error] = errors_of(body(prompt=None, messages=HELLO * (MAX_MESSAGES + 1)))
    assert (error.field, error.constraint) == ("messages", "too_long")
    assert f"at most {MAX_MESSAGES}" in error.message


@pytest.mark.parametrize("text", ['{"a": [1,2], "b": "c"}' * 4000, "," * 30_000, '\\"' * 30_000, "\\\\" * 30_000])
def test_what_is_in_a_string_is_no_value(text: str) -> None:
    assert parse(prompt=text).prompt == text


@pytest.mark.slow
@pytest.mark.parametrize("raw", [b'{"a":"' + rb"\"," * 300_000, b'"' * 400_001 + b"," * 20_000, b'"\\' + b"," * 20_000])
def test_strings_that_do_not_end_are_refused_quickly(raw: bytes) -> None:
    """To look for the end of a string from each quote in it would take hours."""
    started_at = time.process_time()
    assert errors_of(raw)
    assert time.process_time() - started_at < 2.0


def test_two_of_many_fields_are_found_quickly() -> None:
    names = [*range(5000), 4999]
    started_at = time.process_time()
    (error,) = errors_of(b"{" + b",".join(b'"%d":1' % name for name in names) + b"}")
    assert error.field == "4999"
    assert time.process_time() - started_at < 0.5


def test_a_long_name_of_an_unknown_field_is_not_repeated_whole() -> None:
    (error,) = errors_of(body(**{"x" * 10_000: 1}))
    assert len(error.field) < 100


@pytest.mark.parametrize(
    "raw",
    [
        r'{"prompt": "\ud800"}',
        r'{"prompt": "a\udfff"}',
        r'{"prompt": "a", "stop": "\ud83d"}',
        r'{"prompt": "a", "stop": ["b", "\ud83d"]}',
        r'{"prompt": "a", "on_disconnect": "\ud800"}',
        r'{"prompt": "a", "\ud800": 1}',
        r'{"messages": [{"role": "\ud800", "content": "a"}]}',
        r'{"messages": [{"role": "user", "content": "a\udfff"}]}',
        r'{"messages": [{"role": "user", "content": "a", "\ud800": 1}]}',
    ],
)
def test_half_a_surrogate_is_not_text(raw: str) -> None:
    """It cannot be encoded, so the tokenizer would raise on it."""
    assert errors_of(raw.encode())


@pytest.mark.parametrize("field", ["model", "user"])
def test_half_a_surrogate_is_not_text_on_the_openai_routes(field: str) -> None:
    assert errors_of(body(**{field: "\ud800"}), CompletionRequest)


def test_whole_surrogates_are_text() -> None:
    assert parse_body(GenerateRequest, rb'{"prompt": "\ud83d\ude42"}').prompt == "🙂"


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["user", "cancel", 2**64, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(sorted({*GenerateRequest.model_fields, *ChatCompletionRequest.model_fields, "other"}))


@pytest.mark.slow
@pytest.mark.parametrize("schema", [GenerateRequest, ChatCompletionRequest, CompletionRequest])
def test_any_object_is_a_request_or_a_bad_one(schema: type[StrictModel]) -> None:
    @repeatable
    @given(st.dictionaries(names, anything, max_size=6))
    def check(fields: dict[str, Any]) -> None:
        raw = json.dumps(fields).encode()
        try:
            parse_body(schema, raw)
        except InvalidRequest:
            assert errors_of(raw, schema)

    check()


@repeatable
@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_bad_one(raw: bytes) -> None:
    try:
        parse_body(GenerateRequest, raw)
    except InvalidRequest:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "raw", [b'{"messages":[' + b"0," * 60_000 + b"0]}", b"{" + b",".join(b'"%d":1' % n for n in range(30_000)) + b"}"]
)
def test_a_body_full_of_faults_is_refused_with_a_short_answer(raw: bytes) -> None:
    """The answer to a body of 2 MB took 31 s of a server that does nothing else meanwhile, and had 70 MB."""
    started_at = time.process_time()
    errors = errors_of(raw)
    assert sum(len(error.message) for error in errors) < 1_000_000
    assert time.process_time() - started_at < 2.0


# ---- OpenAI's shapes


def test_a_chat_completion_translates() -> None:
    raw = body(messages=HELLO, model="m", stream=True, stream_options={"include_usage": True}, max_completion_tokens=5)
    request = parse_body(ChatCompletionRequest, raw)
    assert request.stream_options is not None
    assert request.stream_options.include_usage
    translated = request.to_generate()
    assert translated.messages == [Message(role="user", content="hello")]
    assert (translated.prompt, translated.max_tokens) == (None, 5)
    assert translated == parse(messages=HELLO, max_tokens=5)


def test_a_completion_translates() -> None:
    assert parse_body(CompletionRequest, body()).to_generate() == [parse()]
    assert parse_body(CompletionRequest, body(max_tokens=None)).to_generate() == [parse()]
    assert parse_body(CompletionRequest, body(max_tokens=3, seed=1)).to_generate() == [parse(max_tokens=3, seed=1)]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]])],
)
def test_prompts_come_in_four_forms(prompt: Any, prompts: list[Any]) -> None:
    translated = parse_body(CompletionRequest, body(prompt=prompt)).to_generate()
    assert [request.prompt for request in translated] == prompts


def test_logprobs_have_a_name_in_each_api() -> None:
    def asked(**fields: Any) -> int | None:
        return parse_body(ChatCompletionRequest, body(messages=HELLO, **fields)).to_generate().sampling(1).logprobs

    assert asked() is None
    assert asked(logprobs=False) is None
    assert asked(logprobs=True) == 0
    assert asked(logprobs=True, top_logprobs=5) == 5
    assert parse_body(CompletionRequest, body(logprobs=3)).to_generate()[0].sampling(1).logprobs == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False},
        {"service_tier": "auto"},
        {"service_tier": "default"},
        {"modalities": ["text"]},
        {"safety_identifier": "x", "prompt_cache_key": "y", "user": "z", "metadata": {"a": "b"}},
        {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": None}},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_what_asks_for_what_is_done_anyway_changes_nothing(fields: dict[str, Any]) -> None:
    """Clients say so by default; to refuse it would be to refuse them."""
    request = parse_body(ChatCompletionRequest, json.dumps({"messages": HELLO, **fields}).encode())
    assert request.to_generate() == parse(messages=HELLO)
    assert not request.include_usage


def test_as_many_answers_as_are_given_are_made() -> None:
    for fields in ({"best_of": 1}, {"best_of": 1, "n": 1}, {"best_of": 3, "n": 3}):
        assert parse_body(CompletionRequest, body(**fields)).to_generate() == [parse()]


def test_every_shared_field_is_translated() -> None:
    chosen: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "seed": 42,
        "logit_bias": {"5": -1},
        "stop": ["a"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "min_tokens": 1,
        "max_tokens": 9,
    }
    tools: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": False}
    assert parse_body(CompletionRequest, body(**chosen)).to_generate() == [parse(**chosen)]
    chat = parse_body(ChatCompletionRequest, body(messages=HELLO, **chosen, **tools)).to_generate()
    assert chat == parse(messages=HELLO, **chosen, **tools)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n": 129}, ["n"]),
        ({"logprobs": 1}, ["logprobs"]),
        ({"logprobs": True, "top_logprobs": 21}, ["top_logprobs"]),
        ({"top_logprobs": 1}, ["body"]),
        ({"metadata": {"a": 1}}, ["metadata.a"]),
        ({"n": 0}, ["n"]),
        ({"stream": "yes"}, ["stream"]),
        ({"stream": True, "stream_options": {"include_usage": 1}}, ["stream_options.include_usage"]),
        ({"stream": True, "stream_options": {"chunk": 1}}, ["stream_options.chunk"]),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, ["stream_options.include_obfuscation"]),
        ({"store": True}, ["store"]),
        ({"service_tier": "priority"}, ["service_tier"]),
        ({"modalities": ["text", "audio"]}, ["modalities"]),
        ({"modalities": []}, ["modalities"]),
        ({"stream_options": {"include_usage": True}}, ["body"]),
        ({"max_tokens": 1, "max_completion_tokens": 1}, ["body"]),
        ({"tools": []}, ["tools"]),
        ({"messages": None}, ["messages"]),
        ({"narrate": True}, ["narrate"]),
    ],
)
def test_chat_completions_that_are_refused(fields: dict[str, Any], expected: list[str]) -> None:
    raw = json.dumps({"messages": HELLO, **fields}).encode()
    assert [error.field for error in errors_of(raw, ChatCompletionRequest)] == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt.1"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [[1], [-1]]}, "prompt.1.0"),
        ({"prompt": [[1], []]}, "prompt.1"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"echo": True, "logprobs": 1}, "body"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "body"),
        ({"best_of": 1, "n": 2}, "body"),
    ],
)
def test_completions_that_are_refused(fields: dict[str, Any], expected: str) -> None:
    raw = json.dumps({"prompt": "a", **fields}).encode()
    assert [error.field for error in errors_of(raw, CompletionRequest)] == [expected]


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse().temperature = 0.1
