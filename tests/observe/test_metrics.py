"""What `/metrics` makes of the numbers it is given."""

from dataclasses import replace

import pytest

from tests.support.engines import NUM_BLOCKS, new_engine, new_sequence, wait_until
from tests.support.metrics import Scrape, parse
from tests.support.random_models import byte_level_tokenizer
from tests.support.runners import ScriptedRunner
from worker.engine.admission import EngineState
from worker.engine.engine import Engine
from worker.engine.kv_cache import BLOCK_TOKENS
from worker.engine.tokenizer import Tokenizer
from worker.events import Failure, StopReason, Usage
from worker.observe.log import Outcome
from worker.observe.metrics import STATES, Metrics, WebNumbers, bounds_1_2_5
from worker.observe.tallies import EngineNumbers, Tallies
from worker.settings import Settings
from worker.streams.wakeup import ThreadWakeup

NAME = 'a "model" \\ of ours\n'
NUMBERS = EngineNumbers(
    state="READY",
    device="cuda:0",
    uptime_s=9.0,
    num_running=2,
    num_waiting=3,
    cache_usage=0.25,
    cache_remembered=0.5,
    num_prefix_tokens=40,
    num_prefix_hits=10,
    num_preempted=1,
    num_guessed=8,
    num_ended_outside=4,
    num_standstills=5,
    phase="forward",
    phase_age_s=0.125,
    watchdog_age_s=0.5,
    backlog_events=6,
    phase_total_s={"forward": 7.0, "idle": 1.0},
    phase_longest_s={"forward": 2.0, "idle": 0.5},
)
OUTCOME = Outcome("id", "alice", "end", "EOS", Usage(5, 3), 400.0, 900.0, 100.0, 60.0, 1100.0)


def metrics_of(numbers: EngineNumbers = NUMBERS, tallies: Tallies | None = None, name: str = "m") -> Metrics:
    limits = {"slots": 4, "streams": 12}
    return Metrics(name, 128, limits, lambda: numbers, tallies or Tallies(), lambda: WebNumbers(1, 2, 3, 4))


def scrape(metrics: Metrics, name: str = "m") -> Scrape:
    return parse(metrics.exposition().decode(), name)


def test_the_engine_is_read_when_somebody_asks() -> None:
    found = scrape(metrics_of())
    assert found("vllm:num_requests_running") == 2
    assert found("vllm:num_requests_waiting") == 3
    assert (found("vllm:kv_cache_usage_perc"), found("endstop_cache_remembered")) == (0.25, 0.5)
    assert (found("vllm:prefix_cache_queries_total"), found("vllm:prefix_cache_hits_total")) == (40, 10)
    assert found("vllm:num_preemptions_total") == 1
    assert found("vllm:spec_decode_num_draft_tokens_total") == 8
    assert [found("endstop_state", state=state) for state in STATES] == [0, 1, 0, 0]
    assert found("endstop_info", device="cuda:0") == 1
    assert (found("endstop_limit", what="slots"), found("endstop_limit", what="streams")) == (4, 12)
    assert (found("endstop_streams_open"), found("endstop_jobs")) == (1, 2)
    assert [found("endstop_grammars_total", result=result) for result in ("vetted", "refused")] == [3, 4]
    assert found("endstop_phase_seconds_total", phase="forward") == 7
    assert found("endstop_phase_longest_seconds", phase="idle") == 0.5
    assert found("endstop_phase_age_seconds", phase="forward") == 0.125
    assert (found("endstop_ended_from_outside_total"), found("endstop_standstills_total")) == (4, 5)
    assert (found("endstop_watchdog_age_seconds"), found("endstop_backlog_events")) == (0.5, 6)


def test_every_state_of_the_engine_is_shown() -> None:
    assert set(STATES) == {state.value for state in EngineState}


def test_a_name_may_be_anything() -> None:
    assert scrape(metrics_of(name=NAME), NAME)("vllm:num_requests_running") == 2


