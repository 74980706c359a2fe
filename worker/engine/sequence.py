"""One request inside the engine. Plain Python, no torch.

Owned by the generation thread from `submit` to its end. The sending end of the stream travels inside: there is no
map from an id to a queue, so there is nothing to race and nothing to leak.
"""

import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from worker.engine.constraints import Constraint
from worker.engine.detokenizer import IncrementalDetokenizer
from worker.engine.logprobs import HeldLogprobs
from worker.engine.lookup import Lookup
from worker.engine.stop_strings import StopStrings
from worker.errors import DeadlineExceeded, GenerationFailed, SlowConsumer
from worker.events import Event, StopReason, Terminal, Usage
from worker.origin import NO_ORIGIN, Origin
from worker.request import SamplingParams
from worker.streams.channel import SendChannel
from worker.streams.narration import Narrator


class SequenceState(Enum):
    """Where a sequence is. It only moves down, but that who runs may have to wait again for room in the cache."""

    WAITING = auto()  # in the queue, no slot and no blocks
    RUNNING = auto()  # holds a slot and blocks: prefilling, then decoding
    FINISHED = auto()  # its channel is closed, its slot and its blocks are free


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each wait of one request may last, in seconds. See the settings of the same names."""

    queue_s: float
    first_token_s: float
    token_s: float
    total_s: float
    claim_s: float
    slow_consumer_s: float


@dataclass(slots=True, weakref_slot=True, eq=False)
class Sequence:
    """A prompt, what has been generated from it, and the way back to who asked."""

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    sender: SendChannel[Event, Terminal]
    detokenizer: IncrementalDetokenizer
    deadlines: Deadlines
    narrator: Narrator | None = None
    client: str = ""  # the name of the API key that asks; empty where none is needed
    origin: Origin = NO_ORIGIN  # the HTTP request that made it; `request_id` is the job's own
    is_chat: bool = False  # asked with messages, not with a prompt
    constraint: Constraint | None = None  # what the answer may be, if not any text
    submitted_at: float = field(default_factory=time.monotonic)

    # set by Engine.cancel, from any thread; the next step ends the sequence
    cancelled_by: str | None = None

    # set by the scheduler
    state: SequenceState = SequenceState.WAITING
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_cached: int = 0  # of the prompt, found there when the sequence started
    num_published: int = 0  # blocks that others may share
    content: int = 0  # of the last of these; see kv_cache
    scheduled_at: float | None = None
    lookup: Lookup = field(default_factory=Lookup)

    # set by who ends the stream, under the lock of admission.py; nothing more is delivered
    is_ended: bool = False

    # set by the engine
    endings: dict[int, StopReason] = field(default_factory=dict)  # the tokens that end the answer, and what that is
    narrated_place: int = 0  # in the queue, from 1; 0 before anything was said of it
    output_ids: list[int] = field(default_factory=list)
    num_released: int = 0  # tokens whose text has been sent
    held_logprobs: HeldLogprobs | None = None  # if the request asks for them
    first_token_at: float | None = None
    last_token_at: float | None = None
    longest_gap_s: float | None = None  # between two tokens

    # read by the sampler
    output_counts: Counter[int] = field(default_factory=Counter)
    rng: random.Random = field(init=False)
    stop_strings: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.params.seed)  # None: seeded by the operating system
        self.stop_strings = StopStrings(self.params.stop)
        if self.params.logprobs is not None:
            self.held_logprobs = HeldLogprobs()

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def cost(self) -> int:
        """The tokens that it may take, prompt and answer together."""
        return len(self.prompt_ids) + self.params.max_tokens

    @property
    def num_unused(self) -> int:
        """Of its cost, those that it has not taken. A prompt that has never had a slot was not computed."""
        return self.cost - (self.num_tokens if self.scheduled_at is not None else 0)

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        return Usage(len(self.prompt_ids), len(self.output_ids), self.num_cached)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids from position `start` up to `stop`, across prompt and output."""
        num_prompt = len(self.prompt_ids)
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : stop - num_prompt]
        return self.prompt_ids[start:stop] + self.output_ids[: max(0, stop - num_prompt)]

    @property
    def forbidden_ids(self) -> Iterable[int]:
        """Tokens that may not be drawn yet: the answer has to be longer."""
        return self.endings if len(self.output_ids) < self.params.min_tokens else ()

    def append(self, token_id: int, now: float) -> None:
        """Add a drawn token."""
        self.output_ids.append(token_id)
        self.output_counts[token_id] += 1
        if self.last_token_at is None:
            self.first_token_at = now
        else:
            self.longest_gap_s = max(self.longest_gap_s or 0.0, now - self.last_token_at)
        self.last_token_at = now

    def overdue(self, now: float) -> GenerationFailed | str | None:
        """What to end this sequence with if one of its waits has lasted too long.

        Returns:
            A failure; or who cancels it, when nobody has ever read the stream; or None.
        """
        limits = self.deadlines
        if now - self.submitted_at > limits.total_s:
            return DeadlineExceeded(f"the request took longer than {limits.total_s:g} s", "TIMEOUT")
        if self.scheduled_at is None:
            if now - self.submitted_at > limits.queue_s:
                return DeadlineExceeded(f"no slot became free within {limits.queue_s:g} s", "QUEUE_TIMEOUT")
        elif self.last_token_at is None:
            if now - self.scheduled_at > limits.first_token_s:
                return DeadlineExceeded(f"no token within {limits.first_token_s:g} s", "FIRST_TOKEN_TIMEOUT")
        elif now - self.last_token_at > limits.token_s:
            return DeadlineExceeded(f"no further token within {limits.token_s:g} s", "STALLED")
        statistics = self.sender.statistics()
        if statistics.last_take_at is None:
            return "unclaimed" if now - self.submitted_at > limits.claim_s else None
        # Not since the last read: a reader that waits for a slow model is not slow.
        if statistics.waiting_since is not None and now - statistics.waiting_since > limits.slow_consumer_s:
            return SlowConsumer(f"nothing was read from the stream for {limits.slow_consumer_s:g} s")
        return None
