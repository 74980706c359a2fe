"""LangChain's ChatOpenAI."""

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import SecretStr

from tests.clients.conftest import ANSWER, MODEL, QUESTION
from tests.support.servers import Server

pytestmark = pytest.mark.slow


@pytest.fixture
def model(served: Server) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=served.url + "/v1", api_key=SecretStr("none"), temperature=0, max_retries=0)


def test_it_answers(model: ChatOpenAI) -> None:
    answer = model.invoke(QUESTION)
    assert answer.content == ANSWER
    assert answer.response_metadata["finish_reason"] == "stop"
    assert isinstance(answer, AIMessage)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_it_streams(model: ChatOpenAI) -> None:
    chunks = list(model.stream([SystemMessage("Answer briefly."), HumanMessage(QUESTION)]))
    assert len(chunks) > 3
    assert "Paris" in "".join(str(chunk.content) for chunk in chunks)


def test_it_asks_many_at_once(model: ChatOpenAI) -> None:
    assert [answer.content for answer in model.batch([QUESTION] * 5)] == [ANSWER] * 5


def test_it_knows_that_a_conversation_is_too_long(model: ChatOpenAI) -> None:
    with pytest.raises(ContextOverflowError):
        model.invoke("hello " * 3000)


def test_log_probabilities_come_with_the_answer(model: ChatOpenAI) -> None:
    answer = model.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == ANSWER
    assert {len(one["top_logprobs"]) for one in content} == {2}


def test_completions(served: Server) -> None:
    model = OpenAI(model=MODEL, base_url=served.url + "/v1", api_key=SecretStr("none"), temperature=0, max_tokens=5)
    assert model.invoke("Once upon a time")
