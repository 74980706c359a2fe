"""Tools and reasoning as the openai client sees them: a model that says what a test wants, behind each template."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from flask import Flask
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from tests.support import templates
from tests.support.servers import WORKER_CLASSES, events_of, running_server
from tests.support.speakers import say, speaking_app
from worker.answer_parser import AnswerParser

pytestmark = pytest.mark.slow

TEMPLATES = {
    "hermes": templates.QWEN3,
    "hermes by default": templates.CHATML,
    "no template": None,
    "llama3": templates.LLAMA3,
    "mistral": templates.MISTRAL_V3,
    "magistral": templates.MAGISTRAL,
}


def called(family: str, *calls: tuple[str, str]) -> str:
    """Calls as a model of this family writes them."""
    match family:
        case "llama3":
            return "; ".join(f'{{"name": "{name}", "parameters": {arguments}}}' for name, arguments in calls)
        case "mistral":
            objects = ", ".join(f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in calls)
            return f"[TOOL_CALLS][{objects}]"
        case "magistral":
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls)
        case _:
            marked = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'
            return "\n".join(marked.format(name, arguments) for name, arguments in calls)


class Weather(BaseModel):
    """Where it rains."""

    city: str


WEATHER: Any = openai.pydantic_function_tool(Weather, name="weather")
TIME: Any = {"type": "function", "function": {"name": "time"}}
TOOLS: Any = [WEATHER, TIME]
ROME, OSLO = '{"city": "Rome"}', '{"city": "}</tool_call>\\"Oslo"}'


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def app(family: str) -> Iterator[Flask]:
    with speaking_app(TEMPLATES[family]) as app:
        yield app


@pytest.fixture(scope="module")
def client(app: Flask) -> Iterator[openai.OpenAI]:
    transport = httpx2.WSGITransport(app=app)
    with openai.OpenAI(
        base_url="http://endstop/v1", api_key="none", max_retries=0, http_client=httpx2.Client(transport=transport)
    ) as client:
        yield client


def ask(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    given: dict[str, Any] = {"messages": [say(text)], "tools": TOOLS, **fields}
    return client.chat.completions.create(model="endstop-tiny", **given)


def assert_calls(message: Any, *calls: tuple[str, str]) -> None:
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == list(calls)
    assert {call.type for call in message.tool_calls} == {"function"}
    assert len({call.id for call in message.tool_calls}) == len(calls)


def test_calls_whole(client: openai.OpenAI, family: str) -> None:
    [choice] = ask(client, called(family, ("weather", ROME), ("weather", OSLO))).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert_calls(choice.message, ("weather", ROME), ("weather", OSLO))


def test_calls_streamed(client: openai.OpenAI, family: str) -> None:
    with client.chat.completions.stream(
        model="endstop-tiny", messages=[say(called(family, ("weather", ROME), ("time", "{}")))], tools=TOOLS
    ) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        completion = stream.get_final_completion()
    assert {piece.index for piece in pieces} == {0, 1}
    assert [piece.index for piece in pieces] == sorted(piece.index for piece in pieces)
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    assert_calls(choice.message, ("weather", ROME), ("time", "{}"))
    assert choice.message.tool_calls
    assert choice.message.tool_calls[0].function.parsed_arguments == Weather(city="Rome")


def test_the_chunks_of_calls_are_openais(app: Flask, family: str) -> None:
    body = {"messages": [say(called(family, ("weather", ROME), ("time", "{}")))], "tools": TOOLS, "stream": True}
    raw = app.test_client().post("/v1/chat/completions", json=body).data
    *chunks, done = events_of(raw)
    assert done == "[DONE]"
    for chunk in chunks:
        parsed = ChatCompletionChunk.model_validate(chunk, strict=True)
        assert json.loads(parsed.model_dump_json(exclude_unset=True)) == chunk
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    deltas = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    heads = [call for call in deltas if "id" in call]
    assert [(call["index"], call["type"], call["function"]) for call in heads] == [
        (0, "function", {"name": "weather", "arguments": ""}),
        (1, "function", {"name": "time", "arguments": ""}),
    ]
    assert all(call.keys() == {"index", "function"} for call in deltas if "id" not in call)
    assert not any(choice["delta"].get("content") for choice in choices)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]


def test_a_conversation_goes_on_with_the_answer_as_it_is(client: openai.OpenAI, family: str) -> None:
    first = (
        client.chat.completions.parse(
            model="endstop-tiny", messages=[say(called(family, ("weather", ROME)))], tools=[WEATHER]
        )
        .choices[0]
        .message
    )
    assert first.tool_calls
    assert first.tool_calls[0].function.parsed_arguments == Weather(city="Rome")
    with client.chat.completions.stream(
        model="endstop-tiny", messages=[say(called(family, ("weather", ROME)))], tools=[WEATHER]
    ) as stream:
        streamed = stream.get_final_completion().choices[0].message
    for message in (first, first.model_dump(), first.to_dict(), streamed):
        call_id = (streamed if message is streamed else first).tool_calls[0].id  # type: ignore[index]
        answer = {"role": "tool", "tool_call_id": call_id, "content": "rain"}
        [choice] = ask(client, "", messages=[say("a"), message, answer, say("It rains.")]).choices
        assert (choice.message.content, choice.finish_reason) == ("It rains.", "stop")
        assert choice.message.tool_calls is None


def test_a_call_that_is_cut_is_not_a_reason(client: openai.OpenAI, family: str) -> None:
    text = called(family, ("weather", '{"city": "' + "x" * 200 + '"}'))
    [choice] = ask(client, text, max_tokens=100).choices
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls
    assert call.function.arguments.startswith('{"city": "xxx')
    assert not call.function.arguments.endswith("}")


def test_a_whole_call_behind_which_the_limit_is_reached_reads_length(client: openai.OpenAI, family: str) -> None:
    text = called(family, ("time", "{}"))
    whole = ask(client, text)
    [choice] = ask(client, text, max_tokens=whole.usage.completion_tokens - 1).choices  # all but its end
    assert_calls(choice.message, ("time", "{}"))
    assert choice.finish_reason == "length"


def test_if_calls_are_not_parallel_there_is_one(client: openai.OpenAI, family: str) -> None:
    [choice] = ask(client, called(family, ("weather", ROME), ("time", "{}")), parallel_tool_calls=False).choices
    assert_calls(choice.message, ("weather", ROME))
    assert choice.finish_reason == "tool_calls"


def test_without_tools_there_are_no_calls(client: openai.OpenAI, family: str) -> None:
    text = called(family, ("weather", ROME))
    shown = text.replace("[TOOL_CALLS]", "").replace("[ARGS]", "")
    for fields in ({"tools": openai.omit}, {"tool_choice": "none"}):
        [choice] = ask(client, text, **fields).choices
        assert (choice.message.content, choice.message.tool_calls) == (shown, None)
        assert choice.finish_reason == "stop"


def test_what_is_no_call_is_text(client: openai.OpenAI, family: str) -> None:
    text = called(family, ("unknown", ROME))
    [choice] = ask(client, text, tools=[TIME]).choices  # not strict: that could not be written then
    assert choice.message.content == text.replace("[TOOL_CALLS]", "").replace("[ARGS]", "")
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"


def test_native_streams_have_all_of_the_text(app: Flask, family: str) -> None:
    text = called(family, ("weather", ROME))
    raw = app.test_client().post("/execute", json={"messages": [say(text)], "tools": TOOLS}).data
    assert "".join(event.get("t", "") for event in events_of(raw)[:-1]) == text


def test_native_streams_say_what_is_no_text(app: Flask, family: str) -> None:
    """Those who come back for the rest are told the same, wherever they were cut off."""
    client = app.test_client()
    asked = {"messages": [say(called(family, ("weather", ROME)))], "tools": TOOLS}
    job_id = client.post("/v1/jobs", json=asked).json["job_id"]  # type: ignore[index]
    url = f"/v1/jobs/{job_id}/stream"
    *events, _ = events_of(client.get(url).data)
    parts = [part for event in events for part in event.get("parts", ())]
    assert {event["type"] for event in events if "parts" in event} <= {"token", "end"}
    assert all("parts" in event for event in events if event["type"] == "token")  # none of it is text
    [begun, ended] = [part for part in parts if part["type"] not in ("text", "arguments")]
    assert begun == {"type": "call", "index": 0, "id": f"call_{job_id}_0", "name": "weather"}
    assert ended == {"type": "call_end", "index": 0}
    assert "".join(part["text"] for part in parts if part["type"] == "arguments") == ROME
    assert not any(part["type"] == "text" for part in parts)
    for number in range(len(events) - 1):
        *rest, _ = events_of(client.get(url, headers={"Last-Event-ID": str(number)}).data)
        assert rest == events[number + 1 :]


def test_a_native_stream_ends_once_though_its_parts_cannot_be_found(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the stream asks the parser that has just failed once more."""

    def fail(parser: AnswerParser) -> Any:
        yield
        raise RuntimeError("a bug")

    monkeypatch.setattr(AnswerParser, "_answer", fail)
    raw = app.test_client().post("/execute", json={"messages": [say("It rains.")], "tools": TOOLS}).data
    *_, failure, done = events_of(raw)
    assert (failure["type"], failure["code"], done) == ("error", "INFERENCE_FAILED", "[DONE]")
    assert [event["type"] for event in events_of(raw)[:-1]].count("error") == 1


