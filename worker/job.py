"""One accepted request: the journal of its events, its readers, and what their leaving means. No Flask, no torch.

The journal numbers the events in the order in which they are first read, so that what waits in the channel can still be
merged; from then on an event keeps its number and any reader can come back for it. Web side: any thread or greenlet.
"""

import time
import weakref
from dataclasses import dataclass
from typing import Literal

from worker.answer import PLAIN, AnswerFormat
from worker.engine.endings import failure_event
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence, SequenceState
from worker.errors import FieldError, Incomplete, InvalidRequest
from worker.events import End, Event, Failure, Started, StopReason, Terminal, Token, Usage
from worker.streams.channel import ChannelClosed, EndOfChannel, Receiver
from worker.streams.native import new_lock
from worker.streams.wakeup import Waiter, Wakeup

OnDisconnect = Literal["cancel", "continue"]

# What an event weighs in a journal besides its text: the object, its numbers, its place in the list. Measured with
# `sys.getsizeof` on CPython 3.11, rounded up.
EVENT_BYTES = 250


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
        answer_format: AnswerFormat = PLAIN,
    ) -> None:
        self.id = started.job_id
        self.started = started
        self.begun_at = time.monotonic()
        self.client = sequence.client  # whose job it is: the name of an API key, or empty where none is needed
        self.on_disconnect = on_disconnect
        self.num_prompt_tokens = len(sequence.prompt_ids)
        self.answer_format = answer_format
        self.num_bytes = 0  # of the journal and the note, about
        self.note: object | None = None  # what the route that made it wants to find again; set by `keep`
        self.is_detached = False  # goes on however long nobody reads it; set by web
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

    def read(self, after: int = -1, waiter: Waiter | None = None) -> "JobReader":
        """A reader of the events behind number `after`.

        Args:
            waiter: What its reader waits at, if it waits for other jobs too.

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
        return JobReader(self, self._receiver, waiter or self._wakeup.new_waiter(), after + 1)

    def seen(self, after: int) -> list[Event]:
        """The events up to number `after`, which a client that comes back has had."""
        with self._lock:
            return self._journal[: after + 1]

    def keep(self, note: object, num_bytes: int) -> None:
        """Remember `note`, of about so many bytes, for as long as the job is known. The first one stays."""
        with self._lock:
            if self.note is None:
                self.note = note
                self.num_bytes += num_bytes

    def events(self) -> list[Event]:
        """All events of a job that has ended. For one that runs it would be a reader like any other: see `read`."""
        return self._events_from(0)[0]

    def wait_end(self, timeout_s: float) -> None:
        """Wait for the end, without reading, for as long at most."""
        waiter = self._wakeup.new_waiter()
        self._receiver.listen(waiter)
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                waiter.arm()
                remaining_s = deadline - time.monotonic()
                if self._receiver.peek_end() is not None or remaining_s <= 0:
                    return
                waiter.wait(remaining_s)
        finally:
            self._receiver.unlisten(waiter)

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
        elif not self.is_detached and self._num_readers == 0 and now - self._unread_since > orphan_ttl_s:
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
        self.num_bytes += sum(_weight(event) for event in events)

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


def _weight(event: Event) -> int:
    """The bytes of an event, about."""
    if not isinstance(event, Token):
        return EVENT_BYTES
    likelihoods = sum(1 + len(logprob.top) for logprob in event.logprobs)
    return EVENT_BYTES + len(event.text) + EVENT_BYTES * likelihoods


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

    @property
    def jobs(self) -> list[Job]:
        """The one job, as a list: what reads streams may read those of several."""
        return [self.job]

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
            events = self.poll()
            if events:
                return events
            remaining_s = deadline - time.monotonic()
            if self.is_done or remaining_s <= 0:  # done: came back with the terminal event's number
                break
            self._waiter.wait(remaining_s)
        return []

    def poll(self) -> list[tuple[int, Event]]:
        """The events that are there now, with their numbers. Notes in `is_done` whether they are the last."""
        events, self.is_done = self.job._events_from(self._next)
        first, self._next = self._next, self._next + len(events)
        return list(enumerate(events, first))

    def close(self) -> None:
        """Leave. Idempotent, any thread. The last one to leave cancels the job if it is of that kind."""
        self._receiver.unlisten(self._waiter)
        self.job._leave(self)
        self._waiter.wake()


class GroupReader:
    """One reader of several jobs that answer one request. Events come with the number of the job, from 0.

    The failure of one is the failure of all: nothing comes behind it, and the others are cancelled. Whole answers of
    some would look like the whole answer.
    """

    def __init__(self, jobs: list[Job], waiter: Waiter) -> None:
        """Begin to read `jobs` from their first events. `waiter` is this reader's own."""
        self.jobs = jobs
        self.is_done = False
        self._waiter = waiter
        self._readers = [job.read(waiter=waiter) for job in jobs]

    @property
    def is_closed(self) -> bool:
        """Whether it has left."""
        return self._readers[0].is_closed

    def read(self, timeout_s: float) -> list[tuple[int, Event]]:
        """The next events of any job, after waiting for the first of them if need be. As `JobReader.read`."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._waiter.arm()
            if self.is_closed or self.is_done:
                return []
            events = self._poll()
            remaining_s = deadline - time.monotonic()
            if events or remaining_s <= 0:
                return events
            self._waiter.wait(remaining_s)

    def _poll(self) -> list[tuple[int, Event]]:
        found: list[tuple[int, Event]] = []
        for number, reader in enumerate(self._readers):
            if reader.is_done:
                continue
            for _, event in reader.poll():
                found.append((number, event))
                if is_failure(event):
                    self.is_done = True
                    for other in self._readers:
                        if not other.is_done:  # of one that has ended somebody else has told the outcome
                            other.job.cancel("engine")
                    return found
        self.is_done = all(reader.is_done for reader in self._readers)
        return found

    def close(self) -> None:
        """Leave. Idempotent, any thread."""
        for reader in self._readers:
            reader.close()


def is_failure(event: Event) -> bool:
    """Whether an event says that there will be no whole answer."""
    return isinstance(event, Failure) or (isinstance(event, End) and event.stop_reason is StopReason.CANCELLED)
