"""What the reader of a stream is told on the way: text as it becomes decidable, and narration. No torch.

The last words are in endings.py. Generation thread only.
"""

from collections.abc import Callable, Iterable

from worker.engine.logprobs import Logprobs
from worker.engine.scheduler import Row
from worker.engine.sequence import Sequence
from worker.events import Likelihood, StopReason, Token, TokenLogprob

# JSON has no infinity. OpenAI's API says this of a token that cannot be.
LEAST_LOGPROB = -9999.0


def deliver_token(
    sequence: Sequence, token_id: int, now: float, logprob: TokenLogprob | None = None
) -> StopReason | None:
    """Give a sequence its next token, and its reader what has become decidable.

    Args:
        logprob: What is told of the token, if the request asks.

    Returns:
        Why that was the last one, or None.
    """
    sequence.append(token_id, now)
    num_tokens, ending = len(sequence.output_ids), sequence.endings.get(token_id)
    is_complete = sequence.constraint is not None and sequence.constraint.is_complete
    is_last = ending is not None or is_complete or num_tokens >= sequence.params.max_tokens
    text = "" if ending is not None else sequence.detokenizer.push(token_id)
    if is_last:
        text += sequence.detokenizer.flush()
    held = sequence.held_logprobs
    if held is not None:
        if logprob is not None and ending is None:
            held.hold(logprob)
        held.decided(text)
    if num_tokens > sequence.params.min_tokens:  # a stop string before it is only text
        text = sequence.stop_strings.push(text)
    has_stopped = sequence.stop_strings.matched is not None
    if is_last and not has_stopped:
        text += sequence.stop_strings.flush()
    _release(sequence, text)
    if has_stopped:
        return StopReason.STOP_SEQUENCE
    if is_last:
        return ending or (StopReason.EOS if is_complete else StopReason.MAX_TOKENS)
    return None


def deliver_rest(sequence: Sequence) -> None:
    """Give the reader what is held back of an answer that turns out to be over."""
    text = sequence.detokenizer.flush()
    held = sequence.held_logprobs
    if held is not None:
        held.decided(text)
    _release(sequence, text)


def _release(sequence: Sequence, text: str) -> None:
    """Send what nothing can change any more, with what is told of the tokens that begin in it."""
    if text:
        held, num_tokens = sequence.held_logprobs, len(sequence.output_ids)
        logprobs = held.release(text) if held is not None else ()
        sequence.sender.send(Token(text, sequence.num_released, num_tokens - sequence.num_released, logprobs))
        sequence.num_released = num_tokens


def spelled(logprobs: Logprobs, token_id: int, spell: Callable[[int], tuple[str, bytes]]) -> TokenLogprob:
    """What the sampler says of a token, with the texts of the tokens that it names."""
    top = tuple(_likelihood(i, logprob, spell) for i, logprob in logprobs.top)
    return TokenLogprob(_likelihood(token_id, logprobs.drawn, spell), top)


def _likelihood(token_id: int, logprob: float, spell: Callable[[int], tuple[str, bytes]]) -> Likelihood:
    token, data = spell(token_id)
    return Likelihood(token, data, max(logprob, LEAST_LOGPROB))


def narrate_places(waiting: Iterable[Sequence]) -> None:
    """Tell those who wait where they are in the queue, whenever it has changed."""
    for place, sequence in enumerate(waiting, 1):
        if sequence.narrator is not None and sequence.narrated_place != place:
            sequence.narrated_place = place
            sequence.narrator.say("scheduler", "queued", "request", f"queued at position {place}")


def narrate_starts(rows: list[Row]) -> None:
    """Tell those whose prompt or answer begins in this step."""
    for row in rows:
        narrator = row.sequence.narrator
        if narrator is None:
            continue
        if not row.is_decode and row.start == row.sequence.num_cached and not row.sequence.output_ids:
            num_tokens = len(row.sequence.prompt_ids) - row.start
            narrator.say("engine", "prefilling", "prompt", f"prefilling {num_tokens} tokens")
        elif row.is_decode and len(row.sequence.output_ids) == 1:
            narrator.say("engine", "decoding", "answer", "answering")
