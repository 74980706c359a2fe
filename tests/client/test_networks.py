"""The client and real servers, with a network between them that is cut."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.cut_proxy import CutProxy, cut_proxy
from tests.support.servers import WORKER_CLASSES, Server, running_server
from worker.client import Client, IncompleteStream, Started, Token

pytestmark = pytest.mark.slow

ASKED = "Tell me a story about the sea."


@pytest.fixture
def network(served: Server) -> Iterator[CutProxy]:
    with cut_proxy(served.port) as proxy:
        yield proxy


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def gated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that counts what it has accepted, and computes when the test says so."""
    with running_server(tmp_path_factory.mktemp("gated"), request.param) as server:
        yield server


def hasty(url: str) -> Client:
    return Client(url, sleep=lambda _: None)


def ask(client: Client) -> str:
    return client.generate(messages=[{"role": "user", "content": ASKED}], temperature=0, max_tokens=60).text


def test_an_answer_is_the_same_over_a_network_that_is_cut(served: Server, network: CutProxy) -> None:
    with Client(served.url) as client:
        expected = ask(client)
    assert len(expected) > 100
    for num_bytes in [0, 1, 100, *range(300, 3000, 270)]:
        network.cuts = [num_bytes, 900, num_bytes]
        with hasty(network.url) as client:
            assert ask(client) == expected, num_bytes


def test_a_cut_behind_any_byte_loses_and_doubles_nothing(served: Server, network: CutProxy) -> None:
    with Client(served.url) as client:
        job_id = client.submit(messages=[{"role": "user", "content": ASKED}], temperature=0, max_tokens=12)
        expected = list(client.events(job_id))
        raw = served.get(f"/v1/jobs/{job_id}/stream").content
    for num_bytes in range(0, len(raw), 7):
        network.cuts = [num_bytes]
        with hasty(network.url) as client:
            assert list(client.events(job_id)) == expected, num_bytes


@pytest.mark.parametrize("num_bytes", [0, 20])
@pytest.mark.parametrize("is_streamed", [True, False], ids=["generate", "submit"])
def test_an_answer_that_is_lost_makes_no_second_job(gated: Server, num_bytes: int, is_streamed: bool) -> None:
    """The server has accepted, and the connection breaks before the client hears of it."""
    gated.post("/gate/open")
    num_before = gated.stats()["num_accepted"]
    with cut_proxy(gated.port) as network, hasty(network.url) as client:
        network.cuts = [num_bytes, num_bytes]
        if is_streamed:
            assert client.generate(prompt="hello", max_tokens=5).text == "abcde"
        else:
            events = client.events(client.submit(prompt="hello", max_tokens=5))
            assert "".join(event.text for event in events if isinstance(event, Token)) == "abcde"
        assert sum(b"Idempotency-Key" in request for request in network.requests) == 3
    assert gated.stats()["num_accepted"] == num_before + 1


def test_a_run_that_is_left_stops(gated: Server) -> None:
    gated.post("/gate/close")
    with Client(gated.url) as client, closing(client.run(prompt="hello", max_tokens=50)) as events:
        assert isinstance(next(events), Started)
        gated.allow(2)
        assert isinstance(next(events), Token)
        num_before = gated.stats()["outcomes"].get("cancelled{delete}", 0)
    gated.allow(2)
    gated.wait_for(lambda: gated.stats()["outcomes"].get("cancelled{delete}", 0) == num_before + 1, "the outcome")


def test_a_run_goes_on_while_the_network_is_away(gated: Server) -> None:
    """Nobody is there to read, and nobody has left: the job is not cancelled."""
    gated.post("/gate/close")
    with cut_proxy(gated.port) as network:

        def wait(_: float) -> None:
            gated.allow(100)  # it is computed to its end meanwhile
            gated.wait_for(lambda: gated.stats()["open"] == 0, "the end")
            network.is_down = False

        with Client(network.url, sleep=wait) as client, closing(client.run(prompt="hello", max_tokens=20)) as events:
            assert isinstance(next(events), Started)
            network.is_down = True
            network.cut()
            assert "".join(event.text for event in events if isinstance(event, Token)) == "abcdefghijklmnopqrst"


def test_a_network_that_stays_away_is_given_up(served: Server, network: CutProxy) -> None:
    network.cuts = [900] + [0] * 9
    with Client(network.url, sleep=lambda _: None, max_resumes=3) as client:
        events = client.run(messages=[{"role": "user", "content": ASKED}], temperature=0, max_tokens=60)
        with pytest.raises(IncompleteStream) as lost:
            list(events)
    assert len(network.cuts) == 6
    assert lost.value.job_id is not None
    with Client(served.url) as client:  # another way to the server is found
        rest = list(client.events(lost.value.job_id, lost.value.last_event_id))
        assert rest[0].id == str(int(lost.value.last_event_id or -1) + 1)