def test_histograms_of_the_generation_thread_have_buckets() -> None:
    tallies = Tallies()
    tallies.first_token(5, 0.05)
    tallies.next_token(0.02)
    tallies.step(0.5, 20)
    tallies.step(0.5, 9)
    found = scrape(metrics_of(tallies=tallies))
    assert (found("vllm:prompt_tokens_total"), found("vllm:generation_tokens_total")) == (5, 2)
    assert found("vllm:time_to_first_token_seconds_bucket", le="0.04") == 0
    assert found("vllm:time_to_first_token_seconds_bucket", le="0.06") == 1
    assert found("vllm:inter_token_latency_seconds_count") == 1
    assert found("vllm:iteration_tokens_total_bucket", le="16.0") == 1
    assert found("vllm:iteration_tokens_total_bucket", le="+Inf") == 2
    assert found("vllm:iteration_tokens_total_sum") == 29
    assert found("endstop_step_seconds_sum") == 1.0


@pytest.mark.parametrize(
    ("outcome", "detail", "reason"),
    [
        ("end", StopReason.EOS.value, "stop"),
        ("end", StopReason.STOP_SEQUENCE.value, "stop"),
        ("end", StopReason.MAX_TOKENS.value, "length"),
        ("cancelled", "client", "abort"),
        ("error", "STALLED", "error"),
    ],
)
def test_an_outcome_is_counted_once_in_each_place(outcome: str, detail: str, reason: str) -> None:
    metrics = metrics_of()
    metrics.note_outcome(replace(OUTCOME, outcome=outcome, detail=detail))
    found = scrape(metrics)
    assert found("endstop_outcomes_total", outcome=outcome, code=detail) == found.total("endstop_outcomes_total") == 1
    assert found("vllm:request_success_total", finished_reason=reason) == 1
    assert found.total("vllm:request_success_total") == 1
    assert found("vllm:e2e_request_latency_seconds_sum") == pytest.approx(1.1)
    assert found("vllm:request_queue_time_seconds_sum") == pytest.approx(0.4)
    assert found("vllm:request_prefill_time_seconds_sum") == pytest.approx(0.5)
    assert found("vllm:request_decode_time_seconds_sum") == pytest.approx(0.1)
    assert found("vllm:request_prompt_tokens_sum") == 5
    assert found("vllm:request_generation_tokens_sum") == 3


def test_who_never_had_a_token_has_no_time_of_one() -> None:
    metrics = metrics_of()
    metrics.note_outcome(replace(OUTCOME, outcome="error", detail="QUEUE_TIMEOUT", ttft_ms=None))
    found = scrape(metrics)
    assert found("vllm:request_prefill_time_seconds_count") == found("vllm:request_decode_time_seconds_count") == 0
    assert found("vllm:e2e_request_latency_seconds_count") == 1


def test_series_are_there_before_anything_happens() -> None:
    """`rate` of a counter that appears with its first event does not see that one."""
    found = scrape(metrics_of())
    for reason in ("stop", "length", "abort", "error"):
        assert ("vllm:request_success_total", frozenset({("finished_reason", reason)})) in found.values
    for name in ("endstop_resumes_total", "endstop_idempotent_replays_total", "vllm:e2e_request_latency_seconds_count"):
        assert (name, frozenset()) in found.values
    assert not [name for name, _ in found.values if name.endswith("_created")]


def test_buckets_of_tokens_go_up_to_the_context() -> None:
    assert bounds_1_2_5(100) == (1, 2, 5, 10, 20, 50, 100)
    assert bounds_1_2_5(16) == (1, 2, 5, 10)


# ---- what an engine has counted


