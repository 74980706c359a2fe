"""Reasoning and calls of tools, as the client hands them on and puts them together."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.conftest import Serve
from tests.scripted_server import END, METRICS, STARTED, numbered, says, token
from tests.support.servers import Server, running_server
from worker.client import Client, End, Part, ProtocolError, Token

WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = """<think>
hm, well
</think>

Let me see.
<tool_call>
{"name": "weather", "arguments": {"city": "Rome"}}
</tool_call>
<tool_call>
{"name": "weather", "arguments": {"city": "Os"""


def parts(*listed: dict[str, Any]) -> list[dict[str, Any]]:
    return [STARTED, token("<", 0, parts=list(listed)), METRICS, END]


def test_a_part_has_what_its_kind_has(serve: Serve) -> None:
    said: list[dict[str, Any]] = [
        {"type": "reasoning", "text": "hm"},
        {"type": "call", "index": 0, "id": "c0", "name": "weather"},
        {"type": "arguments", "index": 0, "text": "{}"},
        {"type": "call_end", "index": 0},
        {"type": "text", "text": "so"},
        {"type": "picture", "url": "of a newer server"},
    ]
    events = list(serve(says(numbered(parts(*said)))).stream(prompt="Hi"))
    assert [event.parts for event in events if isinstance(event, Token)] == [
        (
            Part("reasoning", "hm"),
            Part("call", index=0, call_id="c0", name="weather"),
            Part("arguments", "{}", 0),
            Part("call_end", index=0),
            Part("text", "so"),
            Part("picture"),
        )
    ]


@pytest.mark.parametrize("wrong", ["text", {"text": "a"}, {"type": "call", "index": 0, "id": "c0"}, {"type": "text"}])
def test_a_part_that_is_none_is_no_answer(serve: Serve, wrong: Any) -> None:
    with pytest.raises(ProtocolError, match="part"):
        list(serve(says(numbered(parts(wrong)))).stream(prompt="Hi"))


def test_what_the_end_makes_known_is_part_of_the_answer(serve: Serve) -> None:
    end = END | {"parts": [{"type": "text", "text": " "}]}
    answer = serve(says(numbered([STARTED, token("a ", 0, parts=[{"type": "text", "text": "a"}]), METRICS, end])))
    assert answer.generate(prompt="Hi").content == "a "


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that says what it is asked to, in the words of one that thinks and calls."""
    with running_server(tmp_path_factory.mktemp("speaking"), env={"GATED_TEMPLATE": "QWEN3"}) as server:
        server.allow("open")
        yield server


@pytest.mark.slow
def test_an_answer_of_a_real_server_is_taken_apart(speaking: Server) -> None:
    asked: Any = {"messages": [{"role": "user", "content": f"<say>{CALLS}</say>"}], "tools": [WEATHER]}
    with Client(speaking.url) as client:
        answer = client.generate(**asked)
        [end] = [event for event in client.run(**asked) if isinstance(event, End)]
    assert answer.reasoning == "hm, well"
    assert answer.content.strip() == "Let me see."
    whole, cut = answer.calls
    assert (whole.name, json.loads(whole.arguments), whole.is_whole) == ("weather", {"city": "Rome"}, True)
    assert (cut.name, cut.is_whole) == ("weather", False)
    assert whole.id != cut.id
    assert answer.text.strip() == CALLS.strip()
    assert end.stop_reason == "EOS"


@pytest.mark.slow
def test_an_answer_without_any_is_its_text(speaking: Server) -> None:
    with Client(speaking.url) as client:
        answer = client.generate(messages=[{"role": "user", "content": "<say>It rains. </say>"}])
    assert (answer.content, answer.reasoning, answer.calls) == (answer.text, "", ())
