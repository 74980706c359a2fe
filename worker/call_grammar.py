"""The language of answers with calls, for the grammars of structure.py. Pure: no I/O, any thread.

An answer that has to call is calls and nothing else. In one that may, a tool that asks for it with `strict` gets
arguments that fit its schema, and what is not a call is any text. Where the form of an answer is given, it is that or
calls. Calls are those of the model's own format, written as its template writes them: another way would be kept to as
well, and less well answered. Reasoning may be in front where the model has any, and no form is given.
"""

import json
import re
from typing import Any

from worker.answer import AnswerFormat, CallFormat
from worker.errors import FieldError, InvalidRequest
from worker.message import NamedTool, Tool
from worker.request import GenerateRequest
from worker.structure import Structure, check_length, json_rule, structure_of

# In front of all calls, before and after the arguments of one, between two, and behind all.
_SHAPES = {
    CallFormat.HERMES: ("", '<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>", "\n", ""),
    CallFormat.LLAMA3: ("", '{"name": "NAME", "parameters": ', "}", "; ", ""),
    CallFormat.MISTRAL: ("[TOOL_CALLS][", '{"name": "NAME", "arguments": ', "}", ", ", "]"),
    CallFormat.MISTRAL_NAMED: ("", "[TOOL_CALLS]NAME[ARGS]", "", "", ""),
}
# The mark that tells a call from text, in front of it. Of Llama 3 that is how the answer begins.
_MARKS = {
    CallFormat.HERMES: "<tool_call>",
    CallFormat.LLAMA3: "",
    CallFormat.MISTRAL: "[TOOL_CALLS]",
    CallFormat.MISTRAL_NAMED: "[TOOL_CALLS]",
}
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "additionalProperties": False}
_ANY_TEXT = r"/(.|\n)*/"
_NO_CALL = r'/(.|\n)*/ & ~/[ \t\r\n]*\{[ \t\r\n]*"name(.|\n)*/'


def structure_of_calls(request: GenerateRequest, answer_format: AnswerFormat) -> Structure | None:
    """What an answer with calls may be; None if it may be any text.

    Args:
        answer_format: That of the request.

    Raises:
        InvalidRequest: It is too long, a schema says what is not a client's to say, or what is no call could be one.
    """
    if answer_format.calls is None:
        return None
    writer = _Writer(answer_format)
    numbered = list(enumerate(request.offered_tools))
    strict = [i for i, tool in numbered if tool.function.strict]
    if request.has_to_call:
        choice = request.tool_choice
        if isinstance(choice, NamedTool):
            numbered = [(i, tool) for i, tool in numbered if tool.function.name == choice.function.name]
        is_one = isinstance(choice, NamedTool) or not answer_format.has_many_calls
        structure = Structure("tools", writer.calls_alone(numbered, is_one=is_one))
    elif (form := structure_of(request, answer_format)) is not None:
        if not _MARKS[answer_format.calls]:
            message = "does not go with tools: this model's calls are JSON without a mark; leave one of them out"
            raise InvalidRequest([FieldError("response_format", "chat_template", message)])
        is_one = not answer_format.has_many_calls
        structure = Structure(form.field, writer.calls_or(numbered, form.grammar, is_one=is_one))
    elif strict:
        structure = Structure(f"tools.{strict[0]}.function.strict", writer.calls_in_text(numbered))
    else:
        return None
    check_length(structure)
    return structure


