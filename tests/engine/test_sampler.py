"""Each row is drawn from its own distribution, with its own random numbers, whoever its neighbours are."""

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.support.looks import Looks
from worker.engine import sampler
from worker.engine.constraints import Constraint
from worker.engine.sampler import (
    _DRAWS,
    NUM_LIKELIEST,
    SampledTokens,
    _draw_filtered,
    _draw_sorted,
    _invert,
    _scale,
    sample,
)
from worker.errors import InferenceFailed
from worker.request import SamplingParams

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=80)


@dataclass
class FakeRow:
    """What the sampler reads of a sequence."""

    params: SamplingParams
    prompt_ids: list[int] = field(default_factory=lambda: [1])
    output_counts: Counter[int] = field(default_factory=Counter)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    forbidden_ids: tuple[int, ...] = ()
    constraint: Constraint | None = None


class Point(random.Random):
    """Draws one given number."""

    def __new__(cls, at: float) -> "Point":
        return super().__new__(cls)

    def __init__(self, at: float) -> None:
        self._at = at
        super().__init__(0)

    def random(self) -> float:
        return self._at


def params(**some: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 1, **some})


def draw(logits: Tensor, *rows: FakeRow) -> SampledTokens:
    return sample(logits.clone(), rows)


def token(logits: list[float], row: FakeRow) -> int:
    sampled = draw(torch.tensor([logits]), row)
    assert not sampled.failures
    return sampled.token_ids[0]


def shares(logits: Tensor, chosen: SamplingParams, num_points: int = 4000, **state: Any) -> Tensor:
    """The share of each token over evenly spaced random numbers: its probability to within 1 / num_points."""
    points = [(n + 0.5) / num_points for n in range(num_points)]
    rows = [FakeRow(chosen, rng=Point(at), **state) for at in points]
    sampled = draw(logits.expand(num_points, -1), *rows)
    assert not sampled.failures
    return torch.bincount(torch.tensor(sampled.token_ids), minlength=len(logits)) / num_points


# ---- greedy


@repeatable
@given(st.lists(st.lists(st.sampled_from([-2.0, 0.0, 1.0, 1.5]), min_size=9, max_size=9), min_size=1, max_size=5))
def test_greedy_is_the_most_likely_token_and_of_equals_the_first(rows: list[list[float]]) -> None:
    sampled = draw(torch.tensor(rows), *(FakeRow(params(temperature=0.0)) for _ in rows))
    assert sampled.token_ids == [row.index(max(row)) for row in rows]


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-30, 1e-6, 1e-5, 1e-3])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2}, {"top_p": 0.5}])
def test_a_temperature_near_zero_is_greedy(temperature: float, filters: dict[str, Any]) -> None:
    for seed in range(5):
        row = FakeRow(params(temperature=temperature, **filters), rng=random.Random(seed))
        assert token([1e4, 3e4, -1e30, 2.99e4], row) == 1


def test_greedy_takes_no_random_number() -> None:
    row = FakeRow(params(temperature=0.0), rng=random.Random(5))
    token([0.0, 1.0], row)
    assert row.rng.random() == random.Random(5).random()


# ---- the distribution


def reference(logits: Tensor, chosen: SamplingParams, prompt_ids: list[int], outputs: Counter[int]) -> Tensor:
    """Probabilities by transformers' own processors, in their order, and by OpenAI's formula for the two penalties."""
    scores = logits[None].clone()
    ids = torch.tensor([[*prompt_ids, *outputs.elements()]])
    if chosen.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(chosen.repetition_penalty)(ids, scores)
    for token_id, count in outputs.items():
        scores[0, token_id] -= chosen.presence_penalty + count * chosen.frequency_penalty
    warpers: list[Any] = [TemperatureLogitsWarper(chosen.temperature)] if chosen.temperature != 1 else []
    warpers += [TopKLogitsWarper(chosen.top_k)] if chosen.top_k else []
    warpers += [TopPLogitsWarper(chosen.top_p)] if chosen.top_p < 1 else []
    warpers += [MinPLogitsWarper(chosen.min_p)] if chosen.min_p else []
    for warper in warpers:
        scores = warper(ids, scores)
    return scores[0].softmax(-1)


