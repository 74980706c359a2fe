"""Guessing changes how many steps an answer takes, and no token of it."""

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engines import NUM_BLOCKS, PATIENT, new_engine, new_sequence
from tests.support.random_models import VOCAB_SIZE, random_model
from worker.engine.engine import Engine
from worker.engine.kv_cache import BLOCK_TOKENS, BlockPool
from worker.engine.lookup import Lookup
from worker.engine.model_runner import PackedRunner, new_runner
from worker.engine.sampler import SampledTokens, sample
from worker.engine.scheduler import CHEAP_ROWS, Row, Scheduler
from worker.engine.sequence import Sequence
from worker.events import End

MAX_TOKENS = 40
REQUESTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.2, "seed": 2, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"max_tokens": 7},
    {"temperature": 0.5, "seed": 3, "presence_penalty": 1.0, "min_p": 0.01},
    {"stop": ("e",)},
]


@dataclass
class Tokens:
    """A sequence, as far as a lookup sees it."""

    ids: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        return self.ids[start:stop]


def test_what_followed_the_last_time_is_guessed() -> None:
    text = Tokens([1, 2, 3, 4, 5, 9, 1, 2, 3, 7, 8, 9, 1, 2, 3])
    assert Lookup().guess(text, 2) == [7, 8]
    assert Lookup().guess(text, 9) == [7, 8, 9, 1, 2, 3, 7, 8, 9]


def test_what_repeats_itself_is_guessed_to_go_on() -> None:
    assert Lookup().guess(Tokens([5, 1, 2, 1, 2, 1, 2]), 5) == [1, 2, 1, 2, 1]


def test_what_is_new_is_not_guessed() -> None:
    assert Lookup().guess(Tokens([1, 2, 3, 4, 5, 6]), 4) == []
    assert Lookup().guess(Tokens([1, 2]), 4) == []
    assert Lookup().guess(Tokens([1, 1, 1, 1]), 0) == []


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(1, 5), max_size=20))
def test_a_lookup_that_grows_with_its_sequence_knows_what_a_new_one_knows(ids: list[int], cuts: list[int]) -> None:
    grown, text = Lookup(), Tokens()
    while len(text.ids) < len(ids):
        text.ids = ids[: len(text.ids) + (cuts.pop() if cuts else 1)]
        assert grown.guess(text, 4) == Lookup().guess(text, 4)


def _packed(family: str) -> PackedRunner:
    runner, reason = new_runner(random_model(family), lambda _: NUM_BLOCKS)
    assert isinstance(runner, PackedRunner), reason
    runner.trace(512)
    return runner


def _answers(engine: Engine, prompts: list[list[int]]) -> list[tuple[list[int], str]]:
    """All at once."""
    replies = [
        new_sequence(prompt, **{"max_tokens": MAX_TOKENS, **fields})
        for prompt, fields in zip(prompts, REQUESTS, strict=True)
    ]
    for reply in replies:
        engine.submit(reply.sequence)
    texts = [reply.text() for reply in replies]
    return [(reply.sequence.output_ids, text) for reply, text in zip(replies, texts, strict=True)]


class Oracle:
    """Guesses that are right for a while, and then wrong."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], *, is_right: bool = False) -> None:
        self._answers = answers
        self._is_right = is_right
        self._random = random.Random(4)

    def guess(self, sequence: Sequence, limit: int) -> list[int]:
        rest = self._answers[tuple(sequence.prompt_ids)][len(sequence.output_ids) :][: max(0, limit)]
        num_right = len(rest) if self._is_right else self._random.randint(0, len(rest))
        return rest[:num_right] + [self._random.randrange(VOCAB_SIZE) for _ in rest[num_right:]]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss", "qwen2-moe"])
@pytest.mark.parametrize("num_slots", [7, 2])
def test_no_token_is_another_whatever_is_guessed(family: str, num_slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    prompts = [[rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 40))] for _ in REQUESTS]
    engine = new_engine(runner=_packed(family), max_slots=num_slots)
    try:
        expected = _answers(engine, prompts)
        assert engine._scheduler.num_guessed == 0
    finally:
        assert engine.stop(10)
    oracle = Oracle({tuple(prompt): ids for prompt, (ids, _) in zip(prompts, expected, strict=True)})
    monkeypatch.setattr(Lookup, "guess", lambda self, sequence, limit: oracle.guess(sequence, limit))
    engine = new_engine(runner=_packed(family), max_slots=num_slots, speculation="ngram")
    try:
        assert _answers(engine, prompts) == expected
        scheduler = engine._scheduler
        assert 20 < scheduler.num_guessed_right < scheduler.num_guessed
        assert scheduler.pool.num_free == scheduler.pool.num_blocks
    finally:
        assert engine.stop(10)


@pytest.mark.slow
def test_what_was_computed_behind_a_wrong_guess_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request that begins alike finds blocks of right tokens only."""
    prompt = list(range(3, 3 + 2 * BLOCK_TOKENS))
    engine = new_engine(runner=_packed("llama"))
    try:
        first = new_sequence(prompt, max_tokens=3 * BLOCK_TOKENS)
        engine.submit(first.sequence)
        first.events()
    finally:
        assert engine.stop(10)
    answer = first.sequence.output_ids
    monkeypatch.setattr(Lookup, "guess", lambda self, sequence, limit: [5] * max(0, limit))  # never right
    engine = new_engine(runner=_packed("llama"), speculation="ngram")
    try:
        for num_known in (0, BLOCK_TOKENS, 2 * BLOCK_TOKENS):
            reply = new_sequence(prompt + answer[:num_known], max_tokens=len(answer) - num_known)
            engine.submit(reply.sequence)
            reply.events()
            assert reply.sequence.output_ids == answer[num_known:]
            assert reply.sequence.num_cached == (len(prompt) + num_known - 1) // BLOCK_TOKENS * BLOCK_TOKENS * (
                num_known > 0
            )
        assert engine._scheduler.num_guessed > 0
    finally:
        assert engine.stop(10)


