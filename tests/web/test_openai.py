"""The OpenAI routes as the openai client sees them, streaming and not, and chunk by chunk against its own types."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from tests.support.servers import RawStream, Server, events_of

pytestmark = pytest.mark.slow

MESSAGES: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
CHAT = {"messages": MESSAGES, "max_tokens": 5, "temperature": 0, "stream": True}


@pytest.fixture
def client(gated: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gated.url + "/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def test_chat_streams(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    options: Any = {"include_usage": True}
    with client.chat.completions.create(
        model="endstop-tiny", messages=MESSAGES, max_tokens=5, temperature=0, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "abcde"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 5
    assert usage.total_tokens == usage.prompt_tokens + 5


def test_chat_whole(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    answer = client.chat.completions.create(
        model="endstop-tiny", messages=MESSAGES, max_completion_tokens=9, temperature=0, stop="ef"
    )
    assert answer.choices[0].message.content == "abcd"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


def test_completions_stream_and_whole(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    whole = client.completions.create(model="endstop-tiny", prompt="hello", temperature=0)
    assert whole.choices[0].text == "abcdefghijklmnop"  # 16 tokens, OpenAI's default
    assert whole.choices[0].finish_reason == "length"
    with client.completions.create(
        model="endstop-tiny", prompt="hello", max_tokens=3, temperature=0, stream=True
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abc"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["endstop-tiny"]


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_failure_in_mid_stream_is_an_error_with_its_code(
    gated: Server, client: openai.OpenAI, include_usage: bool
) -> None:
    options: Any = {"include_usage": include_usage}
    with client.chat.completions.create(
        model="endstop-tiny", messages=MESSAGES, temperature=0, stream=True, stream_options=options
    ) as stream:
        gated.allow(1)
        chunks = iter(stream)
        next(chunks)  # the role
        assert next(chunks).choices[0].delta.content == "a"
        gated.post("/fault/error")
        gated.allow(1)
        with pytest.raises(openai.APIError) as raised:
            next(chunks)
    assert raised.value.code == "INFERENCE_FAILED"


def test_a_failure_of_a_whole_answer_is_a_status(gated: Server, client: openai.OpenAI) -> None:
    gated.post("/fault/error")
    gated.allow(1)
    with pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="endstop-tiny", messages=MESSAGES)
    assert raised.value.code == "INFERENCE_FAILED"


def test_bad_requests_are_the_clients_own_errors(gated: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="endstop-tiny", messages=MESSAGES, temperature=9)
    with pytest.raises(openai.NotFoundError, match="endstop-tiny"):
        client.chat.completions.create(model="another", messages=MESSAGES)


def test_what_clients_act_on_has_openais_code(client: openai.OpenAI) -> None:
    too_long: Any = [{"role": "user", "content": "hello " * 3000}]
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="endstop-tiny", messages=too_long)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as more:
        client.chat.completions.create(model="endstop-tiny", messages=MESSAGES, max_completion_tokens=10**6)
    assert (more.value.code, more.value.param) == ("context_length_exceeded", "max_completion_tokens")
    with pytest.raises(openai.NotFoundError) as another:
        client.chat.completions.create(model="another", messages=MESSAGES)
    assert another.value.code == "model_not_found"


def test_pings_do_not_disturb_the_client(gated: Server, client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="endstop-tiny", messages=MESSAGES, max_tokens=2, temperature=0, stream=True
    ) as stream:
        with RawStream(gated, "POST", "/v1/chat/completions", CHAT) as watch:
            watch.read_until(b": ping\n: ping\n")  # the first stream has waited as long
        gated.allow(100)
        assert "".join(c.choices[0].delta.content or "" for c in stream) == "ab"


def test_a_client_that_closes_its_stream_cancels(gated: Server, client: openai.OpenAI) -> None:
    before = gated.stats()["outcomes"].get("cancelled{client}", 0)
    gated.allow(1)
    stream = client.chat.completions.create(model="endstop-tiny", messages=MESSAGES, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    gated.wait_for(lambda: gated.stats()["wanted"] == 0, "the leave is noticed")
    gated.allow(2)
    gated.wait_for(lambda: gated.stats()["open"] == 0, "the slot is free")
    gated.wait_for(lambda: gated.stats()["outcomes"].get("cancelled{client}", 0) == before + 1, "the outcome")


def test_a_client_that_leaves_a_whole_answer_cancels(gated: Server) -> None:
    with RawStream(gated, "POST", "/v1/chat/completions", CHAT | {"stream": False}):
        gated.wait_for(lambda: gated.stats()["wanted"] == 1, "it is accepted")
    gated.wait_for(lambda: gated.stats()["wanted"] == 0, "the leave is noticed")
    gated.allow(2)
    gated.wait_for(lambda: gated.stats()["open"] == 0, "the slot is free")


@pytest.mark.parametrize("include_usage", [False, True])
def test_every_chunk_has_exactly_the_fields_of_openais_types(gated: Server, include_usage: bool) -> None:
    gated.allow(100)
    for path, kind in (("/v1/chat/completions", ChatCompletionChunk), ("/v1/completions", Completion)):
        body: dict[str, Any] = {"max_tokens": 3, "stream": True}
        body |= {"messages": MESSAGES} if "chat" in path else {"prompt": "hello"}
        if include_usage:
            body["stream_options"] = {"include_usage": True}
        with RawStream(gated, "POST", path, body) as stream:
            raw = stream.read_all()
        assert b"id: " not in raw
        *chunks, done = events_of(raw)
        assert done == "[DONE]"
        for chunk in chunks:
            if kind is Completion and chunk["choices"] and chunk["choices"][0]["finish_reason"] is None:
                # OpenAI sends null here while a completion streams; its own type says that it never does
                chunk["choices"][0]["finish_reason"] = "stop"
            parsed = kind.model_validate(chunk, strict=True)
            assert json.loads(parsed.model_dump_json(exclude_unset=True)) == chunk
            assert not _extras(parsed), chunk
            assert ("usage" in chunk) == include_usage


def _extras(model: Any) -> list[str]:
    """Fields that OpenAI's types do not declare, at any depth."""
    found = list(model.model_extra or ())
    for name in type(model).model_fields:
        value = getattr(model, name)
        for item in value if isinstance(value, list) else [value]:
            if hasattr(item, "model_extra"):
                found += _extras(item)
    return found


