"""A prompt that begins like another one is not computed again, and its answer is the same."""

import math
from typing import Any

import pytest
import torch

from tests.support.bench import bench, code, end_of, stop_reason
from tests.support.engines import new_engine, new_sequence, wait_until
from tests.support.random_models import VOCAB_SIZE, random_model
from worker.engine.engine import Engine
from worker.engine.scheduler import Row
from worker.engine.sequence import SequenceState
from worker.events import StopReason

LONG = [3 + n % 50 for n in range(60)]


def computed_by(b: Any) -> list[int]:
    """How many tokens each row of each step computes, from now on."""
    found: list[int] = []
    b.runner.before_step = lambda number, rows: found.extend(len(row.token_ids) for row in rows)
    return found


def test_a_prompt_that_begins_like_another_is_not_computed_again() -> None:
    with bench() as b:
        b.alone(LONG, max_tokens=1)
        computed = computed_by(b)
        reply = b.submit([*LONG[:50], 9, 9], max_tokens=1)
        assert end_of(reply).usage.cached_tokens == 48
        assert computed == [4]


def test_sharing_can_be_forbidden() -> None:
    with bench(prefix_cache="off") as b:
        b.alone(LONG, max_tokens=1)
        computed = computed_by(b)
        assert end_of(b.submit(LONG, max_tokens=1)).usage.cached_tokens == 0
        assert computed == [60]


def test_a_runner_that_computes_row_by_row_shares_nothing() -> None:
    with bench() as b:
        b.engine._is_sharing = False  # as it is for such a runner
        b.alone(LONG, max_tokens=1)
        assert end_of(b.submit(LONG, max_tokens=1)).usage.cached_tokens == 0


def test_what_a_row_that_failed_has_left_is_not_shared() -> None:
    with bench() as b:
        b.runner.is_poisoned = lambda row: True
        assert code(b.submit(LONG)) == "INFERENCE_FAILED"
        b.runner.is_poisoned = lambda row: False
        assert end_of(b.submit(LONG, max_tokens=1)).usage.cached_tokens == 0


def test_when_the_cache_is_full_the_youngest_waits_and_everyone_has_the_answer_that_it_has_alone() -> None:
    prompts = [[n] * 20 for n in (3, 4, 5, 6)]
    with bench(num_blocks=8, max_slots=4) as b:
        alone = [b.alone(prompt, max_tokens=40, temperature=1.0, seed=prompt[0]) for prompt in prompts]
        b.gate.hold()
        replies = [b.submit(prompt, max_tokens=40, temperature=1.0, seed=prompt[0]) for prompt in prompts]
        b.gate.open()
        assert [stop_reason(reply) for reply in replies] == [StopReason.MAX_TOKENS] * 4
        assert [reply.sequence.output_ids for reply in replies] == alone
        assert b.engine._scheduler.num_preempted > 0


@pytest.mark.parametrize("by", ["cancel", "deadline"])
def test_who_gave_way_can_be_ended_while_it_waits(by: str) -> None:
    with bench(num_blocks=4, max_slots=2) as b:
        b.gate.hold()
        old, young = b.submit([3] * 30, max_tokens=30), b.submit([4] * 14, max_tokens=40)
        b.gate.open()

        def hold_when_it_waits(number: int, rows: list[Row]) -> None:
            if b.engine._scheduler.num_preempted and number:
                b.gate.hold()

        b.runner.before_step = hold_when_it_waits
        wait_until(lambda: b.engine._scheduler.num_preempted > 0)
        b.gate.wait_until_held()
        assert young.sequence.state is SequenceState.WAITING
        b.runner.before_step = lambda number, rows: None
        if by == "cancel":
            b.engine.cancel(young.sequence, "api")
        else:
            young.sequence.submitted_at = -math.inf
        b.gate.open()
        assert end_of(young).usage.completion_tokens == len(young.sequence.output_ids) > 0
        assert stop_reason(old) is StopReason.MAX_TOKENS


# ---- with a real model


def answer(engine: Engine, prompt: list[int], **params: Any) -> tuple[list[int], int]:
    reply = new_sequence(prompt, max_tokens=12, **params)
    engine.submit(reply.sequence)
    terminal: Any = reply.events()[-1]
    return reply.sequence.output_ids, terminal.usage.cached_tokens


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_the_same_whether_its_prompt_was_known_or_not(family: str, temperature: float) -> None:
    torch.manual_seed(0)
    shared = torch.randint(3, VOCAB_SIZE, (70,)).tolist()
    prompts = [[*shared[:n], *torch.randint(3, VOCAB_SIZE, (9,)).tolist()] for n in (70, 64, 33, 5)]
    params = {"temperature": temperature, "seed": 7}
    fresh = new_engine(random_model(family), max_slots=2, step_tokens=32, prefix_cache="off")
    known = new_engine(random_model(family), max_slots=2, step_tokens=32)
    try:
        answer(known, shared)
        for prompt, num_known in zip(prompts, (64, 64, 32, 0), strict=True):
            expected, _ = answer(fresh, prompt, **params)
            assert answer(known, prompt, **params) == (expected, num_known)
    finally:
        assert fresh.stop(10)
        assert known.stop(10)
