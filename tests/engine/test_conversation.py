"""Conversations with tools, as each kind of template writes them."""

import json
import re
from typing import Any

import pytest

from tests.support import templates
from tests.support.speakers import speaking_tokenizer
from worker.engine.tokenizer import DEFAULT_CHAT_TEMPLATE, Tokenizer
from worker.errors import InvalidRequest
from worker.message import Message, Tool

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "default": None}}}
WEATHER = Tool.model_validate(
    {"type": "function", "function": {"name": "weather", "description": "where it räins", "parameters": PARAMETERS}}
)
TIME = Tool.model_validate({"type": "function", "function": {"name": "time", "strict": True}})
SHOWN = [
    {"type": "function", "function": {"name": "weather", "description": "where it räins", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]


def calling(*calls: tuple[str, str], **fields: Any) -> Message:
    tool_calls = [
        {"id": id_, "type": "function", "function": {"name": "weather", "arguments": arguments}}
        for id_, arguments in calls
    ]
    return Message.model_validate({"role": "assistant", "tool_calls": tool_calls, **fields})


def answer(call_id: str, text: str) -> Message:
    return Message(role="tool", tool_call_id=call_id, content=text)


USER = Message(role="user", content="and now?")
CALLING = calling(("call_1", '{"city": "Zürich"}'))
HISTORY = [USER, CALLING, answer("call_1", "rain"), USER]


def written(template: str | None, messages: list[Message], tools: list[Tool]) -> str:
    """What the model reads."""
    return Tokenizer(speaking_tokenizer(template))._write(messages, tools)


@pytest.mark.parametrize("template", [templates.QWEN2, templates.LLAMA3, templates.MISTRAL_V3, templates.MAGISTRAL])
def test_a_template_that_knows_tools_gets_them_as_schemas(template: str) -> None:
    text = written(template, [USER], [WEATHER, TIME])
    decoder = json.JSONDecoder()
    found = [decoder.raw_decode(text, match.start())[0] for match in re.finditer(r'\{\s*"type":\s*"function"', text)]
    assert found == SHOWN
    assert written(template, [USER], []).count("weather") == 0


def test_a_template_gets_arguments_as_objects_and_the_name_of_who_answers() -> None:
    template = "{{ tools | tojson }}{{ messages | tojson }}"
    text = written(template, [CALLING, answer("call_1", "rain")], [TIME])
    shown, turns = json.JSONDecoder().raw_decode(text)[0], json.loads(text[text.index("][") + 1 :])
    assert shown == SHOWN[1:]
    function = {"name": "weather", "arguments": {"city": "Zürich"}}
    assert turns == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "call_1", "function": function}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call_1", "name": "weather"},
    ]


def test_reasoning_is_shown_to_templates_that_want_it() -> None:
    thought = Message(role="assistant", content="yes", reasoning_content="hm")
    assert "<think>\nhm\n</think>\n\nyes" in written(templates.QWEN3, [USER, thought, USER], [])
    assert "hm" not in written(templates.QWEN2, [USER, thought, USER], [])


@pytest.mark.parametrize("template", [templates.MISTRAL_V3, templates.MAGISTRAL])
def test_mistrals_templates_get_ids_of_nine_characters(template: str) -> None:
    text = written(template, [USER, calling(("call_1", "{}"), ("call_2", "{}")), answer("call_2", "rain")], [WEATHER])
    [given] = re.findall(r"\[TOOL_RESULTS\]([a-z0-9]{9})\[TOOL_CONTENT\]rain", text)
    if template is templates.MISTRAL_V3:
        assert re.findall(r'"id": "([^"]*)"', text)[1] == given


# ---- templates that know no tools

DESCRIPTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'


def chatml(*turns: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


def test_to_a_template_that_knows_no_tools_they_are_described() -> None:
    user = ("user", "and now?")
    assert written(templates.CHATML, [USER], [TIME]) == chatml(("system", DESCRIPTION), user)
    for role in ("system", "developer"):
        told = Message.model_validate({"role": role, "content": "Be brief."})
        assert written(templates.CHATML, [told, USER], [TIME]) == chatml(
            ("system", f"Be brief.\n\n{DESCRIPTION}"), user
        )
    assert written(templates.CHATML, [USER], []) == chatml(user)


def test_for_a_template_that_knows_no_tools_calls_and_answers_are_text() -> None:
    both = calling(("call_1", '{"city": "Zürich"}'), ("call_2", '{"city": "Zürich"}'), content="Let me see.")
    messages = [USER, both, answer("call_1", "rain"), answer("call_2", "snow"), CALLING, answer("call_1", "sun")]
    assert written(templates.CHATML, messages, []) == chatml(
        ("user", "and now?"),
        ("assistant", f"Let me see.\n{CALL}\n{CALL}"),
        ("user", "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsnow\n</tool_response>"),
        ("assistant", CALL),
        ("user", "<tool_response>\nsun\n</tool_response>"),
    )


def test_a_model_without_a_template_has_the_same_in_plain_words() -> None:
    text = written(None, [USER, CALLING, answer("call_1", "rain")], [TIME])
    turns = [("system", DESCRIPTION), ("user", "and now?"), ("assistant", CALL)]
    turns += [("user", "<tool_response>\nrain\n</tool_response>")]
    assert text == "".join(f"{role}: {said}\n" for role, said in turns) + "assistant:"
    assert "tools" not in DEFAULT_CHAT_TEMPLATE


def test_of_two_templates_that_for_tools_is_taken_when_there_are_some() -> None:
    fast = speaking_tokenizer(None)
    fast.chat_template = {"default": templates.CHATML, "tool_use": templates.LLAMA3}
    tokenizer = Tokenizer(fast)
    assert tokenizer._write([USER], []) == chatml(("user", "and now?"))
    assert "<|start_header_id|>" in tokenizer._write([USER], [TIME])
    assert tokenizer.answer_format.calls == "llama3"
    fast.chat_template = {"default": templates.CHATML}
    assert Tokenizer(fast)._write([USER], [TIME]) == chatml(("system", DESCRIPTION), ("user", "and now?"))


def test_a_template_that_refuses_several_calls_is_a_bad_request() -> None:
    with pytest.raises(InvalidRequest, match="single tool-calls"):
        written(templates.LLAMA3, [USER, calling(("call_1", "{}"), ("call_2", "{}"))], [TIME])


def test_a_conversation_with_tools_is_measured_with_them() -> None:
    tokenizer = Tokenizer(speaking_tokenizer(templates.CHATML))
    many = [Tool.model_validate({"type": "function", "function": {"name": f"t{i}"}}) for i in range(100)]
    alone, with_tools = tokenizer.min_chat_tokens([USER]), tokenizer.min_chat_tokens([USER], many)
    assert alone < with_tools <= len(tokenizer.encode_chat([USER], many))
