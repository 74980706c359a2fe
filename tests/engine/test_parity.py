"""Greedy tokens equal transformers' own `generate`, alone and in company, arriving staggered, prefilled in chunks."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.engines import NUM_BLOCKS, loaded_model, new_engine, new_sequence, wait_until
from tests.support.random_models import BY_ROW, PACKED, VOCAB_SIZE, random_model
from worker.engine.engine import Engine
from worker.engine.linear import use_kernels
from worker.engine.model_runner import FallbackRunner, ModelRunner, PackedRunner, new_runner
from worker.engine.scheduler import Row
from worker.settings import Settings
from worker.streams.wakeup import ThreadWakeup

NUM_NEW = 24
LENGTHS = (1, 3, 40, 17, 64, 5, 33, 2)


def _prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]


def _generate(model: Any, prompt: list[int]) -> list[int]:
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NUM_NEW,
            do_sample=False,
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def _packed(model: Any, *, is_traced: bool) -> PackedRunner:
    if is_traced:  # as it is served, with all that makes it fast
        use_kernels(model, is_exact=False)
    runner, reason = new_runner(model, lambda _: NUM_BLOCKS)
    assert isinstance(runner, PackedRunner), reason
    if is_traced:
        runner.trace(max_context=512)
    return runner


@pytest.mark.slow
@pytest.mark.parametrize("family", PACKED)
def test_greedy_tokens_equal_generate(family: str) -> None:
    check_parity(family, _packed(random_model(family), is_traced=True))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2-moe"])
def test_greedy_tokens_equal_generate_in_python(family: str) -> None:
    check_parity(family, _packed(random_model(family), is_traced=False))


@pytest.mark.slow
@pytest.mark.parametrize("family", BY_ROW)
def test_greedy_tokens_equal_generate_row_by_row(family: str) -> None:
    runner, _ = new_runner(random_model(family), lambda _: NUM_BLOCKS)
    assert isinstance(runner, FallbackRunner)
    check_parity(family, runner)


class WatchedRunner(FallbackRunner):
    """Looks in every step whose caches there are."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.may_be_there: Callable[[], set[int]] = lambda: set(self._caches)
        self.was_too_much = False

    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        self.was_too_much |= not set(self._caches) <= self.may_be_there()
        return super().forward(rows)


@pytest.mark.slow
def test_who_gives_way_row_by_row_has_the_same_tokens_and_its_cache_is_gone() -> None:
    runner = WatchedRunner(random_model("mpt"))
    model = replace(loaded_model(runner), num_blocks=8)
    engine = Engine(Settings(max_slots=4), ThreadWakeup(), lambda settings, report: model)
    engine.start()
    wait_until(lambda: engine.state != "LOADING")
    scheduler = engine._scheduler
    runner.may_be_there = lambda: {sequence.blocks[0] for sequence in scheduler.running}
    prompts = [[n, *range(3, 22)] for n in (3, 4, 5, 6)]
    try:
        replies = [new_sequence(prompt, max_tokens=40) for prompt in prompts]
        for reply in replies:
            engine.submit(reply.sequence)
        for reply in replies:
            reply.events()
    finally:
        assert engine.stop(10)
    assert scheduler.num_preempted > 0
    assert not runner.was_too_much
    assert runner._caches == {}
    for reply, prompt in zip(replies, prompts, strict=True):
        assert reply.sequence.output_ids[:NUM_NEW] == _generate(random_model("mpt"), prompt)


def check_parity(family: str, runner: ModelRunner) -> None:
    expected = [_generate(random_model(family), prompt) for prompt in _prompts()]
    # a step of 16 tokens cuts the prompts into chunks, and 5 slots make some wait and reuse a slot
    engine = new_engine(runner=runner, max_slots=5, step_tokens=16)
    try:
        replies = []
        for prompt in _prompts():
            reply = new_sequence(prompt, max_tokens=NUM_NEW)
            engine.submit(reply.sequence)
            replies.append(reply)
            if len(replies) % 3 == 0:  # the next ones join when this one is already decoding
                wait_until(lambda reply=reply: bool(reply.sequence.output_ids))  # type: ignore[misc]
        for reply in replies:
            reply.events()
        in_company = [reply.sequence.output_ids for reply in replies]

        alone = []
        for prompt in _prompts()[:3]:
            reply = new_sequence(prompt, max_tokens=NUM_NEW)
            engine.submit(reply.sequence)
            reply.events()
            alone.append(reply.sequence.output_ids)
    finally:
        assert engine.stop(10)
    assert in_company == expected
    assert alone == expected[:3]
    assert len({tuple(tokens) for tokens in expected}) == len(expected), "degenerate model: all outputs alike"