def test_an_engine_counts_what_it_does() -> None:
    engine = new_engine(runner=ScriptedRunner(), max_slots=2)
    try:
        replies = [new_sequence(list(range(3, 3 + n)), max_tokens=4) for n in (2, 5, 7)]
        engine.submit(*(reply.sequence for reply in replies))
        for reply in replies:
            reply.events()
        wait_until(lambda: engine.numbers().phase == "idle")
        tallies, numbers = engine.tallies, engine.numbers()
        assert (tallies.num_prompt_tokens, tallies.num_generated) == (14, 12)
        assert (sum(tallies.ttft_s.counts), sum(tallies.gap_s.counts)) == (3, 9)
        # The newest token of an answer is computed with the next one, so its last never is.
        assert tallies.step_tokens.total == 14 + 9
        assert sum(tallies.step_s.counts) == sum(tallies.step_tokens.counts) > 0
        assert (numbers.num_running, numbers.num_waiting, numbers.backlog_events) == (0, 0, 0)
        assert (numbers.num_prefix_tokens, numbers.num_prefix_hits, numbers.cache_usage) == (14, 0, 0.0)
        assert 0 < numbers.phase_total_s["sampling"] <= numbers.uptime_s
        assert sum(numbers.phase_total_s.values()) <= numbers.uptime_s
        assert all(numbers.phase_longest_s[name] <= total for name, total in numbers.phase_total_s.items())
        assert numbers.watchdog_age_s < 30
    finally:
        assert engine.stop(10)


def test_an_engine_that_was_never_started_and_one_that_has_ended_can_be_asked() -> None:
    never = Engine(replace(Settings(), device="cuda:7"), ThreadWakeup(), lambda *_: pytest.fail("it was started"))
    numbers = never.numbers()
    assert (numbers.state, numbers.phase, numbers.device) == ("LOADING", "loading", "cuda:7")
    assert (numbers.cache_usage, numbers.watchdog_age_s) == (0.0, 0.0)
    engine = new_engine(runner=ScriptedRunner())
    assert engine.stop(10)
    assert engine.numbers().phase == "ended"


def test_what_was_found_in_the_cache_is_counted() -> None:
    engine = new_engine(runner=ScriptedRunner())
    prompt = list(range(3, 3 + 2 * BLOCK_TOKENS + 1))
    try:
        for _ in range(2):
            reply = new_sequence(prompt, max_tokens=1)
            engine.submit(reply.sequence)
            reply.events()
        numbers = engine.numbers()
        assert (numbers.num_prefix_tokens, numbers.num_prefix_hits) == (2 * len(prompt), 2 * BLOCK_TOKENS)
        assert engine.tallies.num_prompt_tokens == 2 * len(prompt)
    finally:
        assert engine.stop(10)


def test_who_runs_and_who_waits_is_counted_and_so_is_what_they_hold() -> None:
    letter = Tokenizer(byte_level_tokenizer()).encode("a")  # text that is decidable at once
    runner = ScriptedRunner({3: letter})
    runner.gate.hold()
    engine = new_engine(runner=runner, max_slots=1)
    try:
        replies = [new_sequence([3, 4], max_tokens=2) for _ in range(3)]
        engine.submit(*(reply.sequence for reply in replies))
        runner.gate.wait_until_held()
        numbers = engine.numbers()
        assert (numbers.num_running, numbers.num_waiting, numbers.phase) == (1, 2, "forward")
        assert numbers.cache_usage == pytest.approx(1 / NUM_BLOCKS)
        runner.gate.pass_and_hold()
        runner.gate.wait_until_held()
        assert engine.numbers().backlog_events == 1
        runner.gate.open()
        for reply in replies:
            reply.events()
    finally:
        runner.gate.open()
        assert engine.stop(10)


def test_a_step_that_fails_is_none() -> None:
    runner = ScriptedRunner()
    runner.before_step = lambda number, rows: 1 / 0  # type: ignore[assignment]
    engine = new_engine(runner=runner)
    try:
        reply = new_sequence([3, 4])
        engine.submit(reply.sequence)
        assert isinstance(reply.events()[-1], Failure)
        assert sum(engine.tallies.step_s.counts) == engine.tallies.num_generated == 0
    finally:
        assert engine.stop(10)
