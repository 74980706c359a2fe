"""Requests that were accepted: admission, the journal of their events, resume, cancel, expiry. No Flask, no torch.

Every stream is a job, whichever API asked for it. The job's journal numbers the events in the order in which they
are first read, so that what waits in the channel can still be merged; from then on an event keeps its number and
any reader can come back for it. Web side: any thread or greenlet.
"""

import hashlib
import math
import time
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal

from worker.engine.detokenizer import IncrementalDetokenizer
from worker.engine.endings import INCOMPLETE, failure_event
from worker.engine.engine import Engine
from worker.engine.sequence import Deadlines, Sequence, SequenceState
from worker.errors import FieldError, Incomplete, InvalidRequest, KeyReused, UnknownJob
from worker.events import Event, Failure, Started, StopReason, Terminal, Token, Usage, merge_waiting
from worker.request import GenerateRequest, shorten
from worker.settings import Settings
from worker.streams.aside import Aside, new_aside
from worker.streams.channel import (
    ChannelClosed,
    EndOfChannel,
    ReceiveChannel,
    Receiver,
    SendChannel,
    merge,
    open_channel,
)
from worker.streams.narration import Narrator
from worker.streams.native import new_lock
from worker.streams.wakeup import Waiter, Wakeup

if TYPE_CHECKING:
    from worker.engine.loader import LoadedModel

OnDisconnect = Literal["cancel", "continue"]

