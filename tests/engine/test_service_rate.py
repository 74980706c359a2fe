"""How long to stay away is told from how fast others have been leaving."""

from worker.engine.service_rate import NEVER_LONGER_S, WINDOW, ServiceRate


def rate_of(*left: tuple[float, int], start: float = 0.0) -> ServiceRate:
    rate = ServiceRate()
    for _ in range(len(left) + 1):  # one of them stays
        rate.came(start)
    for now, num_tokens in left:
        rate.left(now, num_tokens)
    return rate


def test_it_is_the_time_that_as_many_took_lately() -> None:
    rate = rate_of((2.0, 10), (4.0, 10), (6.0, 10))
    assert rate.retry_after_s(6.0, 1, 0) == 2
    assert rate.retry_after_s(6.0, 5, 0) == 10


def test_tokens_count_where_tokens_are_what_is_too_much() -> None:
    rate = rate_of((5.0, 500), (10.0, 500))  # 100 tokens a second
    assert rate.retry_after_s(10.0, 0, 1000) == 10


def test_when_nobody_leaves_any_more_it_grows() -> None:
    rate = rate_of((1.0, 10), (2.0, 10))
    assert rate.retry_after_s(2.0, 1, 0) == 1
    assert rate.retry_after_s(20.0, 1, 0) == 10


def test_before_anybody_has_left_it_is_at_least_what_has_passed() -> None:
    assert rate_of(start=100.0).retry_after_s(107.0, 1, 0) == 7
    assert rate_of(start=100.0).retry_after_s(100.0, 1, 50) == 1


def test_time_without_work_does_not_count() -> None:
    rate = rate_of(*[(0.1 * n, 10) for n in range(1, 101)])  # ten a second
    rate.left(10.1, 10)
    rate.came(3610.0)
    rate.came(3610.0)
    assert rate.retry_after_s(3610.0, 10, 0) == 1
    rate.left(3610.1, 10)
    assert rate.retry_after_s(3610.1, 20, 0) == 2
    assert rate.retry_after_s(3630.1, 1, 0) == 1, "and time with work does"
    assert rate.retry_after_s(3630.1, 10, 0) > 3


def test_the_distant_past_is_forgotten() -> None:
    rate = rate_of((1000.0, 10), *[(1000.0 + n, 10) for n in range(1, WINDOW + 1)])
    assert rate.retry_after_s(1000.0 + WINDOW, 3, 0) == 3


def test_it_is_a_whole_number_within_bounds() -> None:
    rate = rate_of((0.001, 1), (0.002, 1))
    assert rate.retry_after_s(0.002, 1, 1) == 1
    assert rate.retry_after_s(0.002, 10**9, 10**9) == NEVER_LONGER_S
