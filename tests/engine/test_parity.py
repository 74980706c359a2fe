"""Greedy tokens equal transformers' own `generate`, alone and in company, arriving staggered, prefilled in chunks."""

import random
from typing import Any

import pytest
import torch

from tests.support.engines import new_engine, new_sequence, wait_until
from tests.support.random_models import CONFIGS, VOCAB_SIZE, random_model
from worker.engine.model_runner import FallbackRunner, PackedRunner, new_runner

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "runner"),
    [
        *((family, PackedRunner) for family in CONFIGS if family not in ("mpt", "mamba")),
        ("mpt", FallbackRunner),
    ],
)
def test_greedy_tokens_equal_generate(family: str, runner: type) -> None:
    expected = [_generate(random_model(family), prompt) for prompt in _prompts()]
    model = random_model(family)
    assert type(new_runner(random_model(family), lambda _: 64)[0]) is runner
    # a step of 16 tokens cuts the prompts into chunks, and 5 slots make some wait and reuse a slot
    engine = new_engine(model, max_slots=5, step_tokens=16)
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
