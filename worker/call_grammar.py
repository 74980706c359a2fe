"""The language of answers that have to call a tool, for the grammars of structure.py. Pure: no I/O, any thread.

It is that of the model's own format (answer.py), written as its template writes it: another would be kept to as well,
but less well answered. Reasoning may be in front where the model has any.
"""

import json
import re

from worker.answer import AnswerFormat, CallFormat
from worker.request import Function, GenerateRequest, NamedTool
from worker.structure import Structure, json_rule

# In front of all calls, before and after the arguments of one, between two, and behind all.
_SHAPES = {
    CallFormat.HERMES: ("", '<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>", "\n", ""),
    CallFormat.LLAMA3: ("", '{"name": "NAME", "parameters": ', "}", "; ", ""),
    CallFormat.MISTRAL: ("[TOOL_CALLS][", '{"name": "NAME", "arguments": ', "}", ", ", "]"),
    CallFormat.MISTRAL_NAMED: ("", "[TOOL_CALLS]NAME[ARGS]", "", "", ""),
}
_NO_ARGUMENTS = {"type": "object", "additionalProperties": False}


def structure_of_calls(request: GenerateRequest, answer_format: AnswerFormat) -> Structure | None:
    """What an answer may be that has to call a tool; None if it does not have to.

    Args:
        answer_format: That of the request.
    """
    if not request.has_to_call or answer_format.calls is None:
        return None
    choice = request.tool_choice
    wanted = choice.function.name if isinstance(choice, NamedTool) else None
    functions = [tool.function for tool in request.tools or () if wanted in (None, tool.function.name)]
    return Structure("tools", _grammar(functions, answer_format, is_one=wanted is not None))


def _grammar(functions: list[Function], answer_format: AnswerFormat, *, is_one: bool) -> str:
    assert answer_format.calls is not None
    front, before, after, separator, behind = _SHAPES[answer_format.calls]

    def text(text: str) -> str:
        return _text(text, answer_format)

    more = "" if is_one or not answer_format.has_many_calls else f"({text(separator)} call)*"
    start = [_reasoning(answer_format), text(front), "call", more, text(behind)]
    rules = [f"start: {' '.join(filter(None, start))}"]
    if answer_format.reasoning is not None:
        rules += _reasoning_rules(answer_format.reasoning[1], answer_format)
    rules.append(f"call: {' | '.join(f'call_{i}' for i in range(len(functions)))}")
    for i, function in enumerate(functions):
        rules.append(f"call_{i}: {text(before.replace('NAME', function.name))} arguments_{i} {text(after)}".rstrip())
        schema = {"type": "object", **function.parameters} if function.parameters else _NO_ARGUMENTS
        rules.append(f"arguments_{i}: {json_rule(schema)}")
    return "\n".join(rules)


def _reasoning(answer_format: AnswerFormat) -> str:
    if answer_format.reasoning is None:
        return ""
    if answer_format.is_reasoning:
        return "reasoning"
    return f"({_text(answer_format.reasoning[0], answer_format)} reasoning)?"


def _reasoning_rules(closing: str, answer_format: AnswerFormat) -> list[str]:
    if closing in answer_format.special_marks:
        return [f"reasoning: /(.|\\n)*/ {_text(closing, answer_format)}"]
    # Up to the first that there is, as the parser reads it.
    return ["reasoning: thought /\\n{0,2}/", f"thought[suffix={json.dumps(closing)}]: /(.|\\n)*/"]


def _text(text: str, answer_format: AnswerFormat) -> str:
    """A text as a part of a grammar: special tokens by their ids, for they have no text."""
    special = answer_format.special_marks
    pieces = re.split(f"({'|'.join(map(re.escape, special))})", text) if special else [text]
    return " ".join(f"<[{special[piece]}]>" if piece in special else json.dumps(piece) for piece in pieces if piece)
