"""The native routes over real sockets, under both worker classes: every stream is prompt, alive, and ends once."""

import socket
import uuid

import pytest
import requests

from tests.support.servers import RawStream, Server, assert_ended_once, events_of

pytestmark = pytest.mark.slow

PROMPT = {"prompt": "hello", "max_tokens": 5, "temperature": 0}


def _job_id(body: bytes) -> str:
    job_id: str = events_of(body.split(b"\n\n")[0])[0]["job_id"]
    return job_id


def test_headers_and_started_leave_before_the_first_token(gated: Server) -> None:
    with RawStream(gated, "POST", "/execute", PROMPT) as stream:
        status, head = stream.head()
        first = stream.read_until(b"\n\n")
        assert status == 200
        assert "text/event-stream" in head
        assert "X-Accel-Buffering: no" in head
        assert "Cache-Control: no-cache" in head
        assert b'"type":"started"' in first
        assert b'"type":"token"' not in first
        gated.allow(100)
        assert_ended_once(stream.read_all())


def test_pings_flow_while_no_token_does_and_are_one_line(gated: Server) -> None:
    with RawStream(gated, "POST", "/execute", PROMPT) as stream:
        body = stream.read_until(b": ping\n: ping\n: ping\n")
        assert b": ping\n\n" not in body
        gated.allow(100)
        assert_ended_once(stream.read_all())


def test_each_token_arrives_as_its_step_is_done(gated: Server) -> None:
    with RawStream(gated, "POST", "/execute", PROMPT) as stream:
        for letter in b"abcd":
            gated.allow(1)
            body = stream.read_until(b'"t":"%c"' % letter)
            assert b'"t":"%c"' % (letter + 1) not in body  # its step is not allowed yet
        gated.allow(1)
        terminal = assert_ended_once(stream.read_all())
        assert terminal["stop_reason"] == "MAX_TOKENS"
        assert terminal["usage"]["completion_tokens"] == 5


def test_ids_count_from_zero_without_gaps_and_the_body_is_complete(gated: Server) -> None:
    gated.allow(100)
    with RawStream(gated, "POST", "/execute", PROMPT) as stream:
        body = stream.read_all()
    ids = [int(line[4:]) for line in body.decode().split("\n") if line.startswith("id: ")]
    assert ids == list(range(len(ids)))
    assert stream.is_complete
    assert "".join(e["t"] for e in events_of(body)[:-1] if e["type"] == "token") == "abcde"


def test_narration_is_merged_with_tokens(gated: Server) -> None:
    gated.allow(100)
    with RawStream(gated, "POST", "/execute", PROMPT | {"narrate": True}) as stream:
        body = stream.read_all()
    kinds = [event["type"] for event in events_of(body)[:-1]]
    assert kinds[0] == "started"
    assert "narration" in kinds
    assert kinds.count("token") >= 1
    assert_ended_once(body)


def test_a_stop_string_ends_the_stream_and_is_not_sent(gated: Server) -> None:
    gated.allow(100)
    with RawStream(gated, "POST", "/execute", PROMPT | {"stop": ["cd"]}) as stream:
        body = stream.read_all()
    assert "".join(e["t"] for e in events_of(body)[:-1] if e["type"] == "token") == "ab"
    terminal = assert_ended_once(body)
    assert (terminal["stop_reason"], terminal["stop_sequence_matched"]) == ("STOP_SEQUENCE", "cd")


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_a_client_that_leaves_stops_the_work(gated: Server, steps_before: int) -> None:
    """In prefill and while decoding. No token is due: only watching the socket can notice."""
    with RawStream(gated, "POST", "/execute", PROMPT | {"max_tokens": 200}) as stream:
        body = stream.read_until(b"started")
        for letter in b"abc"[:steps_before]:
            gated.allow(1)
            stream.read_until(b'"t":"%c"' % letter)
        steps = gated.stats()["steps"]
    gated.wait_for(lambda: gated.stats()["wanted"] == 0, "it is noticed")
    gated.allow(1)  # the step that was under way when the client left
    gated.wait_for(lambda: gated.stats()["open"] == 0, "the slot is free")
    assert gated.stats()["steps"] <= steps + 1
    status = gated.get(f"/v1/jobs/{_job_id(body)}").json()
    assert status["state"] == "CANCELLED"
    assert status["usage"]["completion_tokens"] <= steps_before + 1


