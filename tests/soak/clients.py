"""The ways to behave. Each client is one visit: it asks for something and reads, leaves, comes back or misbehaves.

What a visit does is drawn from its own generator, seeded with the run's seed and its number, so that one that went
wrong can be told again; the moments are the machine's.
"""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import urlencode

from tests.soak.asks import Ask, new_ask, request
from tests.soak.exchange import Ending, Exchange
from tests.soak.garbage import send_garbage
from tests.soak.judge import Kind, frames_of
from tests.soak.ledger import Ledger
from tests.soak.server import JOB_TTL_S, ORPHAN_TTL_S

ROUTES = ("/execute", "/execute", "/v1/chat/completions", "/v1/completions")
LONG = 1000  # tokens: they fill the buffers of a client that does not read, and take longer than it may stop
HOUSEKEEPING_S = 1.0  # app.py looks for orphans that often


@dataclass
class World:
    """What every client needs."""

    port: int
    seed: str
    ledger: Ledger = field(default_factory=Ledger)

    async def fetch(self, data: bytes) -> Exchange:
        """One exchange, read to its end, on a connection of its own."""
        exchange = Exchange(self.port)
        try:
            await exchange.send(data)
            await exchange.read()
        finally:
            exchange.leave()
        return exchange


class Manner(StrEnum):
    """How a stream is read."""

    EAGER = "reads everything"
    SLOW = "reads a little at a time"
    PAUSES = "stops for a while"
    STALLS = "stops for ever"
    NEVER_READS = "leaves before the first byte"
    LEAVES_EARLY = "leaves in the queue or in prefill"
    LEAVES = "leaves after some tokens"
    LEAVES_LATE = "leaves behind the terminal event"
    HALF_CLOSES = "closes its sending half"


_MANNERS = {
    Manner.EAGER: 50,
    Manner.SLOW: 7,
    Manner.PAUSES: 5,
    Manner.STALLS: 2,
    Manner.NEVER_READS: 8,
    Manner.LEAVES_EARLY: 8,
    Manner.LEAVES: 12,
    Manner.LEAVES_LATE: 4,
    Manner.HALF_CLOSES: 4,
}
_SLOW = (Manner.SLOW, Manner.PAUSES, Manner.STALLS)
# Who goes on for nobody has to be seen to: a short answer would be over by then anyway.
_LONG_SHARE = {
    Manner.STALLS: 0.7,
    Manner.PAUSES: 0.7,
    Manner.LEAVES_EARLY: 0.5,
    Manner.LEAVES: 0.5,
    Manner.HALF_CLOSES: 0.5,
}


def draw_manner(rng: random.Random) -> Manner:
    """One of them, the good ones more often."""
    return rng.choices(list(_MANNERS), list(_MANNERS.values()))[0]


async def behave(exchange: Exchange, manner: Manner, rng: random.Random) -> None:
    """Read an answer in this manner."""
    match manner:
        case Manner.EAGER:
            await exchange.read()
        case Manner.SLOW:
            await exchange.read(piece_bytes=rng.randint(30, 400), pause_s=rng.uniform(0.002, 0.02))
        case Manner.PAUSES:
            await exchange.read(stop_at_byte=rng.randint(0, 3000), piece_bytes=200)
            # Longer than SLOW_CONSUMER takes, shorter than a write of the server may take: it hears of it.
            await exchange.idle(rng.uniform(0.3, 2.6))
            await exchange.read()
        case Manner.STALLS:
            await exchange.read(stop_at_byte=rng.randint(0, 1000), piece_bytes=200)
            await exchange.idle(rng.uniform(3, 6))
        case Manner.NEVER_READS:
            await exchange.idle(rng.choice((0, 0, 0.001, 0.01, 0.1)))
        case Manner.LEAVES_EARLY:
            await exchange.read(lambda: exchange.num_events >= 1)
        case Manner.LEAVES:
            num_events = rng.randint(1, 25)
            await exchange.read(lambda: exchange.num_events >= num_events, piece_bytes=rng.choice((150, 65536)))
        case Manner.LEAVES_LATE:
            is_late = rng.choice((b'"end"', b'"finish_reason":"', b"[DONE]"))
            await exchange.read(lambda: is_late in exchange.body, piece_bytes=100)
        case Manner.HALF_CLOSES:
            num_events = rng.randint(0, 10)
            await exchange.read(lambda: exchange.num_events >= num_events)
            exchange.half_close()
            await exchange.read()
    exchange.leave(with_reset=rng.random() < 0.4)