# distinct: among equal logits at a border the two may keep different ones
distinct_logits = st.permutations([-6.1, -3.7, -2.2, -1.3, -0.4, 0.3, 0.9, 1.6, 2.5, 3.1]).map(torch.tensor)
sampling_params = st.builds(
    params,
    temperature=st.sampled_from([0.31, 1.0, 1.73]),
    top_k=st.sampled_from([0, 1, 3, 7, 10, 1000]),
    top_p=st.sampled_from([1e-9, 0.137, 0.511, 0.871, 0.9931, 1.0]),
    min_p=st.sampled_from([0.0, 0.0517, 0.337, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.31, 0.73]),
    presence_penalty=st.sampled_from([0.0, 0.57, -1.13]),
    frequency_penalty=st.sampled_from([0.0, 0.29, -0.41]),
)
seen_ids = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@pytest.mark.slow
@repeatable
@given(distinct_logits, sampling_params, seen_ids, st.lists(st.integers(0, 9), max_size=6))
def test_the_distribution_is_that_of_transformers(
    logits: Tensor, chosen: SamplingParams, prompt_ids: list[int], output_ids: list[int]
) -> None:
    outputs = Counter(output_ids)
    expected = reference(logits, chosen, prompt_ids, outputs)
    got = shares(logits, chosen, 1000, prompt_ids=prompt_ids, output_counts=outputs)
    assert (got - expected).abs().max() < 2.5e-3
    assert bool(((got == 0) | (expected > 0)).all()), "drew a token that was filtered out"


LARGE = 3000


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize(
    "chosen",
    [
        {"top_k": 1},
        {"top_k": 50, "top_p": 0.9},
        {"top_k": NUM_LIKELIEST},
        {"top_k": NUM_LIKELIEST + 1},
        {"top_k": NUM_LIKELIEST + 44, "top_p": 0.1},
        {"top_k": 10 * LARGE},
        {"top_k": LARGE, "top_p": 0.1},
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"top_p": 0.999, "min_p": 0.02},
        {"min_p": 0.2},
        {"min_p": 0.9999},
    ],
)
def test_to_look_at_the_likeliest_first_changes_no_draw(chosen: dict[str, Any], spread: float) -> None:
    """Many tokens are equal in 16 bits, the last of the likeliest too; a flat distribution has more that count."""
    torch.manual_seed(0)
    logits = (torch.randn(200, LARGE) * spread).bfloat16().float()
    all_params = [params(**chosen)] * len(logits)
    points = torch.rand(len(logits), dtype=torch.float64).tolist()
    scaled = _scale(logits, all_params)
    probs = scaled.softmax(dim=-1)
    rows = [slice(i, i + 1) for i in range(len(points))]
    expected = torch.cat([_draw_sorted(scaled[i], probs[i], all_params[i], points[i])[0] for i in rows])
    assert torch.equal(_draw_filtered(logits, all_params, points), expected)


@pytest.mark.parametrize("chosen", [{}, {"top_p": 0.5}, {"top_k": 40, "top_p": 0.9}, {"min_p": 0.01}])
def test_a_row_is_weighed_alike_alone_and_in_company(monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any]) -> None:
    """To the bit: where a point lies at a border, the last one decides."""
    seen: list[Tensor] = []

    def look(weights: Tensor, points: Tensor) -> Tensor:
        seen.extend(weights)
        return _invert(weights, points)

    monkeypatch.setattr(sampler, "_invert", look)
    torch.manual_seed(0)
    logits = torch.randn(16, 50257) * 3
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for part in [logits, *logits[:, None]]:
            draw(part, *[FakeRow(params(**chosen)) for _ in part])
    finally:
        torch.set_num_threads(num_threads)
    half = len(seen) // 2  # more than there are rows where the likeliest were not all
    assert half >= len(logits)
    assert all(map(torch.equal, seen[:half], seen[half:]))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_is_added_before_anything_is_drawn(temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    for bias, expected in ((((3, -100.0),), {0, 1, 2}), (((1, 100.0),), {1}), (((3, -100.0), (1, 100.0)), {1})):
        rows = [
            FakeRow(params(temperature=temperature, logit_bias=bias), rng=random.Random(seed)) for seed in range(200)
        ]
        drawn = set(sample(logits.repeat(200, 1), rows).token_ids)
        assert drawn == ({max(expected)} if temperature == 0 else expected)


@pytest.mark.parametrize("chosen", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"logit_bias": ((3, 100.0),)}])
def test_what_is_forbidden_is_not_drawn(chosen: dict[str, Any]) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 30.0]]).repeat(200, 1)
    rows = [FakeRow(params(**chosen), rng=random.Random(seed), forbidden_ids=(3,)) for seed in range(200)]
    assert 3 not in sample(logits, rows).token_ids


