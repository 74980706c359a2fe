"""Plain numbers of the generation thread."""

import math

import pytest

from worker.observe.tallies import PhaseTimes, Tallies, Tally


@pytest.mark.parametrize(
    ("value", "bucket"), [(-1.0, 0), (0.0, 0), (1.0, 0), (1.0000001, 1), (2.0, 1), (2.5, 2), (math.inf, 2)]
)
def test_a_bound_belongs_to_its_bucket(value: float, bucket: int) -> None:
    """As Prometheus has it: `le` is less or equal."""
    tally = Tally((1.0, 2.0))
    tally.note(value)
    assert tally.counts == [int(i == bucket) for i in range(3)]


def test_buckets_hold_all_that_is_below_them() -> None:
    tally = Tally((1, 8))
    for value in (1, 1, 5, 100):
        tally.note(value)
    assert tally.cumulated() == ([("1.0", 2.0), ("8.0", 3.0), ("+Inf", 4.0)], 107.0)


def test_what_is_read_does_not_change_with_what_comes() -> None:
    tally = Tally((1,))
    before = tally.cumulated()
    tally.note(1)
    assert before == ([("1.0", 0.0), ("+Inf", 0.0)], 0.0)


def test_each_token_is_counted_once() -> None:
    tallies = Tallies()
    tallies.first_token(7, 0.5)
    tallies.next_token(0.1)
    tallies.next_token(0.1)
    assert (tallies.num_prompt_tokens, tallies.num_generated) == (7, 3)
    assert (sum(tallies.ttft_s.counts), sum(tallies.gap_s.counts)) == (1, 2)


def test_phases_have_a_sum_and_a_longest() -> None:
    times = PhaseTimes(["a", "b"])
    for elapsed_s in (1.0, 3.0, 2.0):
        times.note("a", elapsed_s)
    assert (times.total_s, times.longest_s) == ({"a": 6.0, "b": 0.0}, {"a": 3.0, "b": 0.0})