async def stream(world: World, rng: random.Random, number: int) -> None:
    """Ask and stream in one call, on any of the routes that can."""
    manner = draw_manner(rng)
    is_slow = manner in _SLOW
    max_tokens = LONG if rng.random() < _LONG_SHARE.get(manner, 0) else None
    ask = new_ask(rng, rng.choice(ROUTES), number, max_tokens=max_tokens)
    exchange = Exchange(world.port, has_small_buffer=is_slow)
    await exchange.send(ask.request(**({"Connection": "close"} if rng.random() < 0.5 else {})))
    await behave(exchange, manner, rng)
    world.ledger.counts[f"client {manner.value}"] += 1
    await _note(world, ask, exchange, rng, is_slow=is_slow)


async def _note(
    world: World,
    ask: Ask,
    exchange: Exchange,
    rng: random.Random,
    *,
    is_slow: bool = False,
    asked_at: float | None = None,
) -> None:
    """Have an answer judged, whatever it is."""
    ledger = world.ledger
    if ledger.note_no_answer(exchange):
        return
    if ledger.note_refusal(exchange):
        await _back_off(rng)
    elif ledger.note_fault(exchange) or (exchange.status != 200 and exchange.ending is Ending.LEFT):
        pass  # an error that nobody has read
    elif exchange.is_event_stream and ask.is_stream:
        ledger.note_stream(ask, [exchange], is_slow=is_slow, is_plain=True, asked_at=asked_at)
    elif not ask.is_stream:
        ledger.note_whole(ask, exchange, asked_at=asked_at)
    else:
        ledger.add(Kind.ANSWER, f"{ask.path} {ask.fields}: {exchange.status} {bytes(exchange.body[:300])!r}")


async def _back_off(rng: random.Random) -> None:
    """A refused client comes back a little later; sooner than it is asked to, to keep the server busy."""
    await asyncio.sleep(rng.uniform(0.05, 0.4))


async def reuse(world: World, rng: random.Random, number: int) -> None:
    """Two requests on one connection: one after the other, or the second before the first is answered."""
    first, second = (new_ask(rng, rng.choice(ROUTES), number * 2 + i) for i in (0, 1))
    is_pipelined = rng.random() < 0.5
    exchange = Exchange(world.port)
    first_at = exchange.opened_at
    await exchange.send(first.request() + (second.request() if is_pipelined else b""))
    await exchange.read()
    is_complete = exchange.ending is Ending.COMPLETE
    following = exchange.follow() if is_complete else None
    exchange.leave()
    await _note(world, first, exchange, rng)
    if following is None:
        return
    if not is_pipelined:
        await following.send(second.request())
    await following.read()
    following.leave()
    # A server may close a connection behind an answer; then the client knows that nothing was done.
    if following.ending is not Ending.UNANSWERED:
        await _note(world, second, following, rng, asked_at=first_at if is_pipelined else None)


