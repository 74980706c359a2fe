"""What is text, reasoning and a call, and that it is so however the text comes."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import templates
from worker.answer import (
    PLAIN,
    AnswerFormat,
    CallArguments,
    CallBegun,
    CallEnded,
    CallFormat,
    Part,
    Reasoning,
    Text,
    answer_format_of,
)
from worker.answer_parser import AnswerParser
from worker.events import Likelihood, Token, TokenLogprob
from worker.request import GenerateRequest

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=300)

THINK = ("<think>", "</think>")
NAMES = frozenset({"weather", "time"})
HERMES = AnswerFormat(calls=CallFormat.HERMES, tool_names=NAMES)
LLAMA3 = AnswerFormat(calls=CallFormat.LLAMA3, tool_names=NAMES, special_marks={"<|python_tag|>": 5})
MISTRAL = AnswerFormat(
    calls=CallFormat.MISTRAL, tool_names=NAMES, special_marks={"[TOOL_CALLS]": 5, "[ARGS]": 6, "[CALL_ID]": 7}
)
THINKING = AnswerFormat(reasoning=THINK)
FORMATS = {
    "plain": PLAIN,
    "hermes": HERMES,
    "hermes thinking": AnswerFormat(reasoning=THINK, calls=CallFormat.HERMES, tool_names=NAMES),
    "hermes, one call": AnswerFormat(calls=CallFormat.HERMES, tool_names=NAMES, has_many_calls=False),
    "llama3": LLAMA3,
    "llama3, one call": AnswerFormat(calls=CallFormat.LLAMA3, tool_names=NAMES, has_many_calls=False),
    "mistral": MISTRAL,
    "thinking": THINKING,
    "thinking since the prompt": AnswerFormat(reasoning=THINK, is_reasoning=True),
}


def parsed(format: AnswerFormat, pieces: Sequence[str]) -> tuple[list[Part], int]:
    parser = AnswerParser(format, "job")
    parts = [part for i, piece in enumerate(pieces) for part in parser.push(Token(piece, i))] + parser.flush()
    return parts, parser.num_calls


def joined(parts: list[Part]) -> list[Part]:
    """With adjacent pieces of one kind as one."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        match last, part:
            case Text(), Text():
                found[-1] = Text(last.text + part.text, last.logprobs + part.logprobs)
            case Reasoning(), Reasoning():
                found[-1] = Reasoning(last.text + part.text)
            case CallArguments(), CallArguments():
                found[-1] = CallArguments(part.index, last.text + part.text)
            case _:
                found.append(part)
    return found


def read(format: AnswerFormat, text: str) -> list[Part]:
    """The parts of a text, which are the same whole and character by character."""
    whole = joined(parsed(format, [text])[0])
    assert joined(parsed(format, list(text))[0]) == whole
    return whole


def call(index: int, name: str, arguments: str) -> list[Part]:
    return [CallBegun(index, f"call_job_{index}", name), CallArguments(index, arguments), CallEnded(index)]


