"""Faults that strike one request in a running server, by name: the one with the seed MARK.

Lives in the tests: the product has no hook for it, so it cannot be on in production. Notes what has struck that request
and in which stage it was then, cancels and deadlines too, so that a test can tell a fault that struck from one that did
not get around to it. Time passes by moving instants into the past: no deadline is waited for.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worker.engine.endings import INCOMPLETE
from worker.engine.engine import Engine
from worker.engine.scheduler import Row
from worker.engine.sequence import Sequence
from worker.errors import GenerationFailed
from worker.events import Failure, Narration
from worker.request import SamplingParams
from worker.streams.channel import SendChannel, open_channel
from worker.streams.wakeup import ThreadWakeup

MARK = 666
# A prompt that holds this word cannot be tokenized, once that has been armed.
UNSPEAKABLE = "unspeakable"
# More than the kernels of both sides take from a server whose client does not read.
CLOG = "." * 2**20


def is_marked(sequence: Sequence) -> bool:
    return sequence.params.seed == MARK


def stage_of(sequence: Sequence) -> str:
    """Where it is; of one that has ended, where it was."""
    if sequence.scheduled_at is None:
        return "queued"
    return "decoding" if sequence.output_ids else "prefilling"


class Strikes:
    """Arms faults. Called from handlers while the gate is shut, so that nothing moves meanwhile. One per process.

    Attributes:
        struck: What has struck the marked request, and its stage when it first did.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._of_a_step: tuple[str, Callable[[], BaseException]] | None = None
        self._is_nan = False
        self._are_tokens_old = False
        self.struck: dict[str, str] = {}
        self._note_cancels()
        self._note_deadlines()
        self._age_tokens()

    def arm(self, name: str) -> None:
        """Have the named fault strike the marked request."""
        getattr(self, "_" + name)()

    def disarm(self) -> None:
        """Forget what was armed and what has struck."""
        self._of_a_step, self._is_nan, self._are_tokens_old = None, False, False
        self.struck = {}
        for name in ("encode", "encode_chat"):
            vars(self._engine.model.tokenizer).pop(name, None)

    def before_step(self, rows: list[Row]) -> None:
        """At the beginning of each forward pass."""
        for row in rows:
            if self._of_a_step is not None and is_marked(row.sequence):
                name, new_error = self._of_a_step
                self._note(name, row.sequence)
                raise new_error()

    def change(self, row: Row, logits: Tensor) -> None:
        """At the end of each forward pass, for each row that is sampled."""
        if self._is_nan and is_marked(row.sequence):
            self._note("logits", row.sequence)
            logits.fill_(float("nan"))

    def _note(self, what: str, sequence: Sequence) -> None:
        if is_marked(sequence):
            self.struck.setdefault(what, stage_of(sequence))

    def _noting(self, what: str, sequence: Sequence) -> Callable[[], None]:
        """What notes it when called. Does not keep the sequence alive: what the engine drops is to be gone."""
        struck = weakref.ref(sequence)

        def strike() -> None:
            alive = struck()
            assert alive is not None
            self._note(what, alive)

        return strike

    def _note_cancels(self) -> None:
        cancel = self._engine.cancel

        def noted(sequence: Sequence, by: str) -> None:
            if sequence.cancelled_by is None:
                self._note(f"cancel by {by}", sequence)
            cancel(sequence, by)

        self._engine.cancel = noted  # type: ignore[method-assign]

    def _note_deadlines(self) -> None:
        overdue = Sequence.overdue

        def noted(sequence: Sequence, now: float) -> GenerationFailed | str | None:
            verdict = overdue(sequence, now)
            if verdict is not None:
                self._note(verdict if isinstance(verdict, str) else verdict.code, sequence)
            return verdict

        Sequence.overdue = noted  # type: ignore[method-assign, assignment]

    def _age_tokens(self) -> None:
        append = Sequence.append

        def appended(sequence: Sequence, token_id: int, now: float) -> None:
            append(sequence, token_id, now)
            if self._are_tokens_old and is_marked(sequence):
                _age_token(sequence)

        Sequence.append = appended  # type: ignore[method-assign, assignment]

    def _marked(self) -> list[Sequence]:
        return [sequence for sequence in tuple(self._engine._admission._open) if is_marked(sequence)]

    def _nothing(self) -> None:
        pass

    def _forward(self) -> None:
        self._of_a_step = "forward", lambda: RuntimeError("injected")

    def _memory(self) -> None:
        self._of_a_step = "memory", lambda: torch.OutOfMemoryError("injected")

    def _logits(self) -> None:
        self._is_nan = True

    def _scheduler(self) -> None:
        """Not one request's fault: the loop's."""

        def schedule() -> list[Row]:
            raise RuntimeError("injected")

        self._engine._scheduler.schedule = schedule  # type: ignore[method-assign]

    def _sampler(self) -> None:
        for sequence in self._marked():
            strike = self._noting("sampler", sequence)
            sequence.params = _BrokenParams(sequence.params, strike)  # type: ignore[assignment]

    def _detokenizer(self) -> None:
        for sequence in self._marked():
            strike = self._noting("detokenizer", sequence)
            sequence.detokenizer = _BrokenDetokenizer(strike)

    def _tokenizer(self) -> None:
        """Of a request that is still to come."""
        tokenizer = self._engine.model.tokenizer
        encode, encode_chat = tokenizer.encode, tokenizer.encode_chat

        def check(text: str) -> None:
            if UNSPEAKABLE in text:
                raise RuntimeError("injected")

        def encode_or_raise(text: str, *options: Any, **named: Any) -> list[int]:
            check(text)
            return encode(text, *options, **named)

        def encode_chat_or_raise(messages: Any, *options: Any, **named: Any) -> list[int]:
            for message in messages:
                check(message.text)
            return encode_chat(messages, *options, **named)

        tokenizer.encode = encode_or_raise  # type: ignore[method-assign]
        tokenizer.encode_chat = encode_chat_or_raise  # type: ignore[method-assign]

    def _encoder(self) -> None:
        """An event that no wire format knows."""
        event: Any = object()
        for sequence in self._marked():
            self._note("encoder", sequence)
            sequence.sender.send(event)

    def _forgotten(self) -> None:
        """A sender that is dropped unclosed."""
        for sequence in self._marked():
            other: SendChannel[Any, Any]
            other, receiver = open_channel(ThreadWakeup(), INCOMPLETE)
            self._note("forgotten", sequence)
            sequence.sender = other
            self._kept = receiver  # or the engine would take the client for gone

    def _closed_twice(self) -> None:
        """By somebody else, and then by the engine."""
        for sequence in self._marked():
            self._note("closed_twice", sequence)
            sequence.sender.close(Failure("STALLED", "injected", sequence.usage))

    def _endless_narration(self) -> None:
        """It is not closed when its request ends."""
        for sequence in self._marked():
            assert sequence.narrator is not None
            sequence.narrator.close = self._noting("endless_narration", sequence)  # type: ignore[method-assign]

    def _narration(self) -> None:
        """Something more to read."""
        self._narrate("still there")

    def _clog(self) -> None:
        """More than a connection takes whose client does not read: its writer is stuck from here on."""
        self._narrate(CLOG)

    def _narrate(self, words: str) -> None:
        for sequence in self._marked():
            sequence.sender.send(Narration("test", "talking", "client", words, sequence.request_id))

    # ---- time passes

    def _deadline(self) -> None:
        for sequence in self._marked():
            sequence.submitted_at -= sequence.deadlines.total_s
        self._look_at_deadlines()

    def _queue_deadline(self) -> None:
        for sequence in self._marked():
            sequence.submitted_at -= sequence.deadlines.queue_s
        self._look_at_deadlines()

    def _first_token_deadline(self) -> None:
        for sequence in self._marked():
            assert sequence.scheduled_at is not None
            sequence.scheduled_at -= sequence.deadlines.first_token_s
        self._look_at_deadlines()

    def _token_deadline(self) -> None:
        """The newest token is old, that of the step under way too: each step brings one."""
        for sequence in self._marked():
            _age_token(sequence)
        self._are_tokens_old = True
        self._look_at_deadlines()

    def _slow_consumer(self) -> None:
        for sequence in self._marked():
            shared = sequence.sender._shared
            assert shared.waiting_since is not None, "nothing waits for its reader"
            shared.waiting_since -= sequence.deadlines.slow_consumer_s
        self._look_at_deadlines()

    def _look_at_deadlines(self) -> None:
        """Have the generation thread look at them behind the step under way, and not some steps later."""
        self._engine._deadlines_at = 0.0


class _BrokenParams:
    """Parameters that the sampler cannot use."""

    seed = MARK

    def __init__(self, params: SamplingParams, strike: Callable[[], None]) -> None:
        self._params = params
        self._strike = strike

    def __getattr__(self, name: str) -> Any:
        if name == "temperature":
            self._strike()
            raise RuntimeError("injected")
        return getattr(self._params, name)


class _BrokenDetokenizer:
    def __init__(self, strike: Callable[[], None]) -> None:
        self._strike = strike

    def push(self, token_id: int) -> str:
        self._strike()
        raise RuntimeError("injected")

    def flush(self) -> str:
        return self.push(0)


def _age_token(sequence: Sequence) -> None:
    assert sequence.last_token_at is not None
    sequence.last_token_at -= sequence.deadlines.token_s