def test_a_client_that_leaves_the_queue_costs_no_step(gated: Server) -> None:
    with RawStream(gated, "POST", "/execute", PROMPT) as one, RawStream(gated, "POST", "/execute", PROMPT) as two:
        one.read_until(b"started")
        two.read_until(b"started")
        gated.wait_for(lambda: gated.stats()["running"] >= 1)
        with RawStream(gated, "POST", "/execute", PROMPT) as queued:
            body = queued.read_until(b"started")
        gated.wait_for(lambda: gated.stats()["wanted"] == 2, "it is noticed")
        gated.allow(100)
        assert_ended_once(one.read_all())
        assert_ended_once(two.read_all())
    gated.wait_for(lambda: gated.get(f"/v1/jobs/{_job_id(body)}").json()["state"] == "CANCELLED")
    assert gated.get(f"/v1/jobs/{_job_id(body)}").json()["usage"]["completion_tokens"] == 0


def test_delete_cancels_and_the_reader_is_told(gated: Server) -> None:
    with RawStream(gated, "POST", "/execute", PROMPT | {"max_tokens": 200}) as stream:
        gated.allow(1)
        job_id = _job_id(stream.read_until(b'"t":"a"'))
        for _ in range(2):  # idempotent
            assert requests.delete(f"{gated.url}/v1/jobs/{job_id}", timeout=30).status_code == 200
        gated.allow(1)
        terminal = assert_ended_once(stream.read_all())
        assert terminal["stop_reason"] == "CANCELLED"
        assert terminal["usage"]["prompt_tokens"] > 0
    assert requests.delete(f"{gated.url}/v1/jobs/{job_id}", timeout=30).status_code == 200
    assert requests.delete(f"{gated.url}/v1/jobs/unknown", timeout=30).status_code == 404


def test_a_job_can_be_read_late_twice_and_from_the_middle(gated: Server) -> None:
    answer = gated.post("/v1/jobs", PROMPT)
    assert answer.status_code == 202
    url = answer.json()["sse_url"]
    assert url == f"/v1/jobs/{answer.json()['job_id']}/stream"
    gated.allow(1)
    with RawStream(gated, "GET", url) as first, RawStream(gated, "GET", url) as second:
        first.read_until(b'"t":"a"')
        second.read_until(b'"t":"a"')
        gated.allow(100)
        whole = first.read_all()
        assert events_of(second.read_all()) == events_of(whole)
    assert_ended_once(whole)
    with RawStream(gated, "GET", url, Last_Event_ID="1") as resumed:
        rest = resumed.read_all()
    assert events_of(rest) == events_of(whole)[2:]
    last = len(events_of(whole)) - 2
    with RawStream(gated, "GET", f"{url}?last_event_id={last}") as nothing_left:
        assert nothing_left.read_all() == b"data: [DONE]\n\n"
    with RawStream(gated, "GET", url, Last_Event_ID="99") as ahead:
        assert ahead.head()[0] == 400
    with RawStream(gated, "GET", url, Last_Event_ID="-1") as bad:
        assert bad.head()[0] == 400