def one(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


ROME = '{"city": "Rome"}'
TRICKY = r'{"a": {"b": ["}</tool_call>", "\"}{", {"c": "[TOOL_CALLS]; \\"}]}, "d": "</think>"}'


# ---- calls


@pytest.mark.parametrize("arguments", [ROME, "{}", TRICKY, '{ "city" :\n"Rome" }'])
@pytest.mark.parametrize(
    ("format", "around"),
    [
        (HERMES, '<tool_call>\n{"name": "weather", "arguments": %s}\n</tool_call>'),
        (HERMES, '<tool_call>{"arguments": %s, "name": "weather"}</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "weather", "arguments": %s}'),
        (LLAMA3, '{"name": "weather", "parameters": %s}'),
        (LLAMA3, ' {"type": "function", "name": "weather", "parameters": %s} '),
        (LLAMA3, '<|python_tag|>{"name": "weather", "parameters": %s}'),
        (MISTRAL, '[TOOL_CALLS][{"name": "weather", "arguments": %s}]'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": %s, "id": "a1B2c3D4e"}]'),
        (MISTRAL, "[TOOL_CALLS]weather[ARGS]%s"),
        (MISTRAL, "[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]%s"),
        (MISTRAL, "[TOOL_CALLS]weather%s"),
    ],
)
def test_a_call_of_each_format(format: AnswerFormat, around: str, arguments: str) -> None:
    text = around.replace("%s", arguments)
    assert read(format, text) == call(0, "weather", arguments)
    assert parsed(format, [text])[1] == 1


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (HERMES, f"<tool_call>{one('weather', ROME)}</tool_call>\n<tool_call>\n{one('time', '{}')}\n</tool_call>"),
        (LLAMA3, f"{one('weather', ROME, 'parameters')}; {one('time', '{}', 'parameters')}"),
        (MISTRAL, f"[TOOL_CALLS][{one('weather', ROME)}, {one('time', '{}')}]"),
        (MISTRAL, f"[TOOL_CALLS]weather[ARGS]{ROME}[TOOL_CALLS]time[ARGS]{{}}"),
    ],
)
def test_several_calls(format: AnswerFormat, text: str) -> None:
    assert read(format, text) == call(0, "weather", ROME) + call(1, "time", "{}")
    assert parsed(format, [text])[1] == 2


def test_text_may_be_around_calls_and_space_beside_them_is_not_text() -> None:
    text = f"Let me  see.\n\n<tool_call>{one('weather', ROME)}</tool_call>\nOne moment.\n"
    assert read(HERMES, text) == [Text("Let me  see."), *call(0, "weather", ROME), Text("One moment.\n")]


def test_a_call_without_arguments_has_an_empty_object() -> None:
    assert read(HERMES, '<tool_call>{"name": "time"}</tool_call>') == call(0, "time", "{}")


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (HERMES, "no call at all  "),
        (HERMES, " <tool_call> is a mark"),
        (HERMES, "<tool_call>{}</tool_call>"),
        (HERMES, "<tool_call>" + one("weather", "[1]") + "</tool_call>"),
        (HERMES, "<tool_call>" + one("weather", "null") + "</tool_call>"),
        (HERMES, "<tool_call>" + one("unknown", ROME) + "</tool_call>"),
        (HERMES, '<tool_call>{"name": ["weather"]}</tool_call>'),
        (HERMES, '<tool_call>{"name": "weather", "name": "time"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "weather", "more": 1}</tool_call>'),
        (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"arguments": {}, "arguments": {}, "name": "time"}</tool_call>'),
        (HERMES, '<tool_call>{"name" "weather"}</tool_call>'),
        (HERMES, '<tool_call>{"id": "' + "x" * 400 + '", "name": "weather"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "wea'),
        (HERMES, '<tool_call>{"arguments": {"a": '),
        (HERMES, "<tool_c"),
        (LLAMA3, '{"answer": 42}'),
        (LLAMA3, one("unknown", ROME, "parameters")),
        (LLAMA3, "like " + one("weather", ROME, "parameters")),
        (LLAMA3, " \n"),
        (PLAIN, f"<think>a</think><tool_call>{one('weather', ROME)}</tool_call>"),
    ],
)
def test_what_is_no_call_is_text(format: AnswerFormat, text: str) -> None:
    assert read(format, text) == [Text(text)]
    assert parsed(format, [text])[1] == 0


@pytest.mark.parametrize(
    ("format", "text", "said"),
    [
        (LLAMA3, "<|python_tag|>print(1)", "print(1)"),
        (LLAMA3, "a <|python_tag|>", "a "),
        (MISTRAL, "a [TOOL_CALLS]b[ARGS]{}", "a b{}"),
        (MISTRAL, "[TOOL_CALLS][]", "[]"),
    ],
)
def test_a_special_token_that_is_no_part_of_a_call_is_not_shown(format: AnswerFormat, text: str, said: str) -> None:
    assert read(format, text) == [Text(said)]


