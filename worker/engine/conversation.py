"""A conversation as chat templates read it. Plain Python, any thread.

By transformers' convention a template is given turns with a role and a text, tools as JSON schemas, and calls with
their arguments as objects. Not every template knows tools. For one that does not, they are described in the turn of
the system in the words of Qwen and Hermes; calls are written as text, and so are the answers of tools, as a user's.

Source: "Writing a chat template" and "Tool use" in transformers' documentation; the template of Qwen2.5.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

from worker.answer import knows_tools
from worker.message import Message, Tool, ToolCall

_NO_PARAMETERS = {"type": "object", "properties": {}}

_DESCRIPTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def schemas(tools: Collection[Tool]) -> list[dict[str, Any]]:
    """Tools as a template reads them."""
    found = []
    for tool in tools:
        function: dict[str, Any] = {"name": tool.function.name}
        if tool.function.description is not None:
            function["description"] = tool.function.description
        found.append(
            {"type": "function", "function": function | {"parameters": tool.function.parameters or _NO_PARAMETERS}}
        )
    return found


def turns(messages: Sequence[Message], tools: Collection[Tool], template: str | None) -> list[dict[str, Any]]:
    """The messages as `template` reads them.

    Args:
        tools: Those that the model is offered. They are in the turns if the template would not show them.
        template: None: the default one.
    """
    has_developer = "developer" in (template or "")
    # Mistral's templates refuse all others.
    has_short_ids = "[TOOL_CALLS]" in (template or "")
    if knows_tools(template):
        names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
        return [_turn(message, has_developer, has_short_ids, names) for message in messages]
    return _plain_turns(messages, tools, has_developer)


def _turn(message: Message, has_developer: bool, has_short_ids: bool, names: dict[str, str]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": _role(message, has_developer), "content": message.text}
    if message.reasoning_content is not None:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls is not None:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": _short(call.id) if has_short_ids else call.id,
                "function": {"name": call.function.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    name = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = _short(message.tool_call_id) if has_short_ids else message.tool_call_id
        name = name or names.get(message.tool_call_id)  # some templates write the answer of a tool with its name
    return turn if name is None else turn | {"name": name}


def _role(message: Message, has_developer: bool) -> str:
    """Few templates know developers, whose word is the system's elsewhere."""
    return "system" if message.role == "developer" and not has_developer else message.role


def _short(call_id: str) -> str:
    """Nine letters and digits for an id, always the same."""
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


# ---- for templates that know no tools


def _plain_turns(messages: Sequence[Message], tools: Collection[Tool], has_developer: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    description = _DESCRIPTION.format(tools="\n".join(map(_json, schemas(tools)))) if tools else ""
    if description and messages[0].role not in ("system", "developer"):
        found.append({"role": "system", "content": description})
        description = ""
    for i, message in enumerate(messages):
        turn = _without_calls(message, has_developer)
        if i == 0 and description:
            turn["content"] += "\n\n" + description
        if i > 0 and message.role == messages[i - 1].role == "tool":  # a user has one turn at a time
            found[-1]["content"] += "\n" + turn["content"]
        else:
            found.append(turn)
    return found


def _without_calls(message: Message, has_developer: bool) -> dict[str, str]:
    if message.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.text}\n</tool_response>"}
    text = "\n".join([*([message.text] if message.text else []), *map(_call, message.tool_calls or ())])
    turn = {"role": _role(message, has_developer), "content": text}
    return turn if message.name is None else turn | {"name": message.name}


def _call(call: ToolCall) -> str:
    return f"<tool_call>\n{_json({'name': call.function.name, 'arguments': call.arguments})}\n</tool_call>"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
