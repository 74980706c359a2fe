"""How much each client may ask for, at once and per minute. Plain Python, no torch, and no clock of its own.

Law: a request is charged wholly or not at all, and whoever has been charged is paid back once. Any thread, under its
owner's lock (admission.py), which is the one that decides who is let in and who has left: so a limit is exact whatever
comes at the same time, and nothing has to be undone for a request that is refused.

Tokens are counted with a token bucket, one per client. It holds what the client may use in a minute and fills evenly:
in any t seconds at most `tokens_per_minute * (1 + t / 60)` tokens are used. A request pays its prompt and the longest
answer that it may get when it is let in, and gets back what it did not use when it has ended: a limit that is charged
as tokens come would be overdrawn by every answer that is running. OpenAI counts `max_tokens` too.

Source: the token bucket of RFC 2697, section 3, with one rate. OpenAI's guide, "Rate limits", for the headers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.engine.service_rate import ServiceRate
from worker.errors import FieldError, InvalidRequest, RateLimited
from worker.keys import KeyLimit


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a client has left. None where there is no limit.

    Attributes:
        requests_reset_s: Until none of its requests is open, as far as can be told from how fast they have been ending.
        tokens_reset_s: Until it may use all of its tokens again, if it uses none until then.
    """

    limit: KeyLimit
    requests: int | None
    requests_reset_s: float
    tokens: int | None
    tokens_reset_s: float


@dataclass(slots=True)
class _Account:
    """One client's."""

    limit: KeyLimit
    tokens: float  # in the bucket, when last looked at
    filled_at: float
    num_open: int = 0
    service_rate: ServiceRate = field(default_factory=ServiceRate)

    @property
    def tokens_per_s(self) -> float:
        return self.limit.tokens_per_minute / 60

    def fill(self, now: float) -> None:
        elapsed_s = max(0.0, now - self.filled_at)
        self.put(elapsed_s * self.tokens_per_s)
        self.filled_at = max(self.filled_at, now)

    def put(self, tokens: float) -> None:
        self.tokens = min(self.limit.tokens_per_minute, self.tokens + tokens)


class ClientLimits:
    """An account for each client that has asked, by its name. There are as many names as there are API keys."""

    def __init__(self, limit: KeyLimit, own: Mapping[str, KeyLimit]) -> None:
        """Open with full buckets.

        Args:
            limit: Of each client.
            own: Those of single ones, in place of it.
        """
        self._limit = limit
        self._own = own
        self._accounts: dict[str, _Account] = {}

    def check_open(self, client: str, num_requests: int, now: float) -> None:
        """See that the client may open so many requests more.

        Raises:
            InvalidRequest: It may never have as many.
            RateLimited: It has too many now.
        """
        account = self._account(client, now)
        limit = account.limit.concurrency
        if not limit:
            return
        if num_requests > limit:
            message = (
                f"asks for {num_requests} answers; an API key may have {limit} open here, so ask for fewer at once"
            )
            raise InvalidRequest([FieldError("n", "too_many", message)])
        if (too_many := account.num_open + num_requests - limit) > 0:
            raise RateLimited(
                f"{account.num_open} requests of this API key are open, and {limit} may; wait for one to end",
                account.service_rate.retry_after_s(now, too_many, 0),
            )

    def charge(self, client: str, costs: list[int], now: float) -> None:
        """Let requests in, all or none, for these numbers of tokens.

        Raises:
            InvalidRequest: They cost more than there can ever be.
            RateLimited: They cost more than there is now, or too many are open.
        """
        self.check_open(client, len(costs), now)
        account, cost = self._account(client, now), sum(costs)
        if limit := account.limit.tokens_per_minute:
            if cost > limit:
                message = (
                    f"with the prompt up to {cost} tokens are asked for, and an API key may use {limit} a minute here; "
                    f"set max_tokens, or ask for at least {cost - limit} fewer"
                )
                raise InvalidRequest([FieldError("max_tokens", "rate_limit", message)])
            if (missing := cost - account.tokens) > 0:
                raise RateLimited(
                    f"up to {cost} tokens are asked for, and this API key may use {int(account.tokens)} now, "
                    f"{limit} a minute; wait, or ask for fewer",
                    max(1, math.ceil(missing / account.tokens_per_s)),
                )
            account.tokens -= cost
        for _ in costs:
            account.num_open += 1
            account.service_rate.came(now)

    def pay_back(self, client: str, num_unused_tokens: int, now: float) -> None:
        """A request that was let in has ended, and has not used so many tokens of its cost."""
        account = self._account(client, now)
        account.num_open -= 1
        account.service_rate.left(now, 0)
        account.put(num_unused_tokens)

    def allowance(self, client: str, now: float) -> Allowance:
        """What the client has left now."""
        account = self._account(client, now)
        limit = account.limit
        requests = tokens = None
        requests_reset_s = tokens_reset_s = 0.0
        if limit.concurrency:
            requests = limit.concurrency - account.num_open
            if account.num_open:
                requests_reset_s = account.service_rate.retry_after_s(now, account.num_open, 0)
        if limit.tokens_per_minute:
            tokens = int(account.tokens)
            tokens_reset_s = (limit.tokens_per_minute - account.tokens) / account.tokens_per_s
        return Allowance(limit, requests, requests_reset_s, tokens, tokens_reset_s)

    def _account(self, client: str, now: float) -> _Account:
        account = self._accounts.get(client)
        if account is None:
            limit = self._own.get(client, self._limit)
            account = self._accounts[client] = _Account(limit, limit.tokens_per_minute, now)
        account.fill(now)
        return account
