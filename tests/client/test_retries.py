"""What is sent again, with which key, when, and how often; and what is not."""

import time
from collections.abc import Callable

import pytest

from tests.client.conftest import REFUSING, Serve
from tests.scripted_server import HELLO, USAGE, Peer, Request, Script, says
from worker import client as client_module
from worker.client import Client, ConnectionFailed, EndstopError, NotReady, Overloaded, RequestRefused

CREATED: Script = lambda peer: peer.json({"job_id": "job-1"}, 202)


def in_turn(*scripts: Script) -> Script:
    """The first script for the first connection, the next for the next."""
    left = list(scripts)
    return lambda peer: left.pop(0)(peer)


def refuses(status: int, **headers: str) -> Script:
    return lambda peer: peer.json({"message": "not now"}, status, **headers)


def resets(peer: Peer) -> None:
    peer.reset()


def cut_in_the_answer(peer: Peer) -> None:
    peer.head(202, "application/json")
    peer.send(b'40\r\n{"job')


class KeyedJobs:
    """Makes a job for each idempotency key, as our server does; what it answers then is another matter."""

    def __init__(self, *answers: Script) -> None:
        self.answers = list(answers)
        self.jobs: dict[str, bytes] = {}
        self.requests: list[Request] = []

    def __call__(self, peer: Peer) -> None:
        self.requests.append(peer.request)
        known = self.jobs.setdefault(peer.request.headers["idempotency-key"], peer.request.body)
        assert known == peer.request.body
        self.answers.pop(0)(peer)


# --- What passes is waited for ---


def test_a_server_that_is_full_is_asked_again_when_it_said(serve: Serve) -> None:
    jobs, pauses = KeyedJobs(refuses(429, Retry_After="3"), CREATED), list[float]()
    client = serve(scripts={"POST /v1/jobs": jobs}, max_retries=2, sleep=pauses.append)
    assert client.submit(prompt="Hi") == "job-1"
    assert pauses == [3.0]
    assert len(jobs.jobs) == 1


@pytest.mark.parametrize("refusal", [refuses(429), refuses(429, Retry_After="3"), refuses(503, Retry_After="3")])
def test_what_was_refused_for_now_is_streamed_later(serve: Serve, refusal: Script) -> None:
    pauses: list[float] = []
    client = serve(in_turn(refusal, says(HELLO)), max_retries=1, sleep=pauses.append)
    assert [event.id for event in client.stream(prompt="Hi")] == ["0", "1", "2", "3", "4"]
    assert len(pauses) == 1


@pytest.mark.parametrize(
    "fault",
    [resets, cut_in_the_answer, refuses(502), refuses(503), refuses(504)],
    ids=["reset", "cut", "502", "503", "504"],
)
def test_a_lost_answer_is_asked_for_with_the_same_key(serve: Serve, fault: Script) -> None:
    """The server has accepted, and nobody heard it: the second try gets the job of the first."""
    jobs = KeyedJobs(fault, fault, CREATED)
    client = serve(scripts={"POST /v1/jobs": jobs}, max_retries=2, sleep=lambda _: None)
    assert client.submit(prompt="Hi", max_tokens=3) == "job-1"
    assert len(jobs.requests) == 3
    assert len(jobs.jobs) == 1


@pytest.mark.parametrize("fault", [resets, says([]), refuses(502), refuses(429)], ids=["reset", "empty", "502", "429"])
def test_a_run_that_has_not_begun_is_asked_for_with_the_same_key(serve: Serve, fault: Script) -> None:
    jobs = KeyedJobs(fault, fault, says(HELLO))
    assert serve(jobs, max_retries=2, sleep=lambda _: None).generate(prompt="Hi").text == "Hello"
    assert len(jobs.jobs) == 1


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("fault", [resets, refuses(502), refuses(429)], ids=["reset", "502", "429"])
def test_what_changes_nothing_the_second_time_is_asked_again(serve: Serve, method: str, fault: Script) -> None:
    answer: Script = lambda peer: peer.json({"job_id": "job-1", "state": "QUEUED", "usage": USAGE, "outcome": None})
    client = serve(scripts={f"{method} /v1/jobs/job-1": in_turn(fault, answer)}, max_retries=1, sleep=lambda _: None)
    assert (client.status if method == "GET" else client.cancel)("job-1").state == "QUEUED"


def test_each_job_has_a_key_of_its_own_or_the_callers(serve: Serve) -> None:
    jobs = KeyedJobs(CREATED, CREATED, CREATED)
    client = serve(scripts={"POST /v1/jobs": jobs})
    client.submit(prompt="Hi")
    client.submit(prompt="Hi")
    client.submit(idempotency_key="order 7", prompt="Hi")
    assert len(jobs.jobs) == 3
    assert jobs.requests[-1].headers["idempotency-key"] == "order 7"
    assert jobs.requests[-1].fields == {"prompt": "Hi"}


