"""`/metrics` of real servers, under both worker classes: what has happened is what it says."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.support.metrics import Scrape, parse
from tests.support.servers import RawStream, Server, assert_ended_once, events_of

pytestmark = pytest.mark.slow

PROMPT = {"prompt": "hello", "max_tokens": 5, "temperature": 0}  # its answer is "abcde"


def scrape(server: Server) -> Scrape:
    answer = server.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(answer.text)


def wait_for(server: Server, before: Scrape, is_there: Callable[[Scrape], bool]) -> Scrape:
    """What has been counted since `before`, once it is there: outcomes are counted behind the end of their streams."""
    server.wait_for(lambda: is_there(scrape(server).since(before)), "the numbers")
    return scrape(server).since(before)


def execute(server: Server, **changed: Any) -> dict[str, Any]:
    with RawStream(server, "POST", "/execute", PROMPT | changed) as stream:
        return assert_ended_once(stream.read_all())


def test_after_requests_of_known_outcomes_the_numbers_add_up(gated: Server) -> None:
    before = scrape(gated)
    gated.allow("open")
    ends = [execute(gated) for _ in range(3)]
    ends += [execute(gated, stop="c") for _ in range(2)]
    gated.post("/gate/close")
    gated.post("/fault/error")
    gated.allow(1)
    ends.append(execute(gated))
    gated.post("/gate/close")
    with RawStream(gated, "POST", "/execute", PROMPT) as stream:
        gated.allow(2)
        stream.read_until(b'b",')  # perhaps with the token before it
    job = gated.post("/v1/jobs", PROMPT).json()
    assert requests.delete(f"{gated.url}/v1/jobs/{job['job_id']}", timeout=30).ok
    gated.wait_for(lambda: gated.stats()["wanted"] == 0, "the leave is noticed")
    gated.allow("open")
    found = wait_for(gated, before, lambda one: one.total("endstop_outcomes_total") == 8)
    assert found("endstop_outcomes_total", outcome="end", code="MAX_TOKENS") == 3
    assert found("endstop_outcomes_total", outcome="end", code="STOP_SEQUENCE") == 2
    assert found("endstop_outcomes_total", outcome="error", code="INFERENCE_FAILED") == 1
    assert found("endstop_outcomes_total", outcome="cancelled", code="client") == 1
    assert found("endstop_outcomes_total", outcome="cancelled", code="delete") == 1
    assert [
        found("vllm:request_success_total", finished_reason=reason) for reason in ("length", "stop", "abort", "error")
    ] == [3, 2, 2, 1]
    for name in ("e2e_request_latency_seconds", "request_queue_time_seconds", "request_prompt_tokens"):
        assert found(f"vllm:{name}_count") == 8
    # The tokens of those who left are in what their outcomes say, as are those that the streams have told.
    told = sum(end["usage"]["completion_tokens"] for end in ends)
    num_generated = found("vllm:generation_tokens_total")
    assert told + 2 <= num_generated == found("vllm:request_generation_tokens_sum")
    with_tokens = found("vllm:time_to_first_token_seconds_count")
    assert with_tokens in (6, 7)  # the job may have been cancelled before its first token
    assert with_tokens == found("vllm:request_prefill_time_seconds_count")
    assert found("vllm:prompt_tokens_total") == ends[0]["usage"]["prompt_tokens"] * with_tokens
    assert found("vllm:inter_token_latency_seconds_count") == num_generated - with_tokens
    assert found("endstop_step_seconds_count") == found("vllm:iteration_tokens_total_count") > 0
    assert found("endstop_responses_total", route="/execute", status="200") == 7
    assert found("endstop_responses_total", route="/v1/jobs", status="202") == 1
    assert found("endstop_responses_total", route="/v1/jobs/<job_id>", status="200") == 1


def test_refusals_are_counted_by_code_and_make_no_outcome(gated: Server) -> None:
    before = scrape(gated)
    assert gated.post("/execute", PROMPT | {"nope": 1}).status_code == 400
    assert gated.post("/v1/chat/completions", {"messages": "x"}).status_code == 400
    assert gated.get("/v1/jobs/" + "0" * 32).status_code == 404
    assert gated.get("/nope/" + uuid.uuid4().hex).status_code == 404
    jobs = [gated.post("/v1/jobs", PROMPT) for _ in range(5)]
    assert [job.status_code for job in jobs] == [202] * 4 + [429]
    found = scrape(gated).since(before)
    assert found("endstop_refusals_total", code="INVALID_REQUEST") == 2
    assert found("endstop_refusals_total", code="UNKNOWN_JOB") == 1
    assert found("endstop_refusals_total", code="NOT_FOUND") == 1
    assert found("endstop_refusals_total", code="OVERLOADED") == 1
    assert found("endstop_responses_total", route="/v1/jobs", status="429") == 1
    assert found("endstop_responses_total", route="(none)", status="404") == 1
    assert found.total("endstop_outcomes_total") == 0
    now = scrape(gated)
    assert now("vllm:num_requests_running") + now("vllm:num_requests_waiting") == 4
    gated.allow("open")
    wait_for(gated, before, lambda one: one.total("endstop_outcomes_total") == 4)


def test_streams_resumes_and_replays_are_counted(gated: Server) -> None:
    before = scrape(gated)
    key = {"Idempotency-Key": uuid.uuid4().hex}
    made = [requests.post(gated.url + "/v1/jobs", json=PROMPT, headers=key, timeout=30) for _ in range(2)]
    assert made[0].json() == made[1].json()
    url = made[0].json()["sse_url"]
    with RawStream(gated, "GET", url) as first, RawStream(gated, "GET", url, Last_Event_ID="0") as second:
        first.read_until(b"started")
        second.head()
        assert scrape(gated)("endstop_streams_open") == 2
        gated.allow("open")
        assert_ended_once(first.read_all())
        assert events_of(second.read_all())[-1] == "[DONE]"
    found = wait_for(gated, before, lambda one: one("endstop_streams_open") == before("endstop_streams_open"))
    assert found("endstop_resumes_total") == 1
    assert found("endstop_idempotent_replays_total") == 1


def test_a_scrape_is_answered_while_a_step_does_not_come_back(gated: Server) -> None:
    with RawStream(gated, "POST", "/execute", PROMPT) as stream:
        stream.read_until(b"started")
        gated.wait_for(lambda: gated.stats()["at_gate"], "a step at the gate")
        found = scrape(gated)
        assert found("vllm:num_requests_running") == 1
        assert found("endstop_phase_age_seconds", phase="forward") > 0
        assert found("endstop_state", state="READY") == 1
        gated.allow("open")
        assert_ended_once(stream.read_all())


# ---- the name of a request


def test_a_request_has_one_name_from_its_client_to_the_log(gated: Server) -> None:
    gated.allow("open")
    name = f"order-{uuid.uuid4()}"
    with RawStream(gated, "POST", "/execute", PROMPT, X_Request_Id=name) as stream:
        _, head = stream.head()
        assert f"x-request-id: {name}\r\n" in head.replace("X-Request-Id", "x-request-id") + "\r\n"
        job_id = json.loads(stream.read_all().split(b"data: ")[1].split(b"\n")[0])["job_id"]
    gated.wait_for(lambda: f"request {job_id} x_request_id={name} " in gated.log(), "the outcome")