class Job:
    """A job that was accepted."""

    def __init__(self, world: World, ask: Ask, job_id: str, since: float) -> None:
        self.world = world
        self.ask = ask
        self.id = job_id
        self.since = since
        self.path = f"{ask.path}/{job_id}"

    async def read(self, rng: random.Random, after: int = -1, *, has_small_buffer: bool = False) -> Exchange:
        """Begin to read it, behind an event."""
        exchange = Exchange(self.world.port, has_small_buffer=has_small_buffer)
        if after < 0:
            data = request("GET", f"{self.path}/stream")
        elif rng.random() < 0.5:
            data = request("GET", f"{self.path}/stream", Last_Event_ID=str(after))
        else:
            data = request("GET", f"{self.path}/stream?{urlencode({'last_event_id': after})}")
        await exchange.send(data)
        return exchange

    def is_readable(self, exchange: Exchange) -> bool:
        """Whether this answer is its stream. Anything else that must not be is noted."""
        ledger = self.world.ledger
        if exchange.is_event_stream:
            return True
        if ledger.note_no_answer(exchange) or ledger.note_refusal(exchange):
            return False
        if not self._is_gone(exchange):
            ledger.add(Kind.ANSWER, f"job {self.id}: {exchange.status} {bytes(exchange.body[:300])!r}")
        return False

    def _is_gone(self, exchange: Exchange) -> bool:
        """Whether the server says that it does not know the job, and it has a reason."""
        if exchange.status != 404:
            return False
        ledger = self.world.ledger
        if ledger.was_replaced(self.since):
            ledger.counts["jobs gone with their process"] += 1
            return True
        if exchange.ended_at - self.since > JOB_TTL_S:  # a busy machine: we are late
            ledger.counts["jobs that had expired"] += 1
            return True
        return False

    async def cancel(self) -> dict[str, Any] | None:
        """DELETE it. What it was by then; None: there is no answer, and no wonder."""
        return await self._fetch("DELETE")

    async def status(self) -> dict[str, Any] | None:
        """GET it. None: there is no answer, and no wonder."""
        return await self._fetch("GET")

    async def _fetch(self, method: str) -> dict[str, Any] | None:
        exchange = await self.world.fetch(request(method, self.path))
        ledger = self.world.ledger
        if exchange.status == 200 and exchange.ending is Ending.COMPLETE:
            status: dict[str, Any] = json.loads(exchange.body)
            return status
        if not (self._is_gone(exchange) or ledger.note_no_answer(exchange) or ledger.note_refusal(exchange)):
            ledger.add(Kind.ANSWER, f"{method} {self.path}: {exchange.status} {bytes(exchange.body[:300])!r}")
        return None


async def create_job(world: World, rng: random.Random, ask: Ask) -> Job | None:
    """Create a job. None: it was not taken, and no wonder."""
    exchange = await world.fetch(ask.request())
    ledger = world.ledger
    if ledger.note_no_answer(exchange) or ledger.note_fault(exchange):
        return None
    if ledger.note_refusal(exchange):
        await _back_off(rng)
        return None
    if exchange.status != 202 or exchange.ending is not Ending.COMPLETE:
        ledger.add(Kind.ANSWER, f"{ask.path} {ask.fields}: {exchange.status} {bytes(exchange.body[:300])!r}")
        return None
    job = Job(world, ask, json.loads(exchange.body)["job_id"], exchange.opened_at)
    ledger.note_job(job.id, job.since, ask, exchange.ended_at)
    ledger.counts["jobs"] += 1
    return job


def _job_ask(rng: random.Random, number: int, max_tokens: int | None = None) -> Ask:
    return new_ask(rng, rng.choice(("/v1/jobs", "/v1/inference")), number, max_tokens=max_tokens)


async def job_read(world: World, rng: random.Random, number: int) -> None:
    """Create a job and read it, sooner or later."""
    job = await create_job(world, rng, _job_ask(rng, number))
    if job is None:
        return
    await asyncio.sleep(rng.choice((0, 0, 0.05, 0.5, 1.5)))  # an ended job is kept for longer
    manner = rng.choice((Manner.EAGER, Manner.EAGER, Manner.SLOW))
    exchange = await job.read(rng, has_small_buffer=manner is Manner.SLOW)
    await behave(exchange, manner, rng)
    if job.is_readable(exchange):
        world.ledger.note_stream(job.ask, [exchange], is_slow=manner is Manner.SLOW, job_id=job.id, asked_at=job.since)


