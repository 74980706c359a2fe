"""What a client may ask for, at once and per minute. The clock is a number."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.limits import ClientLimits
from worker.errors import InvalidRequest, RateLimited
from worker.keys import KeyLimit


def limits_of(concurrency: int = 0, tokens_per_minute: int = 0, **own: KeyLimit) -> ClientLimits:
    return ClientLimits(KeyLimit(concurrency, tokens_per_minute), own)


def refused(limits: ClientLimits, client: str, costs: list[int], now: float) -> RateLimited:
    before = limits.allowance(client, now)
    with pytest.raises(RateLimited) as refusal:
        limits.charge(client, costs, now)
    assert limits.allowance(client, now) == before, "who is refused leaves nothing behind"
    return refusal.value


# ---- at once


def test_as_many_are_open_as_may_be() -> None:
    limits = limits_of(concurrency=2)
    limits.charge("a", [5], 0.0)
    limits.charge("a", [5], 1.0)
    assert "2 requests of this API key are open, and 2 may" in refused(limits, "a", [5], 2.0).message
    limits.charge("b", [5, 5], 2.0)
    limits.pay_back("a", 0, 3.0)
    limits.charge("a", [5], 3.0)


def test_answers_to_one_request_are_let_in_together_or_not_at_all() -> None:
    limits = limits_of(concurrency=3)
    limits.charge("a", [5], 0.0)
    refused(limits, "a", [5, 5, 5], 0.0)
    limits.charge("a", [5, 5], 0.0)


def test_more_answers_than_may_ever_be_open_are_told_so() -> None:
    """Waiting would not help: it is no 429."""
    with pytest.raises(InvalidRequest) as refusal:
        limits_of(concurrency=2).charge("a", [1, 1, 1], 0.0)
    [error] = refusal.value.errors
    assert error.field == "n"
    assert "may have 2" in error.message


def test_when_to_come_back_is_how_fast_its_own_have_been_ending() -> None:
    limits = limits_of(concurrency=2)
    limits.charge("a", [5, 5], 0.0)
    limits.charge("b", [5, 5], 0.0)
    for second in range(1, 9):  # b's are quick, and say nothing of a's
        limits.pay_back("b", 0, second)
        limits.charge("b", [5], second)
    limits.pay_back("a", 0, 7.0)
    limits.charge("a", [5], 7.0)
    assert refused(limits, "a", [5], 8.0).retry_after_s == 8
    assert refused(limits, "b", [5], 8.0).retry_after_s == 1


def test_a_refused_look_says_what_a_charge_would() -> None:
    limits = limits_of(concurrency=1)
    limits.check_open("a", 1, 0.0)
    limits.charge("a", [5], 0.0)
    with pytest.raises(RateLimited):
        limits.check_open("a", 1, 0.0)


# ---- per minute


def test_a_minute_has_so_many_tokens_and_they_come_evenly() -> None:
    limits = limits_of(tokens_per_minute=600)
    limits.charge("a", [400], 0.0)
    limits.charge("a", [200], 0.0)
    refusal = refused(limits, "a", [15], 0.0)
    assert refusal.retry_after_s == 2
    assert "may use 0 now, 600 a minute" in refusal.message
    refused(limits, "a", [15], 1.4)
    limits.charge("a", [15], 1.5)
    limits.charge("b", [600], 1.5)
    limits.charge("a", [600], 61.5)


def test_when_to_come_back_is_when_there_is_enough() -> None:
    limits = limits_of(tokens_per_minute=7)
    limits.charge("a", [7], 3.0)
    for cost in range(1, 8):
        wait_s = refused(limits, "a", [cost], 3.0).retry_after_s
        assert wait_s is not None
        copy = limits_of(tokens_per_minute=7)
        copy.charge("a", [7], 3.0)
        copy.charge("a", [cost], 3.0 + wait_s + 1e-6)


def test_what_was_not_used_comes_back_and_no_more_than_fits() -> None:
    limits = limits_of(tokens_per_minute=600)
    limits.charge("a", [500], 0.0)
    limits.pay_back("a", 450, 0.0)
    assert limits.allowance("a", 0.0).tokens == 550
    limits.charge("a", [500], 0.0)
    limits.pay_back("a", 500, 1000.0)
    assert limits.allowance("a", 1000.0).tokens == 600


def test_what_costs_more_than_a_minute_has_is_told_so() -> None:
    limits = limits_of(tokens_per_minute=100)
    with pytest.raises(InvalidRequest) as refusal:
        limits.charge("a", [60, 60], 0.0)
    [error] = refusal.value.errors
    assert error.field == "max_tokens"
    assert "up to 120 tokens" in error.message
    assert "100 a minute" in error.message
    assert "at least 20 fewer" in error.message
    limits.charge("a", [100], 0.0)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    limits = limits_of(tokens_per_minute=600)
    limits.charge("a", [600], 100.0)
    for now in (100.0, 99.0, 100.0):
        assert limits.allowance("a", now).tokens == 0


@settings(derandomize=True, database=None, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 40), st.lists(st.integers(1, 120), min_size=1, max_size=3), st.floats(0, 1)), max_size=40
    )
)
def test_in_no_time_more_is_used_than_the_law_says(asked: list[tuple[float, list[int], float]]) -> None:
    """Whatever is let in, and whatever of it is used, over every stretch of time."""
    limits, now = limits_of(tokens_per_minute=120), 0.0
    used: list[tuple[float, float]] = []
    for wait_s, costs, share in asked:
        now += wait_s
        try:
            limits.charge("a", costs, now)
        except (RateLimited, InvalidRequest):
            continue
        for cost in costs:
            unused = int(cost * share)
            limits.pay_back("a", unused, now)
            used.append((now, cost - unused))
    for i, (start, _) in enumerate(used):
        for j, (end, _) in enumerate(used[i:], i):
            assert sum(tokens for _, tokens in used[i : j + 1]) <= 120 * (1 + (end - start) / 60) + 1e-6


# ---- who


def test_without_limits_nobody_is_refused() -> None:
    limits = limits_of()
    limits.charge("a", [10**9] * 1000, 0.0)
    left = limits.allowance("a", 0.0)
    assert (left.requests, left.tokens) == (None, None)


@pytest.mark.parametrize(
    ("own", "costs", "field"),
    [(KeyLimit(1, 0), [5, 5], "n"), (KeyLimit(0, 5), [6], "max_tokens"), (KeyLimit(0, 0), [], "")],
)
def test_a_client_may_have_limits_of_its_own(own: KeyLimit, costs: list[int], field: str) -> None:
    limits = limits_of(2, 60, a=own)
    limits.charge("b", [5, 5], 0.0)
    if costs:
        with pytest.raises(InvalidRequest) as refusal:
            limits.charge("a", costs, 0.0)
        assert refusal.value.errors[0].field == field
    else:
        limits.charge("a", [100] * 10, 0.0)


def test_a_client_hears_what_it_has_left() -> None:
    limits = limits_of(3, 600)
    assert limits.allowance("a", 0.0).tokens_reset_s == 0
    limits.charge("a", [100, 50], 0.0)
    left: Any = limits.allowance("a", 5.0)
    assert (left.requests, left.tokens) == (1, 500)
    assert math.isclose(left.tokens_reset_s, 10.0)
    assert left.requests_reset_s >= 1
    limits.pay_back("a", 0, 6.0)
    limits.pay_back("a", 0, 6.0)
    assert limits.allowance("a", 60.0).requests_reset_s == 0
