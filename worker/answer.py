"""What an answer is made of besides text, and how the model of a request marks it; answer_parser.py finds it.

Pure: no I/O, any thread.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from worker.events import TokenLogprob
from worker.request import GenerateRequest


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of what the model says to the user."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model says to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A tool is called. Its arguments follow in pieces.

    Attributes:
        index: Of the call in the answer, from 0.
        call_id: Names it for the answer of the tool.
    """

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments of a call; joined they are a JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call is complete: its arguments are a JSON object. One that is closed and is none has no such part."""

    index: int


Part = Text | Reasoning | CallBegun | CallArguments | CallEnded


class CallFormat(StrEnum):
    """How a model writes a call.

    HERMES: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, for each. Hermes, Qwen, and whoever is asked for
        it by engine/conversation.py.
    LLAMA3: `{"name": ..., "parameters": {...}}` and nothing around it, where the answer begins or behind
        `<|python_tag|>`; several with `;` between.
    MISTRAL: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`.
    MISTRAL_NAMED: `[TOOL_CALLS]name[ARGS]{...}` for each, with `[CALL_ID]` and an id in between or not. Later models of
        Mistral's. Both are understood of both.
    """

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"
    MISTRAL_NAMED = "mistral-named"


# The first is in front of calls, the others between or behind.
CLOSING = "</tool_call>"
CALL_ID, ARGUMENTS = "[CALL_ID]", "[ARGS]"
CALL_MARKS = {
    CallFormat.HERMES: ("<tool_call>", CLOSING),
    CallFormat.LLAMA3: ("<|python_tag|>",),
    CallFormat.MISTRAL: ("[TOOL_CALLS]", CALL_ID, ARGUMENTS),
    CallFormat.MISTRAL_NAMED: ("[TOOL_CALLS]", CALL_ID, ARGUMENTS),
}

# DeepSeek, Qwen and most others; EXAONE Deep; Mistral's Magistral; Cohere; Seed-OSS.
_REASONING_MARKS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
)

# What else follows `<tool_call>` in the templates of other models: their calls are no JSON.
_NO_JSON = ("<function=", "<arg_key>", "<parameter=")


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How the model of a request marks what is not text. Without marks all is text.

    Attributes:
        reasoning: The marks around what the model says to itself, at the beginning of an answer.
        is_reasoning: Whether the prompt has the first of them already.
        calls: How calls are written; None: there are none.
        tool_names: The tools that may be called.
        has_many_calls: Whether an answer may have more than one. If not, it is over behind the first.
        special_marks: Marks that are tokens without text in an answer, and their ids. The detokenizer shows them, for
            the parser.
    """

    reasoning: tuple[str, str] | None = None
    is_reasoning: bool = False
    calls: CallFormat | None = None
    tool_names: frozenset[str] = frozenset()
    has_many_calls: bool = True
    special_marks: Mapping[str, int] = field(default_factory=dict)

    def of_request(self, request: GenerateRequest, prompt_end: str) -> "AnswerFormat":
        """What of it the answer to a request may have.

        Args:
            prompt_end: The last words of the prompt, special tokens too. A template may have begun the reasoning, and
                may do so in some conversations only.
        """
        if request.messages is None:
            return PLAIN
        names = frozenset(tool.function.name for tool in request.offered_tools)
        calls = self.calls if names else None
        # An answer of a given form is that from its first token.
        reasoning = None if request.has_form else self.reasoning
        marks = {*(reasoning or ()), *(CALL_MARKS[calls] if calls else ())}
        return replace(
            self,
            reasoning=reasoning,
            is_reasoning=reasoning is not None and prompt_end.rstrip().endswith(reasoning[0]),
            calls=calls,
            tool_names=names,
            has_many_calls=request.parallel_tool_calls,
            special_marks={mark: token_id for mark, token_id in self.special_marks.items() if mark in marks},
        )


PLAIN = AnswerFormat()


def answer_format_of(template: str | None, special_tokens: Mapping[str, int]) -> AnswerFormat:
    """Find how a model marks its answers.

    Args:
        template: Its chat template, that for tools if there are several.
        special_tokens: The tokens of its tokenizer that have no text in an answer, and their ids.

    Returns:
        Without `calls` if the template knows tools and writes calls in a way that is not known here.
    """
    template = template or ""
    # Some templates only take reasoning out of earlier turns, and so have no more of it than its end.
    reasoning = next((marks for marks in _REASONING_MARKS if marks[1] in template), None)
    calls = _call_format_of(template)
    marks = {*(reasoning or ()), *(CALL_MARKS[calls] if calls else ())}
    special_marks = {mark: special_tokens[mark] for mark in sorted(marks) if mark in special_tokens}
    return AnswerFormat(reasoning=reasoning, calls=calls, special_marks=special_marks)


def knows_tools(template: str | None) -> bool:
    """Whether a chat template shows tools to its model."""
    return re.search(r"\btools\b", template or "") is not None


def _call_format_of(template: str) -> CallFormat | None:
    if not knows_tools(template):
        return CallFormat.HERMES
    if "[TOOL_CALLS]" in template:
        return CallFormat.MISTRAL_NAMED if ARGUMENTS in template else CallFormat.MISTRAL
    if "<tool_call>" in template:
        return None if any(mark in template for mark in _NO_JSON) else CallFormat.HERMES
    if "<|python_tag|>" in template or '{"name": function name, "parameters":' in template:
        return CallFormat.LLAMA3
    return None