def test_a_native_stream_that_is_taken_up_ends_once_though_its_parts_cannot_be_found(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the client has seen goes through the parser first, which fails at it again."""
    client = app.test_client()
    job = client.post("/v1/jobs", json={"messages": [say("It rains.")], "tools": TOOLS}).json
    assert job is not None
    *events, _ = events_of(client.get(job["sse_url"]).data)

    def fail(parser: AnswerParser) -> Any:
        yield
        raise RuntimeError("a bug")

    monkeypatch.setattr(AnswerParser, "_answer", fail)
    for number in range(len(events) - 1):
        answer = client.get(job["sse_url"], headers={"Last-Event-ID": str(number)})
        assert answer.status_code == 200
        *_, failure, done = events_of(answer.data)
        assert (failure["type"], failure["code"], done) == ("error", "INFERENCE_FAILED", "[DONE]")
        assert answer.data.startswith(b"id: %d\n" % (number + 1))


def test_native_streams_say_nothing_more_of_text(app: Flask) -> None:
    asked = {"messages": [say("It rains. ")]}
    raw = app.test_client().post("/execute", json=asked).data
    assert not any("parts" in event for event in events_of(raw)[:-1])
    *events, end, _ = events_of(app.test_client().post("/execute", json=asked | {"tools": TOOLS}).data)
    said = [event.get("parts", [{"text": event["t"]}]) for event in events if event["type"] == "token"]
    assert end["parts"] == [{"type": "text", "text": " "}]  # it could have been in front of a call
    assert "".join(part["text"] for parts in [*said, end["parts"]] for part in parts) == "It rains. "


def test_several_choices_have_calls_of_their_own(client: openai.OpenAI, family: str) -> None:
    answer = ask(client, called(family, ("weather", ROME)), n=2)
    ids = [choice.message.tool_calls[0].id for choice in answer.choices]
    assert len(set(ids)) == 2


# ---- calls that have to be

CITIES = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
ENUM: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": CITIES | {"additionalProperties": False}},
}


NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_call_that_has_to_be_is_made_and_fits_the_schema(
    client: openai.OpenAI, family: str, choice: Any, is_streamed: bool
) -> None:
    wish = called(family, ("weather", '{"town": 5}'))
    asked: Any = {"tools": [ENUM], "tool_choice": choice, "parallel_tool_calls": False, "temperature": 0}
    if is_streamed:
        with client.chat.completions.stream(model="endstop-tiny", messages=[say(wish)], **asked) as stream:
            [answer] = stream.get_final_completion().choices
    else:
        [answer] = ask(client, wish, **asked).choices
    assert answer.finish_reason == "tool_calls"
    assert not answer.message.content
    calls: Any = answer.message.tool_calls
    [call] = calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


def test_one_of_several_tools_is_named(client: openai.OpenAI, family: str) -> None:
    [choice] = ask(
        client,
        called(family, ("weather", ROME)),
        tool_choice={"type": "function", "function": {"name": "time"}},
        temperature=0,
    ).choices
    assert_calls(choice.message, ("time", "{}"))


def test_several_calls_may_have_to_be(client: openai.OpenAI, family: str) -> None:
    text = called(family, ("weather", ROME), ("time", "{}"))
    [choice] = ask(client, text, tool_choice="required").choices
    assert_calls(choice.message, ("weather", ROME), ("time", "{}"))
    [choice] = ask(client, text, tool_choice="required", parallel_tool_calls=False).choices
    assert_calls(choice.message, ("weather", ROME))


# ---- calls that may be, of tools that are strict

STRICT: Any = {"type": "function", "function": ENUM["function"] | {"strict": True}}


def test_a_call_of_a_strict_tool_fits_its_schema(client: openai.OpenAI, family: str) -> None:
    wish = called(family, ("weather", '{"town": 5}'))
    [choice] = ask(client, wish, tools=[STRICT, TIME], parallel_tool_calls=False, temperature=0).choices
    [call] = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    [loose] = ask(client, wish, tools=[ENUM, TIME], temperature=0).choices
    assert_calls(loose.message, ("weather", '{"town": 5}'))


def test_strict_tools_leave_other_text_as_it_is(client: openai.OpenAI, family: str) -> None:
    for text in ("It rains.", '[1, {"a": "<b>"}]', "", "{}"):
        [choice] = ask(client, text, tools=[STRICT]).choices
        assert (choice.message.content, choice.message.tool_calls) == (text, None)


# ---- reasoning


@pytest.fixture(scope="module")
def thinking(request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with speaking_app(request.param) as app:
        transport = httpx2.WSGITransport(app=app)
        with openai.OpenAI(
            base_url="http://endstop/v1", api_key="none", max_retries=0, http_client=httpx2.Client(transport=transport)
        ) as client:
            yield client


CALL = '<tool_call>{"name": "time"}</tool_call>'


@pytest.mark.parametrize(
    ("thinking", "text"),
    [
        (templates.QWEN3, f"<think>\nhm\n</think>\n\nYes.{CALL}"),
        (templates.DEEPSEEK_R1, f"hm\n</think>\n\nYes.{CALL}"),
        (templates.MAGISTRAL, "[THINK]hm[/THINK]Yes.[TOOL_CALLS]time[ARGS]{}"),
    ],
    indirect=["thinking"],
)
def test_reasoning_is_apart_from_the_text(thinking: openai.OpenAI, text: str) -> None:
    for tools in ({"tools": TOOLS}, {}):
        said = text if tools else text.replace(CALL, "").replace("[TOOL_CALLS]time[ARGS]{}", "")
        given: Any = {"model": "endstop-tiny", "messages": [say(said)], "logprobs": True, **tools}
        [choice] = thinking.chat.completions.create(**given).choices
        assert choice.message.content == "Yes."
        assert choice.message.model_extra == {"reasoning_content": "hm"}
        assert choice.finish_reason == ("tool_calls" if tools else "stop")
        assert choice.logprobs is not None
        assert "".join(one.token for one in choice.logprobs.content or ()) == "Yes."
        with thinking.chat.completions.create(**given, stream=True) as stream:
            deltas = [choice.delta for chunk in stream for choice in chunk.choices]
        assert "".join(delta.content or "" for delta in deltas) == "Yes."
        assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "hm"
        assert any(delta.tool_calls for delta in deltas) == bool(tools)


@pytest.mark.parametrize("thinking", [templates.DEEPSEEK_R1], indirect=True)
def test_a_prompt_that_has_ended_the_reasoning_leaves_none(thinking: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "<say>Yes.</say>/no_think"}]
    [choice] = thinking.chat.completions.create(model="endstop-tiny", messages=messages).choices
    assert choice.message.content == "Yes."
    assert not choice.message.model_extra


@pytest.mark.parametrize(
    ("thinking", "text"),
    [
        (templates.QWEN3, "<think>\nhm\n</think>\n\nNo."),
        (templates.DEEPSEEK_R1, "hm\n</think>\n\nNo."),
        (templates.MAGISTRAL, "[THINK]hm[/THINK]No."),
    ],
    indirect=["thinking"],
)
def test_a_call_that_has_to_be_is_made_behind_the_reasoning(thinking: openai.OpenAI, text: str) -> None:
    [choice] = ask(thinking, text, tools=[TIME], tool_choice="required", temperature=0).choices
    assert choice.message.model_extra == {"reasoning_content": "hm"}
    assert_calls(choice.message, ("time", "{}"))
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("thinking", [templates.DEEPSEEK_R1], indirect=True)
def test_an_answer_of_a_given_form_has_no_reasoning(thinking: openai.OpenAI) -> None:
    form: Any = {"type": "json_object"}
    [choice] = ask(thinking, '{"a": 1}', tools=openai.omit, response_format=form).choices
    assert choice.message.content == '{"a": 1}'


def test_an_answer_is_of_the_form_that_is_given_or_calls(client: openai.OpenAI, family: str) -> None:
    form: Any = {"type": "json_object"}
    if family == "llama3":  # its calls are JSON too
        with pytest.raises(openai.BadRequestError, match="without a mark"):
            ask(client, "{}", response_format=form)
        return
    [choice] = ask(client, '{"a": 1}', response_format=form, temperature=0).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ('{"a": 1}', None, "stop")
    calls = called(family, ("weather", ROME), ("weather", OSLO))
    [choice] = ask(client, calls, response_format=form, temperature=0).choices
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert_calls(choice.message, ("weather", ROME), ("weather", OSLO))


# ---- what cannot be had


def test_tools_of_a_model_whose_calls_are_not_understood_are_refused() -> None:
    with speaking_app(templates.QWEN3_CODER) as app:
        client = app.test_client()
        refused = client.post("/v1/chat/completions", json={"messages": [say("a")], "tools": TOOLS})
        assert refused.status_code == 400
        assert refused.json is not None
        assert refused.json["error"]["param"] == "tools"
        for fields in ({"tools": TOOLS, "tool_choice": "none"}, {}):
            answer = client.post("/v1/chat/completions", json={"messages": [say("a")], **fields})
            assert answer.status_code == 200


# ---- a real server, with a model that has never seen a tool


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_the_embedded_model_calls_if_it_has_to(tmp_path: Path, worker_class: str) -> None:
    with (
        running_server(tmp_path, worker_class, app="wsgi:app") as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        asked: Any = {"model": "endstop-tiny", "tools": [ENUM], "tool_choice": "required", "parallel_tool_calls": False}
        messages: Any = [{"role": "user", "content": "Will it rain in Oslo?"}]
        with client.chat.completions.stream(messages=messages, **asked) as stream:
            [choice] = stream.get_final_completion().choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls
        [call] = choice.message.tool_calls
        assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
        answer: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        messages += [choice.message, answer]
        last = client.chat.completions.create(messages=messages, model="endstop-tiny", tools=[ENUM], max_tokens=20)
        assert last.choices[0].message.content or last.choices[0].message.tool_calls
