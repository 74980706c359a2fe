"""Sends requests to the server under test, one or many at once, and brings back recordings.

Owned here: the limits that a check is given, and the connections. Its law: nothing here knows what a request means.

Thread: a connection of its own for every request, so that any thread may ask.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from worker.client import Client, ServerSentEvent
from worker.recording import Recording, record


@dataclass(frozen=True)
class Limits:
    """How long the checker waits, and what it takes for prompt. In one place, so that tests can be quick.

    Attributes:
        check_s: For all requests of one check together.
        crowd: How many long streams are opened at once. More than a server's slots, or it frees none by being left;
            32 is twice our default.
        watch_s: How long the crowd is watched before it leaves. Only a watch that is longer than a keep-alive can
            tell whether those who wait get one.
        freed_s: Within this, and three times what it takes on an idle server, a request has to be answered after
            the crowd has left. A step, a network and a busy machine fit in; the crowd's remaining tokens do not.
        stopped_s: Within this a stream has to end that was cancelled, or has nothing left to say.
        burst_s: A stream that is over in less is too quick for its arrival times to mean anything.
        long_tokens: How much each stream of the crowd asks for.
    """

    check_s: float = 30.0
    crowd: int = 64
    watch_s: float = 2.0
    freed_s: float = 2.0
    stopped_s: float = 2.0
    burst_s: float = 0.1
    long_tokens: int = 512


@dataclass(frozen=True)
class Ask:
    """One request. `body` is sent as it is; else `fields` as JSON."""

    method: str
    path: str
    fields: Mapping[str, Any] | None = None
    body: bytes | None = None
    headers: Mapping[str, str] | None = None


def _ignore(_: ServerSentEvent) -> None:
    pass


def _never(_: ServerSentEvent) -> bool:
    return False


class Asker:
    """Asks one server; `begin` starts the time of a check."""

    def __init__(self, url: str, limits: Limits, api_key: str | None = None) -> None:
        # An OpenAI client's base URL ends with /v1; ours does not.
        self.url = re.sub("/v1/?$", "", url)
        self.limits = limits
        self._api_key = api_key
        self.begin()

    def begin(self, watch_s: float = 0.0) -> None:
        """A check begins; all that it asks has to be answered within its limit, and the time that it only watches."""
        self._give_up_at = time.monotonic() + self.limits.check_s + watch_s

    @property
    def remaining_s(self) -> float:
        return self._give_up_at - time.monotonic()

    def ask(
        self,
        ask: Ask,
        *,
        limit_s: float | None = None,
        show: Callable[[ServerSentEvent], None] = _ignore,
        leave_at: Callable[[ServerSentEvent], bool] = _never,
    ) -> Recording:
        """Send one request; for at most `limit_s` and what is left of the check."""
        remaining_s = self.remaining_s
        if remaining_s <= 0:
            detail = f"no time is left of the limit of {self.limits.check_s:g} s"
            return Recording(None, {}, [], "stopped", 0.0, detail)
        with Client(self.url, api_key=self._api_key) as client:
            return record(
                client.session,
                ask.method,
                client.base_url + ask.path,
                ask.fields,
                limit_s=remaining_s if limit_s is None else min(limit_s, remaining_s),
                show=show,
                leave_at=leave_at,
                headers=ask.headers,
                body=ask.body,
            )

    def ask_together(self, asks: Sequence[Ask], *, limit_s: float | None = None) -> list[Recording]:
        """Send all at once; in the order of the asks."""
        with ThreadPoolExecutor(len(asks), "endstop-check") as pool:
            return list(pool.map(lambda ask: self.ask(ask, limit_s=limit_s), asks))