@pytest.mark.parametrize("num_tokens", [1, 255, 256, 257, LARGE])
def test_a_point_is_found_in_the_part_that_holds_it(num_tokens: int) -> None:
    torch.manual_seed(0)
    weights = torch.rand(4, num_tokens) * (torch.rand(4, num_tokens) < 0.3)
    weights[:, num_tokens // 2] = 1.0
    cumulative = weights.double().cumsum(-1)
    for point in [0.0, *torch.rand(300, dtype=torch.float64).tolist(), 1 - 2**-53]:
        chosen = _invert(weights, torch.full((4, 1), point, dtype=torch.float64))
        assert (weights.gather(1, chosen[:, None]) > 0).all(), "a token without weight"
        at = point * cumulative[:, -1]
        end = cumulative.gather(1, chosen[:, None])[:, 0]
        begin = end - weights.gather(1, chosen[:, None])[:, 0].double()
        assert (begin - 1e-9 <= at).all()
        assert (at <= end + 1e-9).all()


def test_top_k_keeps_exactly_k_among_equals() -> None:
    got = shares(torch.zeros(6), params(top_k=2))
    assert got.tolist() == [0.5, 0.5, 0, 0, 0, 0]


def test_top_p_stops_behind_the_token_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert shares(logits, params(top_p=0.6)).nonzero().flatten().tolist() == [0, 1]
    assert shares(logits, params(top_p=0.45)).nonzero().flatten().tolist() == [0]


def test_min_p_is_a_share_of_the_largest() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert shares(logits, params(min_p=0.4)).nonzero().flatten().tolist() == [0, 1]
    assert shares(logits, params(min_p=1.0)).nonzero().flatten().tolist() == [0]


def test_penalties_look_at_prompt_and_output_as_documented() -> None:
    logits = [2.0, 2.0, -2.0, 1.9]
    prompt_only: dict[str, Any] = {"prompt_ids": [0, 2], "output_counts": Counter[int]()}
    greedy = params(temperature=0.0)
    assert token(logits, FakeRow(greedy, **prompt_only)) == 0
    assert token(logits, FakeRow(params(temperature=0.0, repetition_penalty=1.5), **prompt_only)) == 1
    # presence and frequency do not see the prompt
    assert token(logits, FakeRow(params(temperature=0.0, presence_penalty=2.0), **prompt_only)) == 0
    assert token(logits, FakeRow(params(temperature=0.0, presence_penalty=0.05), output_counts=Counter([0, 1]))) == 0
    assert token(logits, FakeRow(params(temperature=0.0, presence_penalty=0.2), output_counts=Counter([0, 1]))) == 3
    assert (
        token(logits, FakeRow(params(temperature=0.0, frequency_penalty=0.01), output_counts=Counter([0, 0, 1]))) == 1
    )


def test_a_token_without_any_weight_is_never_drawn() -> None:
    inf = math.inf
    for at in (0.0, 0.5, math.nextafter(1.0, 0.0)):
        for filters in ({}, {"top_k": 4}):
            row = FakeRow(params(**filters), rng=Point(at))
            assert token([-inf, 0.0, -inf, 0.0, -inf], row) in (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("filters", [{}, {"top_k": 12}, {"top_p": 0.95}])
def test_seeded_draws_follow_the_probabilities(filters: dict[str, Any]) -> None:
    """Chi-square over one sequence's own generator, 4000 draws."""
    logits = torch.randn(16, generator=torch.Generator().manual_seed(3)) * 1.5
    chosen = params(**filters)
    expected = reference(logits, chosen, [0], Counter()) * 4000
    rng = random.Random(11)
    rows = [FakeRow(chosen, rng=rng) for _ in range(4000)]
    counts = torch.bincount(torch.tensor(draw(logits.expand(4000, -1), *rows).token_ids), minlength=16)
    kept = expected > 0
    chi_square = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    assert not counts[~kept].any()
    assert chi_square < 37.7  # p = 0.001 at 15 degrees of freedom


@pytest.mark.parametrize(
    "chosen",
    [{}, {"top_k": 2}, {"temperature": 0.0}, {"repetition_penalty": 1.2}, {"presence_penalty": 0.5, "top_p": 0.9}],
)
def test_logits_made_in_inference_mode_can_be_sampled(chosen: dict[str, Any]) -> None:
    """As a model in float32 gives them: outside of that mode they may not be written to."""
    with torch.inference_mode():
        logits = torch.tensor([[0.0, 9.0, 1.0]])
    sampled = sample(logits, [FakeRow(params(**chosen), rng=Point(0.5), output_counts=Counter([2]))])
    assert (sampled.token_ids, sampled.failures) == ([1], {})


# ---- seeds


def test_seeded_draws_can_be_repeated_and_seeds_differ() -> None:
    logits = torch.zeros(1, 1000)

    def several(seed: int) -> list[int]:
        row = FakeRow(params(), rng=random.Random(seed))
        return [draw(logits, row).token_ids[0] for _ in range(6)]

    assert several(7) == several(7)
    assert len({tuple(several(seed)) for seed in range(20)}) == 20


def test_the_global_random_numbers_are_neither_used_nor_moved() -> None:
    logits = torch.zeros(1, 1000)
    expected = draw(logits, FakeRow(params())).token_ids
    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    assert draw(logits, FakeRow(params())).token_ids == expected
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"repetition_penalty": 1.2}])
def test_each_drawn_row_takes_one_random_number(filters: dict[str, Any]) -> None:
    row, other = FakeRow(params(**filters), rng=random.Random(4)), random.Random(4)
    for _ in range(3):
        draw(torch.zeros(1, 50), row)
        other.random()
    assert row.rng.random() == other.random()