# What an event weighs in a journal besides its text: the object, its numbers, its place in the list. Measured with
# `sys.getsizeof` on CPython 3.11, rounded up.
EVENT_BYTES = 250
# What is shorter is encoded where it comes in, in a few milliseconds: a thread would be more trouble. What is longer
# than the second waits for its like only.
SHORT_CHARACTERS = 4_096
LONG_CHARACTERS = 65_536
MESSAGE_CHARACTERS = 50  # what a template writes around a message, about


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job as `GET /v1/jobs/{id}` shows it. `state` is QUEUED, RUNNING, ENDED, FAILED or CANCELLED."""

    state: str
    usage: Usage
    terminal: Terminal | None


class Job:
    """One accepted request and the journal of its events.

    Holds the sequence weakly: the engine owns it, and with it the only sending end. A job that kept the sender
    alive would keep a forgotten stream open.
    """

    def __init__(
        self,
        started: Started,
        sequence: Sequence,
        receiver: Receiver[Event, Terminal],
        engine: Engine,
        wakeup: Wakeup,
        on_disconnect: OnDisconnect,
    ) -> None:
        self.id = started.job_id
        self.on_disconnect = on_disconnect
        self.num_prompt_tokens = len(sequence.prompt_ids)
        self.num_bytes = 0  # of the journal, about
        self._sequence = weakref.ref(sequence)
        self._receiver = receiver
        self._engine = engine
        self._wakeup = wakeup
        # Guards the journal and the count of readers: between taking from the channel and writing it down, no other
        # reader may look, or it would find neither and sleep through the last event.
        self._lock = new_lock()
        self._journal: list[Event] = [started]
        self._num_readers = 0
        self._unread_since = time.monotonic()
        self.ended_at: float | None = None  # monotonic, when the terminal event was written down

    def read(self, after: int = -1) -> "JobReader":
        """A reader of the events behind number `after`.

        Raises:
            InvalidRequest: There is no such event yet.
        """
        with self._lock:
            if not -1 <= after < len(self._journal):
                last = len(self._journal) - 1
                raise InvalidRequest(
                    [
                        FieldError(
                            "last_event_id", "range", f"must be between 0 and {last}, the newest event, not {after}"
                        )
                    ]
                )
            self._num_readers += 1
        return JobReader(self, self._receiver, self._wakeup.new_waiter(), after + 1)

    def cancel(self, by: str) -> None:
        """End the job within one step. Idempotent."""
        sequence = self._sequence()
        if sequence is not None:
            self._engine.cancel(sequence, by)

    def status(self) -> JobStatus:
        """Where the job is now."""
        terminal = self._receiver.peek_end()
        if terminal is not None:
            if isinstance(terminal, Failure):
                return JobStatus("FAILED", terminal.usage, terminal)
            is_cancelled = terminal.stop_reason is StopReason.CANCELLED
            return JobStatus("CANCELLED" if is_cancelled else "ENDED", terminal.usage, terminal)
        sequence = self._sequence()
        if sequence is None or sequence.state is SequenceState.WAITING:
            return JobStatus("QUEUED", Usage(self.num_prompt_tokens, 0), None)
        return JobStatus("RUNNING", sequence.usage, None)

    @property
    def has_readers(self) -> bool:
        """Whether anybody reads it now."""
        return self._num_readers > 0

    def expire(self, now: float, orphan_ttl_s: float) -> None:
        """Note the end of the job; cancel it if nobody has read it for too long.

        What waits while it runs is left in the channel: there the engine sees how long it has waited for a reader.
        """
        if self._receiver.peek_end() is not None:
            with self._lock:
                self._write_down()
        elif self._num_readers == 0 and now - self._unread_since > orphan_ttl_s:
            self.cancel("orphan")

    def close(self) -> None:
        """Forget the job: nobody can read it any more."""
        self._receiver.close()

    def _events_from(self, number: int) -> tuple[list[Event], bool]:
        """The events from `number` on, and whether the terminal event has been written down."""
        with self._lock:
            self._write_down()
            return self._journal[number:], self.ended_at is not None

    def _write_down(self) -> None:
        """Move what waits from the channel to the journal, the end too if it is there."""
        if self.ended_at is not None:
            return
        terminal: Terminal
        try:
            while events := self._receiver.take():
                self._append(events)
            return
        except EndOfChannel as end:
            terminal = end.reason
        except ChannelClosed:  # forgotten just when a reader came: what waited is lost, and no end may say otherwise
            error = Incomplete("the job was forgotten while it was read; send the request again")
            terminal = failure_event(error, self.status().usage)
        self._append([terminal])
        self.ended_at = time.monotonic()

    def _append(self, events: list[Event]) -> None:
        self._journal += events
        self.num_bytes += sum(EVENT_BYTES + (len(event.text) if isinstance(event, Token) else 0) for event in events)

    def _leave(self, reader: "JobReader") -> None:
        with self._lock:
            if reader.is_closed:
                return
            reader.is_closed = True
            self._num_readers -= 1
            self._unread_since = time.monotonic()
            is_last = self._num_readers == 0
        # Who has been told the end does not cancel by leaving: the outcome would name the wrong one.
        if is_last and self.on_disconnect == "cancel" and self._receiver.peek_end() is None:
            self.cancel("client")


class JobReader:
    """One reader of a job, with its own place in the journal."""

    def __init__(self, job: Job, receiver: Receiver[Event, Terminal], waiter: Waiter, number: int) -> None:
        self.job = job
        self.is_done = False  # the terminal event has been given out, or was before this reader came
        self.is_closed = False
        self._receiver = receiver
        self._waiter = waiter
        self._next = number
        receiver.listen(self._waiter)

    def read(self, timeout_s: float) -> list[tuple[int, Event]]:
        """The next events with their numbers, after waiting for the first of them if need be.

        Returns:
            Empty when the time was over, when the reader was closed, or when everything has been read (`is_done`).

        Thread: one consumer at a time; `close` may come from any other.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._waiter.arm()
            if self.is_closed or self.is_done:  # behind `arm`: a close in between would be slept over
                break
            events, self.is_done = self.job._events_from(self._next)
            if events:
                first, self._next = self._next, self._next + len(events)
                return list(enumerate(events, first))
            remaining_s = deadline - time.monotonic()
            if self.is_done or remaining_s <= 0:  # done: came back with the terminal event's number
                break
            self._waiter.wait(remaining_s)
        return []

    def close(self) -> None:
        """Leave. Idempotent, any thread. The last one to leave cancels the job if it is of that kind."""
        self._receiver.unlisten(self._waiter)
        self.job._leave(self)
        self._waiter.wake()


