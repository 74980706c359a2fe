"""Calls and reasoning in the events of responses and messages, without a server: each event against its type."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import Response
from pydantic import TypeAdapter

from tests.support.sdk_types import assert_exact
from tests.web.test_messages import events_in as message_events_in
from tests.web.test_responses import assert_told_once, events_in
from worker.answer import AnswerFormat, CallFormat
from worker.body import parse_body
from worker.errors import InvalidRequest
from worker.events import End, Event, Failure, Started, StopReason, Token, Usage
from worker.web.messages import MessagesTranslator
from worker.web.messages_request import MessagesRequest
from worker.web.responses import _said_before
from worker.web.responses_request import ResponseRequest, messages_of, name_of
from worker.web.responses_translator import Asked, ResponseTranslator

FORMAT = AnswerFormat(reasoning=("<think>", "</think>"), calls=CallFormat.HERMES, tool_names=frozenset({"look", "go"}))
TOOLS = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("look", "go")]
CALL = '<tool_call>{"name": "look", "arguments": {"at": "this"}}</tool_call>'
ANSWER = "<think>\nwhat is it\n</think>\nI see." + CALL + '<tool_call>{"name": "go", "arguments": {}}</tool_call>'
STARTED = Started("j", "endstop-tiny", "2026-01-01T00:00:00.000+00:00")
USAGE = Usage(20, 9, 4)
USER = {"role": "user", "content": "x"}


def job() -> Any:
    return SimpleNamespace(
        id="j", started=STARTED, begun_at=10.0, ended_at=12.5, answer_format=FORMAT, num_prompt_tokens=20
    )


def events_of(text: str, size: int, reason: StopReason = StopReason.EOS, terminal: Event | None = None) -> list[Event]:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    tokens = [Token(piece, i) for i, piece in enumerate(pieces)]
    return [STARTED, *tokens, terminal or End(reason, USAGE, 1.0)]


def asked(**fields: Any) -> Asked:
    body = parse_body(ResponseRequest, json.dumps({"input": "x", "tools": TOOLS, **fields}).encode())
    return Asked(body, [])


def encode(translator: Any, events: list[Event]) -> bytes:
    return b"".join(translator.encode(number, event) for number, event in enumerate(events))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_reasoning_text_and_calls_are_items_of_a_response(size: int) -> None:
    events = events_in(encode(ResponseTranslator(job(), asked()), events_of(ANSWER, size)))
    response = assert_told_once(events)
    assert_exact(Response, response)
    reasoning, message, look, go = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "what is it"}]
    assert message["content"][0]["text"] == "I see."
    assert (look["name"], json.loads(look["arguments"])) == ("look", {"at": "this"})
    assert (go["name"], json.loads(go["arguments"])) == ("go", {})
    assert look["call_id"] != go["call_id"]
    assert len({item["id"] for item in response["output"]}) == 4
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert response["completed_at"] == response["created_at"] + 2
    assert (response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0) == (size < 1000)
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [(item["type"], item["status"]) for item in added] == [
        (kind, "in_progress") for kind in ("reasoning", "message", "function_call", "function_call")
    ]
    for index, item in ((2, look), (3, go)):
        of_call = [event for event in events if event.get("output_index") == index]
        deltas = [event["delta"] for event in of_call if event["type"].endswith("arguments.delta")]
        assert "".join(deltas) == item["arguments"]
        assert [event["arguments"] for event in of_call if event["type"].endswith("arguments.done")] == [
            "".join(deltas)
        ]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]


@pytest.mark.parametrize("size", [5, 20, 40, 1000])
def test_reasoning_is_counted_in_tokens_that_were_merged(size: int) -> None:
    """Nobody reads a response in the background before it has ended: all of its tokens come as one."""
    merged = [
        Token(event.text, event.index * size, len(event.text)) if isinstance(event, Token) else event
        for event in events_of(ANSWER, size)
    ]
    response = ResponseTranslator(job(), asked()).whole(list(enumerate(merged)))
    exact = ANSWER.index("I see.") - 1
    assert abs(response["usage"]["output_tokens_details"]["reasoning_tokens"] - exact) <= 1


def test_reasoning_that_looks_like_an_end_of_it_behind_the_text_is_not_counted() -> None:
    said = [Token("I see.", 0, 6), Token("</think>", 6, 8)]
    events: list[Event] = [STARTED, *said, End(StopReason.EOS, USAGE, 1.0)]
    response = ResponseTranslator(job(), asked()).whole(list(enumerate(events)))
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 0


def test_whoever_comes_back_sees_the_same_calls() -> None:
    events = events_of(ANSWER, 2)
    whole = events_in(encode(ResponseTranslator(job(), asked()), events))
    for number in range(len(whole)):
        assert events_in(encode(ResponseTranslator(job(), asked(), number), events)) == whole[number + 1 :]
    assert ResponseTranslator(job(), asked()).whole(list(enumerate(events))) == whole[-1]["response"]


def test_a_call_that_is_cut_off_is_not_complete() -> None:
    events = events_in(encode(ResponseTranslator(job(), asked()), events_of(CALL[:-20], 3, StopReason.MAX_TOKENS)))
    response = assert_told_once(events)
    [call] = response["output"]
    assert (call["type"], call["status"]) == ("function_call", "incomplete")
    assert '{"at": "this"}'.startswith(call["arguments"])
    assert "response.function_call_arguments.done" not in [event["type"] for event in events]
    message = MessagesTranslator(job(), 9).whole(list(enumerate(events_of(CALL[:-20], 3, StopReason.MAX_TOKENS))))
    assert message["content"] == []
    assert message["stop_reason"] == "max_tokens"


def test_a_call_that_is_not_closed_is_not_complete() -> None:
    """The model has ended in the middle of it."""
    response = ResponseTranslator(job(), asked()).whole(list(enumerate(events_of(CALL[:-20], 3))))
    assert response["status"] == "completed"
    assert [item["status"] for item in response["output"]] == ["incomplete"]


def test_a_call_that_is_cut_off_is_nothing_to_be_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of("I see." + CALL + CALL[:-20], 3, StopReason.MAX_TOKENS)
    ended: Any = job()
    ended.events = lambda: events
    ended.status = lambda: SimpleNamespace(terminal=events[-1])
    monkeypatch.setattr("worker.web.responses._find", lambda response_id: (ended, asked()))
    [said] = _said_before("resp_j")
    assert said.text == "I see."
    assert [call.function.name for call in said.tool_calls or ()] == ["look"]


@pytest.mark.parametrize(
    ("terminal", "status"),
    [(Failure("STALLED", "no token came", USAGE, 504), "failed"), (End(StopReason.CANCELLED, USAGE, 1.0), "cancelled")],
)
def test_what_has_come_is_told_with_a_failure(terminal: Event, status: str) -> None:
    for text in ("<think>what", "I see", CALL[:-20]):
        response = assert_told_once(
            events_in(encode(ResponseTranslator(job(), asked()), events_of(text, 1, terminal=terminal)))
        )
        assert response["status"] == status
        assert [item["status"] for item in response["output"]] == ["incomplete"]
        assert_exact(Response, response)
        last = message_events_in(encode(MessagesTranslator(job(), 9), events_of(text, 1, terminal=terminal)))[-1]
        assert last["error"]["type"] == ("timeout_error" if status == "failed" else "api_error")


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_reasoning_text_and_calls_are_blocks_of_a_message(size: int) -> None:
    events = message_events_in(encode(MessagesTranslator(job(), 9), events_of(ANSWER, size)))
    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        snapshot = accumulate_event(event=adapter.validate_python(event), current_snapshot=snapshot, json_bufs=buffers)
    thinking, text, look, go = snapshot.content
    assert thinking.thinking == "what is it"
    assert text.text == "I see."
    assert (look.name, look.input) == ("look", {"at": "this"})
    assert (go.name, go.input) == ("go", {})
    assert snapshot.stop_reason == "tool_use"
    assert (snapshot.usage.input_tokens, snapshot.usage.cache_read_input_tokens) == (16, 4)
    whole = MessagesTranslator(job(), 9).whole(list(enumerate(events_of(ANSWER, size))))
    assert_exact(Message, whole)
    assert whole["content"] == [block.to_dict() for block in snapshot.content]


# ---- what goes back


def test_the_items_of_an_answer_are_a_message_of_the_next_request() -> None:
    response = ResponseTranslator(job(), asked()).whole(list(enumerate(events_of(ANSWER, 3))))
    look, go = response["output"][2:]
    items = [
        {"role": "user", "content": "x"},
        *response["output"],
        {"type": "function_call_output", "call_id": look["call_id"], "output": "a house"},
        {"type": "function_call_output", "call_id": go["call_id"], "output": [{"type": "input_text", "text": "there"}]},
    ]
    body = asked(input=items).body
    assert Asked(body, []).num_bytes > len(json.dumps(items)) / 2
    _, said, seen, gone = messages_of(body.input)
    assert said.role == "assistant"
    assert said.reasoning_content == "what is it"
    assert said.text == "I see."
    assert said.tool_calls is not None
    assert [(call.id, call.function.name, call.arguments) for call in said.tool_calls] == [
        (look["call_id"], "look", {"at": "this"}),
        (go["call_id"], "go", {}),
    ]
    assert [(one.role, one.tool_call_id, one.text) for one in (seen, gone)] == [
        ("tool", look["call_id"], "a house"),
        ("tool", go["call_id"], "there"),
    ]


def test_the_blocks_of_an_answer_are_a_message_of_the_next_request() -> None:
    message = MessagesTranslator(job(), 9).whole(list(enumerate(events_of(ANSWER, 3))))
    look, go = message["content"][2:]
    results = [
        {"type": "tool_result", "tool_use_id": look["id"], "content": "a house"},
        {"type": "tool_result", "tool_use_id": go["id"], "is_error": True},
        {"type": "text", "text": "and now?"},
    ]
    raw = {
        "model": "m",
        "max_tokens": 9,
        "system": "be brief",
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": message["content"]},
            {"role": "user", "content": results},
        ],
    }
    generate = parse_body(MessagesRequest, json.dumps(raw).encode()).to_generate()
    assert generate.messages is not None
    system, _, said, seen, failed, user = generate.messages
    assert (system.role, system.text) == ("system", "be brief")
    assert (said.reasoning_content, said.text) == ("what is it", "I see.")
    assert said.tool_calls is not None
    assert [(call.id, call.arguments) for call in said.tool_calls] == [(look["id"], {"at": "this"}), (go["id"], {})]
    assert (seen.role, seen.tool_call_id, seen.text) == ("tool", look["id"], "a house")
    assert (failed.role, failed.tool_call_id, failed.text) == ("tool", go["id"], "")
    assert (user.role, user.text) == ("user", "and now?")


@pytest.mark.parametrize(
    ("choice", "inner", "is_parallel"),
    [
        ({"type": "auto"}, "auto", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", True),
        ({"type": "tool", "name": "look"}, "look", True),
        (None, None, True),
    ],
)
def test_tools_of_anthropic_are_tools(choice: Any, inner: str | None, is_parallel: bool) -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    raw = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "tool_choice": choice}
    raw["tools"] = [{"name": "look", "description": "looks", "input_schema": schema}]
    generate = parse_body(MessagesRequest, json.dumps(raw).encode()).to_generate()
    assert generate.tools is not None
    [tool] = generate.tools
    assert (tool.function.name, tool.function.description, tool.function.parameters) == ("look", "looks", schema)
    named = generate.tool_choice
    assert (named if isinstance(named, str | None) else named.function.name) == inner
    assert generate.parallel_tool_calls is is_parallel


@pytest.mark.parametrize(("choice", "inner"), [("required", "required"), ({"type": "function", "name": "go"}, "go")])
def test_tools_of_responses_are_tools(choice: Any, inner: str) -> None:
    body = asked(tool_choice=choice, parallel_tool_calls=False).body
    generate = body.to_generate([])
    assert [tool.function.name for tool in generate.tools or ()] == ["look", "go"]
    named = generate.tool_choice
    assert (named if isinstance(named, str | None) else named.function.name) == inner
    assert generate.parallel_tool_calls is False


# ---- the form of an answer

SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "text"}, "text"),
        ({"type": "json_object"}, "json_object"),
        ({"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}, "json_schema"),
    ],
)
def test_the_format_of_a_response_is_that_of_its_answer(form: Any, kind: str) -> None:
    body = asked(text={"format": form}, tools=None).body
    inner = body.to_generate([]).response_format
    assert inner is not None
    assert inner.type == kind
    assert (inner.json_schema.schema_ if inner.json_schema else None) == (SCHEMA if kind == "json_schema" else None)
    response = ResponseTranslator(job(), Asked(body, [])).whole(list(enumerate(events_of("I see.", 3))))
    assert_exact(Response, response)
    assert response["text"]["format"] == form


def test_the_format_of_a_message_is_that_of_its_answer() -> None:
    raw = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    raw["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    inner = parse_body(MessagesRequest, json.dumps(raw).encode()).to_generate().response_format
    assert inner is not None
    assert inner.json_schema is not None
    assert inner.json_schema.schema_ == SCHEMA


@pytest.mark.parametrize(
    ("schema", "fields", "says"),
    [
        (
            ResponseRequest,
            {"text": {"format": {"type": "json_object"}}, "stop": "x"},
            "stop does not go with text.format",
        ),
        (
            ResponseRequest,
            {"text": {"format": {"type": "json_object"}}, "tools": TOOLS, "tool_choice": "required"},
            "text.format and tools do not go",
        ),
        (ResponseRequest, {"response_format": {"type": "json_object"}}, "is called text.format here"),
        (ResponseRequest, {"tools": [*TOOLS, TOOLS[0]]}, "2 tools have the name 'look'"),
        (ResponseRequest, {"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice names 'x'"),
        (
            MessagesRequest,
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}, "stop_sequences": ["x"]},
            "stop_sequences does not go with output_config.format",
        ),
        (
            MessagesRequest,
            {"tools": [{"name": "a", "input_schema": {}}] * 2},
            "2 tools have the name 'a'",
        ),
        (
            MessagesRequest,
            {"tools": [{"name": "a", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "b"}},
            "tool_choice names 'b'",
        ),
    ],
)
def test_what_does_not_go_together_is_said_in_the_words_of_the_route(schema: Any, fields: Any, says: str) -> None:
    least = {"input": "x"} if schema is ResponseRequest else {"model": "m", "max_tokens": 9, "messages": [USER]}
    with pytest.raises(InvalidRequest) as raised:
        parse_body(schema, json.dumps(least | fields).encode())
    assert [error for error in raised.value.errors if error.constraint == "conflict"]
    assert says in raised.value.message


def test_refusals_name_fields_as_the_route_does() -> None:
    assert name_of("tools.0.function.strict") == "tools.0.strict"
    assert name_of("response_format.json_schema.schema") == "text.format.schema"
    assert name_of("max_tokens") == "max_output_tokens"
    assert name_of("seed") == "seed"
