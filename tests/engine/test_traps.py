"""The traps that others have fallen into, each closed: patched locks, poisoned neighbours, shared random numbers."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.engines import NUM_BLOCKS, Reply, new_engine, new_sequence
from tests.support.random_models import VOCAB_SIZE, random_model, save_random_model
from tests.support.runners import Gate
from worker.body import parse_body
from worker.engine.admission import EngineState
from worker.engine.engine import Engine
from worker.engine.model_runner import ModelRunner, PackedRunner, new_runner
from worker.engine.scheduler import Row
from worker.errors import InvalidRequest
from worker.events import End, Failure
from worker.request import GenerateRequest, SamplingParams

ROOT = Path(__file__).resolve().parents[2]


class GatedRunner:
    """A real runner whose steps wait at a gate."""

    is_packed = True

    def __init__(self, runner: ModelRunner) -> None:
        self.gate = Gate()
        self._runner = runner
        self.forget = runner.forget

    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        self.gate.arrive()
        return self._runner.forward(rows)


def submit(engine: Engine, prompt_ids: list[int], **params: Any) -> Reply:
    reply = new_sequence(prompt_ids, **params)
    engine.submit(reply.sequence)
    return reply


def terminal_of(reply: Reply) -> End | Failure:
    terminal = reply.events()[-1]
    assert isinstance(terminal, End | Failure)
    return terminal


# ---- gevent


@pytest.mark.slow
def test_the_generation_thread_uses_nothing_that_gevent_has_patched(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "tests.engine.under_gevent", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.splitlines()[-1])
    seen_by_canary = " ".join(report["canary"])
    for name in ("Lock.__enter__", "Condition.__enter__", "Event.set", "Queue.put", "Logger.handle", "time.sleep"):
        assert name in seen_by_canary, "the instruments are blind"
    assert report["used"] == []
    assert len(report["ended"]) == 32
    assert {reason for reason, _ in report["ended"]} <= {"MAX_TOKENS", "EOS"}
    assert sum(report["outcomes"].values()) == 32
    assert report["is_stopped"]


# ---- what one request may do to others


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    """One for all: a runner changes its model's attention."""
    runner, reason = new_runner(random_model("llama"), lambda _: NUM_BLOCKS)
    assert isinstance(runner, PackedRunner), reason
    return runner


def neighbours_of(
    runner: ModelRunner, bad_prompt: list[int], **bad_params: Any
) -> tuple[End | Failure, list[list[int]], list[list[int]]]:
    """Run a bad request in the same steps as two good ones.

    Returns:
        How the bad one ended; the tokens of the good ones beside it; and alone.
    """
    gated = GatedRunner(runner)
    engine = new_engine(runner=gated, max_slots=4, max_context=256)
    good: list[tuple[list[int], dict[str, Any]]] = [
        ([5, 6, 7], {"max_tokens": 6}),
        ([8, 9], {"max_tokens": 6, "temperature": 1.0, "seed": 3}),
    ]
    try:
        alone = []
        for prompt, params in good:
            reply = submit(engine, prompt, **params)
            terminal_of(reply)
            alone.append(reply.sequence.output_ids)
        gated.gate.hold()
        first = submit(engine, *good[0][:1], **good[0][1])
        bad = submit(engine, bad_prompt, **bad_params)
        second = submit(engine, *good[1][:1], **good[1][1])
        gated.gate.open()
        terminal = terminal_of(bad)
        for reply in (first, second):
            terminal_of(reply)
        assert engine.state is EngineState.READY
        after = submit(engine, *good[0][:1], **good[0][1])
        terminal_of(after)
        assert after.sequence.output_ids == alone[0], "the engine does not go on as before"
        return terminal, [first.sequence.output_ids, second.sequence.output_ids], alone
    finally:
        gated.gate.open()
        assert engine.stop(30)


def test_a_token_id_outside_the_vocabulary_ends_with_a_code_and_the_engine_goes_on(runner: ModelRunner) -> None:
    terminal, _, _ = neighbours_of(runner, [5, VOCAB_SIZE + 100])
    assert isinstance(terminal, Failure)
    assert terminal.code in ("INFERENCE_FAILED", "INVALID_REQUEST")


def test_a_token_id_outside_the_vocabulary_harms_nobody_else(runner: ModelRunner) -> None:
    """A tokenizer may know tokens that the model has no embedding for; on CUDA it ends the whole process."""
    _, in_company, alone = neighbours_of(runner, [5, VOCAB_SIZE + 100])
    assert in_company == alone


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1.2},
        {"presence_penalty": 0.5, "temperature": 0},
        {"frequency_penalty": 0.5, "top_p": 0.9},
        {"top_k": 2**31},
        {"top_k": 2**63},
        {"top_k": 10**30},
        {"top_p": 5e-324},
        {"min_p": 1},
        {"temperature": 5e-324},
        {"temperature": 1e-5, "repetition_penalty": 1e-30},
        {"repetition_penalty": 1e-40},
        {"repetition_penalty": 5e-324, "top_k": 5},
        {"repetition_penalty": 2, "presence_penalty": -2, "frequency_penalty": -2},
        {"seed": 2**64 - 1},
        {"stop": ["\u0000", "🙂" * 100]},
    ],
)
def test_nothing_that_the_schema_lets_through_harms_anybody_else(runner: ModelRunner, fields: dict[str, Any]) -> None:
    """Refused with 400, or served, or failed: but alone. What comes out is a token that exists."""
    body = {"prompt": "x", **fields}
    try:
        request = parse_body(GenerateRequest, json.dumps(body).encode())
    except InvalidRequest:
        return
    sampling = request.sampling(6)
    params = {name: getattr(sampling, name) for name in SamplingParams.__slots__}
    terminal, in_company, alone = neighbours_of(runner, [5, 6], **params)
    assert in_company == alone
    assert isinstance(terminal, End), terminal


