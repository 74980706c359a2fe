"""What is no request: refused with a status of its own or a closed connection, never with a 500 or silence."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.soak.asks import request
from tests.soak.exchange import Ending, Exchange
from tests.soak.judge import Kind
from tests.soak.ledger import Ledger

# As long as a client that is in no hurry with the second half holds on. Each one keeps a thread busy meanwhile.
HOLD_S = (0.0, 0.2, 1.0)


@dataclass(frozen=True)
class Garbage:
    """Bytes, and what may be said about them.

    Attributes:
        statuses: What an answer may be.
        may_close: Whether the server may close the connection and say nothing.
        is_left: Whether the client waits a while for nothing and goes, instead of reading an answer.
        is_head: Whether the method is HEAD, which has no body.
        is_health: Whether it asks for the liveness of a process that may be dead.
    """

    name: str
    data: bytes
    statuses: frozenset[int] = frozenset({400})
    may_close: bool = False
    is_left: bool = False
    is_head: bool = False
    is_health: bool = False


def _post(path: str, body: bytes) -> bytes:
    return request("POST", path, body)


def _bad_body(rng: random.Random) -> Garbage:
    path = rng.choice(("/execute", "/v1/jobs", "/v1/chat/completions", "/v1/completions"))
    bodies = (
        b"{",
        b"",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"prompt": 7}',
        b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}',
        b'{"prompt": "a", "frobnicate": 1, "max_tokens": "many"}',
        b'{"prompt": "a", "max_tokens": -1, "messages": []}',
        b'{"prompt": "a", "temperature": NaN, "messages": "b"}',
        b'{"prompt": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 5000,
        b'{"messages": [{"role": "nobody", "content": null}], "stream": "yes"}',
    )
    return Garbage("a body that is no request", _post(path, rng.choice(bodies)))


def _never_fits(rng: random.Random) -> Garbage:
    if rng.random() < 0.5:
        return Garbage("a prompt that is too long", _post("/execute", b'{"prompt": "%b"}' % (b"xyz " * 1500)))
    return Garbage("too many tokens", _post("/v1/completions", b'{"prompt": "a", "max_tokens": 100000}'))


def _too_large(rng: random.Random) -> Garbage:
    body = b'{"prompt": "%b"}' % (b"x" * 100_000)
    return Garbage("a body that is too large", _post("/execute", body), frozenset({413}), may_close=True)


def _bytes(rng: random.Random) -> Garbage:
    data = rng.choice(
        (rng.randbytes(200) + b"\r\n\r\n", b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" * 40)
    )
    return Garbage(
        "random bytes", data, frozenset({400, 404, 405, 408, 414, 431, 501, 505}), may_close=True, is_left=True
    )


def _half_a_request(rng: random.Random) -> Garbage:
    # 408: whoever sends it, or the machine, stood still before it was left.
    whole = _post("/execute", b'{"prompt": "half of it", "max_tokens": 3}')
    return Garbage("half a request", whole[: rng.randrange(1, len(whole) - 1)], frozenset({400, 408}), is_left=True)


def _slow_body(rng: random.Random) -> Garbage:
    head = b"POST /execute HTTP/1.1\r\nHost: soak\r\nContent-Length: 500\r\n\r\n{"
    return Garbage("a body that does not come", head, frozenset({408}))


def _bad_chunks(rng: random.Random) -> Garbage:
    head = b"POST /execute HTTP/1.1\r\nHost: soak\r\nTransfer-Encoding: chunked\r\n\r\n"
    tail = rng.choice((b"zz\r\n{}\r\n0\r\n\r\n", b"-5\r\n{}\r\n0\r\n\r\n", b"2\r\n{}X\r\n0\r\n\r\n"))
    return Garbage("broken chunks", head + tail, frozenset({400}), may_close=True)


def _wrong_address(rng: random.Random) -> Garbage:
    method, path, status = rng.choice(
        (
            ("GET", "/nowhere", 404),
            ("GET", "/v1/jobs/0123456789abcdef0123456789abcdef/stream", 404),
            ("GET", "/v1/jobs/%00/stream", 404),
            ("DELETE", "/v1/jobs/nobody", 404),
            ("GET", "/execute", 405),
            ("PUT", "/v1/chat/completions", 405),
            ("POST", "/../../etc/passwd", 404),
            ("GET", "/v1/jobs", 405),
        )
    )
    return Garbage("a wrong address", request(method, path), frozenset({status}))


def _head(rng: random.Random) -> Garbage:
    path, statuses = rng.choice(
        (
            ("/v1/jobs/nobody/stream", {404}),
            ("/execute", {405}),
            ("/v1/chat/completions", {405}),
            ("/health", {200}),
        )
    )
    return Garbage("HEAD", request("HEAD", path), frozenset(statuses), is_head=True, is_health=path == "/health")


def _look(rng: random.Random) -> Garbage:
    path = rng.choice(("/health", "/ready", "/v1/models", "/v1/loading/progress"))
    # /health says 503 for the second that a process is dead and still there; nobody is told to come back.
    return Garbage("a look at the server", request("GET", path), frozenset({200}), is_health=path == "/health")


KINDS: tuple[Callable[[random.Random], Garbage], ...] = (
    *(_bad_body, _bad_body, _bad_body, _never_fits, _too_large, _bytes, _half_a_request),
    *(_slow_body, _bad_chunks, _wrong_address, _wrong_address, _head, _look),
)


async def send_garbage(port: int, ledger: Ledger, rng: random.Random) -> None:
    """Send one piece and judge what comes back."""
    garbage = rng.choice(KINDS)(rng)
    ledger.counts["garbage"] += 1
    exchange = Exchange(port, is_head=garbage.is_head)
    await exchange.send(garbage.data)
    if garbage.is_left:
        await exchange.idle(rng.choice(HOLD_S))
        if rng.random() < 0.5:
            exchange.half_close()
            await exchange.read()
        exchange.leave(with_reset=rng.random() < 0.5)
    else:
        await exchange.read()
        exchange.leave()
    _judge(garbage, exchange, ledger)


def _judge(garbage: Garbage, exchange: Exchange, ledger: Ledger) -> None:
    is_answered = exchange.status != 0
    if not is_answered and (garbage.is_left or garbage.may_close) and exchange.ending is not Ending.HUNG:
        return
    if garbage.is_health and exchange.status == 503 and ledger.was_replaced(exchange.opened_at):
        return
    if ledger.note_no_answer(exchange) or ledger.note_refusal(exchange) or ledger.note_fault(exchange):
        return
    if exchange.status not in garbage.statuses:
        said = bytes(exchange.body[:300])
        ledger.add(Kind.ANSWER, f"{garbage.name} ({garbage.data[:200]!r}): {exchange.status} {said!r}")
    elif exchange.ending not in (Ending.COMPLETE, Ending.LEFT):
        ledger.add(Kind.CUT, f"{garbage.name} ({garbage.data[:200]!r}): the answer is {exchange.ending.value}")