def test_what_follows_the_calls_and_is_none_is_text() -> None:
    text = f"[TOOL_CALLS][{one('weather', ROME)}, {one('unknown', ROME)}]"
    assert read(MISTRAL, text) == [*call(0, "weather", ROME), Text(f", {one('unknown', ROME)}]")]


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_call_that_is_cut_is_not_complete(cut: int) -> None:
    arguments = ROME[:-cut]
    parts, num_calls = parsed(HERMES, ['<tool_call>{"name": "weather", "arguments": ' + arguments])
    assert joined(parts) == call(0, "weather", arguments)[:2]
    assert num_calls == 0


NO_JSON = ["{city: Rome}", '{"a": 1,}', '{"a": NaN}', '{"a": 1e999}', '{"a": "x\ny"}', '{"a": "\\ud800"}']


@pytest.mark.parametrize("arguments", NO_JSON)
def test_a_call_whose_arguments_are_no_json_is_not_complete(arguments: str) -> None:
    broken = f"<tool_call>{one('weather', arguments)}</tool_call>"
    assert read(HERMES, broken) == call(0, "weather", arguments)[:2]
    assert parsed(HERMES, [broken])[1] == 0
    then = f"<tool_call>{one('time', '{}')}</tool_call> and"
    assert read(HERMES, broken + then) == [*call(0, "weather", arguments)[:2], *call(1, "time", "{}"), Text("and")]
    assert read(FORMATS["hermes, one call"], broken + then) == call(0, "weather", arguments)[:2]


@pytest.mark.parametrize("arguments", NO_JSON)
def test_arguments_in_front_of_their_name_that_are_no_json_are_text(arguments: str) -> None:
    text = f'<tool_call>{{"arguments": {arguments}, "name": "weather"}}</tool_call>'
    assert read(HERMES, text) == [Text(text)]


def test_of_several_calls_one_that_is_cut_makes_none_complete() -> None:
    text = f'[TOOL_CALLS][{one("weather", ROME)}, {{"name": "time", "arguments": {{'
    parts, num_calls = parsed(MISTRAL, [text])
    assert joined(parts) == call(0, "weather", ROME) + call(1, "time", "{")[:2]
    assert num_calls == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "hermes, one call",
            f"<tool_call>{one('weather', ROME)}</tool_call> <tool_call>{one('time', '{}')}</tool_call>",
        ),
        ("llama3, one call", f"{one('weather', ROME)}; {one('time', '{}')}"),
        ("hermes, one call", f"<tool_call>{one('weather', ROME)}</tool_call> and more"),
    ],
)
def test_if_there_may_be_one_call_the_answer_is_over_behind_it(name: str, text: str) -> None:
    assert read(FORMATS[name], text) == call(0, "weather", ROME)
    assert parsed(FORMATS[name], [text])[1] == 1


def test_arguments_are_given_as_they_come() -> None:
    parser = AnswerParser(HERMES, "job")
    assert parser.push(Token("<tool_call>\n{", 0)) == []
    assert parser.push(Token('"name": "weather"', 1)) == []
    assert parser.push(Token(', "arguments": {"ci', 2)) == [
        CallBegun(0, "call_job_0", "weather"),
        CallArguments(0, '{"ci'),
    ]
    assert parser.push(Token('ty": "R', 3)) == [CallArguments(0, 'ty": "R')]
    assert parser.push(Token('ome"}', 4)) == [CallArguments(0, 'ome"}'), CallEnded(0)]
    assert parser.push(Token("}\n</tool_call>", 5)) == []
    assert parser.flush() == []


def test_text_is_given_as_it_comes() -> None:
    parser = AnswerParser(FORMATS["hermes thinking"], "job")
    assert parser.push(Token("Hel", 0)) == [Text("Hel")]
    assert parser.push(Token("lo ", 1)) == [Text("lo")]
    assert parser.push(Token("a < b <t", 2)) == [Text(" a < b")]
    assert parser.push(Token("he", 3)) == [Text(" <the")]


def test_json_that_is_no_call_is_given_as_it_comes() -> None:
    parser = AnswerParser(LLAMA3, "job")
    assert parser.push(Token('{"items": [', 0)) == [Text('{"items": [')]


