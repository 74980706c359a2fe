"""OpenAI's responses as the openai client sees them, and event by event against its own types."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal, get_args

import httpx2
import openai
import pytest
from flask import Response
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel

from tests.support import templates
from tests.support.apps import app_in_process
from tests.support.engines import wait_until
from tests.support.sdk_types import assert_exact, by_type
from tests.support.servers import RawStream, Server
from tests.support.speakers import say, speaking_app
from worker.keys import ApiKeys
from worker.web.context import EXTENSION

pytestmark = pytest.mark.slow

EVENT_TYPES = by_type(*get_args(get_args(ResponseStreamEvent)[0]))
TERMINALS = ("response.completed", "response.incomplete", "response.failed")
ASK: dict[str, Any] = {"model": "endstop-tiny", "input": "hello", "temperature": 0}
STREAM = ASK | {"stream": True}
UNTIL_EF: Any = {"stop": "ef"}  # the model says the alphabet


@pytest.fixture
def client(gated: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gated.url + "/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def events_in(body: bytes) -> list[dict[str, Any]]:
    """The events of a body, each held against its type. Fails on anything else but pings."""
    events = []
    for lines in body.decode("ascii").replace(": ping\n", "").split("\n\n")[:-1]:
        name, _, data = lines.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == "event: " + event["type"]
        assert_exact(EVENT_TYPES[event["type"]], event)
        events.append(event)
    return events


def assert_told_once(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers without gaps from 0, and one terminal event, the last. Returns the response in it."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] in TERMINALS for event in events] == [False] * (len(events) - 1) + [True]
    response: dict[str, Any] = events[-1]["response"]
    return response


def stream(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    with RawStream(server, "POST", "/v1/responses", body) as raw:
        received = raw.read_all()
        assert raw.is_complete
    return events_in(received)


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def show(server: Server, response_id: str) -> dict[str, Any]:
    answer = server.get("/v1/responses/" + response_id)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert_exact(OpenAIResponse, found)
    return found


def start_background(server: Server, **fields: Any) -> dict[str, Any]:
    answer = server.post("/v1/responses", ASK | {"background": True} | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert_exact(OpenAIResponse, found)
    return found


# ---- streams


def test_a_response_streams(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    with client.responses.stream(**ASK, extra_body=UNTIL_EF) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert final.output_text == "abcd"
    assert final.status == "completed"
    assert final.completed_at is not None
    assert final.completed_at >= final.created_at
    assert final.usage is not None
    assert final.usage.output_tokens == 6
    assert final.usage.total_tokens == final.usage.input_tokens + 6


def test_a_response_streams_to_the_async_client(gated: Server) -> None:
    gated.allow(100)

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=gated.url + "/v1", api_key="none", max_retries=0) as client:
            async with client.responses.stream(**ASK, extra_body=UNTIL_EF) as events:
                final = await events.get_final_response()
            whole = await client.responses.create(**ASK, extra_body=UNTIL_EF)
            assert whole.output_text == final.output_text
            return final.output_text

    assert asyncio.run(ask()) == "abcd"


@pytest.mark.parametrize("more", [{}, {"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
def test_every_event_is_what_its_type_declares(gated: Server, more: dict[str, Any]) -> None:
    gated.allow(100)
    events = stream(gated, STREAM | {"max_output_tokens": 3, "instructions": "be brief", "metadata": {"a": "b"}} | more)
    response = assert_told_once(events)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert text_of(events) == "abc"
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    [message] = response["output"]
    assert message["status"] == "incomplete"
    assert message["content"][0]["text"] == "abc"
    told = [one["token"] for one in message["content"][0]["logprobs"]]
    assert told == (["a", "b", "c"] if more else [])
    assert show(gated, response["id"]) == response, "as it is told later"


def test_headers_and_first_events_leave_before_the_model_has_done_anything(gated: Server) -> None:
    with RawStream(gated, "POST", "/v1/responses", STREAM | {"max_output_tokens": 1}) as raw:
        begun = events_in(raw.read_until(b": ping\n: ping\n"))
        assert [event["type"] for event in begun] == ["response.created", "response.in_progress"]
        gated.allow(1)
        assert_told_once(events_in(raw.read_all()))


def test_pings_do_not_disturb_the_client(gated: Server, client: openai.OpenAI) -> None:
    with client.responses.stream(**ASK, max_output_tokens=2) as events:
        with RawStream(gated, "POST", "/v1/responses", STREAM) as watch:
            watch.read_until(b": ping\n: ping\n")  # the first stream has waited as long
        gated.allow(100)
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "ab"


def test_an_answer_of_no_words_is_a_message_all_the_same(gated: Server) -> None:
    gated.allow(100)
    response = assert_told_once(stream(gated, STREAM | {"stop": "a"}))
    assert response["status"] == "completed"
    assert [(item["type"], item["content"][0]["text"]) for item in response["output"]] == [("message", "")]


# ---- whole


def test_a_whole_response(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    items: Any = [
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    ]
    whole = client.responses.create(**ASK | {"input": items}, extra_body=UNTIL_EF, instructions="spell")
    assert whole.output_text == "abcd"
    assert whole.status == "completed"
    assert whole.instructions == "spell"
    assert client.responses.retrieve(whole.id) == whole


def test_a_failure_of_a_whole_response_is_a_status(gated: Server, client: openai.OpenAI) -> None:
    gated.post("/fault/error")
    gated.allow(1)
    with pytest.raises(openai.InternalServerError) as raised:
        client.responses.create(**ASK)
    assert raised.value.code == "INFERENCE_FAILED"


# ---- what goes wrong


def test_a_failure_in_mid_stream_is_told_once_and_nothing_behind_it(gated: Server) -> None:
    with RawStream(gated, "POST", "/v1/responses", STREAM) as raw:
        gated.allow(1)
        raw.read_until(b'"delta":"a"')
        gated.post("/fault/error")
        gated.allow(1)
        events = events_in(raw.read_all())
        assert raw.is_complete
    response = assert_told_once(events)
    assert events[-1]["type"] == "response.failed"
    assert response["status"] == "failed"
    assert response["error"]["type"] == "INFERENCE_FAILED"
    assert response["output"][0]["content"][0]["text"] == "a"
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == 1
    assert show(gated, response["id"]) == response


def test_the_client_sees_a_failure_as_an_event(gated: Server, client: openai.OpenAI) -> None:
    gated.post("/fault/oom")
    with client.responses.stream(**ASK) as events:
        gated.allow(1)
        last = list(events)[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message


def test_bad_requests_are_the_clients_own_errors(gated: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_output_tokens") as raised:
        client.responses.create(**ASK, max_output_tokens=10_000)
    assert raised.value.param == "max_output_tokens", "as the client has named it"
    with pytest.raises(openai.BadRequestError, match="256") as raised:
        client.responses.create(**ASK | {"input": "hello " * 1000})
    assert raised.value.param == "input"
    with pytest.raises(openai.NotFoundError, match="endstop-tiny"):
        client.responses.create(**ASK | {"model": "another"})
    with pytest.raises(openai.NotFoundError, match="no response has the id 'resp_nope'"):
        client.responses.retrieve("resp_nope")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]}, "input.0.arguments"),
        ({"input": []}, "input"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.name"),
        ({"tool_choice": "required"}, "body"),
        ({"background": True, "store": False}, "body"),
        ({"stream_options": {"include_obfuscation": False}}, "body"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"previous_response_id": "resp_nope"}, "previous_response_id"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(gated: Server, fields: dict[str, Any], param: str) -> None:
    answer = gated.post("/v1/responses", ASK | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].startswith(param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


# ---- who leaves


def test_a_client_that_closes_its_stream_cancels(gated: Server, client: openai.OpenAI) -> None:
    before = gated.stats()["outcomes"].get("cancelled{client}", 0)
    gated.allow(1)
    events = client.responses.create(**ASK, stream=True)
    first = next(iter(events))
    assert first.type == "response.created"
    events.close()
    gated.wait_for(lambda: gated.stats()["wanted"] == 0, "the leave is noticed")
    gated.allow(2)
    gated.wait_for(lambda: gated.stats()["open"] == 0, "the slot is free")
    gated.wait_for(lambda: gated.stats()["outcomes"].get("cancelled{client}", 0) == before + 1, "the outcome")
    assert show(gated, first.response.id)["status"] == "cancelled"


def test_a_client_that_leaves_a_background_response_cancels_nothing(gated: Server, client: openai.OpenAI) -> None:
    events = client.responses.create(**ASK, stream=True, background=True, max_output_tokens=4)
    first = next(iter(events))
    assert first.type == "response.created"
    assert first.response.status == "queued"
    events.close()
    gated.wait_for(lambda: gated.stats()["streams"] == 0, "the reader is gone")
    gated.allow(100)
    gated.wait_for(lambda: gated.stats()["open"] == 0, "it has ended")
    assert client.responses.retrieve(first.response.id).output_text == "abcd"


# ---- the background


def test_a_background_response_goes_on_by_itself(gated: Server, client: openai.OpenAI) -> None:
    asked = start_background(gated, max_output_tokens=4)
    assert asked["status"] == "queued"
    assert asked["output"] == []
    gated.wait_for(lambda: gated.stats()["running"] == 1, "it runs")
    running = show(gated, asked["id"])
    assert running["status"] == "in_progress"
    assert running["usage"] is None
    gated.allow(100)
    gated.wait_for(lambda: gated.stats()["open"] == 0, "it has ended")
    response = show(gated, asked["id"])
    assert response["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "abcd"
    assert response["created_at"] == asked["created_at"]


def test_whoever_comes_back_gets_every_later_event_once(gated: Server) -> None:
    """Wherever the connection was lost."""
    gated.allow(1)
    with RawStream(gated, "POST", "/v1/responses", STREAM | {"background": True, "max_output_tokens": 4}) as raw:
        raw.read_until(b'"delta":"a"')
        gated.allow(100)
        whole = events_in(raw.read_all())
    response = assert_told_once(whole)
    assert [event["type"] for event in whole][:3] == ["response.created", "response.queued", "response.in_progress"]
    assert text_of(whole) == "abcd"
    path = f"/v1/responses/{response['id']}?stream=true"
    for query, num_read in [("", 0), *((f"&starting_after={number}", number + 1) for number in range(len(whole)))]:
        with RawStream(gated, "GET", path + query) as raw:
            rest = events_in(raw.read_all())
            assert raw.is_complete
        assert rest == whole[num_read:]


def test_whoever_comes_back_while_it_runs_gets_every_later_event_once(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(2)
    events = client.responses.create(**ASK, stream=True, background=True, max_output_tokens=5)
    seen = []
    for event in events:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    events.close()
    assert seen[0].type == "response.created"
    response_id = seen[0].response.id
    gated.wait_for(lambda: gated.stats()["streams"] == 0, "the reader is gone")
    gated.allow(1)
    again = client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
    gated.allow(100)
    later = list(again)
    numbers = [event.sequence_number for event in [*seen, *later]]
    assert numbers == list(range(len(numbers)))
    assert later[-1].type == "response.incomplete"
    text = "".join(event.delta for event in [*seen, *later] if event.type == "response.output_text.delta")
    assert text == "abcde"
    with client.responses.stream(response_id=response_id, starting_after=3) as replay:
        assert [event.sequence_number for event in replay] == numbers[4:]


def test_events_that_are_not_there_yet_are_refused(gated: Server) -> None:
    asked = start_background(gated, max_output_tokens=1)
    path = f"/v1/responses/{asked['id']}"
    for query, param in (
        ("?stream=true&starting_after=2", "starting_after"),
        ("?stream=true&starting_after=-1", "starting_after"),
        ("?stream=true&starting_after=x", "starting_after"),
        ("?starting_after=1", "starting_after"),
        ("?stream=yes", "stream"),
        ("?include_obfuscation=true", "include_obfuscation"),
        ("?colour=red", "colour"),
    ):
        answer = gated.get(path + query)
        assert answer.status_code == 400, query
        assert answer.json()["error"]["param"] == param
    assert gated.stats()["streams"] == 0


def test_a_cancelled_response_says_so_to_everybody(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(1)
    with RawStream(gated, "POST", "/v1/responses", STREAM | {"background": True}) as raw:
        first = json.loads(raw.read_until(b"\n\n").split(b"\n")[1].removeprefix(b"data: "))
        raw.read_until(b'"delta":"a"')
        gated.allow("pace/200")
        cancelled = client.responses.cancel(first["response"]["id"])
        events = events_in(raw.read_all())
    response = assert_told_once(events)
    assert cancelled.status == "cancelled"
    assert response["status"] == "cancelled"
    assert events[-1]["type"] == "response.failed"
    assert response["error"]["type"] == "CANCELLED"
    assert show(gated, response["id"]) == response
    assert client.responses.cancel(response["id"]).status == "cancelled", "idempotent"
    gated.wait_for(lambda: gated.stats()["open"] == 0, "the slot is free")


def test_who_cancels_is_told_of_the_end() -> None:
    with app_in_process() as app:
        client = app.test_client()
        app.extensions["runner"].pace_s = 0.05
        app.extensions["runner"].open()
        asked = client.post("/v1/responses", json=ASK | {"background": True}).get_json()
        assert client.post(f"/v1/responses/{asked['id']}/cancel").get_json()["status"] == "cancelled"


def test_a_response_in_the_background_is_no_orphan() -> None:
    with app_in_process(orphan_ttl_s=0.01) as app:
        client = app.test_client()
        asked = client.post("/v1/responses", json=ASK | {"background": True}).get_json()
        orphan = client.post("/v1/jobs", json={"prompt": "hello"}).get_json()

        def is_orphan_cancelled() -> bool:
            app.extensions["runner"].allow(1)
            app.extensions[EXTENSION].jobs.sweep()
            return bool(client.get(f"/v1/jobs/{orphan['job_id']}").get_json()["state"] == "CANCELLED")

        wait_until(is_orphan_cancelled)
        assert client.get(f"/v1/responses/{asked['id']}").get_json()["status"] == "in_progress"


def test_head_of_a_response_makes_no_reader() -> None:
    """Flask answers it as a GET, and throws the body away without closing it."""
    kept = []
    with app_in_process() as app:

        @app.after_request
        def keep(response: Response) -> Response:
            kept.append(response)  # so that it is not the collector who cleans up
            return response

        client = app.test_client()
        asked = client.post("/v1/responses", json=ASK | {"background": True}).get_json()
        assert client.head(f"/v1/responses/{asked['id']}?stream=true").mimetype == "text/event-stream"
        assert app.extensions[EXTENSION].streams.num_open == 0


def test_a_deleted_response_is_gone(gated: Server, client: openai.OpenAI) -> None:
    asked = start_background(gated)
    client.responses.delete(asked["id"])
    gated.allow(2)
    gated.wait_for(lambda: gated.stats()["open"] == 0, "the slot is free")
    for call in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(asked["id"])
    assert gated.get("/v1/jobs/" + asked["id"].removeprefix("resp_")).status_code == 404


def test_who_reads_a_deleted_response_is_told_the_end(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(1)
    with RawStream(gated, "POST", "/v1/responses", STREAM | {"background": True}) as raw:
        first = json.loads(raw.read_until(b"\n\n").split(b"\n")[1].removeprefix(b"data: "))
        raw.read_until(b'"delta":"a"')
        client.responses.delete(first["response"]["id"])
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first["response"]["id"])
        gated.allow(2)
        assert assert_told_once(events_in(raw.read_all()))["status"] == "cancelled"


def test_what_is_not_stored_is_not_found(gated: Server, client: openai.OpenAI) -> None:
    with RawStream(gated, "POST", "/v1/responses", STREAM | {"store": False, "max_output_tokens": 1}) as raw:
        first = json.loads(raw.read_until(b"\n\n").split(b"\n")[1].removeprefix(b"data: "))
        response_id = first["response"]["id"]
        for _ in ("while it runs", "and later"):
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(response_id)
            with pytest.raises(openai.BadRequestError, match="no response has the id"):
                client.responses.create(**ASK, previous_response_id=response_id)
            gated.allow(1)
            raw.read_all()


def test_a_job_of_another_route_is_no_response(gated: Server) -> None:
    job_id = gated.post("/v1/jobs", {"prompt": "hello", "max_tokens": 1}).json()["job_id"]
    assert gated.get("/v1/responses/resp_" + job_id).status_code == 404
    gated.allow(1)


def test_a_response_is_that_of_its_key_alone() -> None:
    keys = ApiKeys.parse("alice:alice-has-this-key,bob:bob-has-another-one")
    alice, bob = {"x-api-key": "alice-has-this-key"}, {"x-api-key": "bob-has-another-one"}
    with app_in_process(api_keys=keys) as app:
        app.extensions["runner"].open()
        client = app.test_client()
        mine = client.post("/v1/responses", json=ASK | {"max_output_tokens": 1}, headers=alice).get_json()["id"]
        for method, path in (
            ("GET", ""),
            ("GET", "?stream=true"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            answer = client.open(f"/v1/responses/{mine}{path}", method=method, headers=bob)
            assert answer.status_code == 404
        theirs = client.post("/v1/responses", json=ASK | {"previous_response_id": mine}, headers=bob)
        assert theirs.status_code == 400
        assert client.get(f"/v1/responses/{mine}", headers=alice).status_code == 200


def test_an_idempotency_key_makes_one_response(gated: Server, client: openai.OpenAI) -> None:
    header = {"Idempotency-Key": "responses"}
    gated.allow(100)
    first = client.responses.create(**ASK, background=True, max_output_tokens=2, extra_headers=header)
    again = client.responses.create(**ASK, background=True, max_output_tokens=2, extra_headers=header)
    assert again.id == first.id
    with pytest.raises(openai.UnprocessableEntityError):
        client.responses.create(**ASK, background=True, max_output_tokens=3, extra_headers=header)


# ---- conversations


def test_a_response_continues_an_earlier_one(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(100)
    first = client.responses.create(**ASK, max_output_tokens=3, instructions="only once")
    then = client.responses.create(**ASK | {"input": "more"}, max_output_tokens=1, previous_response_id=first.id)
    assert then.previous_response_id == first.id
    spelled: Any = [
        {"role": "user", "content": "hello"},
        *[item.model_dump(exclude_unset=True) for item in first.output],
        {"role": "user", "content": "more"},
    ]
    same = client.responses.create(**ASK | {"input": spelled}, max_output_tokens=1)
    assert then.usage is not None
    assert same.usage is not None
    assert then.usage.input_tokens == same.usage.input_tokens
    third = client.responses.create(**ASK | {"input": "x"}, max_output_tokens=1, previous_response_id=then.id)
    assert third.usage is not None
    assert third.usage.input_tokens > then.usage.input_tokens


def test_a_response_without_an_answer_is_not_continued(gated: Server, client: openai.OpenAI) -> None:
    asked = start_background(gated)
    with pytest.raises(openai.BadRequestError, match="has not ended") as raised:
        client.responses.create(**ASK, previous_response_id=asked["id"])
    assert raised.value.param == "previous_response_id"
    gated.allow("pace/200")
    client.responses.cancel(asked["id"])
    with pytest.raises(openai.BadRequestError, match="has no answer"):
        client.responses.create(**ASK, previous_response_id=asked["id"])


def test_a_conversation_does_not_grow_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.web.responses.MAX_MESSAGES", 2)
    with app_in_process() as app:
        app.extensions["runner"].open()
        client = app.test_client()
        first = client.post("/v1/responses", json=ASK | {"max_output_tokens": 1}).get_json()["id"]
        refused = client.post("/v1/responses", json=ASK | {"previous_response_id": first})
        assert refused.status_code == 400
        assert refused.get_json()["error"]["param"] == "previous_response_id"
        assert "3 messages; it may have 2" in refused.get_json()["error"]["message"]


# ---- tools, reasoning and forms


class Weather(BaseModel):
    """What an answer is parsed to, and what a tool takes."""

    city: Literal["Rome", "Oslo"]


def test_the_client_parses_a_response_to_its_users_types(gated: Server, client: openai.OpenAI) -> None:
    gated.allow(1000)
    parsed = client.responses.parse(model="endstop-tiny", input="hello", text_format=Weather)
    assert parsed.status == "completed"
    assert parsed.output_parsed is not None
    with client.responses.stream(model="endstop-tiny", input="hello", text_format=Weather) as events:
        assert events.get_final_response().output_parsed is not None


def test_a_schema_that_nobody_can_keep_to_is_refused_by_name(gated: Server, client: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="cannot be kept to") as raised:
        client.responses.create(**ASK, text=form)
    assert raised.value.param == "text.format.schema"


def test_a_call_is_answered_and_goes_on() -> None:
    call = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "Weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    tools: Any = [{"type": "function", "name": "Weather", "parameters": Weather.model_json_schema()}]
    with speaking_app(templates.QWEN3) as app:
        transport = httpx2.WSGITransport(app=app)
        with openai.OpenAI(
            base_url="http://endstop/v1", api_key="none", max_retries=0, http_client=httpx2.Client(transport=transport)
        ) as client:
            asked: Any = [say(call)]
            with client.responses.stream(model="endstop-tiny", input=asked, tools=tools) as events:
                first = events.get_final_response()
            reasoning, called = first.output
            assert reasoning.type == "reasoning"
            assert called.type == "function_call"
            assert json.loads(called.arguments) == {"city": "Rome"}
            assert first.usage is not None
            assert first.usage.output_tokens_details.reasoning_tokens > 0
            output: Any = {"type": "function_call_output", "call_id": called.call_id, "output": "it rains"}
            then: Any = [output, say("Take an umbrella.")]
            continued = client.responses.create(
                model="endstop-tiny", input=then, tools=tools, previous_response_id=first.id
            )
            assert continued.output_text == "Take an umbrella."
            again: Any = [*asked, *first.output, *then]
            spelled = client.responses.create(model="endstop-tiny", input=again, tools=tools)
            assert spelled.output_text == "Take an umbrella."
            assert spelled.usage is not None
            assert continued.usage is not None
            assert spelled.usage.input_tokens == continued.usage.input_tokens
            required = client.responses.create(
                model="endstop-tiny", input=asked, tools=tools, tool_choice="required", parallel_tool_calls=False
            )
            assert [item.type for item in required.output if item.type != "reasoning"] == ["function_call"]


@pytest.mark.parametrize("behind", ["", "\nAnd more."])
def test_a_call_whose_arguments_are_no_json_is_incomplete_and_can_be_gone_on_from(behind: str) -> None:
    tools = [{"type": "function", "name": "weather"}]
    call = '<tool_call>\n{"name": "weather", "arguments": {city: Rome}}\n</tool_call>' + behind
    with speaking_app(templates.QWEN3) as app:
        first = app.test_client().post("/v1/responses", json={"input": [say(call)], "tools": tools}).get_json()
        called = first["output"][0]
        assert (called["type"], called["arguments"], called["status"]) == (
            "function_call",
            "{city: Rome}",
            "incomplete",
        )
        body = {"input": [say("ok")], "previous_response_id": first["id"]}
        then = app.test_client().post("/v1/responses", json=body)
        assert then.status_code == 200, then.text
