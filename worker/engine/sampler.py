"""Draws the next token of each row. Generation thread only.

Law: a row's draw depends on its own logits, parameters and random numbers, never on its neighbours. So rows are
drawn in groups that need the same work, and which group a row is in depends on its parameters alone. Each drawn row
takes exactly one random number from its own generator.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.constraints import Constraint
from worker.engine.logprobs import Logprobs
from worker.engine.memory import is_out_of_memory
from worker.engine.upload import upload, upload_bytes
from worker.errors import GenerationFailed, InferenceFailed, OutOfMemory
from worker.request import SamplingParams

# How many of the likeliest tokens are looked at first.
NUM_LIKELIEST = 256
# How many tokens of a vocabulary are added up together.
PART_TOKENS = 256


class SamplingRow(Protocol):
    """What the sampler reads of a sequence."""

    prompt_ids: list[int]
    params: SamplingParams
    output_counts: Counter[int]
    rng: random.Random
    constraint: Constraint | None

    @property
    def forbidden_ids(self) -> Iterable[int]:
        """Tokens that may not be drawn now."""
        ...


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One entry per row: its token id, or why it has none. Log-probabilities of the rows that ask for them.

    Attributes:
        complete: Rows to whose answers nothing may be added.
    """

    token_ids: list[int]
    failures: dict[int, GenerationFailed]
    logprobs: dict[int, Logprobs] = field(default_factory=dict)
    complete: frozenset[int] = frozenset()


@torch.inference_mode()  # the model made the logits in it, and only in it may they be written to
def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> SampledTokens:
    """Draw one next token per row.

    Args:
        logits: (num_rows, vocab_size), any float type, on the model's device.
        rows: Parameters and state, one per row, validated at submit.

    Returns:
        Token ids, and for each row that could not be drawn the reason instead.

    Thread: generation thread only.
    """
    logits = logits.float()
    # A NaN or +inf anywhere makes the row's maximum not finite, and a row of nothing but -inf has no maximum.
    is_usable = logits.amax(dim=-1).isfinite()
    if _is_asynchronous(logits) or not is_usable.all():  # on a GPU, to ask would be to wait for the model
        logits = torch.where(is_usable[:, None], logits, 0.0)
    failures: dict[int, GenerationFailed] = {}
    # Each row alone: added up together with others, its last bits would be theirs too.
    shares = {i: logits[i].log_softmax(dim=-1) for i, row in enumerate(rows) if row.params.logprobs is not None}
    for i, row in enumerate(rows):
        if _is_changed(row):
            try:
                # An extreme penalty may overflow, and inf - inf is no number.
                logits[i] = _change(logits[i], row).clamp(max=torch.finfo(torch.float32).max)
            except Exception as error:  # this row's own fault
                failures[i] = _failure(error)
    masks, complete = _masks(rows, failures)
    is_open = torch.ones_like(is_usable)
    if masks:
        shut_in = upload(list(masks), torch.int64, logits.device)
        allowed = _bits(upload_bytes(list(masks.values()), logits.device), logits.shape[-1])
        logits[shut_in] = torch.where(allowed, logits[shut_in], float("-inf"))
        is_open = logits.amax(dim=-1) > float("-inf")
        logits = torch.where(is_open[:, None], logits, 0.0)

    drawn: list[tuple[list[int], Tensor]] = []
    groups: dict[str, list[int]] = {"greedy": [], "plain": [], "filtered": []}
    for i, row in enumerate(rows):
        groups[_group(row.params)].append(i)
    # Once, also for a row that is drawn again, and after all that could fail for the whole batch.
    points = dict.fromkeys(groups["greedy"], 0.0)
    points |= {i: rows[i].rng.random() for name in ("plain", "filtered") for i in groups[name]}
    for name, members in groups.items():
        pending = [members] if members else []
        for part in pending:  # grows while it is walked
            params = [rows[i].params for i in part]
            try:
                chosen = logits if len(part) == len(rows) else logits[upload(part, torch.int64, logits.device)]
                drawn.append((part, _DRAWS[name](chosen, params, [points[i] for i in part])))
            except Exception as error:
                if len(part) > 1:  # whose fault is it? Draw each alone
                    pending += [[i] for i in part]
                else:
                    failures[part[0]] = _failure(error)
    # The one place where a GPU is waited for.
    numbers = torch.cat([is_usable.long(), is_open.long(), *(tokens for _, tokens in drawn)]).tolist()
    for i in range(len(rows)):
        if not numbers[i]:
            failures.setdefault(i, InferenceFailed("the model gave no usable logits for the next token"))
        elif not numbers[len(rows) + i]:
            failures.setdefault(i, InferenceFailed("the model excludes every token that the grammar allows next"))
    token_ids = [0] * len(rows)
    order = [i for part, _ in drawn for i in part]
    for i, token_id in zip(order, numbers[2 * len(rows) :], strict=True):
        token_ids[i] = token_id
    logprobs = {i: _logprobs(share, token_ids[i], rows[i].params.logprobs or 0) for i, share in shares.items()}
    return SampledTokens(token_ids, failures, logprobs, complete)