def test_several_choices_stream_side_by_side(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    options: Any = {"include_usage": True}
    with client.chat.completions.create(
        model="endstop-tiny", messages=MESSAGES, n=3, max_tokens=4, temperature=0, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    texts, reasons = dict.fromkeys(range(3), ""), {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == dict.fromkeys(range(3), "abcd")
    assert reasons == dict.fromkeys(range(3), "length")
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 12
    one = client.chat.completions.create(model="endstop-tiny", messages=MESSAGES, max_tokens=4, temperature=0)
    assert one.usage is not None
    assert usage.prompt_tokens == one.usage.prompt_tokens, "a prompt is counted once"


def test_several_prompts_and_choices_whole(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    answer = client.completions.create(
        model="endstop-tiny", prompt=["hello", "you"], n=2, max_tokens=2, temperature=0, echo=True
    )
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "helloab"),
        (1, "helloab"),
        (2, "youab"),
        (3, "youab"),
    ]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_a_prompt_of_token_ids_is_that_prompt(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    answer = client.completions.create(model="endstop-tiny", prompt=[5, 6, 7], max_tokens=2, temperature=0, echo=True)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.choices[0].text.endswith("ab")
    assert len(answer.choices[0].text) > 2
    with pytest.raises(openai.BadRequestError, match="the model has 0 to"):
        client.completions.create(model="endstop-tiny", prompt=[10**6])


def test_logprobs_are_told_with_their_text(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    ask: Any = {"model": "endstop-tiny", "messages": MESSAGES, "max_tokens": 9, "temperature": 0, "stop": "ef"}
    whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    told = whole.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert [one.token for one in told.content] == list("abcd"), "not those of the stop string"
    for one in told.content:
        assert bytes(one.bytes or ()) == one.token.encode()
        assert one.logprob <= 0
        assert one.top_logprobs[0].token == one.token
        assert len(one.top_logprobs) == 2
        assert one.top_logprobs[0].logprob == one.logprob
    with client.chat.completions.create(**ask, logprobs=True, stream=True) as stream:
        chunks = [choice for chunk in stream for choice in chunk.choices]
    streamed = [one for choice in chunks if choice.logprobs for one in choice.logprobs.content or ()]
    assert [(one.token, one.logprob) for one in streamed] == [(one.token, one.logprob) for one in told.content]
    for choice in chunks:
        text = (
            "".join(one.token for one in (choice.logprobs.content or ()) if choice.logprobs) if choice.logprobs else ""
        )
        assert text == (choice.delta.content or "")


def test_logprobs_of_completions_have_their_own_shape(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    answer = client.completions.create(model="endstop-tiny", prompt="hello", max_tokens=3, temperature=0, logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.tokens == ["a", "b", "c"]
    assert told.text_offset == [0, 1, 2]
    assert told.token_logprobs == [top[token] for top, token in zip(told.top_logprobs or (), told.tokens, strict=True)]
    assert all(len(top) == 2 for top in told.top_logprobs or ())
    told = (
        client.completions.create(
            model="endstop-tiny", prompt="hello", max_tokens=3, temperature=0, logprobs=2, logit_bias={"5": 100}
        )
        .choices[0]
        .logprobs
    )
    assert told is not None
    assert told.top_logprobs is not None
    for token, logprob, top in zip(told.tokens or (), told.token_logprobs or (), told.top_logprobs, strict=True):
        assert top[token] == logprob, "the one that was drawn, though it is none of the likeliest"
        assert len(top) == 3


def test_of_several_choices_a_failure_of_one_ends_all(gated: Server) -> None:
    """What has come of the others must not look like the whole answer."""
    gated.allow(1)
    with RawStream(gated, "POST", "/v1/chat/completions", CHAT | {"n": 2}) as stream:
        first = stream.read_until(b'"a"').decode()
        requests.delete(gated.url + "/v1/jobs/" + first.partition('"id":"chatcmpl-')[2].partition('"')[0], timeout=30)
        gated.allow(1)
        raw = stream.read_all()
    *_, error, done = events_of(raw)
    assert done == "[DONE]"
    assert error["error"]["code"] == "CANCELLED"
    assert b"finish_reason" in raw
    assert b'"length"' not in raw
    gated.allow(1)
    gated.wait_for(lambda: gated.stats()["open"] == 0, "the slots are free")


def test_more_answers_than_there_is_ever_room_for_are_refused(gated: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="there is never room for more than") as raised:
        client.completions.create(model="endstop-tiny", prompt=["hello"] * 100, n=100)
    assert raised.value.param == "n"
    gated.wait_for(lambda: gated.stats()["open"] == 0, "nothing was started")


def test_a_model_is_found_by_its_name(client: openai.OpenAI) -> None:
    assert client.models.retrieve("endstop-tiny").id == "endstop-tiny"
    with pytest.raises(openai.NotFoundError, match="another"):
        client.models.retrieve("another")
