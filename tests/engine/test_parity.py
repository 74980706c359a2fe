"""Greedy tokens equal transformers' own `generate`, alone and in company, arriving staggered, prefilled in chunks."""

import random
from typing import Any

import pytest
import torch

from tests.support.engines import NUM_BLOCKS, new_engine, new_sequence, wait_until
from tests.support.random_models import BY_ROW, PACKED, VOCAB_SIZE, random_model
from worker.engine.linear import use_kernels
from worker.engine.model_runner import FallbackRunner, ModelRunner, PackedRunner, new_runner

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
