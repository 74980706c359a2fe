"""What happens to the process while clients are served: signals, a dead generation thread, a step without an end."""

import asyncio
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.soak.asks import request
from tests.soak.clients import World
from tests.soak.exchange import Ending
from tests.soak.judge import Kind
from tests.soak.ledger import Replacement
from tests.soak.server import SoakServer

REPLACED_LIMIT_S = 90.0
POLL_S = 0.1


async def counters(world: World, *, is_deep: bool = False) -> dict[str, Any] | None:
    """The server's counters; None: it does not answer now."""
    exchange = await world.fetch(request("GET", "/soak?deep=1" if is_deep else "/soak"))
    if exchange.status != 200 or exchange.ending is not Ending.COMPLETE:
        return None
    shown: dict[str, Any] = json.loads(exchange.body)
    return shown


async def is_ready(world: World) -> bool:
    """Whether it would take a request now."""
    return (await world.fetch(request("GET", "/ready"))).status == 200


@dataclass(frozen=True)
class Blow:
    """One thing that ends a worker.

    Attributes:
        is_kill: Without a word: streams are cut, and lines of the log are lost.
        is_death: The process exits by itself a second after every stream has been told its end.
    """

    name: str
    strike: Callable[[World, SoakServer], Awaitable[None]]
    is_kill: bool = False
    is_death: bool = False


def _to_worker(number: signal.Signals) -> Callable[[World, SoakServer], Awaitable[None]]:
    async def strike(world: World, server: SoakServer) -> None:
        os.kill(server.worker_pids()[0], number)

    return strike


async def _hang_up(world: World, server: SoakServer) -> None:
    server.signal(signal.SIGHUP)


def _post(path: str) -> Callable[[World, SoakServer], Awaitable[None]]:
    async def strike(world: World, server: SoakServer) -> None:
        await world.fetch(request("POST", path))

    return strike


BLOWS = (
    Blow("SIGHUP", _hang_up),
    Blow("SIGKILL of the worker", _to_worker(signal.SIGKILL), is_kill=True),
    Blow("dead generation thread", _post("/soak/fatal"), is_death=True),
    Blow("SIGTERM of the worker", _to_worker(signal.SIGTERM)),
    Blow("step that never returns", _post("/soak/stuck"), is_death=True),
)


def blows(seed: str, skip: int = 0) -> Iterator[Blow]:
    """All kinds in some order, again and again; without the first ones, which another run has dealt."""
    order = random.Random(seed).sample(BLOWS, len(BLOWS))
    return itertools.islice(itertools.cycle(order), skip, None)


async def strike(world: World, server: SoakServer, blow: Blow) -> None:
    """End the worker in this way, and wait until another is ready."""
    ledger = world.ledger
    before = set(server.worker_pids())
    ledger.begin_replacement(Replacement(blow.name, blow.is_kill, blow.is_death, time.monotonic()))
    await blow.strike(world, server)
    deadline = time.monotonic() + REPLACED_LIMIT_S
    while time.monotonic() < deadline and server.is_running():
        await asyncio.sleep(POLL_S)
        now = set(server.worker_pids())
        if now and not now & before and await is_ready(world):
            break
    else:
        ledger.add(Kind.PROCESS, f"no new worker was ready within {REPLACED_LIMIT_S:g} s of: {blow.name}")
    ledger.end_replacement(time.monotonic())
    ledger.counts["workers replaced"] += 1