async def job_resume(world: World, rng: random.Random, number: int) -> None:
    """Lose the connection at any byte, several times, and come back for the rest."""
    job = await create_job(world, rng, _job_ask(rng, number))
    if job is None:
        return
    readings: list[Exchange] = []
    after = -1
    for cuts_left in range(rng.randint(1, 6), -1, -1):
        exchange = await job.read(rng, after)
        await exchange.read(stop_at_byte=rng.randint(100, 1500) if cuts_left else None)
        is_over = exchange.ending is not Ending.OPEN
        exchange.leave(with_reset=rng.random() < 0.5)
        is_cut_early = exchange.ending is Ending.LEFT and not exchange.status  # within the head
        if is_cut_early or not job.is_readable(exchange):
            if cuts_left and (is_cut_early or exchange.status in (429, 503)):  # or too many readers for now
                await _back_off(rng)
                continue
            break
        readings.append(exchange)
        numbers = [frame.id for frame in frames_of(bytes(exchange.body)) if frame.id is not None]
        after = numbers[-1] if numbers else after
        if is_over:
            break
        await asyncio.sleep(rng.choice((0, 0, 0.01, 0.2)))
    if readings:
        world.ledger.counts["resumed streams"] += len(readings) > 1
        world.ledger.note_stream(job.ask, readings, job_id=job.id, asked_at=job.since)


async def job_two_readers(world: World, rng: random.Random, number: int) -> None:
    """Several read the same job at once: each gets everything, under the same numbers."""
    job = await create_job(world, rng, _job_ask(rng, number))
    if job is None:
        return

    async def read(manner: Manner) -> Exchange:
        exchange = await job.read(rng, has_small_buffer=manner is Manner.SLOW)
        await behave(exchange, manner, rng)
        return exchange

    manners = [rng.choice((Manner.EAGER, Manner.EAGER, Manner.SLOW, Manner.LEAVES)) for _ in range(rng.randint(2, 3))]
    readings = list(zip(manners, await asyncio.gather(*map(read, manners)), strict=True))
    bodies = []
    for manner, exchange in readings:
        if job.is_readable(exchange):
            world.ledger.note_stream(
                job.ask, [exchange], is_slow=manner is Manner.SLOW, job_id=job.id, asked_at=job.since
            )
            bodies.append(bytes(exchange.body))
    shortest, *others = sorted(map(frames_of, bodies), key=len) or [[]]
    if any(other[: len(shortest)] != shortest for other in others):
        world.ledger.add(Kind.TOKENS, f"job {job.id} told two readers different things under the same numbers")


async def job_delete(world: World, rng: random.Random, number: int) -> None:
    """Cancel at any moment: before anybody reads, in the middle, behind the end; sometimes twice."""
    job = await create_job(world, rng, _job_ask(rng, number, LONG if rng.random() < 0.5 else None))
    if job is None:
        return
    told: list[dict[str, Any]] = []  # by each DELETE that was answered

    async def cancel() -> None:
        await asyncio.sleep(rng.choice((0, 0.001, 0.02, 0.1, 0.3, 1)))
        for _ in range(rng.choice((1, 1, 2))):
            status = await job.cancel()
            if status is not None:
                told.append(status)
                if len(told) == 1 and status["outcome"] is None:
                    world.ledger.note_unwanted(job.id, time.monotonic())

    async def read() -> Exchange:
        await asyncio.sleep(rng.choice((0, 0, 0.05, 0.5)))
        exchange = await job.read(rng)
        await behave(exchange, Manner.EAGER, rng)
        return exchange

    _, exchange = await asyncio.gather(cancel(), read())
    if not job.is_readable(exchange):
        return
    num_at_cancel = told[0]["usage"]["completion_tokens"] if told and told[0]["outcome"] is None else None
    world.ledger.note_stream(
        job.ask,
        [exchange],
        is_cancelled=True,
        job_id=job.id,
        asked_at=job.since,
        num_at_cancel=num_at_cancel,
    )
    for status in told:
        _compare_outcome(job, status["outcome"], exchange)