@pytest.mark.parametrize("text", ['{"id": "', '{"name": "'])
def test_a_string_that_does_not_end_is_text_before_the_answer_ends(text: str) -> None:
    parser = AnswerParser(LLAMA3, "job")
    assert parser.push(Token(text, 0)) == []
    assert parser.push(Token("x" * 400, 1)) == [Text(text + "x" * 400)]


# ---- reasoning


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\na\n\nb\n</think>\n\nc", [Reasoning("a\n\nb"), Text("c")]),
        (" \n<think>a</think>b", [Reasoning("a"), Text("b")]),
        ("<think></think>b", [Text("b")]),
        ("<think>a</thin", [Reasoning("a</thin")]),
        ("<think>a\n", [Reasoning("a\n")]),
        ("a<think>b</think>", [Text("a<think>b</think>")]),
        (" a", [Text(" a")]),
        ("<thin", [Text("<thin")]),
        ("\n", [Text("\n")]),
        ("<think>a</think>b<think>c</think>", [Reasoning("a"), Text("b<think>c</think>")]),
        ("<think><tool_call></think>", [Reasoning("<tool_call>")]),
    ],
)
def test_reasoning(text: str, parts: list[Part]) -> None:
    assert read(THINKING, text) == parts
    assert read(FORMATS["hermes thinking"], text) == parts


def test_reasoning_that_the_prompt_has_begun() -> None:
    begun = FORMATS["thinking since the prompt"]
    assert read(begun, "\na\n</think>\n\nb") == [Reasoning("a"), Text("b")]
    assert read(begun, "never done") == [Reasoning("never done")]


def test_a_call_behind_reasoning() -> None:
    text = f"<think>\nhm\n</think>\n\n<tool_call>\n{one('weather', ROME)}\n</tool_call>"
    assert read(FORMATS["hermes thinking"], text) == [Reasoning("hm"), *call(0, "weather", ROME)]


# ---- the laws

MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"]
PUNCTUATION = [*'{}[];:,<"\\ \n']
JSON = ['{"name": "weather", "arguments": ', '"name": "time"', '"parameters": {', '{"name":"time"}', ROME, TRICKY]
words = st.sampled_from([*MARKUP, *PUNCTUATION, *JSON, one("weather", TRICKY), "weather", "a", "x1", "é"])
texts = st.lists(words, max_size=12).map("".join)


@pytest.mark.slow
@repeatable
@given(st.sampled_from(sorted(FORMATS)), texts, st.data())
def test_how_the_text_is_cut_makes_no_difference(name: str, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=20)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole, num_calls = parsed(FORMATS[name], [text])
    cut, num_cut = parsed(FORMATS[name], pieces)
    assert joined(cut) == joined(whole)
    assert num_cut == num_calls


@pytest.mark.slow
@repeatable
@given(st.sampled_from([name for name, format in FORMATS.items() if format.reasoning is None]), texts)
def test_no_text_is_lost(name: str, text: str) -> None:
    parts = joined(parsed(FORMATS[name], [text])[0])
    if any(isinstance(part, CallBegun) for part in parts):
        return
    for mark in FORMATS[name].special_marks:
        text = text.replace(mark, "")
    assert parts == ([Text(text)] if text else [])


@pytest.mark.slow
@repeatable
@given(st.sampled_from(sorted(FORMATS)), texts)
def test_arguments_are_what_the_model_has_written(name: str, text: str) -> None:
    parts = joined(parsed(FORMATS[name], [text])[0])
    begun = [part for part in parts if isinstance(part, CallBegun)]
    assert [part.index for part in begun] == list(range(len(begun)))
    assert {part.name for part in begun} <= NAMES
    given = [part for part in parts if isinstance(part, CallArguments)]
    assert all(part.text in text or part.text == "{}" for part in given)
    ended = {part.index for part in parts if isinstance(part, CallEnded)}
    for part in given:
        if part.index in ended:
            assert part.text[0] == "{"
            assert part.text[-1] in "}]"


# ---- log-probabilities


def logprob(text: str) -> TokenLogprob:
    return TokenLogprob(Likelihood(text, text.encode(), -1.0))


