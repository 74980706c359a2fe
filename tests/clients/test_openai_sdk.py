"""openai-python as its users use it: both clients, retries and timeouts. Chunk by chunk it is in tests/web."""

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.clients.conftest import ANSWER, MODEL, QUESTION
from tests.support.servers import Server, running_server

pytestmark = pytest.mark.slow

ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}


def test_many_at_once_through_the_async_client(served: Server) -> None:
    async def ask(client: openai.AsyncOpenAI, *, is_streamed: bool) -> str:
        if not is_streamed:
            answer = await client.chat.completions.create(**ASKED)
            return answer.choices[0].message.content or ""
        text = ""
        async with await client.chat.completions.create(**ASKED, stream=True) as stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        return text

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, is_streamed=i % 2 == 0) for i in range(8)))

    assert asyncio.run(ask_all()) == [ANSWER] * 8


def test_the_stream_helper_collects_the_whole_answer(served: Server) -> None:
    with (
        openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client,
        client.chat.completions.stream(**ASKED) as stream,
    ):
        texts = [event.delta for event in stream if event.type == "content.delta"]
        whole = stream.get_final_completion()
    assert "".join(texts) == ANSWER
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"


def test_an_answer_goes_back_into_the_history(served: Server) -> None:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
        first = client.chat.completions.create(**ASKED)
        history = [*ASKED["messages"], first.choices[0].message, {"role": "user", "content": "And of Spain?"}]
        second = client.chat.completions.create(**{**ASKED, "messages": history})
    assert "Madrid" in (second.choices[0].message.content or "")


def test_a_server_that_still_loads_is_asked_again(tmp_path: Path) -> None:
    """It says 503 with Retry-After, which the client obeys."""
    with running_server(tmp_path, app="wsgi:app", wait=False) as server:
        deadline = time.monotonic() + 60
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=30, timeout=60) as client:
            answer = client.chat.completions.create(**ASKED)
        assert answer.choices[0].message.content == ANSWER
        assert time.monotonic() < deadline


def test_a_timeout_of_the_client_frees_the_slot(served: Server) -> None:
    with (
        openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=0.2) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.chat.completions.create(**{**ASKED, "max_tokens": 900}, extra_body={"ignore_eos": True})
    served.wait_for(lambda: "cancelled{client}" in served.log(), "the outcome")


def test_errors_have_the_classes_of_the_client(served: Server) -> None:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(**{**ASKED, "temperature": 3})
        assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**{**ASKED, "model": "gpt-4o"})
        with pytest.raises(openai.BadRequestError, match="suffix"):
            client.completions.create(model=MODEL, prompt="a", suffix="b")
