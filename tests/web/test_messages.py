"""Anthropic's messages as its Python client sees them, and event by event against its own types."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, get_args

import anthropic
import httpx2
import pytest
import requests
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse

from tests.support import templates
from tests.support.apps import app_in_process
from tests.support.sdk_types import assert_exact, by_type
from tests.support.servers import RawStream, Server
from tests.support.speakers import say, speaking_app
from worker.answer import AnswerFormat
from worker.web.context import EXTENSION

pytestmark = pytest.mark.slow

EVENT_TYPES = by_type(*get_args(get_args(RawMessageStreamEvent)[0]), ErrorResponse)
USER: Any = [{"role": "user", "content": "hello"}]
ASK: dict[str, Any] = {"model": "endstop-tiny", "max_tokens": 3, "messages": USER, "extra_body": {"temperature": 0}}
RAW = {name: value for name, value in ASK.items() if name != "extra_body"} | {"temperature": 0}
STREAM = RAW | {"stream": True}


@pytest.fixture
def client(gated: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gated.url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


def events_in(body: bytes) -> list[dict[str, Any]]:
    """The events of a body, each held against its type. Fails on anything else but pings."""
    events = []
    for lines in body.decode("ascii").replace(": ping\n", "").split("\n\n")[:-1]:
        name, _, data = lines.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == "event: " + event["type"]
        assert_exact(EVENT_TYPES[event["type"]], event, allowed=("details",))
        events.append(event)
    return events


def assert_told_once(events: list[dict[str, Any]]) -> dict[str, Any]:
    """One terminal event, the last, with blocks that begin and end in order. Returns it."""
    ends = [event["type"] in ("message_stop", "error") for event in events]
    assert ends == [False] * (len(events) - 1) + [True]
    assert events[0]["type"] == "message_start"
    indexes = [event["index"] for event in events if event["type"] == "content_block_start"]
    assert indexes == list(range(len(indexes)))
    return events[-1]


def stream(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    with RawStream(server, "POST", "/v1/messages", body) as raw:
        received = raw.read_all()
        assert raw.is_complete
    return events_in(received)


# ---- streams


def test_a_message_streams(gated: Server, client: anthropic.Anthropic) -> None:
    gated.allow(100)
    with client.messages.stream(**ASK) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    assert text == "abc"
    assert [(block.type, block.text) for block in final.content if block.type == "text"] == [("text", "abc")]
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 3
    whole = client.messages.create(**ASK)
    assert whole.content == [type(whole.content[0])(type="text", text="abc")]
    assert whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0) == final.usage.input_tokens


def test_a_message_streams_to_the_async_client(gated: Server) -> None:
    gated.allow(100)

    async def ask() -> str:
        async with anthropic.AsyncAnthropic(base_url=gated.url, api_key="none", max_retries=0) as client:
            async with client.messages.stream(**ASK) as events:
                final = await events.get_final_message()
            whole = await client.messages.create(**ASK)
            assert whole.content[0].to_dict() == final.content[0].to_dict() == {"type": "text", "text": "abc"}
            return final.stop_reason or ""

    assert asyncio.run(ask()) == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "reason", "matched", "text"),
    [
        ({"max_tokens": 3}, "max_tokens", None, "abc"),
        ({"max_tokens": 9, "stop_sequences": ["x", "ef"]}, "stop_sequence", "ef", "abcd"),
        ({"max_tokens": 10_000}, "model_context_window_exceeded", None, None),
    ],
)
def test_every_event_is_what_its_type_declares(
    gated: Server, fields: dict[str, Any], reason: str, matched: str | None, text: str | None
) -> None:
    gated.allow(1000)
    events = stream(gated, STREAM | fields | {"metadata": {"user_id": "u"}, "system": "be brief"})
    assert_told_once(events)
    kinds = [event["type"] for event in events]
    assert [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": matched}
    said = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text is None or said == text
    answer = gated.post("/v1/messages", RAW | fields | {"system": [{"type": "text", "text": "be brief"}]})
    whole = answer.json()
    assert_exact(Message, whole)
    assert whole["content"] == [{"type": "text", "text": said}]
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, matched)


def test_headers_and_the_first_event_leave_before_the_model_has_done_anything(gated: Server) -> None:
    with RawStream(gated, "POST", "/v1/messages", STREAM) as raw:
        begun = events_in(raw.read_until(b": ping\n: ping\n"))
        assert [event["type"] for event in begun] == ["message_start"]
        gated.allow(100)
        assert_told_once(events_in(raw.read_all()))


def test_pings_do_not_disturb_the_client(gated: Server, client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ASK) as events:
        with RawStream(gated, "POST", "/v1/messages", STREAM) as watch:
            watch.read_until(b": ping\n: ping\n")  # the first stream has waited as long
        gated.allow(100)
        assert "".join(events.text_stream) == "abc"


def test_an_answer_of_no_words_has_no_blocks(gated: Server) -> None:
    gated.allow(100)
    events = stream(gated, STREAM | {"stop_sequences": ["a"]})
    assert [event["type"] for event in events] == ["message_start", "message_delta", "message_stop"]


# ---- conversations


def test_a_conversation_in_blocks_is_one_in_strings(gated: Server, client: anthropic.Anthropic) -> None:
    gated.allow(100)
    first = client.messages.create(**ASK)
    cached: Any = {"type": "ephemeral"}
    in_blocks: Any = [
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [{"type": "text", "text": "more", "cache_control": cached}]},
    ]
    in_strings: Any = [*USER, {"role": "assistant", "content": "abc"}, {"role": "user", "content": "more"}]
    counts = [
        client.messages.count_tokens(model="endstop-tiny", messages=messages).input_tokens
        for messages in (in_blocks, in_strings, USER)
    ]
    assert counts[0] == counts[1] > counts[2]
    usage = client.messages.create(**ASK | {"messages": in_blocks}).usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counts[0]


def test_tokens_are_counted_without_a_slot(gated: Server) -> None:
    body = {"model": "endstop-tiny", "messages": USER}
    counted = gated.post("/v1/messages/count_tokens", body).json()
    assert_exact(MessageTokensCount, counted)
    with_system = gated.post("/v1/messages/count_tokens", body | {"system": "be brief"}).json()
    assert with_system["input_tokens"] > counted["input_tokens"]
    streams = [RawStream(gated, "POST", "/v1/messages", STREAM) for _ in range(4)]
    gated.wait_for(lambda: gated.stats()["open"] == 4, "slots and queue are full")
    assert gated.post("/v1/messages/count_tokens", body).json() == counted
    for one in streams:
        one.close()


def test_what_is_empty_in_a_conversation_is_nothing(gated: Server) -> None:
    gated.allow(100)
    call = {"type": "tool_use", "id": "x", "name": "look", "input": {}}

    def conversation(result: dict[str, Any]) -> dict[str, Any]:
        answer = {"type": "tool_result", "tool_use_id": "x"} | result
        turns = [*USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": [answer]}]
        return {"model": "endstop-tiny", "messages": turns}

    counted = [
        gated.post("/v1/messages/count_tokens", conversation(result) | more).json()["input_tokens"]
        for result, more in (({}, {}), ({"content": []}, {}), ({"content": ""}, {"system": []}))
    ]
    assert counted[0] == counted[1] == counted[2]


def test_the_name_of_a_tool_may_be_as_long_as_anthropics(gated: Server) -> None:
    for length in (128, 129):
        tools = [{"name": "x" * length, "input_schema": {"type": "object"}}]
        answer = gated.post(
            "/v1/messages", RAW | {"tools": tools}
        )  # no room for it in the context, which is refused too
        assert ("tools.0.name" in answer.text) == (length == 129)


# ---- what goes wrong


def test_a_failure_in_mid_stream_is_an_error_and_nothing_behind_it(gated: Server) -> None:
    with RawStream(gated, "POST", "/v1/messages", STREAM) as raw:
        gated.allow(1)
        raw.read_until(b'"text":"a"')
        gated.post("/fault/error")
        gated.allow(1)
        events = events_in(raw.read_all())
        assert raw.is_complete
    error = assert_told_once(events)["error"]
    assert error["type"] == "api_error"
    assert error["details"] == {"error_code": "INFERENCE_FAILED"}


@pytest.mark.parametrize(
    ("fault", "code", "kind"), [("error", "INFERENCE_FAILED", "api_error"), ("oom", "VRAM_OOM", "overloaded_error")]
)
def test_the_client_sees_a_failure_in_mid_stream(
    gated: Server, client: anthropic.Anthropic, fault: str, code: str, kind: str
) -> None:
    with client.messages.stream(**ASK) as events:
        gated.post(f"/fault/{fault}")
        gated.allow(1)
        with pytest.raises(anthropic.APIStatusError) as raised:
            events.get_final_message()
    assert raised.value.error_code == code
    assert raised.value.type == kind


def test_a_failure_of_a_whole_answer_is_a_status(gated: Server, client: anthropic.Anthropic) -> None:
    gated.post("/fault/error")
    gated.allow(1)
    with pytest.raises(anthropic.InternalServerError) as raised:
        client.messages.create(**ASK)
    assert raised.value.error_code == "INFERENCE_FAILED"
    assert raised.value.type == "api_error"


def test_a_cancelled_message_ends_with_an_error(gated: Server) -> None:
    with RawStream(gated, "POST", "/v1/messages", STREAM) as raw:
        first = json.loads(raw.read_until(b"\n\n").split(b"\n")[1].removeprefix(b"data: "))
        requests.delete(gated.url + "/v1/jobs/" + first["message"]["id"].removeprefix("msg_"), timeout=30)
        gated.allow(2)
        assert assert_told_once(events_in(raw.read_all()))["error"]["details"] == {"error_code": "CANCELLED"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"temperature": 1.5}, "temperature"),
        ({"max_tokens": None}, "max_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0: a message of role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages.0.content.0: a block",
        ),
        ({"messages": [*USER, {"role": "assistant", "content": "abc"}]}, "the last message is the assistant's"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "x"}]}]},
            "messages.0.content.0: a block",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
        ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice asks for a call"),
        ({"container": "x"}, "container"),
        ({"stop_sequences": ["a", "b", "c", "d", "e"]}, "stop_sequences"),
        ({"messages": [{"role": "user", "content": "hello " * 1000}]}, "the prompt is too long: it has at least"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(gated: Server, fields: dict[str, Any], named: str) -> None:
    answer = gated.post("/v1/messages", RAW | fields)
    assert answer.status_code == 400
    error = answer.json()
    assert_exact(ErrorResponse, error, allowed=("details",))
    assert error["error"]["type"] == "invalid_request_error"
    assert named in error["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_thinking_is_not_turned_off_where_the_model_may_think(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": "endstop-tiny", "messages": USER, "thinking": {"type": "disabled"}}
    body |= {"max_tokens": 1} if path == "/v1/messages" else {}
    with app_in_process() as app:
        app.extensions["runner"].open()
        assert app.test_client().post(path, json=body).status_code == 200
        tokenizer = app.extensions[EXTENSION].engine.model.tokenizer
        monkeypatch.setattr(tokenizer, "answer_format", AnswerFormat(reasoning=("<think>", "</think>")))
        refused = app.test_client().post(path, json=body)
        assert refused.status_code == 400
        assert refused.get_json()["error"]["message"].startswith("thinking.type: is disabled")
        assert app.test_client().post(path, json=body | {"thinking": {"type": "adaptive"}}).status_code == 200


def test_each_refusal_has_its_type(gated: Server, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not served here") as raised:
        client.messages.create(**ASK | {"model": "another"})
    assert raised.value.type == "not_found_error"
    assert gated.get("/v1/messages/nope").json()["error"]["type"] == "not_found_error"
    assert gated.get("/v1/messages").json()["error"]["type"] == "invalid_request_error"
    large = gated.post("/v1/messages", RAW | {"system": "x" * 70_000})
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    streams = [RawStream(gated, "POST", "/v1/messages", STREAM) for _ in range(4)]
    gated.wait_for(lambda: gated.stats()["open"] == 4, "slots and queue are full")
    with pytest.raises(anthropic.RateLimitError) as full:
        client.messages.create(**ASK)
    assert full.value.type == "rate_limit_error"
    assert int(full.value.response.headers["Retry-After"]) > 0
    for one in streams:
        one.close()


# ---- who leaves, who comes back


def test_a_client_that_closes_its_stream_cancels(gated: Server, client: anthropic.Anthropic) -> None:
    before = gated.stats()["outcomes"].get("cancelled{client}", 0)
    gated.allow(1)
    events = client.messages.create(**ASK | {"max_tokens": 100}, stream=True)
    assert next(iter(events)).type == "message_start"
    events.close()
    gated.wait_for(lambda: gated.stats()["wanted"] == 0, "the leave is noticed")
    gated.allow(2)
    gated.wait_for(lambda: gated.stats()["open"] == 0, "the slot is free")
    gated.wait_for(lambda: gated.stats()["outcomes"].get("cancelled{client}", 0) == before + 1, "the outcome")


def test_an_idempotency_key_makes_one_message(gated: Server, client: anthropic.Anthropic) -> None:
    gated.allow(100)
    header = {"Idempotency-Key": "messages"}
    first = client.messages.create(**ASK, extra_headers=header)
    assert client.messages.create(**ASK, extra_headers=header).id == first.id
    with pytest.raises(anthropic.UnprocessableEntityError):
        client.messages.create(**ASK | {"max_tokens": 2}, extra_headers=header)


# ---- tools, thinking and forms

SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def test_an_answer_fits_its_schema(gated: Server, client: anthropic.Anthropic) -> None:
    gated.allow(1000)
    answer = client.messages.create(
        model="endstop-tiny",
        max_tokens=200,
        messages=USER,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    assert answer.stop_reason == "end_turn"
    [block] = answer.content
    assert block.type == "text"
    assert json.loads(block.text)["city"] in ("Rome", "Oslo")


def test_a_schema_that_nobody_can_keep_to_is_refused_by_name(gated: Server) -> None:
    form = {"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}
    answer = gated.post("/v1/messages", RAW | {"output_config": form})
    assert answer.status_code == 400
    assert "output_config.format.schema: cannot be kept to" in answer.json()["error"]["message"]


def test_a_call_is_answered_and_goes_on() -> None:
    call = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "Weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    tools: Any = [{"name": "Weather", "input_schema": SCHEMA}]
    with speaking_app(templates.QWEN3) as app:
        transport = httpx2.WSGITransport(app=app)
        with anthropic.Anthropic(
            base_url="http://endstop", api_key="none", max_retries=0, http_client=httpx2.Client(transport=transport)
        ) as client:
            ask: Any = {"model": "endstop-tiny", "max_tokens": 200, "tools": tools}
            asked: Any = say(call)
            with client.messages.stream(**ask, messages=[asked]) as events:
                first = events.get_final_message()
            assert first.stop_reason == "tool_use"
            thinking, called = first.content
            assert thinking.type == "thinking"
            assert thinking.thinking == "hm"
            assert called.type == "tool_use"
            assert called.input == {"city": "Rome"}
            text = say("Take an umbrella.")["content"]
            results: Any = [
                {"type": "tool_result", "tool_use_id": called.id, "content": "it rains"},
                {"type": "text", "text": text},
            ]
            messages: Any = [
                asked,
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": results},
            ]
            then = client.messages.create(**ask, messages=messages)
            assert [(block.type, getattr(block, "text", "")) for block in then.content] == [
                ("text", "Take an umbrella.")
            ]
            assert then.stop_reason == "end_turn"
            count = client.messages.count_tokens(model="endstop-tiny", messages=messages, tools=tools)
            assert count.input_tokens == then.usage.input_tokens + (then.usage.cache_read_input_tokens or 0)
            forced = client.messages.create(**ask, messages=[asked], tool_choice={"type": "tool", "name": "Weather"})
            assert [block.type for block in forced.content if block.type != "thinking"] == ["tool_use"]
            assert forced.stop_reason == "tool_use"


@pytest.mark.parametrize("behind", ["", "\nAnd more."])
def test_a_call_whose_arguments_are_no_json_is_not_in_the_whole_answer(behind: str) -> None:
    """A model may write what it likes, and a client may not be answered 500 for it."""
    ask = RAW | {"max_tokens": 200, "tools": [{"name": "Weather", "input_schema": SCHEMA}]}
    call = '<tool_call>\n{"name": "Weather", "arguments": {city: Rome}}\n</tool_call>' + behind
    with speaking_app(templates.QWEN3) as app:
        whole = app.test_client().post("/v1/messages", json=ask | {"messages": [say(call)]})
        assert whole.status_code == 200, whole.text
        assert [block.get("text") for block in whole.get_json()["content"]] == ["And more."] * bool(behind)
        assert whole.get_json()["stop_reason"] == "end_turn"
        body = ask | {"messages": [say(call)], "stream": True}
        events = events_in(app.test_client().post("/v1/messages", json=body).data)
        assert assert_told_once(events)["type"] == "message_stop"
        stops = [event["index"] for event in events if event["type"] == "content_block_stop"]
        assert stops == [0, 1][: 1 + bool(behind)]


def test_the_tool_runner_goes_on_without_a_thread() -> None:
    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return "<say>Take an umbrella.</say>" if city == "Rome" else ""

    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    with speaking_app(templates.QWEN3) as app:
        transport = httpx2.WSGITransport(app=app)
        with anthropic.Anthropic(
            base_url="http://endstop", api_key="none", max_retries=0, http_client=httpx2.Client(transport=transport)
        ) as client:
            runner = client.beta.messages.tool_runner(
                model="endstop-tiny", max_tokens=200, tools=[weather], messages=[say(call)]
            )
            called, then = list(runner)
    assert called.stop_reason == "tool_use"
    assert [block.text for block in then.content if block.type == "text"] == ["Take an umbrella."]