# --- What must not be sent again ---


@pytest.mark.parametrize(
    "fault",
    [resets, says([]), refuses(500), refuses(502), refuses(503), refuses(504)],
    ids=["reset", "empty", "500", "502", "503", "504"],
)
def test_a_stream_that_may_have_begun_is_not_asked_for_again(serve: Serve, fault: Script) -> None:
    """It has no key: the server would generate twice."""
    requests: list[Request] = []

    def script(peer: Peer) -> None:
        requests.append(peer.request)
        fault(peer)

    with pytest.raises(EndstopError):
        list(serve(script, max_retries=2, sleep=pytest.fail).stream(prompt="Hi"))
    assert len(requests) == 1
    assert "idempotency-key" not in requests[0].headers


@pytest.mark.slow
def test_a_stream_that_gets_no_answer_in_time_is_not_asked_for_again(serve: Serve) -> None:
    def script(peer: Peer) -> None:
        assert peer.wait_until_left()

    with pytest.raises(ConnectionFailed, match="no answer within"):
        list(serve(script, idle_timeout_s=0.3, max_retries=2, sleep=pytest.fail).stream(prompt="Hi"))


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500])
def test_what_will_not_pass_is_not_asked_again(serve: Serve, status: int) -> None:
    client = serve(
        scripts={"POST /v1/jobs": refuses(status), "POST /execute": refuses(status)}, max_retries=2, sleep=pytest.fail
    )
    for call in (client.submit, client.generate):
        with pytest.raises(RequestRefused) as caught:
            call(prompt="Hi")
        assert caught.value.status == status


def test_who_is_told_to_come_back_much_later_is_told_so_at_once(serve: Serve) -> None:
    script = refuses(429, Retry_After="61")
    client = serve(scripts={"POST /v1/jobs": script, "POST /execute": script}, max_retries=2, sleep=pytest.fail)
    calls: list[Callable[[], object]] = [
        lambda: client.submit(prompt="Hi"),
        lambda: client.generate(prompt="Hi"),
        lambda: list(client.stream(prompt="Hi")),
    ]
    for call in calls:
        with pytest.raises(Overloaded) as caught:
            call()
        assert caught.value.retry_after_s == 61


def test_probes_ask_once(serve: Serve) -> None:
    """Who waits for a server wants to know how it is now."""
    script = refuses(503, Retry_After="1")
    client = serve(scripts={"GET /ready": script, "GET /health": script}, max_retries=2, sleep=pytest.fail)
    assert not client.ready()
    assert not client.health()


# --- Every wait has an end ---


@pytest.mark.parametrize(
    "call",
    [
        lambda client: list(client.stream(prompt="Hi")),
        lambda client: client.generate(prompt="Hi"),
        lambda client: client.submit(prompt="Hi"),
        lambda client: client.status("job-1"),
        lambda client: client.cancel("job-1"),
    ],
    ids=["stream", "generate", "submit", "status", "cancel"],
)
@pytest.mark.parametrize("max_retries", [0, 2])
def test_a_server_that_is_not_there_is_asked_a_few_times(call: Callable[[Client], object], max_retries: int) -> None:
    pauses: list[float] = []
    with (
        Client(REFUSING, max_retries=max_retries, sleep=pauses.append) as client,
        pytest.raises(ConnectionFailed, match="Connection refused") as caught,
    ):
        call(client)
    assert caught.value.is_unsent
    assert len(pauses) == max_retries


def test_pauses_grow_to_their_limit_and_differ() -> None:
    def pauses_of(max_retries: int) -> list[float]:
        pauses: list[float] = []
        with (
            Client(REFUSING, max_retries=max_retries, sleep=pauses.append) as client,
            pytest.raises(ConnectionFailed),
        ):
            client.submit(prompt="Hi")
        return pauses

    pauses = pauses_of(20)
    for pause, longest in zip(pauses, [0.5, 1, 2, 4, *(8,) * 16], strict=True):
        assert longest / 2 <= pause <= longest
    assert pauses_of(20) != pauses  # or many who were refused together would come back together


def test_a_refusal_that_lasts_is_raised_in_the_end(serve: Serve) -> None:
    pauses: list[float] = []
    script = refuses(503, Retry_After="1")
    client = serve(scripts={"POST /v1/jobs": script}, max_retries=3, sleep=pauses.append)
    with pytest.raises(NotReady):
        client.submit(prompt="Hi")
    assert [pause >= 1 for pause in pauses] == [True] * 3


def test_pauses_are_slept(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_PAUSE_S", 0.2)
    client = serve(in_turn(refuses(429), says(HELLO)), max_retries=1)
    began = time.monotonic()
    assert client.generate(prompt="Hi").text == "Hello"
    assert time.monotonic() - began >= 0.1
