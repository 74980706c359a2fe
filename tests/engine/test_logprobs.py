"""Log-probabilities: what the sampler tells, and that each comes with its own text."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_sampler import FakeRow, params
from worker.engine.logprobs import HeldLogprobs
from worker.engine.sampler import sample
from worker.events import Likelihood, Token, TokenLogprob, merge_waiting


def told(name: str) -> TokenLogprob:
    return TokenLogprob(Likelihood(name, name.encode(), -1.0))


def test_each_is_the_models_own_whatever_else_is_asked() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    rows = [
        FakeRow(params(logprobs=3, temperature=0.0, logit_bias=((7, 100.0),))),
        FakeRow(params(temperature=0.5)),
        FakeRow(params(logprobs=0, temperature=2.0, top_k=3)),
    ]
    sampled = sample(logits.clone(), rows)
    assert set(sampled.logprobs) == {0, 2}
    expected = logits.log_softmax(dim=-1)
    assert sampled.token_ids[0] == 7
    for i in (0, 2):
        assert sampled.logprobs[i].drawn == expected[i, sampled.token_ids[i]].item()
    values, ids = expected[0].topk(3)
    assert sampled.logprobs[0].top == list(zip(ids.tolist(), values.tolist(), strict=True))
    assert sampled.logprobs[2].top == []


def test_equal_ones_are_told_in_the_order_of_their_ids() -> None:
    logits = torch.zeros(1, 300)
    sampled = sample(logits, [FakeRow(params(logprobs=4, temperature=0.0))])
    assert [token_id for token_id, _ in sampled.logprobs[0].top] == [0, 1, 2, 3]


def test_they_are_the_same_alone_and_in_company() -> None:
    logits = torch.randn(5, 49_152, generator=torch.Generator().manual_seed(2))
    together = sample(logits.clone(), [FakeRow(params(logprobs=2, temperature=0.0)) for _ in range(5)])
    for i in range(5):
        alone = sample(logits[i : i + 1].clone(), [FakeRow(params(logprobs=2, temperature=0.0))])
        assert alone.logprobs[0] == together.logprobs[i]


def test_one_waits_for_its_text() -> None:
    held = HeldLogprobs()
    held.hold(told("a"))
    held.decided("a")
    held.hold(told("begin"))
    held.decided("")
    assert held.release("a") == (told("a"),)
    held.hold(told("end"))
    held.decided("x")
    assert held.release("x") == (told("begin"), told("end"))
    held.hold(told("stop"))
    held.decided("stop")
    assert held.release("") == ()


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 5), max_size=20))
@settings(derandomize=True, database=None)
def test_however_it_is_released_each_is_told_once_and_in_order(lengths: list[int], cuts: list[int]) -> None:
    held, total = HeldLogprobs(), 0
    for i, length in enumerate(lengths):
        held.hold(told(str(i)))
        held.decided("x" * length)
        total += length
    out: list[TokenLogprob] = []
    for cut in [*cuts, total]:
        piece = min(cut, total)
        total -= piece
        out += held.release("x" * piece)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    assert out == [told(str(i)) for i, start in enumerate(starts) if start < sum(lengths)]


def test_those_of_merged_tokens_are_kept() -> None:
    events = merge_waiting([Token("a", 0, 1, (told("a"),)), Token("b", 1, 1, (told("b"),))])
    assert events == [Token("ab", 0, 2, (told("a"), told("b")))]