# ---- neighbours


VOCAB_SIZE = 300
any_params = st.builds(
    params,
    temperature=st.sampled_from([0.0, 0.4, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 20]),
    top_p=st.sampled_from([1.0, 1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.2]),
)


@dataclass(frozen=True)
class Spec:
    """A row that can be made again, with fresh random numbers."""

    chosen: SamplingParams
    seed: int
    kind: str

    def row(self) -> FakeRow:
        rng = random.Random(self.seed)
        prompt_ids = [rng.randrange(VOCAB_SIZE) for _ in range(5)]
        outputs = Counter(rng.randrange(VOCAB_SIZE) for _ in range(8))
        return FakeRow(self.chosen, prompt_ids, outputs, rng)

    def logits(self) -> Tensor:
        logits = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(self.seed)) * 2
        if self.kind == "coarse":  # many equal ones
            return logits.round()
        if self.kind == "nan":
            logits[self.seed % VOCAB_SIZE] = math.nan
        elif self.kind == "inf":
            logits[self.seed % VOCAB_SIZE] = math.inf
        elif self.kind == "nothing":
            logits[:] = -math.inf
        elif self.kind == "sparse":
            logits[: VOCAB_SIZE - 3] = -math.inf
        return logits


specs = st.builds(
    Spec,
    any_params,
    st.integers(0, 10**6),
    st.sampled_from(["plain", "plain", "coarse", "sparse", "nan", "inf", "nothing"]),
)


