"""The phases of a soak under one worker class.

1. Storm: load, and blows that end the worker; another takes its place.
2. The last worker is warmed up under load, comes to rest, and is counted: the baseline.
3. Load, with faults inside the engine only.
4. Streams that get no token, streams that fail with text that nobody has read yet, as many as there are slots. Then it
   comes to rest again: nothing may be left, every accepted request have one outcome.
5. SIGTERM with live streams: each is told its end, and the server exits with 0.
"""

import asyncio
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.soak.asks import Ask, new_ask, request
from tests.soak.clients import LONG, Job, World, create_job, visit
from tests.soak.exchange import ANSWER_LIMIT_S, TOTAL_LIMIT_S, Ending, Exchange
from tests.soak.faults import FAILED_BY
from tests.soak.judge import Kind, Verdict
from tests.soak.ledger import Ledger, Replacement
from tests.soak.server import JOB_TTL_S, NUM_SLOTS, SoakServer, soak_server
from tests.soak.storm import Blow, blows, counters, is_ready, strike

NUM_CLIENTS = 40  # more than slots and queue: some are refused
START_LIMIT_S = 120.0
REST_LIMIT_S = 20.0
# Shares of the time. A storm goes on until it has dealt this many blows, of which each costs some seconds: the next
# process imports torch first.
STORM_SHARE, WARM_SHARE = 0.45, 0.1
MIN_BLOWS, LONG_ENOUGH_S = 3, 20.0
BETWEEN_BLOWS_S = (1.0, 3.0)
MIN_PHASE_S = 2.0
# An allocator keeps what it was given in a rush. More than this is no longer that.
MEMORY_SLACK_BYTES = 32 * 1024 * 1024
NUM_LAST_STREAMS = 8
FILLING = 520  # tokens of a stream of which every slot has one: together they are more than the cache holds
NUM_BROKEN, NUM_TOKENS_WAITING = 4, 20
STARVED = ("/execute", "/v1/chat/completions", "/v1/completions")


@dataclass
class Result:
    """What came out under one worker class."""

    worker_class: str
    seed: str
    seconds: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    is_whole: bool = False
    first: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    arbiter_first: dict[str, int] = field(default_factory=dict)
    arbiter_last: dict[str, int] = field(default_factory=dict)
    leaked: dict[str, int] = field(default_factory=dict)
    exit_code: int | None = None
    log: str = ""


class Load:
    """Clients that come one after the other, so many at a time."""

    def __init__(self, world: World, numbers: "itertools.count[int]") -> None:
        self._world = world
        self._numbers = numbers
        self._is_over = False
        self._tasks = [asyncio.create_task(self._come()) for _ in range(NUM_CLIENTS)]

    async def _come(self) -> None:
        while not self._is_over:
            await visit(self._world, next(self._numbers))

    def check(self) -> None:
        """Raise what went wrong in the soak itself."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Let no other come, and wait for those who are there."""
        self._is_over = True
        done, left = await asyncio.wait(self._tasks, timeout=ANSWER_LIMIT_S + 2 * TOTAL_LIMIT_S)
        for task in left:
            self._world.ledger.add(Kind.HANG, "a client was never done")
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for task in done:
            task.result()


async def soak(result: Result, seconds: float, folder: Path, num_blows_before: int = 0) -> None:
    """Run all phases.

    Args:
        result: Is filled in, so that something is known of a run that was interrupted.
        seconds: Of load; starts, rests and the end come on top.
        folder: For the server's log.
        num_blows_before: What the run before has dealt, so that two short ones together deal every kind.
    """
    began_at = time.monotonic()
    with soak_server(folder, result.worker_class) as server:
        world = World(server.port, f"{result.seed} {result.worker_class}", result.ledger)
        try:
            await _until_ready(world, server)
            result.arbiter_first = server.arbiter()
            numbers = itertools.count()
            await _storm(world, server, numbers, seconds, blows(result.seed, num_blows_before))
            result.first = await _rest(world, None)
            await _steady(world, numbers, seconds * (1 - STORM_SHARE - WARM_SHARE))
            await _starve_some(world)
            await _break_some(world)
            await _fill_every_slot(world)
            result.last = await _rest(world, result.first)
            result.arbiter_last = server.arbiter()
            _compare(result)
            _explain(result)
            await _end_with_live_streams(world, server)
            result.exit_code = await asyncio.to_thread(server.exit_code)
        finally:
            result.seconds = time.monotonic() - began_at
            result.log = server.log()
    if result.exit_code != 0:
        world.ledger.add(Kind.PROCESS, f"the server ended with {result.exit_code}, or not at all")
    world.ledger.compare_with_log(result.log)
    result.is_whole = True


async def _storm(
    world: World, server: SoakServer, numbers: "itertools.count[int]", seconds: float, coming: Iterator[Blow]
) -> None:
    """Load and blows; then load alone, to warm the last worker up."""
    rng = random.Random(f"{world.seed} storm")
    load = Load(world, numbers)
    until = time.monotonic() + seconds * STORM_SHARE
    num_left = MIN_BLOWS if seconds >= LONG_ENOUGH_S else 1
    while num_left > 0 or time.monotonic() < until:
        await asyncio.sleep(rng.uniform(*BETWEEN_BLOWS_S))
        await strike(world, server, next(coming))
        load.check()
        num_left -= 1
    await asyncio.sleep(max(MIN_PHASE_S, seconds * WARM_SHARE))
    await load.stop()