class _Writer:
    """Writes Lark for one format."""

    def __init__(self, answer_format: AnswerFormat) -> None:
        assert answer_format.calls is not None
        self._format = answer_format
        self._mark = _MARKS[answer_format.calls]
        self._front, self._before, self._after, self._separator, self._behind = _SHAPES[answer_format.calls]

    def calls_alone(self, numbered: list[tuple[int, Tool]], *, is_one: bool) -> str:
        """One call or several."""
        more = "" if is_one else f"({self._text(self._separator)} call)*"
        start = _sequence(self._reasoning(), self._text(self._front), "call", more, self._text(self._behind))
        rules = [f"start: {start}", *self._reasoning_rules()]
        return "\n".join([*rules, *self._call_rules(numbered, "", has_to_fit=True)])

    def calls_or(self, numbered: list[tuple[int, Tool]], form: str, *, is_one: bool) -> str:
        """One call or several, or else an answer of a form, whose grammar is one line."""
        more = "" if is_one else f"({self._text(self._separator)} call)*"
        calls = _sequence(self._text(self._front), "call", more, self._text(self._behind))
        rules = [f"start: {calls} | answer", f"answer: {form.removeprefix('start: ')}"]
        return "\n".join([*rules, *self._call_rules(numbered, "", has_to_fit=False)])

    def calls_in_text(self, numbered: list[tuple[int, Tool]]) -> str:
        """Any text, and calls in it."""
        if not self._mark:
            call = f"call ({self._text(self._separator)} call)*"
            start = [f"start: {_sequence(self._reasoning(), f'({call} | NO_CALL)')}", f"NO_CALL: {_NO_CALL}"]
            return "\n".join([*start, *self._reasoning_rules(), *self._call_rules(numbered, "", has_to_fit=False)])
        # In an array there may be more behind one mark; else each has its own.
        more = f"({self._text(self._separator)} call)*" if self._front else ""
        front = self._text(self._front.removeprefix(self._mark))
        rules = [
            f"start: {_sequence(self._reasoning(), '(said calls)* any_text')}",
            f"calls: {_sequence(front, 'call', more, self._text(self._behind))}",
            *self._up_to("said", self._mark),
            f"any_text: {_ANY_TEXT}",
            *self._reasoning_rules(),
        ]
        return "\n".join([*rules, *self._call_rules(numbered, self._mark, has_to_fit=False)])

    def _call_rules(self, numbered: list[tuple[int, Tool]], mark: str, *, has_to_fit: bool) -> list[str]:
        rules = [f"call: {' | '.join(f'call_{i}' for i, _ in numbered)}"]
        for i, tool in numbered:
            before = self._text(self._before.replace("NAME", tool.function.name).removeprefix(mark))
            rules.append(f"call_{i}: {_sequence(before, f'arguments_{i}', self._text(self._after))}")
            schema: dict[str, Any] = {"type": "object"}
            if has_to_fit or tool.function.strict:
                parameters = tool.function.parameters
                schema = {"type": "object", **parameters} if parameters else _NO_ARGUMENTS
            rules.append(f"arguments_{i}: {json_rule(schema, f'tools.{i}.function.parameters')}")
        return rules

    def _reasoning(self) -> str:
        if self._format.reasoning is None:
            return ""
        if self._format.is_reasoning:
            return "reasoning"
        return f"({self._text(self._format.reasoning[0])} reasoning)?"

    def _reasoning_rules(self) -> list[str]:
        if self._format.reasoning is None:
            return []
        return [r"reasoning: thought /\n{0,2}/", *self._up_to("thought", self._format.reasoning[1])]

    def _up_to(self, name: str, mark: str) -> list[str]:
        """A rule for any text up to the first such mark, and this."""
        if mark in self._format.special_marks:
            return [f"{name}: {_ANY_TEXT} {self._text(mark)}"]
        return [f"{name}[suffix={json.dumps(mark)}]: {_ANY_TEXT}"]

    def _text(self, text: str) -> str:
        """A text as a part of a grammar: special tokens by their ids, for they have no text."""
        special = self._format.special_marks
        pieces = re.split(f"({'|'.join(map(re.escape, special))})", text) if special else [text]
        return _sequence(
            *(f"<[{special[piece]}]>" if piece in special else json.dumps(piece) for piece in pieces if piece)
        )


def _sequence(*parts: str) -> str:
    return " ".join(filter(None, parts))