def test_logprobs_stay_with_the_text_that_their_token_begins() -> None:
    tokens = [
        "<think>",
        "hm",
        "</think>",
        "\n\n",
        "é",
        "a ",
        "b",
        " ",
        "<tool_call>",
        one("time", "{}"),
        "</tool_call>",
    ]
    expected = ["é", "a ", "b"]
    for size in (1, 2, 5, len(tokens)):
        parser = AnswerParser(FORMATS["hermes thinking"], "job")
        parts: list[Part] = []
        for at in range(0, len(tokens), size):
            some = tokens[at : at + size]
            parts += parser.push(Token("".join(some), at, len(some), tuple(map(logprob, some))))
        parts += parser.flush()
        told = [one.drawn.token for part in parts if isinstance(part, Text) for one in part.logprobs]
        assert told == expected


def test_logprobs_of_a_character_of_several_tokens() -> None:
    first, second = (TokenLogprob(Likelihood("\ufffd", data, -1.0)) for data in (b"\xc3", b"\xa9"))
    parser = AnswerParser(HERMES, "job")
    assert parser.push(Token("é", 0, 2, (first, second))) == [Text("é", (first, second))]


# ---- formats from templates


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        (templates.CHATML, CallFormat.HERMES, None),
        (None, CallFormat.HERMES, None),
        (templates.QWEN2, CallFormat.HERMES, None),
        (templates.QWEN3, CallFormat.HERMES, THINK),
        (templates.DEEPSEEK_R1, CallFormat.HERMES, THINK),
        (templates.LLAMA3, CallFormat.LLAMA3, None),
        (templates.MISTRAL_V3, CallFormat.MISTRAL, None),
        (templates.MAGISTRAL, CallFormat.MISTRAL_NAMED, ("[THINK]", "[/THINK]")),
        (templates.QWEN3_CODER, None, None),
    ],
)
def test_a_format_is_found_from_the_template(template: str | None, calls: Any, reasoning: Any) -> None:
    special = ["<|im_end|>", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "<|python_tag|>"]
    format = answer_format_of(template, {mark: i for i, mark in enumerate(special)})
    assert (format.calls, format.reasoning) == (calls, reasoning)
    marks = {
        templates.LLAMA3: {"<|python_tag|>": 4},
        templates.MISTRAL_V3: {"[TOOL_CALLS]": 1, "[ARGS]": 2},
        templates.MAGISTRAL: {"[TOOL_CALLS]": 1, "[ARGS]": 2, "[THINK]": 3},
    }
    assert format.special_marks == marks.get(template or "", {})


def request(**fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate({"messages": [{"role": "user", "content": "hello"}], **fields})


def test_a_request_gets_what_it_asks_for() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    special = {"[TOOL_CALLS]": 1, "[ARGS]": 2, "[THINK]": 3, "[/THINK]": 4}
    model = answer_format_of(templates.MAGISTRAL, special)
    asked = model.of_request(request(tools=tools, parallel_tool_calls=False), "")
    assert (asked.calls, set(asked.tool_names), asked.has_many_calls) == (CallFormat.MISTRAL_NAMED, {"weather"}, False)
    assert asked.special_marks == special
    for other in (request(), request(tools=tools, tool_choice="none")):
        plain = model.of_request(other, "")
        assert (plain.calls, plain.reasoning) == (None, ("[THINK]", "[/THINK]"))
        assert plain.special_marks == {"[THINK]": 3, "[/THINK]": 4}
    assert model.of_request(GenerateRequest(prompt="hello"), "") == PLAIN


@pytest.mark.parametrize(
    ("prompt_end", "is_reasoning"),
    [("<|Assistant|><think>\n", True), ("<think>", True), ("<think>\n\n</think>\n\n", False), ("<|Assistant|>", False)],
)
def test_a_prompt_may_have_begun_the_reasoning(prompt_end: str, is_reasoning: bool) -> None:
    assert THINKING.of_request(request(), prompt_end).is_reasoning == is_reasoning
    assert not PLAIN.of_request(request(), prompt_end).is_reasoning
