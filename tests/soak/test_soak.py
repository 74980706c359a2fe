"""A short soak under each worker class, and that its accounts notice what is wrong."""

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.scripted_server import Peer, ScriptedServer
from tests.soak import exchange as exchange_module
from tests.soak.asks import request
from tests.soak.exchange import Ending, Exchange
from tests.soak.judge import Kind
from tests.soak.ledger import Ledger, Replacement
from tests.soak.report import is_well
from tests.soak.run import soak
from tests.support.servers import WORKER_CLASSES

LOAD_S = 8.0
LINE = "INFO endstop request {} outcome={} prompt_tokens=1 tokens=2\n"


@pytest.mark.slow
@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_short_soak(tmp_path: Path, worker_class: str) -> None:
    """One blow each: of all kinds in turn, as the seed has it."""
    result = asyncio.run(soak(worker_class, "ci", LOAD_S, tmp_path, WORKER_CLASSES.index(worker_class)))
    assert is_well([result]), "\n".join([*result.ledger.shown_findings(), result.log[-5000:]])
    assert result.ledger.counts["streams"] > 50
    assert result.ledger.counts["workers replaced"] == 1


def fetched(script: Callable[[Peer], None]) -> Exchange:
    """What a client sees of a scripted answer."""

    async def fetch(port: int) -> Exchange:
        exchange = Exchange(port)
        await exchange.send(request("GET", "/"))
        await exchange.read()
        exchange.leave()
        return exchange

    with ScriptedServer({"GET /": script}) as server:
        return asyncio.run(fetch(int(server.url.rpartition(":")[2])))


def test_an_exchange_that_is_complete() -> None:
    def script(peer: Peer) -> None:
        peer.head()
        for piece in (b"data: 1\n\n", b"data: ", b"2\n\n"):
            peer.chunk(piece)
        peer.last_chunk()

    exchange = fetched(script)
    assert exchange.ending is Ending.COMPLETE
    assert bytes(exchange.body) == b"data: 1\n\ndata: 2\n\n"
    assert exchange.num_events == 2
    assert exchange.is_event_stream


def test_an_exchange_that_is_cut() -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(b"data: 1\n\n")

    assert fetched(script).ending is Ending.CUT


def test_an_exchange_that_is_reset_before_an_answer() -> None:
    assert fetched(Peer.reset).ending is Ending.UNANSWERED


def test_an_exchange_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "SILENCE_LIMIT_S", 0.2)

    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(b"data: 1\n\n")
        assert peer.wait_until_left()

    assert fetched(script).ending is Ending.HUNG


def test_an_exchange_that_goes_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "TOTAL_LIMIT_S", 0.2)

    def script(peer: Peer) -> None:
        peer.head()
        tick = threading.Event()
        for _ in range(500):  # until it is left, which ends the script
            peer.chunk(b": ping\n")
            tick.wait(0.01)

    assert fetched(script).ending is Ending.HUNG


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))

        async def fetch() -> Exchange:
            exchange = Exchange(probe.getsockname()[1])
            await exchange.send(request("GET", "/"))
            await exchange.read()
            exchange.leave()
            return exchange

        assert asyncio.run(fetch()).ending is Ending.UNANSWERED


def kinds(ledger: Ledger) -> list[Kind]:
    return [kind for kind, _ in ledger.findings]


def test_a_job_without_a_line_in_the_log() -> None:
    ledger = Ledger()
    ledger.note_job("abc", since=100.0)
    ledger.compare_with_log("")
    assert kinds(ledger) == [Kind.OUTCOME]


def test_a_job_whose_process_was_killed_may_have_none() -> None:
    ledger = Ledger()
    ledger.note_job("abc", since=100.0)
    ledger.begin_replacement(Replacement("kill", is_kill=True, is_death=True, began_at=101.0))
    ledger.compare_with_log("")
    assert kinds(ledger) == []


def test_a_job_with_two_lines_in_the_log() -> None:
    ledger = Ledger()
    ledger.note_job("abc", since=100.0)
    ledger.compare_with_log(LINE.format("abc", "end{EOS}") * 2)
    assert kinds(ledger) == [Kind.OUTCOME]


def test_a_job_whose_client_was_told_something_else() -> None:
    ledger = Ledger()
    ledger.note_job("abc", since=100.0)
    ledger._jobs["abc"].outcome = "end{EOS}"
    ledger.compare_with_log(LINE.format("abc", "error{STALLED}"))
    assert kinds(ledger) == [Kind.OUTCOME]


def test_an_error_in_the_log_that_nobody_meant() -> None:
    head = "ERROR endstop\nTraceback (most recent call last):\n  File 'x', line 1, in f\n    raise\n"
    ledger = Ledger()
    ledger.compare_with_log(head + "tests.soak.faults.Injected: a step\n" + head + "KeyError: 'slot'\nINFO next\n")
    assert kinds(ledger) == [Kind.UNEXPLAINED]
    assert "KeyError" in ledger.findings[0][1]


REFUSAL = b'{"error": {"code": "OVERLOADED", "message": "try again later"}}'


def test_a_refusal_says_when_to_come_back() -> None:
    def told(peer: Peer) -> None:
        peer.answer(REFUSAL, 429, Retry_After="2")

    ledger = Ledger()
    assert ledger.note_refusal(fetched(told))
    assert kinds(ledger) == []
    assert ledger.note_refusal(fetched(lambda peer: peer.answer(REFUSAL, 429)))
    assert kinds(ledger) == [Kind.ANSWER]


def test_a_connection_that_is_closed_without_an_answer_needs_a_reason() -> None:
    ledger = Ledger()
    assert ledger.note_no_answer(fetched(Peer.reset))
    assert kinds(ledger) == [Kind.ANSWER]


def test_an_answer_may_be_cut_by_the_death_of_the_process_alone() -> None:
    def cut(peer: Peer) -> None:
        peer.head(503, "application/json", Retry_After="2")

    exchange = fetched(cut)
    assert not Ledger().note_no_answer(exchange)
    ledger = Ledger()
    death = Replacement("dead", is_kill=False, is_death=True, began_at=exchange.opened_at - 1)
    ledger.begin_replacement(death)
    assert ledger.note_no_answer(exchange)
    ledger = Ledger()
    ledger.begin_replacement(replace(death, is_death=False))
    assert not ledger.note_no_answer(exchange)
