"""The generation thread and the three ways to reach it: submit, cancel, drain.

Law: this thread owns model, KV cache, scheduler and sequences. It survives any one request: a fault of a row ends
that row, a fault of a step ends the rows of that step, a fault of the loop ends everyone and marks the engine dead.
It is a real OS thread under every worker class and touches nothing that gevent may have patched: no logging, no
`threading`, no `queue`. What it has to say goes through a channel (observe/log.py).
"""

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch

from worker.engine.endings import end_event, failure_event, metrics_event, outcome_of
from worker.engine.kv_cache import BlockPool
from worker.engine.memory import is_out_of_memory
from worker.engine.sampler import SampledTokens, sample
from worker.engine.scheduler import Row, Scheduler
from worker.engine.sequence import Sequence, SequenceState
from worker.engine.service_rate import ServiceRate
from worker.errors import (
    SHUTTING_DOWN,
    DeadlineExceeded,
    EngineDead,
    GenerationFailed,
    InferenceFailed,
    ModelLoadError,
    NotReady,
    OutOfMemory,
    Overloaded,
    ShuttingDown,
)
from worker.events import StopReason, Terminal, Token
from worker.observe.log import LogLine, Record
from worker.observe.watchdog import Phase, Stamp, Standstills, all_stacks, watch
from worker.settings import Settings
from worker.streams.channel import ChannelBroken, ChannelClosed, Receiver, SendChannel, open_channel
from worker.streams.native import native_sleep, new_lock, start_thread
from worker.streams.wakeup import ThreadWaiter, Wakeup

if TYPE_CHECKING:
    from worker.engine.loader import LoadedModel, LoadingProgress

# How often an idle engine looks around: a drain that was asked for by a flag starts at most this late.
IDLE_TICK_S = 0.25
# From here on a step is long: who is overdue in it is ended from outside.
LONG_STEP_S = 0.1
# How long to let the generation thread deliver what it has before streams are ended from outside. Usually some ms.
DELIVERY_S = 0.5
DELIVERY_TICK_S = 0.002
# Deadlines are in seconds; looking at all of them in every step would cost more than the step's bookkeeping.
DEADLINE_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class _Draw:
    """A token to draw.

    Attributes:
        place: Of its logits among those of the step.
        guesses: What the next ones may be, for which there are logits behind.
    """

    sequence: Sequence
    place: int
    guesses: list[int]


def _draws_of(sampled: list[Row]) -> list[_Draw]:
    draws = []
    place = 0
    for row in sampled:
        draws.append(_Draw(row.sequence, place, row.guesses))
        place += 1 + row.num_guesses
    return draws