async def job_orphan(world: World, rng: random.Random, number: int) -> None:
    """Create a job and never come back. It ends all the same, which its line in the log will say."""
    job = await create_job(world, rng, _job_ask(rng, number, LONG if rng.random() < 0.5 else None))
    if job is not None:
        world.ledger.note_unwanted(job.id, time.monotonic() + ORPHAN_TTL_S + HOUSEKEEPING_S)


async def job_status(world: World, rng: random.Random, number: int) -> None:
    """Ask for the state until it has ended; then read: the terminal event is the one that was shown."""
    job = await create_job(world, rng, _job_ask(rng, number))
    if job is None:
        return
    shown: object = None
    for _ in range(60):
        status = await job.status()
        if status is None:
            return
        shown = status["outcome"]
        if shown is not None:
            break
        await asyncio.sleep(0.1)
    exchange = await job.read(rng)
    await exchange.read()
    exchange.leave()
    if not job.is_readable(exchange):
        return
    # Nobody has read it so far: it may be cancelled as an orphan.
    world.ledger.note_stream(job.ask, [exchange], is_cancelled=True, job_id=job.id, asked_at=job.since)
    _compare_outcome(job, shown, exchange)


def _compare_outcome(job: Job, shown: object, exchange: Exchange) -> None:
    """The outcome that a job's status shows is the event that its readers are told."""
    if shown is None or exchange.ending is not Ending.COMPLETE:
        return
    payloads = [frame.payload for frame in frames_of(bytes(exchange.body)) if frame.payload is not None]
    if payloads and payloads[-1] != shown:
        job.world.ledger.add(Kind.OUTCOME, f"job {job.id} showed {shown} and told {payloads[-1]}")


async def retry(world: World, rng: random.Random, number: int) -> None:
    """Lose the answer to a POST, and send it again with the same key: it is the same stream, from its start."""
    ask = new_ask(rng, "/execute", number)
    data = ask.request(Idempotency_Key=f"{world.seed} {number}")
    told: set[str] = set()
    began_at = time.monotonic()
    for tries_left in range(rng.randint(1, 3), -1, -1):
        exchange = Exchange(world.port)
        await exchange.send(data)
        if tries_left:
            await exchange.read(stop_at_byte=rng.choice((0, 0, rng.randint(1, 2000))))
        else:
            await exchange.read()
        exchange.leave(with_reset=rng.random() < 0.5)
        if exchange.is_event_stream:
            job_id = world.ledger.note_stream(ask, [exchange], asked_at=began_at).job_id
            told |= {job_id} if job_id else set()
        else:
            await _note(world, ask, exchange, rng)
        await asyncio.sleep(rng.choice((0, 0, 0.01, 0.2)))
    is_old = time.monotonic() - began_at > JOB_TTL_S  # a key is free again when its job has expired
    if len(told) > 1 and not is_old and not world.ledger.was_replaced(began_at):
        world.ledger.add(Kind.OUTCOME, f"one Idempotency-Key made the jobs {sorted(told)}")


async def garbage(world: World, rng: random.Random, number: int) -> None:
    """Send what is no request."""
    await send_garbage(world.port, world.ledger, rng)


Visit = Callable[[World, random.Random, int], Awaitable[None]]

VISITS: dict[Visit, int] = {
    stream: 50,
    reuse: 4,
    job_read: 7,
    job_resume: 12,
    job_two_readers: 5,
    job_delete: 7,
    job_orphan: 2,
    job_status: 2,
    retry: 4,
    garbage: 7,
}


async def visit(world: World, number: int) -> None:
    """What the client with this number does."""
    rng = random.Random(f"{world.seed} {number}")
    chosen: Visit = rng.choices(list(VISITS), list(VISITS.values()))[0]
    world.ledger.counts["visits"] += 1
    await chosen(world, rng, number)
