"""What is looked back on: how much, and how often."""

from types import SimpleNamespace
from typing import Any

from worker.events import Usage
from worker.observe.history import MAX_ENDED, MAX_SAMPLES, SAMPLE_S, History
from worker.observe.log import Outcome
from worker.observe.tallies import Tallies


def history() -> tuple[History, Tallies, float]:
    """One whose engine is always the same, its tallies, and when it began."""
    numbers: Any = SimpleNamespace(num_running=2, num_waiting=1, cache_usage=0.5)
    tallies = Tallies()
    made = History(lambda: numbers, tallies)
    return made, tallies, made._sampled_at


def test_a_sample_says_how_fast_it_was_since_the_one_before() -> None:
    past, tallies, begun_at = history()
    tallies.num_generated = 30
    past.sample(begun_at + 3)
    tallies.num_generated = 40
    past.sample(begun_at + 3 + SAMPLE_S / 2)  # too early
    past.sample(begun_at + 8)
    assert [(one.at - begun_at, one.tokens_per_s) for one in past.samples] == [(3, 10), (8, 2)]
    assert (past.samples[0].num_running, past.samples[0].num_waiting, past.samples[0].cache_usage) == (2, 1, 0.5)


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    past, _, begun_at = history()
    outcome = Outcome("j", "", "end", "EOS", Usage(1, 1), 0.0, 0.0, 0.0, None, 0.0)
    for number in range(max(MAX_ENDED, MAX_SAMPLES) + 5):
        past.sample(begun_at + SAMPLE_S * (number + 1))
        past.note_outcome(outcome)
    assert (len(past.samples), len(past.ended)) == (MAX_SAMPLES, MAX_ENDED)
    assert past.samples[-1].at > past.samples[0].at