async def _steady(world: World, numbers: "itertools.count[int]", seconds: float) -> None:
    load = Load(world, numbers)
    await asyncio.sleep(max(MIN_PHASE_S, seconds))
    await load.stop()


async def _until_ready(world: World, server: SoakServer) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not await is_ready(world):
        if not server.is_running() or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{server.log()}")
        await asyncio.sleep(0.1)


async def _rest(world: World, baseline: dict[str, Any] | None) -> dict[str, Any]:
    """Wait until nothing is left of any request, and as little of everything else as before; not for ever."""
    deadline = time.monotonic() + REST_LIMIT_S
    shown: dict[str, Any] | None = None
    await asyncio.sleep(JOB_TTL_S)  # of the jobs that ended last
    while True:
        if shown is not None:
            await asyncio.sleep(1)
        shallow = await counters(world)
        is_quiet = shallow is not None and not (shallow["open"] or shallow["running"] or shallow["streams"])
        if is_quiet or time.monotonic() > deadline:
            shown = await counters(world, is_deep=True)
            is_settled = shown is not None and not shown["objects"].get("Job")
            is_low = baseline is None or (shown is not None and not _excess(baseline, shown))
            if (is_settled and is_low) or time.monotonic() > deadline:
                break
        else:
            shown = shallow
    if shown is None:
        world.ledger.add(Kind.PROCESS, "the server does not answer at rest")
        return {}
    return shown


def _excess(first: dict[str, Any], last: dict[str, Any]) -> dict[str, int]:
    """What there is more of than before, or at all, of what must be gone at rest."""
    excess = {name: last[name] for name in ("open", "running", "streams")}
    excess |= {name: last[name] - first[name] for name in ("threads", "descriptors")}
    kinds = {*first["objects"], *last["objects"]}
    for kind in kinds:
        excess[kind] = last["objects"].get(kind, 0) - first["objects"].get(kind, 0)
    return {name: number for name, number in excess.items() if number > 0}


def _compare(result: Result) -> None:
    """Fill in what has leaked."""
    first, last, ledger = result.first, result.last, result.ledger
    if not first or not last:
        return
    if first["pid"] != last["pid"]:
        ledger.add(Kind.PROCESS, f"the worker {first['pid']} was replaced by {last['pid']} without a reason")
        return
    result.leaked = _excess(first, last)
    result.leaked |= {
        f"arbiter's {name}": number - result.arbiter_first[name]
        for name, number in result.arbiter_last.items()
        if number > result.arbiter_first[name]
    }
    if last["rss_bytes"] - first["rss_bytes"] > MEMORY_SLACK_BYTES:
        result.leaked["bytes of memory"] = last["rss_bytes"] - first["rss_bytes"]
    for name, number in result.leaked.items():
        ledger.add(Kind.LEAK, f"{name}: {number} more than before")


def _explain(result: Result) -> None:
    """Hold the last worker's outcomes against what it accepted and what was injected into it."""
    last, ledger = result.last, result.ledger
    if not last:
        return
    outcomes, faults = last["outcomes"], last["faults"]
    num_outcomes = sum(outcomes.values())
    if num_outcomes != last["accepted"]:
        ledger.add(Kind.OUTCOME, f"{last['accepted']} requests were accepted, and {num_outcomes} outcomes counted")
    due: Counter[str] = Counter()
    for name, code in FAILED_BY.items():
        due[f"error{{{code}}}"] += faults.get(name, 0)
    for outcome, number in due.items():
        if outcomes.get(outcome, 0) != number:
            ledger.add(Kind.UNEXPLAINED, f"{outcomes.get(outcome, 0)} x {outcome}; {number} were injected")
    late = sum(outcomes.get(f"error{{{code}}}", 0) for code in ("STALLED", "FIRST_TOKEN_TIMEOUT"))
    if late > faults.get("lost_row", 0):
        ledger.add(Kind.UNEXPLAINED, f"{late} streams got no token in time; {faults.get('lost_row', 0)} were lost")


async def _starve_some(world: World) -> None:
    """Streams whose tokens never come: they are kept alive until their limit, and then told it.

    The ledger judges the silence. Without these a run may have nobody who waits for long enough to miss a keep-alive.
    """
    await world.fetch(request("POST", "/soak/calm"))
    await world.fetch(request("POST", "/soak/starve"))
    asks = [new_ask(random.Random(path), path, number) for number, path in enumerate(STARVED)]
    streams = [_WatchedStream(world, _as_patient_stream(ask)) for ask in asks]
    for stream in streams:
        verdict = await stream.task
        if verdict is None or verdict.outcome != "error{FIRST_TOKEN_TIMEOUT}":
            world.ledger.add(Kind.UNEXPLAINED, f"a stream whose tokens never came ended with {verdict}")
    await world.fetch(request("POST", "/soak/calm"))


