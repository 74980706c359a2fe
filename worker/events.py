"""What a stream may carry, in the words of the stream contract. Pure data: no I/O, any thread.

A stream is `Started`, any mix of `Narration` and `Token`, one `Metrics`, then exactly one of `End` and
`Failure`. The wire formats in `web/` are translations of these and add nothing.
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import chain


class StopReason(StrEnum):
    """Why a stream ended without failing."""

    EOS = "EOS"
    MAX_TOKENS = "MAX_TOKENS"
    STOP_SEQUENCE = "STOP_SEQUENCE"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, reported on success, cancel and failure alike."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, which another request had computed before

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Started:
    """The first event, sent before the model has produced anything."""

    job_id: str
    model: str
    started_at: str  # RFC 3339, UTC


@dataclass(frozen=True, slots=True)
class Narration:
    """Progress in words. Merged with tokens as it happens, never in front of them."""

    actor: str
    action: str
    target: str
    human: str
    job_id: str


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A token and how likely the model held it to be.

    Attributes:
        token: Its text, decoded alone; replacement characters where that is no text.
        data: The bytes that it stands for.
        logprob: Natural logarithm of its share of the whole vocabulary, before temperature, penalties and filters.
    """

    token: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token, and the likeliest ones in its place, the likeliest first."""

    drawn: Likelihood
    top: tuple[Likelihood, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """Text that has become decidable.

    Attributes:
        text: Never ends inside a character, never holds a prefix of a stop string.
        index: Index of the first token in it, counted from 0.
        count: Number of tokens in it: more than 1 when deltas waited and were merged.
        logprobs: One for each token whose text begins in `text`; empty unless the request asks.
    """

    text: str
    index: int
    count: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Metrics:
    """How the request went, once before the terminal event."""

    tokens_per_sec: float
    vram_bytes: int
    queue_ms: float
    ttft_ms: float | None


@dataclass(frozen=True, slots=True)
class End:
    """Terminal: the generation reached its end."""

    stop_reason: StopReason
    usage: Usage
    decode_time_ms: float
    stop_sequence_matched: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Terminal: the generation was accepted and failed."""

    code: str
    message: str
    usage: Usage
    status: int = 500  # HTTP status for a client that did not ask for a stream


Terminal = End | Failure
Event = Started | Narration | Token | Metrics | Terminal


def merge_waiting(events: list[Event]) -> list[Event]:
    """Join adjacent tokens of a backlog into one, so that a slow client costs one write, not many.

    Order is kept and no text is lost. Linear in the length of the text.
    """
    merged: list[Event] = []
    run: list[Token] = []

    def close_run() -> None:
        if len(run) > 1:
            logprobs = tuple(chain.from_iterable(t.logprobs for t in run))
            merged.append(Token("".join(t.text for t in run), run[0].index, sum(t.count for t in run), logprobs))
        else:
            merged.extend(run)
        run.clear()

    for event in events:
        if isinstance(event, Token):
            run.append(event)
        else:
            close_run()
            merged.append(event)
    close_run()
    return merged