class Jobs:
    """All jobs of this process, and the door through which new ones come."""

    def __init__(self, settings: Settings, engine: Engine, wakeup: Wakeup) -> None:
        self._settings = settings
        self._engine = engine
        self._wakeup = wakeup
        self._jobs: dict[str, Job] = {}
        # Guards _keyed: of two requests with one key that come at the same time, one makes the job.
        self._keys_lock = new_lock()
        self._keyed: dict[str, tuple[Job, bytes]] = {}
        self._aside, self._far_aside = new_aside(), new_aside()

    def start_once(
        self,
        key: str,
        request: GenerateRequest,
        on_disconnect: OnDisconnect,
        default_max_tokens: int | None = None,
    ) -> tuple[Job, bool]:
        """Admit a request, unless one with this idempotency key has been: then that one's job.

        A request that was refused has used up no key. A key is free again when its job has expired.

        Returns:
            The job, and whether it was there already.

        Raises:
            KeyReused: The key belongs to a different request.
            NotReady, Overloaded, InvalidRequest: As `start`.
        """
        digest = hashlib.sha256(f"{default_max_tokens} {request.model_dump_json()}".encode()).digest()
        with self._keys_lock:
            known = self._known(key)
        if known is None:
            # Outside of the lock, which greenlets wait for natively: a long prompt would stop everybody.
            admitted = self._admit(request, on_disconnect, default_max_tokens)
            with self._keys_lock:
                known = self._known(key)
                if known is None:
                    job = self._launch(admitted, on_disconnect)
                    self._keyed[key] = job, digest
                    return job, False
        if known[1] != digest:
            raise KeyReused(
                f"the Idempotency-Key {key!r} belongs to another request; send a new key with a new request"
            )
        return known[0], True

    def _known(self, key: str) -> tuple[Job, bytes] | None:
        known = self._keyed.get(key)
        return known if known is not None and known[0].id in self._jobs else None

    def start(
        self, request: GenerateRequest, on_disconnect: OnDisconnect, default_max_tokens: int | None = None
    ) -> Job:
        """Admit a request and queue it.

        Args:
            request: Validated by its schema.
            on_disconnect: What the route does if the request does not say.
            default_max_tokens: How long an answer is that the request does not limit, where the context leaves as
                much. None: all that the context leaves.

        Raises:
            NotReady: Loading, draining or dead.
            Overloaded: Every slot and every place in the queue is taken.
            InvalidRequest: It can never fit, or its deadline is above the server's.
        """
        return self._launch(self._admit(request, on_disconnect, default_max_tokens), on_disconnect)

    def _admit(
        self, request: GenerateRequest, on_disconnect: OnDisconnect, default_max_tokens: int | None
    ) -> "_Admitted":
        self._engine.check_room()  # before the work of encoding
        model = self._engine.model
        deadlines = self._deadlines(request, on_disconnect)
        prompt_ids = self._encode(request, model)
        max_tokens = _max_tokens(request, len(prompt_ids), model.max_context, default_max_tokens)
        return _Admitted(request, prompt_ids, max_tokens, deadlines, model.tokenizer.new_detokenizer())

    def _launch(self, admitted: "_Admitted", on_disconnect: OnDisconnect) -> Job:
        request = admitted.request
        job_id = uuid.uuid4().hex
        sender: SendChannel[Event, Terminal]
        receiver: ReceiveChannel[Event, Terminal]
        sender, receiver = open_channel(self._wakeup, INCOMPLETE, merge_waiting)
        source: Receiver[Event, Terminal] = receiver
        narrator = None
        if request.narrate:
            words: SendChannel[Event, None]
            heard: ReceiveChannel[Event, None]
            words, heard = open_channel(self._wakeup, None)
            narrator = Narrator(job_id, words)
            source = merge(self._wakeup, receiver, heard)
        sequence = Sequence(
            request_id=job_id,
            prompt_ids=admitted.prompt_ids,
            params=request.sampling(admitted.max_tokens),
            sender=sender,
            detokenizer=admitted.detokenizer,
            deadlines=admitted.deadlines,
            narrator=narrator,
        )
        started = Started(job_id, self._settings.model_name, datetime.now(UTC).isoformat(timespec="milliseconds"))
        job = Job(started, sequence, source, self._engine, self._wakeup, request.on_disconnect or on_disconnect)
        self._engine.submit(sequence)
        self._jobs[job_id] = job
        return job

    def get(self, job_id: str) -> Job:
        """The job with this id.

        Raises:
            UnknownJob: There is none, or it has expired.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise UnknownJob(
                f"no job has the id {shorten(repr(job_id))}; ended jobs are kept for {self._settings.job_ttl_s:g} s "
                "after their end, or the server has been replaced since"
            )
        return job

    def forget(self, job: Job) -> None:
        """Drop a job that nobody will ask for again. Idempotent."""
        if self._jobs.pop(job.id, None) is not None:
            job.close()

    def forget_unread(self, job: Job) -> None:
        """Drop a job as `forget` does, unless somebody reads it. Then it is kept as any other."""
        if not job.has_readers:
            self.forget(job)

    def sweep(self) -> None:
        """Cancel orphans; forget what ended long ago, and the oldest of what has ended when it is too much."""
        now, settings = time.monotonic(), self._settings
        ended = []
        for job in list(self._jobs.values()):  # dicts keep the order of arrival
            job.expire(now, settings.orphan_ttl_s)
            if job.ended_at is not None:
                ended.append(job)
        num_jobs, num_bytes = len(ended), sum(job.num_bytes for job in ended)
        for job in ended:
            is_old = job.ended_at is not None and now - job.ended_at > settings.job_ttl_s
            if is_old or num_jobs > settings.max_ended_jobs or num_bytes > settings.max_journal_bytes:
                self.forget(job)
                num_jobs, num_bytes = num_jobs - 1, num_bytes - job.num_bytes
        with self._keys_lock:
            self._keyed = {key: known for key, known in self._keyed.items() if known[0].id in self._jobs}

    def _deadlines(self, request: GenerateRequest, on_disconnect: OnDisconnect) -> Deadlines:
        settings = self._settings
        total_s = settings.total_timeout_s
        if request.deadline_s is not None:
            if request.deadline_s > total_s:
                message = f"must be at most {total_s:g}, the server's own limit, not {request.deadline_s:g}"
                raise InvalidRequest([FieldError("deadline_s", "less_than_equal", message)])
            total_s = request.deadline_s
        # A job that goes on without readers is looked after by `sweep`, not by its channel being read.
        goes_on = (request.on_disconnect or on_disconnect) == "continue"
        return Deadlines(
            queue_s=settings.queue_timeout_s,
            first_token_s=settings.first_token_timeout_s,
            token_s=settings.token_timeout_s,
            total_s=total_s,
            claim_s=math.inf if goes_on else settings.claim_timeout_s,
            slow_consumer_s=math.inf if goes_on else settings.slow_consumer_s,
        )

    def _encode(self, request: GenerateRequest, model: "LoadedModel") -> list[int]:
        """The prompt's token ids. What is long is encoded aside, and what can never fit is not encoded at all."""
        tokenizer, messages, prompt = model.tokenizer, request.messages, request.prompt or ""
        encode: Callable[[], list[int]]
        if messages is None:
            num_characters = len(prompt)
            encode = partial(tokenizer.encode, prompt)
        else:
            num_characters = sum(len(message.content) + MESSAGE_CHARACTERS for message in messages)
            encode = partial(tokenizer.encode_chat, messages)
        if num_characters <= SHORT_CHARACTERS and tokenizer.is_shareable:
            prompt_ids = encode()
        elif messages is None:
            _check_fits(request, tokenizer.min_tokens(prompt), model.max_context, "at least ")
            prompt_ids = self._place(num_characters, model).run(encode)
        else:

            def encode_if_it_fits() -> list[int]:
                _check_fits(request, tokenizer.min_chat_tokens(messages), model.max_context, "at least ")
                return encode()

            prompt_ids = self._place(num_characters, model).run(encode_if_it_fits)
        if not prompt_ids:
            raise InvalidRequest([FieldError(_input_field(request), "too_short", "holds no token; send some text")])
        return prompt_ids

    def _place(self, num_characters: int, model: "LoadedModel") -> Aside:
        is_far = num_characters > LONG_CHARACTERS and model.tokenizer.is_shareable
        return self._far_aside if is_far else self._aside


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that fits, and what has been found out about it."""

    request: GenerateRequest
    prompt_ids: list[int]
    max_tokens: int
    deadlines: Deadlines
    detokenizer: IncrementalDetokenizer


def _check_fits(request: GenerateRequest, num_prompt_tokens: int, max_context: int, least: str = "") -> None:
    if num_prompt_tokens >= max_context:
        message = (
            f"is {least}{num_prompt_tokens} tokens long; prompt and answer together may have {max_context}, so send "
            f"at most {max_context - 1}"
        )
        raise InvalidRequest([FieldError(_input_field(request), "context_length", message)])


def _max_tokens(
    request: GenerateRequest, num_prompt_tokens: int, max_context: int, default_max_tokens: int | None
) -> int:
    """The request's own limit, or the default as far as the context leaves room for it."""
    _check_fits(request, num_prompt_tokens, max_context)
    left = max_context - num_prompt_tokens
    if request.max_tokens is None:
        return left if default_max_tokens is None else min(left, default_max_tokens)
    if request.max_tokens > left:
        message = (
            f"is {shorten(str(request.max_tokens))}, and the prompt has {num_prompt_tokens} tokens; together they may "
            f"have {max_context}, so ask for at most {left}"
        )
        raise InvalidRequest([FieldError("max_tokens", "context_length", message)])
    return request.max_tokens


def _input_field(request: GenerateRequest) -> str:
    return "prompt" if request.messages is None else "messages"