@pytest.mark.slow
@repeatable
@given(st.lists(specs, min_size=1, max_size=9), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_row_is_the_same_alone_and_in_any_company(chosen: list[Spec], dtype: torch.dtype) -> None:
    together = draw(torch.stack([spec.logits() for spec in chosen]).to(dtype), *(spec.row() for spec in chosen))
    for i, spec in enumerate(chosen):
        alone = draw(spec.logits()[None].to(dtype), spec.row())
        assert (0 in alone.failures) == (i in together.failures) == (spec.kind in ("nan", "inf", "nothing"))
        if i not in together.failures:
            assert together.token_ids[i] == alone.token_ids[0]
            assert 0 <= together.token_ids[i] < VOCAB_SIZE


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_number_fails_its_row_alone(bad: float) -> None:
    logits = torch.zeros(3, 8)
    logits[:, 2] = 5.0
    logits[1, 7] = bad
    sampled = draw(logits, *(FakeRow(params(temperature=0.0)) for _ in range(3)))
    assert list(sampled.failures) == [1]
    assert isinstance(sampled.failures[1], InferenceFailed)
    assert [sampled.token_ids[0], sampled.token_ids[2]] == [2, 2]


@pytest.mark.parametrize("top_k", [8, 9, 2**31, 2**63 - 1])
def test_a_top_k_above_the_vocabulary_is_off(top_k: int) -> None:
    assert shares(torch.zeros(8), params(top_k=top_k)).tolist() == [0.125] * 8


# ---- faults


@pytest.mark.parametrize(
    ("error", "code"), [(torch.OutOfMemoryError("no memory"), "VRAM_OOM"), (ValueError("bug"), "INFERENCE_FAILED")]
)
def test_a_draw_that_fails_fails_its_own_row_and_the_others_keep_their_random_numbers(
    error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.linspace(0, 1, 50).repeat(4, 1)

    def rows() -> list[FakeRow]:
        return [FakeRow(params(temperature=1.0 + i), rng=random.Random(i)) for i in range(4)]

    expected, after = draw(logits, *rows()).token_ids, [random.Random(i) for i in range(4)]
    plain = _DRAWS["plain"]

    def fails_for_the_third(logits: Tensor, chosen: list[SamplingParams], points: list[float]) -> Tensor:
        if any(one.temperature == 3.0 for one in chosen):
            raise error
        return plain(logits, chosen, points)

    monkeypatch.setitem(_DRAWS, "plain", fails_for_the_third)
    drawn = rows()
    sampled = draw(logits, *drawn)
    assert {i: failure.code for i, failure in sampled.failures.items()} == {2: code}
    assert [sampled.token_ids[i] for i in (0, 1, 3)] == [expected[i] for i in (0, 1, 3)]
    for row, twin in zip(drawn, after, strict=True):
        twin.random()
        assert row.rng.random() == twin.random(), "exactly one number was taken"


def test_nothing_is_drawn_from_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU an index drawn from NaNs may lie outside, which is the end of the device and of everyone on it."""
    drawn_from: list[Tensor] = []
    plain = _DRAWS["plain"]

    def look(logits: Tensor, chosen: list[SamplingParams], points: list[float]) -> Tensor:
        drawn_from.append(logits)
        return plain(logits, chosen, points)

    monkeypatch.setitem(_DRAWS, "plain", look)
    draw(torch.tensor([[0.0, math.nan], [0.0, 1.0], [math.inf, 0.0]]), *[FakeRow(params()) for _ in range(3)])
    assert drawn_from
    assert all(logits.isfinite().all() for logits in drawn_from)


@pytest.mark.parametrize("at", ["draw", "penalty"])
def test_a_lost_device_is_no_fault_of_a_row(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise torch.AcceleratorError("device-side assert triggered")

    if at == "draw":
        monkeypatch.setitem(_DRAWS, "plain", fail)
    else:
        monkeypatch.setattr("worker.engine.sampler._change", fail)
    with pytest.raises(torch.AcceleratorError):
        draw(torch.zeros(2, 9), FakeRow(params(presence_penalty=1.0)), FakeRow(params()))


def test_a_penalty_that_fails_fails_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Counter[int]):
        def __bool__(self) -> bool:
            raise ValueError("bug")

    rows = [FakeRow(params(temperature=0.0, presence_penalty=1.0), output_counts=Broken()), FakeRow(params())]
    assert list(draw(torch.zeros(2, 9), *rows).failures) == [0]


# ---- on a GPU


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's tensors take the way of a GPU's."""
    monkeypatch.setattr(sampler, "_is_asynchronous", lambda logits: True)


ON_A_GPU: list[tuple[SamplingParams, ...]] = [
    (params(temperature=0.0),) * 3,
    (params(), params(temperature=0.5), params()),
    (params(top_p=0.5), params(top_k=3), params(min_p=0.1, presence_penalty=1.0)),
    (params(temperature=0.0, repetition_penalty=2.0), params(), params(top_p=0.9)),
]


@pytest.mark.parametrize("chosen", ON_A_GPU)
def test_a_gpu_is_waited_for_once(chosen: tuple[SamplingParams, ...], as_on_a_gpu: None) -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    logits[1, 5] = math.nan
    with Looks() as looks:
        sampled = sample(logits, [FakeRow(one, output_counts=Counter([3])) for one in chosen])
    assert looks.seen == ["tolist"]
    assert list(sampled.failures) == [1]


@pytest.mark.parametrize("chosen", ON_A_GPU)
def test_a_gpu_draws_what_a_cpu_draws(chosen: tuple[SamplingParams, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    expected = draw(logits, *(FakeRow(one) for one in chosen)).token_ids
    monkeypatch.setattr(sampler, "_is_asynchronous", lambda logits: True)
    assert draw(logits, *(FakeRow(one) for one in chosen)).token_ids == expected


def test_nothing_is_drawn_from_what_is_no_number_on_a_gpu(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    test_nothing_is_drawn_from_what_is_no_number(monkeypatch)
