"""Who is let in, who is open, and that each of them is ended once. Plain Python, no torch. Any thread.

Law: each submit is wholly before or wholly after a shutdown; what was let in is also ended. Whoever takes a sequence
out of those that are open owes its stream the terminal event and the log its outcome, and nobody else does.

Why a stream ends is decided elsewhere: by the generation thread (engine.py), or from outside (supervisor.py).
"""

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from worker.engine.endings import metrics_event, outcome_of
from worker.engine.limits import Allowance, ClientLimits
from worker.engine.sequence import Sequence, SequenceState
from worker.engine.service_rate import ServiceRate
from worker.errors import SHUTTING_DOWN, NotReady, Overloaded
from worker.events import Terminal
from worker.keys import KeyLimit
from worker.observe.log import RecordSender
from worker.settings import Settings
from worker.streams.channel import ChannelBroken, ChannelClosed
from worker.streams.native import native_sleep, new_lock

# How long to let the generation thread deliver what it has before streams are ended from outside. Usually some ms.
DELIVERY_S = 0.5
DELIVERY_TICK_S = 0.002


class EngineState(StrEnum):
    """Whether requests are accepted."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    DEAD = "DEAD"


class Admission:
    """The way in and the way out of the engine.

    Attributes:
        lock: Taken by others where what they do has to be one step for those who come and those who end streams.
        state: Written under the lock; one assignment, so anybody may read it.
        reason: Why it is not READY. As `state`.
        inbox: Let in, and not yet seen by the generation thread.
    """

    def __init__(self, settings: Settings, records: RecordSender, is_leaving: Callable[[], bool]) -> None:
        """Let nobody in yet.

        Args:
            settings: How many may be open, and how many tokens may wait.
            records: Where outcomes go.
            is_leaving: Whether a drain has been asked for.
        """
        self._settings = settings
        self._records = records
        self._is_leaving = is_leaving
        # Guards {is_accepting, inbox, _open, _service_rate, _limits}: each submit is wholly before or wholly after a
        # shutdown, and a client is charged for what was let in and for nothing else.
        # And {_num_debtors, _has_ended, num_ended_outside}, and the moment in which tokens begin to be delivered.
        self.lock = new_lock()
        self.is_accepting = False
        self.inbox: deque[Sequence] = deque()
        # All that was accepted and has not ended. Whoever closes a stream takes it out; see `end_from_outside`.
        self._open: set[Sequence] = set()
        self._service_rate = ServiceRate()
        limit = KeyLimit(settings.key_concurrency, settings.key_tokens_per_minute)
        self._limits = ClientLimits(limit, dict(settings.key_limits.limits))
        # Threads that have taken sequences out of `_open` and still owe them their ending.
        self._num_debtors = 0
        self._has_ended = False
        self.num_ended_outside = 0
        self.state = EngineState.LOADING
        self.reason = "the model is loading"

    @property
    def num_open(self) -> int:
        """Requests accepted and not ended."""
        return len(self._open)

    def open_sequences(self) -> list[Sequence]:
        """Requests accepted and not ended, in no order."""
        with self.lock:
            return list(self._open)

    @property
    def num_unread_events(self) -> int:
        """Events that have been sent and wait for their readers."""
        return sum(sequence.sender.statistics().num_waiting for sequence in self.open_sequences())

    # ---- the way in

    def check_ready(self) -> None:
        """Refuse unless the state is READY.

        Raises:
            NotReady: Loading, draining or dead.
        """
        if self.state is not EngineState.READY:
            raise self._not_ready()

    def check_room(self, client: str | None = None) -> None:
        """Refuse early what `submit` would refuse, before the work of encoding a prompt.

        Args:
            client: Who asks; None: somebody who has no request open.

        Raises:
            NotReady, Overloaded, RateLimited: As `submit`.
        """
        with self.lock:
            self._check_room(1, 0)
            if client is not None:
                self._limits.check_open(client, 1, time.monotonic())

    def submit(self, *sequences: Sequence) -> None:
        """Let the sequences of one request in, all or none. From here on their channels will be closed in any case.

        Raises:
            NotReady: Loading, draining or dead. None was taken.
            Overloaded: Slots and queue are full. None was taken.
            RateLimited, InvalidRequest: Their client may not have as many now, or ever. None was taken.
        """
        with self.lock:
            self._check_room(len(sequences), sum(len(sequence.prompt_ids) for sequence in sequences))
            now = time.monotonic()
            # Last, and it takes all or nothing: who is refused has left nothing behind.
            self._limits.charge(sequences[0].client, [sequence.cost for sequence in sequences], now)
            for sequence in sequences:
                self._service_rate.came(now)
                self._open.add(sequence)
                self.inbox.append(sequence)

    def allowance(self, client: str) -> Allowance:
        """What a client may still ask for."""
        with self.lock:
            return self._limits.allowance(client, time.monotonic())

    def _check_room(self, num_requests: int, num_prompt_tokens: int) -> None:
        if not self.is_accepting or self._is_leaving():
            raise self._not_ready()
        settings, num_open, now = self._settings, len(self._open), time.monotonic()
        if (too_many_requests := num_open + num_requests - settings.max_streams) > 0:
            raise Overloaded(
                f"{num_open} requests are open, and {settings.max_streams} may (ENDSTOP_MAX_SLOTS and "
                "ENDSTOP_MAX_QUEUE); try again later",
                self._service_rate.retry_after_s(now, too_many_requests, 0),
            )
        num_waiting_tokens = sum(len(s.prompt_ids) for s in self._open if s.state is SequenceState.WAITING)
        too_many = num_waiting_tokens + max(num_prompt_tokens, 1) - settings.max_queue_tokens
        if num_waiting_tokens and too_many > 0:  # into an empty queue any prompt may go
            raise Overloaded(
                f"prompts of {num_waiting_tokens} tokens wait for a slot, and {settings.max_queue_tokens} may "
                "(ENDSTOP_MAX_QUEUE_TOKENS); try again later",
                self._service_rate.retry_after_s(now, 0, too_many),
            )

    def _not_ready(self) -> NotReady:
        if self._is_leaving() and self.state is not EngineState.DEAD:
            return NotReady(EngineState.DRAINING.value, SHUTTING_DOWN, retry_after_s=10)
        return NotReady(self.state.value, self.reason, retry_after_s=2 if self.state is EngineState.LOADING else 10)

    def stop_accepting(self) -> None:
        """Let nobody in any more. Who is dead stays so."""
        with self.lock:
            self.is_accepting = False
            if self.state is not EngineState.DEAD:
                self.state, self.reason = EngineState.DRAINING, SHUTTING_DOWN

    # ---- the way out

    def close(self, sequence: Sequence, terminal: Terminal, vram_bytes: int = 0) -> None:
        """Close a stream and note its outcome. Any thread: who takes it out of `_open` does both, nobody else any."""
        with self.lock:
            if sequence not in self._open:
                return
            self._take_out(sequence)
        self._tell(sequence, terminal, vram_bytes)

    def end_from_outside(
        self, ending: Callable[[Sequence], Terminal | None], is_delivering: Callable[[], bool]
    ) -> None:
        """End those for whom there is an ending. The generation thread delivers nothing to them meanwhile or later."""
        give_up_at = time.monotonic() + DELIVERY_S
        while True:
            with self.lock:  # under which it begins to deliver: what it has counted, it has sent
                if not is_delivering() or time.monotonic() > give_up_at:
                    ends = [(sequence, ending(sequence)) for sequence in self._open]
                    told = [(sequence, terminal) for sequence, terminal in ends if terminal is not None]
                    for sequence, _ in told:
                        self._take_out(sequence)
                    self._num_debtors += 1
                    self.num_ended_outside += len(told)
                    break
            native_sleep(DELIVERY_TICK_S)
        for sequence, terminal in told:
            try:
                self._tell(sequence, terminal)
            except Exception as fault:  # one stream that cannot be ended well must not cost the others their ending
                self._records.log(logging.ERROR, "".join(traceback.format_exception(fault)))
        with self.lock:
            self._num_debtors -= 1
            self._close_records()

    def thread_ended(self) -> None:
        """The generation thread, which says this last, ends no stream any more."""
        with self.lock:
            self._has_ended = True
            self._close_records()

    def _close_records(self) -> None:
        """Under the lock: close the log if nobody has anything to say any more. The watchdog of a dead engine has."""
        if self._has_ended and not self._num_debtors and self.state is not EngineState.DEAD:
            self._records.close()

    def _take_out(self, sequence: Sequence) -> None:
        """Under the lock, once. Who does it owes the stream its ending."""
        self._open.remove(sequence)
        sequence.is_ended = True
        now = time.monotonic()
        self._service_rate.left(now, len(sequence.prompt_ids))
        self._limits.pay_back(sequence.client, sequence.num_unused, now)

    def _tell(self, sequence: Sequence, terminal: Terminal, vram_bytes: int = 0) -> None:
        outcome = outcome_of(sequence, terminal)
        try:
            sequence.sender.send(metrics_event(sequence, outcome, vram_bytes))
        except (ChannelBroken, ChannelClosed):
            pass  # the reader is gone, or has been told another ending
        finally:
            sequence.sender.close(terminal)
            if sequence.narrator is not None:
                sequence.narrator.close()
            self._records.send(outcome)