@pytest.mark.slow
def test_a_draw_behind_a_guess_that_fails_is_made_in_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guess is in the cache and its logits are lost: it is the newest token, and computed again."""
    prompt = list(range(3, 13))
    engine = new_engine(runner=_packed("llama"))
    try:
        reply = new_sequence(prompt, max_tokens=12)
        engine.submit(reply.sequence)
        reply.events()
    finally:
        assert engine.stop(10)
    answer = reply.sequence.output_ids
    right = Oracle({tuple(prompt): answer}, is_right=True)
    monkeypatch.setattr(Lookup, "guess", lambda self, sequence, limit: right.guess(sequence, limit))
    runner = _packed("llama")
    forward, is_first = runner.forward, False

    def forward_and_note(rows: list[Row]) -> Any:
        nonlocal is_first
        is_first = True
        return forward(rows)

    def draw_once(logits: torch.Tensor, rows: Any) -> SampledTokens:
        nonlocal is_first
        if not is_first:
            raise RuntimeError("no second draw in a step")
        is_first = False
        return sample(logits, rows)

    monkeypatch.setattr(runner, "forward", forward_and_note)
    monkeypatch.setattr("worker.engine.draws.sample", draw_once)
    engine = new_engine(runner=runner, speculation="ngram")
    try:
        reply = new_sequence(prompt, replace(PATIENT, token_s=5), max_tokens=12)
        engine.submit(reply.sequence)
        assert isinstance(reply.events()[-1], End)
        assert reply.sequence.output_ids == answer
        assert engine._scheduler.num_guessed_right == 0
    finally:
        assert engine.stop(10)


def _running(scheduler: Scheduler, lengths: list[int], **params: Any) -> list[Row]:
    """Rows of the first step that only decodes; every sequence repeats itself."""
    for length in lengths:
        scheduler.add(new_sequence([1, 2] * (length // 2), **params).sequence)
    for row in scheduler.schedule():
        scheduler.computed(row)
        row.sequence.append(1, 0.0)
    return scheduler.schedule()


def _scheduler(num_blocks: int = 100) -> Scheduler:
    scheduler = Scheduler(max_running=8, step_tokens=512)
    scheduler.pool = BlockPool(num_blocks)
    scheduler.max_guesses = 7
    return scheduler


def test_guesses_are_computed_behind_the_newest_token() -> None:
    (row,) = _running(_scheduler(), [10], max_tokens=100)
    assert (row.start, row.token_ids, row.num_guesses) == (10, [1, 2, 1, 2, 1, 2, 1, 2], 7)
    assert row.is_decode
    assert len(row.blocks) == 2


def test_what_was_guessed_right_is_not_computed_again() -> None:
    scheduler = _scheduler()
    (row,) = _running(scheduler, [10], max_tokens=100)
    scheduler.computed(row)
    for guess in row.guesses[:3]:
        row.sequence.append(guess, 0.0)
        scheduler.guessed_right(row.sequence)
    row.sequence.append(9, 0.0)
    (row,) = scheduler.schedule()
    assert (row.start, row.token_ids) == (14, [9])


def test_nothing_is_guessed_behind_the_last_token_that_may_be_drawn() -> None:
    (row,) = _running(_scheduler(), [10], max_tokens=4)
    assert row.num_guesses == 2
    (row,) = _running(_scheduler(), [10], max_tokens=2)
    assert row.num_guesses == 0


def test_no_guess_takes_a_block_that_another_needs() -> None:
    rows = _running(_scheduler(num_blocks=1), [BLOCK_TOKENS - 2], max_tokens=1000)
    assert [row.num_guesses for row in rows] == [0]
    rows = _running(_scheduler(num_blocks=2), [BLOCK_TOKENS - 2], max_tokens=1000)
    assert [row.num_guesses for row in rows] == [7]


def test_the_more_decode_the_fewer_are_guessed() -> None:
    assert [row.num_guesses for row in _running(_scheduler(), [10] * 4, max_tokens=100)] == [CHEAP_ROWS // 4 - 1] * 4
    scheduler = Scheduler(max_running=CHEAP_ROWS, step_tokens=512)
    scheduler.pool, scheduler.max_guesses = BlockPool(100), 7
    assert {row.num_guesses for row in _running(scheduler, [10] * CHEAP_ROWS, max_tokens=100)} == {0}
