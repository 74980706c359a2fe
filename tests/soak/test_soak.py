"""A short soak under each worker class, and that its accounts notice what is wrong."""

import asyncio
import json
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.scripted_server import Peer, ScriptedServer
from tests.soak import exchange as exchange_module
from tests.soak.asks import Ask, new_ask, request
from tests.soak.exchange import Ending, Exchange
from tests.soak.judge import Kind
from tests.soak.ledger import Ledger, Replacement
from tests.soak.oracle import shown
from tests.soak.report import is_well
from tests.soak.run import Result, soak
from tests.support.servers import WORKER_CLASSES

LOAD_S = 8.0
ASK = new_ask(random.Random(1), "/execute", 1)


def line(outcome: str, num_tokens: int | None = None, queue_ms: int = 1, total_ms: int = 500) -> str:
    """Of the product's log, for the job abc. With as many tokens as are due, if it is not said."""
    num_tokens = ASK.due().num_tokens if num_tokens is None else num_tokens
    return (
        f"INFO endstop request abc outcome={outcome} prompt_tokens=1 tokens={num_tokens} queue_ms={queue_ms} ttft_ms=- "
        f"longest_gap_ms=- total_ms={total_ms}\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_a_short_soak(tmp_path: Path, worker_class: str) -> None:
    """One blow each: of all kinds in turn, as the seed has it."""
    result = Result(worker_class, "ci")
    asyncio.run(soak(result, LOAD_S, tmp_path, WORKER_CLASSES.index(worker_class)))
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
    ledger.note_job("abc", 100.0, ASK, 100.0)
    ledger.compare_with_log("")
    assert kinds(ledger) == [Kind.OUTCOME]


def test_a_job_whose_process_was_killed_may_have_none() -> None:
    ledger = Ledger()
    ledger.note_job("abc", 100.0, ASK, 100.0)
    ledger.begin_replacement(Replacement("kill", is_kill=True, is_death=True, began_at=101.0))
    ledger.compare_with_log("")
    assert kinds(ledger) == []


@pytest.mark.parametrize(("killed_at", "expected"), [(126.0, []), (128.0, [Kind.OUTCOME])])
def test_a_job_that_waited_for_the_next_worker_lives_from_then_on(killed_at: float, expected: list[Kind]) -> None:
    ledger = Ledger()
    ledger.note_job("abc", 100.0, ASK, known_at=112.0)
    ledger.begin_replacement(Replacement("kill", is_kill=True, is_death=True, began_at=killed_at))
    ledger.compare_with_log("")
    assert kinds(ledger) == expected


def test_a_job_with_two_lines_in_the_log() -> None:
    ledger = Ledger()
    ledger.note_job("abc", 100.0, ASK, 100.0)
    ledger.compare_with_log(line("end{EOS}") * 2)
    assert kinds(ledger) == [Kind.OUTCOME]


def test_a_job_whose_client_was_told_something_else() -> None:
    ledger = Ledger()
    ledger.note_job("abc", 100.0, ASK, 100.0)
    ledger._jobs["abc"].outcome = "end{EOS}"
    ledger.compare_with_log(line("error{STALLED}"))
    assert kinds(ledger) == [Kind.OUTCOME]


def test_a_job_that_ended_short_of_its_answer() -> None:
    ledger = Ledger()
    ledger.note_job("abc", 100.0, ASK, 100.0)
    ledger.compare_with_log(line(f"end{{{ASK.due().stop_reason}}}", ASK.due().num_tokens - 1))
    assert kinds(ledger) == [Kind.OUTCOME]


@pytest.mark.parametrize(
    ("outcome", "too_soon", "in_time"),
    [
        ("error{TIMEOUT}", line("error{TIMEOUT}", 3, 1, 9999), line("error{TIMEOUT}", 3, 1, 10_000)),
        ("error{QUEUE_TIMEOUT}", line("error{QUEUE_TIMEOUT}", 0, 7999), line("error{QUEUE_TIMEOUT}", 0, 8000)),
        ("error{QUEUE_TIMEOUT}", line("error{QUEUE_TIMEOUT}", 1, 8000), ""),
        (
            "error{FIRST_TOKEN_TIMEOUT}",
            line("error{FIRST_TOKEN_TIMEOUT}", 0, 100, 5000),
            line("error{FIRST_TOKEN_TIMEOUT}", 0, 100, 5100),
        ),
        ("error{FIRST_TOKEN_TIMEOUT}", line("error{FIRST_TOKEN_TIMEOUT}", 1, 100, 5100), ""),
        ("error{SLOW_CONSUMER}", line("error{SLOW_CONSUMER}", 9, 1, 1499), line("error{SLOW_CONSUMER}", 9, 1, 1500)),
    ],
)
def test_a_limit_that_was_reached_before_its_time(outcome: str, too_soon: str, in_time: str) -> None:
    """Whether a client saw it or not."""
    assert "deadline_s" not in ASK.fields
    for is_known in (True, False):
        for log, found in ((too_soon, [Kind.UNEXPLAINED]), (in_time, [])):
            if outcome == "error{TIMEOUT}" and not is_known:
                continue  # it may have asked for less; the next test
            ledger = Ledger()
            if is_known and log:
                ledger.note_job("abc", 100.0, ASK, 100.0)
            ledger.compare_with_log(log)
            assert kinds(ledger) == found


def test_a_limit_that_was_asked_for() -> None:
    ledger = Ledger()
    ledger.note_job("abc", 100.0, replace(ASK, fields=ASK.fields | {"deadline_s": 9}), 100.0)
    ledger.compare_with_log(line("error{TIMEOUT}", 3, 1, 9000))
    assert kinds(ledger) == []
    ledger.compare_with_log(line("error{TIMEOUT}", 3, 1, 8999))
    assert kinds(ledger) == [Kind.UNEXPLAINED]
    stranger = Ledger()
    stranger.compare_with_log(line("error{TIMEOUT}", 3, 1, 2500))
    assert kinds(stranger) == []
    stranger.compare_with_log(line("error{TIMEOUT}", 3, 1, 2499))
    assert kinds(stranger) == [Kind.UNEXPLAINED]


def test_work_for_nobody() -> None:
    """After a DELETE, or what is one: the end has to come within moments, whatever it is."""
    for outcome in (f"end{{{ASK.due().stop_reason}}}", "cancelled{delete}", "error{INFERENCE_FAILED}"):
        for total_ms, found in ((2900, []), (3100, [Kind.UNWANTED])):
            ledger = Ledger()
            ledger.note_job("abc", 100.0, ASK, 100.0)
            ledger.note_unwanted("abc", 101.0)
            ledger.compare_with_log(line(outcome, None, 1, total_ms))
            assert kinds(ledger) == found


def test_work_for_nobody_in_a_process_that_is_replaced() -> None:
    ledger = Ledger()
    ledger.note_job("abc", 100.0, ASK, 100.0)
    ledger.note_unwanted("abc", 101.0)
    ledger.begin_replacement(Replacement("stuck", is_kill=False, is_death=True, began_at=102.0))
    ledger.compare_with_log(line("error{STALLED}", 3, 1, 5000))
    assert kinds(ledger) == []


def started(job_id: str) -> bytes:
    return b'id: 0\ndata: {"type": "started", "job_id": "%b"}\n\n' % job_id.encode()


def left(*, with_half_close: bool = False) -> Exchange:
    """A stream that its client leaves behind the first event."""

    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(started("abc"))
        assert peer.wait_until_left()

    async def fetch(port: int) -> Exchange:
        exchange = Exchange(port)
        await exchange.send(request("GET", "/"))
        await exchange.read(lambda: exchange.num_events >= 1)
        if with_half_close:
            exchange.half_close()
            await exchange.read()
        exchange.leave()
        return exchange

    with ScriptedServer({"GET /": script}) as server:
        return asyncio.run(fetch(int(server.url.rpartition(":")[2])))


@pytest.mark.parametrize("with_half_close", [False, True])
def test_who_leaves_has_to_be_missed(with_half_close: bool) -> None:
    exchange = left(with_half_close=with_half_close)
    for outcome, total_ms, found in (
        ("cancelled{client}", 100, []),
        (f"end{{{ASK.due().stop_reason}}}", 100, []),  # it was over by then
        ("cancelled{unclaimed}", 100, [Kind.UNWANTED]),
        ("error{SLOW_CONSUMER}", 1600, [Kind.UNWANTED]),
        (f"end{{{ASK.due().stop_reason}}}", 4000, [Kind.UNWANTED]),
    ):
        ledger = Ledger()
        ledger.note_stream(ASK, [exchange], is_plain=True)
        ledger.compare_with_log(line(outcome, None, 1, total_ms))
        assert kinds(ledger) == found


def test_who_leaves_a_job_may_come_back() -> None:
    ledger = Ledger()
    ledger.note_stream(ASK, [left()])
    ledger.compare_with_log(line(f"end{{{ASK.due().stop_reason}}}", None, 1, 4000))
    assert kinds(ledger) == []


CHAT = Ask("/v1/chat/completions", {"stream": True}, ASK.key, 40, ())


def broken_chat(num_tokens: int) -> Callable[[Peer], None]:
    """A chat that fails behind the text of so many tokens. OpenAI's errors carry no usage."""
    deltas = [{"role": "assistant", "content": ""}, {"content": shown(CHAT.key, num_tokens)}]
    chunks: list[object] = [{"id": "chatcmpl-abc", "choices": [{"delta": delta}]} for delta in deltas]
    chunks.append({"error": {"message": "m", "type": "t", "param": None, "code": "VRAM_OOM"}})

    def script(peer: Peer) -> None:
        peer.head()
        for chunk in chunks:
            peer.chunk(f"data: {json.dumps(chunk)}\n\n".encode())
        peer.chunk(b"data: [DONE]\n\n")
        peer.last_chunk()

    return script


def test_a_chat_that_lost_what_was_waiting_when_it_failed() -> None:
    assert CHAT.due().num_tokens > 20
    exchange = fetched(broken_chat(16))
    for num_tokens, found in ((16, []), (20, [Kind.TOKENS])):
        ledger = Ledger()
        ledger.note_stream(CHAT, [exchange])
        assert kinds(ledger) == []
        ledger.compare_with_log(line("error{VRAM_OOM}", num_tokens))
        assert kinds(ledger) == found


def test_a_silence() -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.chunk(started("abc"))
        peer.last_chunk()

    exchange = fetched(script)
    ledgers = [Ledger() for _ in range(3)]
    for ledger, silence_s, is_slow in zip(ledgers, (2.9, 3.1, 3.1), (False, False, True), strict=True):
        exchange.longest_silence_s = silence_s
        ledger.note_stream(ASK, [exchange], is_slow=is_slow)
    assert [Kind.SILENCE in kinds(ledger) for ledger in ledgers] == [False, True, False]
    replaced = Ledger()
    replaced.begin_replacement(Replacement("SIGTERM", is_kill=False, is_death=False, began_at=exchange.opened_at))
    replaced.note_stream(ASK, [exchange])
    assert Kind.SILENCE not in kinds(replaced)


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