@pytest.mark.parametrize("path", ["/v1/jobs", "/execute"])
def test_a_post_that_is_sent_again_makes_one_job(gated: Server, path: str) -> None:
    """The first answer was lost on the way; the key says that it is the same wish."""
    key = {"Idempotency-Key": uuid.uuid4().hex}
    job_ids = set()
    with requests.Session() as session:
        for attempt in range(3):
            answer = session.post(gated.url + path, json=PROMPT, headers=key, timeout=30, stream=True)
            assert ("Idempotent-Replayed" in answer.headers) == (attempt > 0)
            if path == "/v1/jobs":
                assert answer.status_code == 202
                job_ids.add(answer.json()["job_id"])
            else:
                assert answer.status_code == 200
                job_ids.add(_job_id(next(answer.iter_content(None))))
                answer.close()
        other = session.post(gated.url + path, json=PROMPT | {"max_tokens": 6}, headers=key, timeout=30)
        assert other.status_code == 422
        assert other.json()["error"]["code"] == "KEY_REUSED"
        (job_id,) = job_ids
        assert gated.stats()["open"] == 1, "leaving has not cancelled it"
        gated.allow(100)
        with RawStream(gated, "GET", f"/v1/jobs/{job_id}/stream") as stream:
            assert assert_ended_once(stream.read_all())["stop_reason"] == "MAX_TOKENS"


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_an_idempotency_key_that_is_none(gated: Server, key: str) -> None:
    answer = requests.post(gated.url + "/v1/jobs", json=PROMPT, headers={"Idempotency-Key": key}, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
    assert "255" in answer.json()["errors"][0]["message"]


def test_a_job_goes_on_without_its_reader_and_loses_no_event(gated: Server) -> None:
    url = gated.post("/v1/inference", PROMPT).json()["sse_url"]
    assert url.startswith("/v1/inference/")
    with RawStream(gated, "GET", url) as stream:
        gated.allow(1)
        seen = events_of(stream.read_until(b'"t":"a"').rpartition(b"\n\n")[0])
    gated.allow(100)
    with RawStream(gated, "GET", url, Last_Event_ID=str(len(seen) - 1)) as resumed:
        rest = events_of(resumed.read_all())
    everything = [*seen, *rest]
    assert "".join(e["t"] for e in everything[:-1] if e["type"] == "token") == "abcde"
    assert [e["type"] for e in everything[:-1]].count("end") == 1


def test_what_waits_is_merged_and_nothing_is_lost(gated: Server) -> None:
    url = gated.post("/v1/jobs", PROMPT | {"max_tokens": 60}).json()["sse_url"]
    gated.allow("open")
    gated.wait_for(lambda: gated.stats()["open"] == 0)
    with RawStream(gated, "GET", url) as late:
        body = late.read_all()
    tokens = [e for e in events_of(body)[:-1] if e["type"] == "token"]
    assert sum(t.get("n", 1) for t in tokens) == 60
    assert "".join(t["t"] for t in tokens) == ("abcdefghijklmnopqrstuvwxyz" * 3)[:60]
    assert len(tokens) < 60


def test_full_means_429_and_health_still_answers(gated: Server) -> None:
    streams = [RawStream(gated, "POST", "/execute", PROMPT) for _ in range(4)]
    try:
        for stream in streams:
            stream.read_until(b"started")
        with RawStream(gated, "POST", "/execute", PROMPT) as refused:
            status, head = refused.head()
        assert status == 429
        assert "Retry-After: " in head
        assert gated.get("/health").status_code == 200  # answered at all, with every slot and place taken
        ready = gated.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["state"] == "FULL"
        gated.allow(100)
        for stream in streams:
            assert_ended_once(stream.read_all())
    finally:
        for stream in streams:
            stream.close()


@pytest.mark.parametrize(("name", "code"), [("error", "INFERENCE_FAILED"), ("oom", "VRAM_OOM")])
def test_a_step_that_fails_ends_its_streams_with_a_code(gated: Server, name: str, code: str) -> None:
    with RawStream(gated, "POST", "/execute", PROMPT) as stream:
        gated.allow(1)
        stream.read_until(b'"t":"a"')
        assert gated.post(f"/fault/{name}").ok
        gated.allow(1)
        terminal = assert_ended_once(stream.read_all())
        assert terminal["code"] == code
        assert terminal["usage"]["completion_tokens"] >= 1
    gated.allow(100)
    with RawStream(gated, "POST", "/execute", PROMPT) as next_one:
        assert assert_ended_once(next_one.read_all())["type"] == "end"


def test_a_deadline_of_the_request_ends_it(gated: Server) -> None:
    """Though the step that is under way does not come back: the gate is shut."""
    with RawStream(gated, "POST", "/execute", PROMPT | {"deadline_s": 0.05, "max_tokens": 200}) as stream:
        terminal = assert_ended_once(stream.read_all())
    assert terminal["code"] == "TIMEOUT"


def test_a_client_that_closes_its_sending_half_is_cut_and_not_told_an_end(gated: Server) -> None:
    """It counts as gone. A body that ended well, without a terminal event, would look whole to it."""
    with RawStream(gated, "POST", "/execute", PROMPT | {"max_tokens": 200}) as stream:
        stream.read_until(b"started")
        stream.socket.shutdown(socket.SHUT_WR)
        body = stream.read_all()
        assert stream.is_eof
        assert not stream.is_complete
        assert b"[DONE]" not in body


def test_head_of_a_stream_leaves_no_reader_behind(gated: Server) -> None:
    url = gated.post("/v1/jobs", PROMPT).json()["sse_url"]
    with RawStream(gated, "HEAD", url) as head:
        status, headers = head.head()
    assert status == 200
    assert "text/event-stream" in headers
    gated.wait_for(lambda: gated.stats()["streams"] == 0, "no reader is left")


def test_bytes_sent_early_are_not_a_leave(gated: Server) -> None:
    with RawStream(gated, "POST", "/execute", PROMPT) as stream:
        stream.read_until(b"started")
        stream.socket.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        stream.read_until(b": ping\n: ping\n")
        gated.allow(100)
        assert assert_ended_once(stream.read_all())["type"] == "end"