def _masks(
    rows: Sequence[SamplingRow], failures: dict[int, GenerationFailed]
) -> tuple[dict[int, bytes], frozenset[int]]:
    """What may be drawn, for each row that has a grammar, and the rows for which that is nothing: they are complete.

    The masks have been found while the model computed, or nearly.
    """
    masks, complete = {}, set()
    for i, row in enumerate(rows):
        if row.constraint is None:
            continue
        try:
            mask = row.constraint.wait()
        except InferenceFailed as error:
            failures[i] = error
        else:
            if row.constraint.is_complete:
                complete.add(i)
            else:
                masks[i] = mask
    return masks, frozenset(complete)


def _bits(packed: Tensor, num_bits: int) -> Tensor:
    """Shapes: (n, bytes) uint8 -> (n, num_bits) bool, the lowest bit of a byte first."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> places) & 1).flatten(1)[:, :num_bits].bool()


def _logprobs(shares: Tensor, token_id: int, num_top: int) -> Logprobs:
    """What is told of a drawn token. Of tokens that are as likely as each other the lower id comes first.

    Args:
        shares: (vocab) log-probabilities.
    """
    top: list[tuple[int, float]] = []
    if num_top:
        least = shares.topk(min(num_top, len(shares)), sorted=False).values.amin()
        ids = (shares >= least).nonzero()[:, 0]
        values, order = shares[ids].sort(descending=True, stable=True)
        top = list(zip(ids[order].tolist(), values.tolist(), strict=True))[:num_top]
    return Logprobs(shares[token_id].item(), top)


def _is_asynchronous(logits: Tensor) -> bool:
    """Whether to look at a number is to wait for all that was computed before it."""
    return logits.device.type != "cpu"


def _failure(error: Exception) -> GenerationFailed:
    if isinstance(error, torch.AcceleratorError):
        raise error  # the device is lost for this process: that is no fault of a row
    if is_out_of_memory(error):
        return OutOfMemory("the device has no memory left to draw the next token")
    return InferenceFailed(f"the next token could not be drawn ({type(error).__name__})")


def _group(params: SamplingParams) -> str:
    # Below this a division overflows float32, and the distribution has long been a single token.
    if params.temperature < 1e-5:
        return "greedy"
    if params.top_k or params.top_p < 1 or params.min_p > 0:
        return "filtered"
    return "plain"


def _column(values: list[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return upload(values, dtype, like.device)[:, None]


def _is_changed(row: SamplingRow) -> bool:
    params = row.params
    is_penalised = params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
    return is_penalised or bool(params.logit_bias) or bool(row.forbidden_ids)


def _change(logits: Tensor, row: SamplingRow) -> Tensor:
    """Lower the logits of tokens that were seen, add what the request adds, and leave out what may not be drawn.

    The repetition penalty covers prompt and output and divides positive and multiplies negative logits (arXiv:
    1909.05858, as in transformers); the other two cover the output and subtract (OpenAI's API reference).
    """
    params = row.params
    logits = logits.clone()
    if params.repetition_penalty != 1:
        seen = upload(sorted({*row.prompt_ids, *row.output_counts}), torch.int64, logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if row.output_counts and (params.presence_penalty or params.frequency_penalty):
        ids = upload(list(row.output_counts), torch.int64, logits.device)
        counts = upload(list(row.output_counts.values()), logits.dtype, logits.device)
        logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        ids = upload([token_id for token_id, _ in params.logit_bias], torch.int64, logits.device)
        logits[ids] += upload([bias for _, bias in params.logit_bias], logits.dtype, logits.device)
    if row.forbidden_ids:
        logits[upload(list(row.forbidden_ids), torch.int64, logits.device)] = float("-inf")
    return logits


def _draw_greedy(logits: Tensor, params: list[SamplingParams], points: list[float]) -> Tensor:
    """The likeliest token. Shapes: (n, vocab), n, n -> (n,)."""
    return logits.argmax(dim=-1)


def _draw_plain(logits: Tensor, params: list[SamplingParams], points: list[float]) -> Tensor:
    """Draw from the whole distribution. Shapes: (n, vocab), n, n -> (n,)."""
    return _invert(_scale(logits, params).softmax(dim=-1), _column(points, logits, torch.float64))


def _draw_filtered(logits: Tensor, params: list[SamplingParams], points: list[float]) -> Tensor:
    """Draw after top_k, top_p and min_p. Shapes: (n, vocab), n, n -> (n,).

    On a CPU to sort a vocabulary takes longer than to compute a step, and hardly a filter leaves as many tokens as are
    looked at here. So the likeliest are taken out first, and all are sorted only for rows where those may not be all.
    """
    scaled = _scale(logits, params)
    # Not the sum of exp: torch adds up one row in another order than many.
    probs = scaled.softmax(dim=-1)
    if _is_asynchronous(logits) or logits.shape[-1] <= NUM_LIKELIEST:
        return _draw_sorted(scaled, probs, params, points)[0]
    least = scaled.topk(NUM_LIKELIEST, dim=-1, sorted=False).values.amin(dim=-1).tolist()
    vocab_size = logits.shape[-1]
    drawn = []
    for i in range(len(params)):
        row, top_k, is_certain = slice(i, i + 1), params[i].top_k or vocab_size, False
        # Between the two its shares are of more tokens than are looked at, and of fewer than all.
        if top_k <= NUM_LIKELIEST or top_k >= vocab_size:
            # With those that are as likely as the last one; in the order of their ids, as in the whole vocabulary.
            # None that is excluded: where a grammar leaves fewer than are looked at, those would be all of the others.
            likeliest = ((scaled[i] >= least[i]) & (scaled[i] > float("-inf"))).nonzero()[:, 0]
            some = scaled[row, likeliest], probs[row, likeliest]
            chosen, are_all = _draw_sorted(*some, params[row], points[row])
            chosen, is_certain = likeliest[chosen], bool(are_all) or least[i] == float("-inf")
        if not is_certain:
            chosen, _ = _draw_sorted(scaled[row], probs[row], params[row], points[row])
        drawn.append(chosen)
    return torch.cat(drawn)


def _draw_sorted(
    scaled: Tensor, probs: Tensor, params: list[SamplingParams], points: list[float]
) -> tuple[Tensor, Tensor]:
    """Draw after top_k, top_p and min_p, in this order, each on what the one before has left.

    Source: the order of transformers' logits processors; nucleus sampling, arXiv:1904.09751; min-p, arXiv:2407.01082.

    Args:
        scaled: (n, m) logits of the whole vocabulary, or of its likeliest tokens.
        probs: (n, m) their shares of the whole vocabulary.

    Returns:
        (n,) indices, and () bool, whether tokens less likely than those here could change nothing.
    """
    # stable: among equal logits the lower id goes first, whatever the batch
    scaled, ids = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scaled.shape[-1], device=scaled.device)
    everything = torch.iinfo(torch.int64).max
    top_k = _column([min(p.top_k or everything, everything) for p in params], scaled, torch.int64)
    probs = probs.gather(-1, ids).masked_fill(rank >= top_k, 0.0)
    probs = torch.where(top_k <= len(rank), probs / probs.sum(dim=-1, keepdim=True), probs)
    before = probs.cumsum(dim=-1, dtype=torch.float64) - probs
    # The first token always stays: nothing is before it, and its share is the largest.
    keep = before < _column([p.top_p for p in params], scaled, torch.float64)
    keep &= probs >= probs[:, :1] * _column([p.min_p for p in params], scaled)
    chosen = _invert(probs * keep, _column(points, scaled, torch.float64))
    is_certain = ((top_k <= len(rank)) | ~keep[:, -1:]).all()
    return ids.gather(-1, chosen[:, None])[:, 0], is_certain


_DRAWS = {"greedy": _draw_greedy, "plain": _draw_plain, "filtered": _draw_filtered}


def _scale(logits: Tensor, params: list[SamplingParams]) -> Tensor:
    below_best = logits - logits.amax(dim=-1, keepdim=True)  # at most 0: the division cannot overflow
    return below_best / _column([p.temperature for p in params], logits)


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """The index whose share of the cumulative weights holds each point of [0, 1). Weights need not sum to 1.

    In float64: over 150,000 tokens a float32 sum loses the small probabilities. First the part, then the token in it:
    to add up all in float64 took as long as a step.
    """
    num_rows, num_tokens = weights.shape
    parts = F.pad(weights, (0, -num_tokens % PART_TOKENS)).view(num_rows, -1, PART_TOKENS)
    ends = parts.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    at = _below(points * ends[:, -1:], ends[:, -1:])
    part = torch.searchsorted(ends, at, right=True)
    begin = torch.where(part > 0, ends.gather(-1, (part - 1).clamp(min=0)), 0.0)
    inside = parts[torch.arange(num_rows, device=weights.device), part[:, 0]].cumsum(dim=-1, dtype=torch.float64)
    token = torch.searchsorted(inside, _below(at - begin, inside[:, -1:]), right=True)
    return (part * PART_TOKENS + token)[:, 0]


def _below(at: Tensor, total: Tensor) -> Tensor:
    """The same, but strictly below the total: rounding could step past the last token that has any weight."""
    return torch.minimum(at, torch.nextafter(total, torch.zeros_like(total)))