class EngineState(StrEnum):
    """Whether requests are accepted."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    DEAD = "DEAD"


class Engine:
    """Generates for many requests at once, in one thread."""

    def __init__(
        self,
        settings: Settings,
        wakeup: Wakeup,
        load: "Callable[[Settings, Callable[[LoadingProgress], None]], LoadedModel]",
    ) -> None:
        """Make an engine; `start` it to load the model.

        Args:
            settings: Slots, budgets and limits.
            wakeup: How the readers of streams are woken.
            load: Loads the model, on the generation thread.
        """
        self._settings = settings
        self._load = load
        self._scheduler = Scheduler(settings.max_slots, settings.step_tokens)
        self.records: Receiver[Record, None]
        self._records: SendChannel[Record, None]
        self._records, self.records = open_channel(wakeup, None)
        self._waiter = ThreadWaiter()
        self._inbox: deque[Sequence] = deque()
        # Guards {is_accepting, _inbox, _open, _service_rate}: each submit is wholly before or wholly after a shutdown.
        # And {_num_debtors, _has_ended}, and the moment in which tokens begin to be delivered.
        self._lock = new_lock()
        self._is_accepting = False
        # All that was accepted and has not ended. Whoever closes a stream takes it out; see `abandon`.
        self._open: set[Sequence] = set()
        self._service_rate = ServiceRate()
        self._is_stopping = False
        # Threads that have taken sequences out of `_open` and still owe them their ending.
        self._num_debtors = 0
        self._has_ended = False
        self._drain_limit_s: float | None = None
        self._drain_at: float | None = None
        self._deadlines_at = 0.0
        self._is_sharing = False
        self._done = new_lock()
        # What is told to those who are open when the engine dies.
        self._death: GenerationFailed = EngineDead("the generation thread has died; the server is being replaced")
        self._model: LoadedModel | None = None
        self.state = EngineState.LOADING
        self.reason = "the model is loading"
        self.progress: LoadingProgress | None = None
        self.started_at = time.monotonic()
        self.stamp = Stamp(Phase.LOADING, self.started_at)
        self.standstills = Standstills()
        self.has_loaded = False
        # Set by who runs the process. The first is polled: gunicorn tells nobody of a SIGTERM. The second is called
        # by the watchdog when the generation thread has died of a fault or is stuck, after every stream has ended.
        self.should_drain: Callable[[], bool] = lambda: False
        self.on_dead: Callable[[], None] = lambda: None

    # ---- any thread

    def start(self) -> None:
        """Start the generation thread, which loads the model first, and its watchdog."""
        self._done.acquire()
        start_thread(self._main)
        start_thread(lambda: watch(self))

    @property
    def model(self) -> "LoadedModel":
        """The loaded model.

        Raises:
            NotReady: It is not there yet, or the engine is draining or dead.
        """
        self._check_ready()
        assert self._model is not None
        return self._model

    @property
    def num_open(self) -> int:
        """Requests accepted and not ended."""
        return len(self._open)

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._scheduler.running)

    def check_room(self) -> None:
        """Refuse early what `submit` would refuse, before the work of encoding a prompt.

        Raises:
            NotReady, Overloaded: As `submit`.
        """
        with self._lock:
            self._check_room(0)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. From here on its channel will be closed, whatever happens.

        Raises:
            NotReady: Loading, draining or dead. The sequence was not taken.
            Overloaded: Slots and queue are full. The sequence was not taken.
        """
        with self._lock:
            self._check_room(len(sequence.prompt_ids))
            self._service_rate.came(time.monotonic())
            self._open.add(sequence)
            self._inbox.append(sequence)
        self._waiter.wake()

    def _check_room(self, num_prompt_tokens: int) -> None:
        if not self._is_accepting or self._is_leaving:
            raise self._not_ready()
        settings, num_open, now = self._settings, len(self._open), time.monotonic()
        if num_open >= settings.max_streams:
            raise Overloaded(
                f"{num_open} requests are open, the limit (ENDSTOP_MAX_SLOTS and ENDSTOP_MAX_QUEUE); try again later",
                self._service_rate.retry_after_s(now, 1 + num_open - settings.max_streams, 0),
            )
        num_waiting_tokens = sum(len(s.prompt_ids) for s in self._open if s.state is SequenceState.WAITING)
        too_many = num_waiting_tokens + max(num_prompt_tokens, 1) - settings.max_queue_tokens
        if num_waiting_tokens and too_many > 0:  # into an empty queue any prompt may go
            raise Overloaded(
                f"prompts of {num_waiting_tokens} tokens wait for a slot, and {settings.max_queue_tokens} may "
                "(ENDSTOP_MAX_QUEUE_TOKENS); try again later",
                self._service_rate.retry_after_s(now, 0, too_many),
            )

    @property
    def _is_leaving(self) -> bool:
        """Whether a drain has been asked for. The generation thread, which begins it, may be in a long step."""
        return self._drain_limit_s is not None or self.should_drain()

    def cancel(self, sequence: Sequence, by: str) -> None:
        """Have a sequence ended within one step, wherever it is. Idempotent."""
        if sequence.cancelled_by is None:
            sequence.cancelled_by = by
            self._waiter.wake()

    def drain(self, limit_s: float) -> None:
        """Accept nothing more; end what still runs after `limit_s`. A second call can only shorten it.

        Only sets a flag: safe in a signal handler.
        """
        if self._drain_limit_s is None or limit_s < self._drain_limit_s:
            self._drain_limit_s = limit_s
            self._waiter.wake()

    def stop(self, timeout_s: float) -> bool:
        """End everyone, end the thread and wait for it.

        Returns:
            Whether the thread is gone. If not, leave the process with `os._exit`: an interpreter that is torn down
            under a thread inside torch aborts.
        """
        self._is_stopping = True
        self._waiter.wake()
        return self.wait_ended(timeout_s)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the generation thread is gone. A real wait: under gevent it stops the hub, so keep it short."""
        if self._done.acquire(True, timeout_s):
            self._done.release()
            return True
        return False

    def gone(self) -> None:
        """Everyone has been told; now the process may be replaced."""
        self.on_dead()

    def abandon(self) -> bool:
        """End every stream from outside, because the generation thread cannot: it is stuck, or died without doing so.

        Thread: any other. Idempotent. Slots and cache are lost with the process; nobody may touch them from here. Does
        nothing while the engine lives.

        Returns:
            Whether it is dead.
        """
        reason = self.liveness()
        if not reason:
            return False
        with self._lock:
            is_stalled = self.state is not EngineState.DEAD
            self._is_accepting = False
            self.state, self.reason = EngineState.DEAD, reason
            if is_stalled:  # whoever else comes to give it up meanwhile says the same
                message = "the model has stopped answering; the server is being replaced"
                self._death = DeadlineExceeded(message, "STALLED")
        if is_stalled:
            self._log(logging.CRITICAL, reason)
        self._is_stopping = True  # should the step come back after all
        self._end_from_outside(lambda sequence: failure_event(self._death, sequence.usage))
        if is_stalled:
            self._log(logging.CRITICAL, all_stacks())
        return True

    def end_now(self) -> None:
        """End every stream from outside, because the process leaves and the generation thread is still in a step.

        Thread: any other. Idempotent. As with `abandon`, the rest is lost with the process.
        """
        with self._lock:
            self._is_accepting = False
            if self.state is not EngineState.DEAD:
                self.state, self.reason = EngineState.DRAINING, SHUTTING_DOWN
        self._is_stopping = True
        self._end_from_outside(lambda sequence: failure_event(ShuttingDown(SHUTTING_DOWN), sequence.usage))

    def end_overdue(self) -> None:
        """End from outside who is overdue in a step that takes long. Thread: the watchdog's.

        Between two steps the generation thread does it. It frees what they hold when its step is over.
        """
        now = time.monotonic()
        if self._is_computing and now - self.stamp.at > LONG_STEP_S:
            self._end_from_outside(lambda sequence: self._end_if_overdue(sequence, now) if self._is_computing else None)

    @property
    def _is_computing(self) -> bool:
        return self.stamp.phase in (Phase.FORWARD, Phase.SAMPLING)

    def _end_from_outside(self, ending: Callable[[Sequence], Terminal | None]) -> None:
        """End those for whom there is an ending. The generation thread delivers nothing to them meanwhile or later."""
        give_up_at = time.monotonic() + DELIVERY_S
        while True:
            with self._lock:  # under which it begins to deliver: what it has counted, it has sent
                if self.stamp.phase is not Phase.DELIVERING or time.monotonic() > give_up_at:
                    ends = [(sequence, ending(sequence)) for sequence in self._open]
                    told = [(sequence, terminal) for sequence, terminal in ends if terminal is not None]
                    for sequence, _ in told:
                        self._take_out(sequence)
                    self._num_debtors += 1
                    break
            native_sleep(DELIVERY_TICK_S)
        for sequence, terminal in told:
            try:
                self._tell(sequence, terminal)
            except Exception as fault:  # one stream that cannot be ended well must not cost the others their ending
                self._log(logging.ERROR, "".join(traceback.format_exception(fault)))
        with self._lock:
            self._num_debtors -= 1
            self._close_records()

    def _close_records(self) -> None:
        """Under the lock: close the log if nobody has anything to say any more. The watchdog of a dead engine has."""
        if self._has_ended and not self._num_debtors and self.state is not EngineState.DEAD:
            self._records.close(None)

    def liveness(self) -> str:
        """Why the engine does not live, or an empty string."""
        if self.state is EngineState.DEAD:
            return self.reason
        now = time.monotonic()
        if self.state is EngineState.LOADING:
            limit_s = self._settings.load_timeout_s
            return f"the model is still loading after {limit_s:g} s" if now - self.started_at > limit_s else ""
        settings = self._settings
        return self.standstills.overdue(self.stamp, now, settings.step_limit_s, settings.total_timeout_s)

    def _check_ready(self) -> None:
        if self.state is not EngineState.READY:
            raise self._not_ready()

    def _not_ready(self) -> NotReady:
        if self._is_leaving and self.state is not EngineState.DEAD:
            return NotReady(EngineState.DRAINING.value, SHUTTING_DOWN, retry_after_s=10)
        return NotReady(self.state.value, self.reason, retry_after_s=2 if self.state is EngineState.LOADING else 10)

    # ---- the generation thread

    def _main(self) -> None:
        try:
            self._model = self._load(self._settings, self._report_progress)
            self.has_loaded = True
            self._scheduler.pool = BlockPool(self._model.num_blocks)
            if self._model.runner.is_packed and self._settings.speculation == "ngram":
                self._scheduler.max_guesses = self._settings.speculation_tokens
            self._is_sharing = self._model.runner.is_packed and self._settings.prefix_cache == "on"
            self._become_ready()
            self._loop()
            self._stop_accepting()  # a submit that comes later than this is refused, one that came before is ended
            is_given_up = self.state is EngineState.DEAD  # by the watchdog, which tells the others the same
            self._end_everyone(self._death if is_given_up else ShuttingDown(SHUTTING_DOWN))
        except BaseException as error:  # law 7: a fault of the loop ends everyone, with a code
            self._die(error)
        finally:
            self._model = None  # frees the tensors on this thread
            self._begin(Phase.ENDED)
            with self._lock:
                self._has_ended = True
                self._close_records()
            self._done.release()

    def _stop_accepting(self) -> None:
        with self._lock:
            self._is_accepting = False
            if self.state is not EngineState.DEAD:
                self.state, self.reason = EngineState.DRAINING, SHUTTING_DOWN

    def _begin(self, phase: Phase, num_tokens: int = 0) -> float:
        """Tell the watchdog what comes now. Returns the time."""
        now = time.monotonic()
        self.stamp = Stamp(phase, now, num_tokens)
        return now

    def _report_progress(self, progress: "LoadingProgress") -> None:
        self.progress = progress

    def _become_ready(self) -> None:
        assert self._model is not None
        with self._lock:
            if self.state is EngineState.DEAD:  # given up already
                return
            now = self._begin(Phase.SCHEDULING)
            self.state, self.reason = EngineState.READY, ""
            self._is_accepting = True
        self._log(logging.INFO, f"ready after {now - self.started_at:.1f} s: {self._model.description}")

    def _loop(self) -> None:
        while True:
            self._waiter.arm()
            if self._is_stopping:  # behind `arm`: a stop in between would be slept over
                return
            now = self._begin(Phase.SCHEDULING)
            self._take_inbox()
            self._end_unwanted(now)
            self._drain_if_asked(now)
            self._narrate_places()
            rows = self._scheduler.schedule()
            if rows:
                self._step(rows)
            else:
                self._begin(Phase.IDLE)
                self._waiter.wait(IDLE_TICK_S)

    def _take_inbox(self) -> None:
        while self._inbox:
            sequence = self._inbox.popleft()
            self._scheduler.add(sequence)
            if not self._is_known(sequence.prompt_ids):
                self._fail(sequence, InferenceFailed("the prompt has a token that the model does not know"))

    def _is_known(self, token_ids: list[int]) -> bool:
        """Whether the embedding has a row for each. One that has none would fail the whole step."""
        return self._model is None or (min(token_ids) >= 0 and max(token_ids) < self._model.vocab_size)

    def _end_unwanted(self, now: float) -> None:
        """End what was cancelled or whose reader is gone, and now and then what is overdue."""
        is_deadline_tick = now - self._deadlines_at >= DEADLINE_TICK_S
        if is_deadline_tick:
            self._deadlines_at = now
        for sequence in self._scheduler.sequences():
            if sequence.is_ended:  # from outside, while a step took long
                self._free(sequence)
            elif sequence.cancelled_by is not None or sequence.sender.is_broken:
                self._cancel(sequence, "client")
            elif is_deadline_tick and (terminal := self._end_if_overdue(sequence, now)):
                self._finish(sequence, terminal)

    @staticmethod
    def _end_if_overdue(sequence: Sequence, now: float) -> Terminal | None:
        overdue = sequence.overdue(now)
        if isinstance(overdue, GenerationFailed):
            return failure_event(overdue, sequence.usage)
        if overdue is not None:
            sequence.cancelled_by = sequence.cancelled_by or overdue
            return end_event(sequence, StopReason.CANCELLED)
        return None

    def _drain_if_asked(self, now: float) -> None:
        if self._drain_limit_s is None and self.should_drain():
            self._drain_limit_s = self._settings.drain_s
        if self._drain_limit_s is None:
            return
        if self._drain_at is None:
            self._stop_accepting()
            self._drain_at = now
            self._log(logging.INFO, f"draining {self.num_open} requests for up to {self._drain_limit_s:g} s")
        if now - self._drain_at >= self._drain_limit_s and self._open:
            self._end_everyone(ShuttingDown(SHUTTING_DOWN))

    def _step(self, rows: list[Row]) -> None:
        """Compute rows together; where that fails, in ever smaller groups, until the rows at fault stand alone."""
        assert self._model is not None
        self._narrate_starts(rows)
        groups = [rows] if self._model.runner.is_packed else [[row] for row in rows]
        while groups and not self._is_stopping:
            group = [row for row in groups.pop() if row.sequence.state is SequenceState.RUNNING]
            error = self._compute(group) if group else None
            if error is not None and len(group) == 1:
                self._fail(group[0].sequence, error)
            elif error is not None:
                # What a row writes to the cache it writes again: its tokens and their places are the same.
                half = len(group) // 2
                groups += [group[half:], group[:half]]
            if groups:  # a step in many parts is many steps for those who leave or wait
                self._end_unwanted(time.monotonic())

    def _compute(self, rows: list[Row]) -> GenerationFailed | None:
        """One forward pass, and the next token of each row that is past its prompt.

        Returns:
            Why nothing was computed, or None. Not an exception: its traceback would keep the tensors of the failed
            forward pass alive while a smaller one is tried.
        """
        assert self._model is not None
        num_tokens = sum(len(row.token_ids) for row in rows)
        try:
            self._begin(Phase.FORWARD, num_tokens)
            sampled, logits = self._model.runner.forward(rows)
            for row in rows:
                self._scheduler.computed(row)
            self._begin(Phase.SAMPLING, num_tokens)  # on a GPU this is where the forward pass is waited for
            draws = _draws_of(sampled)
            tokens = self._sample(logits, draws) if draws else None
        except torch.AcceleratorError:
            raise  # the device is lost for this process: nothing that comes after it would succeed
        except Exception as error:  # whatever a model's code raises must not end the engine
            if is_out_of_memory(error):
                return OutOfMemory("the device has no memory left for this step")
            return self._fault(error)
        while tokens is not None and not self._is_stopping:  # a step that came back too late has nobody to deliver to
            draws = self._deliver(draws, tokens)
            tokens = self._sample_again(logits, draws, num_tokens) if draws else None
        return None

    @staticmethod
    def _sample(logits: torch.Tensor, draws: "list[_Draw]") -> SampledTokens:
        places = [draw.place for draw in draws]
        is_all = len(places) == len(logits)
        return sample(logits if is_all else logits[places], [draw.sequence for draw in draws])

    def _sample_again(self, logits: torch.Tensor, draws: "list[_Draw]", num_tokens: int) -> SampledTokens | None:
        """Draw behind guesses that were right. None: it failed; the next step computes them again, and will say so."""
        self._begin(Phase.SAMPLING, num_tokens)
        try:
            return self._sample(logits, draws)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fault(error)
            for draw in draws:
                self._scheduler.guessed_in_vain(draw.sequence)
            return None

    def _deliver(self, draws: "list[_Draw]", tokens: SampledTokens) -> "list[_Draw]":
        """Give each sequence its token, or its ending.

        Returns:
            What can be drawn next without computing anything: behind the tokens that were guessed.
        """
        with self._lock:  # who was ended from outside is known now, and nobody is while tokens are delivered
            now = self._begin(Phase.DELIVERING)
        right = []
        for i, draw in enumerate(draws):
            sequence = draw.sequence
            if sequence.is_ended:
                continue
            try:
                if i in tokens.failures:
                    raise tokens.failures[i]
                self._advance(sequence, tokens.token_ids[i], now)
            except GenerationFailed as error:
                self._fail(sequence, error)
            except ChannelBroken:
                self._cancel(sequence, "client")
            except ChannelClosed:
                self._fail(sequence, EngineDead("the stream was ended from outside"))
            except Exception as error:  # a detokenizer that raises, say: this row's own fault
                self._fail(sequence, self._fault(error))
            if draw.guesses[:1] == [tokens.token_ids[i]] and sequence.state is SequenceState.RUNNING:
                self._scheduler.guessed_right(sequence)
                right.append(_Draw(sequence, draw.place + 1, draw.guesses[1:]))
        return right

    def _advance(self, sequence: Sequence, token_id: int, now: float) -> None:
        """Give a sequence its next token, and its reader what has become decidable."""
        assert self._model is not None
        if self._is_sharing:
            self._scheduler.publish(sequence)
        sequence.append(token_id, now)
        is_eos = token_id in self._model.eos_ids
        is_last = is_eos or len(sequence.output_ids) >= sequence.params.max_tokens
        text = "" if is_eos else sequence.detokenizer.push(token_id)
        if is_last:
            text += sequence.detokenizer.flush()
        text = sequence.stop_strings.push(text)
        has_stopped = sequence.stop_strings.matched is not None
        if is_last and not has_stopped:
            text += sequence.stop_strings.flush()
        if text:
            num_tokens = len(sequence.output_ids)
            sequence.sender.send(Token(text, sequence.num_released, num_tokens - sequence.num_released))
            sequence.num_released = num_tokens
        if has_stopped:
            self._finish(sequence, end_event(sequence, StopReason.STOP_SEQUENCE))
        elif is_last:
            self._finish(sequence, end_event(sequence, StopReason.EOS if is_eos else StopReason.MAX_TOKENS))

    def _cancel(self, sequence: Sequence, by: str) -> None:
        """End a sequence that nobody wants any more. Who said so first is named."""
        sequence.cancelled_by = sequence.cancelled_by or by
        self._finish(sequence, end_event(sequence, StopReason.CANCELLED))

    def _fail(self, sequence: Sequence, error: GenerationFailed) -> None:
        self._finish(sequence, failure_event(error, sequence.usage))

    def _finish(self, sequence: Sequence, terminal: Terminal) -> None:
        """End a sequence: slot and blocks free, channel closed, outcome noted. Each exactly once."""
        self._free(sequence)
        self._close(sequence, terminal, self._vram_bytes())

    def _free(self, sequence: Sequence) -> None:
        blocks = sequence.blocks
        self._scheduler.remove(sequence)
        if blocks and self._model is not None:
            self._model.runner.forget(blocks)

    def _fault(self, error: Exception) -> InferenceFailed:
        """Translate a fault for the client, who gets its kind, and for the log, which gets all of it."""
        self._log(logging.ERROR, "".join(traceback.format_exception(error)))
        return InferenceFailed(f"the model failed ({type(error).__name__}); the server's log has the details")

    def _close(self, sequence: Sequence, terminal: Terminal, vram_bytes: int = 0) -> None:
        """Close a stream and note its outcome. Any thread: who takes it out of `_open` does both, nobody else any."""
        with self._lock:
            if sequence not in self._open:
                return
            self._take_out(sequence)
        self._tell(sequence, terminal, vram_bytes)

    def _take_out(self, sequence: Sequence) -> None:
        """Under the lock, once. Who does it owes the stream its ending."""
        self._open.remove(sequence)
        sequence.is_ended = True
        self._service_rate.left(time.monotonic(), len(sequence.prompt_ids))

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
            self._record(outcome)

    def _vram_bytes(self) -> int:
        device = self._model.device if self._model is not None else ""
        return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0

    def _end_everyone(self, error: GenerationFailed) -> None:
        self._take_inbox()
        for sequence in self._scheduler.sequences():
            try:
                self._fail(sequence, error)
            except Exception as fault:  # one stream that cannot be ended well must not cost the others their ending
                self._close(sequence, failure_event(error, sequence.usage))
                self._log(logging.ERROR, "".join(traceback.format_exception(fault)))

    def _die(self, error: BaseException) -> None:
        with self._lock:
            self._is_accepting = False
            self.state = EngineState.DEAD
            self.reason = "the generation thread died"  # should the error be unable to say more
            is_expected = isinstance(error, ModelLoadError)
            self.reason = str(error) if is_expected else f"the generation thread died of {error!r}"
        self._log(logging.CRITICAL, self.reason)
        if not is_expected:
            self._log(logging.CRITICAL, "".join(traceback.format_exception(error)))
        try:
            self._end_everyone(self._death)
        except BaseException as fault:  # the watchdog ends those who are left
            self._log(logging.CRITICAL, "".join(traceback.format_exception(fault)))

    def _narrate_places(self) -> None:
        """Tell those who wait where they are in the queue, whenever it has changed."""
        for place, sequence in enumerate(self._scheduler.waiting, 1):
            if sequence.narrator is not None and sequence.narrated_place != place:
                sequence.narrated_place = place
                sequence.narrator.say("scheduler", "queued", "request", f"queued at position {place}")

    def _narrate_starts(self, rows: list[Row]) -> None:
        for row in rows:
            narrator = row.sequence.narrator
            if narrator is None:
                continue
            if not row.is_decode and row.start == row.sequence.num_cached and not row.sequence.output_ids:
                num_tokens = len(row.sequence.prompt_ids) - row.start
                narrator.say("engine", "prefilling", "prompt", f"prefilling {num_tokens} tokens")
            elif row.is_decode and len(row.sequence.output_ids) == 1:
                narrator.say("engine", "decoding", "answer", "answering")

    def _log(self, level: int, text: str) -> None:
        self._record(LogLine(level, text))

    def _record(self, record: Record) -> None:
        try:
            self._records.send(record)
        except ChannelBroken:
            pass  # nobody writes a log any more: the process is on its way out