def _as_patient_stream(ask: Ask) -> Ask:
    """The same without a limit of its own."""
    fields = {name: value for name, value in ask.fields.items() if name != "deadline_s"}
    return replace(ask, fields=fields if ask.is_native else fields | {"stream": True})


async def _break_some(world: World) -> None:
    """Jobs that fail while their text waits for a reader: the text comes all the same, and then the error.

    The judge looks at the text. Without these few streams have any waiting when they fail: readers are quick.
    """
    rng = random.Random("break")
    asks = itertools.islice(_long_asks("/v1/jobs", LONG), NUM_BROKEN)
    jobs = [job for ask in asks if (job := await create_job(world, rng, ask)) is not None]
    if len(jobs) < NUM_BROKEN:
        world.ledger.add(Kind.ANSWER, f"a calm server took {len(jobs)} of {NUM_BROKEN} jobs")
    for job in jobs:
        await _until(job, lambda status: status["usage"]["completion_tokens"] >= NUM_TOKENS_WAITING)
    await world.fetch(request("POST", "/soak/break"))
    for job in jobs:
        await _until(job, lambda status: status["outcome"] is not None)
        exchange = await job.read(rng)
        await exchange.read()
        exchange.leave()
        verdict = None
        if job.is_readable(exchange):
            verdict = world.ledger.note_stream(job.ask, [exchange], job_id=job.id, asked_at=job.since)
        if verdict is None or verdict.outcome != "error{VRAM_OOM}":
            world.ledger.add(Kind.UNEXPLAINED, f"a job that was to fail ended with {verdict}")
    await world.fetch(request("POST", "/soak/calm"))


async def _until(job: Job, is_enough: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until a job's status says so, or it has ended; not for ever."""
    deadline = time.monotonic() + REST_LIMIT_S
    while time.monotonic() < deadline:
        status = await job.status()
        if status is None or status["outcome"] is not None or is_enough(status):
            return
        await asyncio.sleep(0.02)


async def _fill_every_slot(world: World) -> None:
    """As many long streams as there are slots: each gets one, or one has leaked.

    They are more than the cache holds. Who gives way has to go on later as if nothing had been: the judge sees to it.
    """
    before = await counters(world)
    streams = _long_streams(world, NUM_SLOTS, FILLING)
    most = 0
    while most < NUM_SLOTS and not all(stream.is_over for stream in streams):
        shown = await counters(world)
        most = max(most, shown["running"] if shown is not None else 0)
        await asyncio.sleep(0.02)
    if most < NUM_SLOTS:
        world.ledger.add(Kind.LEAK, f"slots: {NUM_SLOTS} requests waited and {most} ran")
    await asyncio.gather(*(stream.task for stream in streams))
    after = await counters(world)
    if before is None or after is None or after["preempted"] <= before["preempted"]:
        world.ledger.add(Kind.UNEXPLAINED, "the cache was too small for all streams, and none gave way")


async def _end_with_live_streams(world: World, server: SoakServer) -> None:
    """SIGTERM while streams are live: they are told their end, one way or another."""
    streams = _long_streams(world, NUM_LAST_STREAMS, LONG)
    while any(stream.exchange.num_events < 3 and not stream.is_over for stream in streams):
        await asyncio.sleep(0.01)
    num_live = sum(not stream.is_over for stream in streams)
    world.ledger.counts["streams live at SIGTERM"] = num_live
    if num_live < NUM_LAST_STREAMS:
        world.ledger.add(Kind.PROCESS, f"only {num_live} of {NUM_LAST_STREAMS} streams were live at SIGTERM")
    world.ledger.begin_replacement(
        Replacement("SIGTERM at the end", is_kill=False, is_death=False, began_at=time.monotonic())
    )
    server.signal(signal.SIGTERM)
    await asyncio.gather(*(stream.task for stream in streams))


class _WatchedStream:
    """A stream that is read as it comes while something else is looked at."""

    def __init__(self, world: World, ask: Ask) -> None:
        self.exchange = Exchange(world.port)
        self.task = asyncio.create_task(self._read(world, ask))

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.exchange.ending is not Ending.OPEN

    async def _read(self, world: World, ask: Ask) -> Verdict | None:
        await self.exchange.send(ask.request())
        await self.exchange.read()
        self.exchange.leave()
        if world.ledger.note_no_answer(self.exchange):
            return None
        return world.ledger.note_stream(ask, [self.exchange], is_plain=True)


def _long_streams(world: World, num_streams: int, num_tokens: int) -> list[_WatchedStream]:
    asks = itertools.islice(_long_asks("/execute", num_tokens), num_streams)
    return [_WatchedStream(world, ask) for ask in asks]


def _long_asks(path: str, num_tokens: int) -> Iterator[Ask]:
    # A time limit, a stop string or the model's own end would make it short.
    asks = (new_ask(random.Random(number), path, number, max_tokens=num_tokens) for number in itertools.count())
    return (ask for ask in asks if ask.due().num_tokens == num_tokens and "deadline_s" not in ask.fields)