def test_a_nan_that_a_cancelled_prompt_left_in_a_block_does_not_reach_the_next_owner() -> None:
    poisoned = random_model("llama")
    with torch.no_grad():
        poisoned.get_input_embeddings().weight[VOCAB_SIZE - 1] = float("nan")
    runner, reason = new_runner(poisoned, lambda _: NUM_BLOCKS)
    assert isinstance(runner, PackedRunner), reason
    gated = GatedRunner(runner)
    engine = new_engine(runner=gated, max_slots=2, max_context=256, step_tokens=16)
    try:
        alone = submit(engine, [5, 6, 7], max_tokens=6)
        terminal_of(alone)
        gated.gate.hold()
        neighbour = submit(engine, [8] * 40, max_tokens=200)  # long: its positions are looked at in every slot
        for _ in range(4):
            gated.gate.wait_until_held()
            gated.gate.pass_and_hold()
        gated.gate.wait_until_held()
        leaver = submit(engine, [VOCAB_SIZE - 1] * 100, max_tokens=3)
        for _ in range(3):
            gated.gate.pass_and_hold()
            gated.gate.wait_until_held()
        assert 0 < leaver.sequence.num_computed < 100
        engine.cancel(leaver.sequence, "api")
        next_owner = submit(engine, [5, 6, 7], max_tokens=6)
        gated.gate.open()
        assert isinstance(terminal_of(leaver), End)
        terminal = terminal_of(next_owner)
        engine.cancel(neighbour.sequence, "api")
        terminal_of(neighbour)
        assert isinstance(terminal, End), terminal
        assert next_owner.sequence.output_ids == alone.sequence.output_ids
    finally:
        gated.gate.open()
        assert engine.stop(30)


def test_a_nan_that_a_failed_row_left_in_a_block_does_not_reach_the_next_owner() -> None:
    poisoned = random_model("llama")
    with torch.no_grad():
        poisoned.get_input_embeddings().weight[VOCAB_SIZE - 1] = float("nan")
    gated = GatedRunner(new_runner(poisoned, lambda _: NUM_BLOCKS)[0])
    engine = new_engine(runner=gated, max_slots=2, max_context=256, step_tokens=64)
    try:
        alone = submit(engine, [5, 6, 7], max_tokens=6)
        terminal_of(alone)
        gated.gate.hold()
        neighbour = submit(engine, [8] * 40, max_tokens=200)
        failing = submit(engine, [VOCAB_SIZE - 1] * 20, max_tokens=3)
        next_owner = submit(engine, [5, 6, 7], max_tokens=6)
        gated.gate.open()
        terminal = terminal_of(failing)
        assert isinstance(terminal, Failure)
        assert terminal.code == "INFERENCE_FAILED"
        assert isinstance(terminal_of(next_owner), End)
        assert next_owner.sequence.output_ids == alone.sequence.output_ids
        engine.cancel(neighbour.sequence, "api")
        assert isinstance(terminal_of(neighbour), End)
    finally:
        gated.gate.open()
        assert engine.stop(30)


# ---- random numbers


def test_seeds_do_not_depend_on_the_global_random_numbers_nor_move_them(runner: ModelRunner) -> None:
    answers = []
    for global_seed in (1, 2):
        random.seed(global_seed)
        torch.manual_seed(global_seed)
        before = random.getstate(), torch.get_rng_state()
        engine = new_engine(runner=runner, max_slots=4, max_context=256)
        try:
            replies = [submit(engine, [5, 6], temperature=1.0, seed=seed, max_tokens=8) for seed in (7, 8)]
            for reply in replies:
                terminal_of(reply)
        finally:
            assert engine.stop(30)
        answers.append([reply.sequence.output_ids for reply in replies])
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


# ---- attention


def test_grouped_queries_are_packed_and_never_left_to_the_library(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`enable_gqa` in bf16 on a CPU was 4 to 15 times slower."""
    attention = F.scaled_dot_product_attention
    seen: list[dict[str, Any]] = []

    def look(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(kwargs)
        return attention(*args, **kwargs)

    monkeypatch.setattr("worker.engine.kernels.F.scaled_dot_product_attention", look)
    monkeypatch.setattr("worker.engine.kernels.IS_NATIVE", False)
    engine = new_engine(runner=runner, max_slots=4, max_context=256)
    try:
        for reply in [submit(engine, [5] * n, max_tokens=4) for n in (3, 20, 21)]:
            assert isinstance(terminal_of(reply), End)
    finally:
        assert engine.stop(30)
    assert len(seen) > 9
    assert not any("enable_gqa" in kwargs for kwargs in seen)
