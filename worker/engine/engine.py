"""The generation thread and the three ways to reach it: submit, cancel, drain.

Law: this thread owns model, KV cache, scheduler and sequences. It survives any one request: a fault of a row ends
that row, a fault of a step ends the rows of that step, a fault of the loop ends everyone and marks the engine dead.
It is a real OS thread under every worker class and touches nothing that gevent may have patched: no logging, no
`threading`, no `queue`. What it has to say goes through a channel (observe/log.py).

Who is let in, and that each stream is ended once, is the matter of admission.py; what ends streams while this thread
cannot, of supervisor.py.
"""

import logging
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from worker.engine.admission import Admission, EngineState
from worker.engine.constraints import MaskThread
from worker.engine.delivery import deliver_rest, deliver_token, narrate_places, narrate_starts, spelled
from worker.engine.draws import Draw, draw_tokens, draws_of
from worker.engine.endings import end_event, failure_event, overdue_event
from worker.engine.kv_cache import BlockPool
from worker.engine.limits import Allowance
from worker.engine.logprobs import Logprobs
from worker.engine.memory import is_out_of_memory
from worker.engine.sampler import SampledTokens
from worker.engine.scheduler import Row, Scheduler
from worker.engine.sequence import Sequence, SequenceState
from worker.engine.supervisor import Supervisor
from worker.errors import (
    SHUTTING_DOWN,
    EngineDead,
    GenerationFailed,
    InferenceFailed,
    ModelLoadError,
    OutOfMemory,
    ShuttingDown,
    without_paths,
)
from worker.events import StopReason, Terminal
from worker.observe.log import Record, RecordSender
from worker.observe.tallies import EngineNumbers, Tallies
from worker.observe.watchdog import Phase, watch
from worker.request import SamplingParams
from worker.settings import Settings
from worker.streams.channel import ChannelBroken, ChannelClosed, Receiver, SendChannel, open_channel
from worker.streams.native import start_thread
from worker.streams.wakeup import ThreadWaiter, Wakeup

if TYPE_CHECKING:
    from worker.engine.loader import LoadedModel, LoadingProgress

# How often an idle engine looks around: a drain that was asked for by a flag starts at most this late.
IDLE_TICK_S = 0.25
# Deadlines are in seconds; looking at all of them in every step would cost more than the step's bookkeeping.
DEADLINE_TICK_S = 0.05


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
        self.records: Receiver[Record, None]
        records: SendChannel[Record, None]
        records, self.records = open_channel(wakeup, None)
        self._records = RecordSender(records)
        self._admission = Admission(settings, self._records, self._is_leaving)
        self._supervisor = Supervisor(settings, self._admission, self._records, lambda: self.on_dead())
        self._scheduler = Scheduler(settings.max_slots, settings.step_tokens)
        self._scheduler.forget = self._forget
        self._mask_thread = MaskThread()
        self.tallies = Tallies()
        self._waiter = ThreadWaiter()
        self._drain_limit_s: float | None = None
        self._drain_at: float | None = None
        self._deadlines_at = 0.0
        self._is_sharing = False
        self._model: LoadedModel | None = None
        self.progress: LoadingProgress | None = None
        self.started_at = self._supervisor.started_at
        self.has_loaded = False
        # Set by who runs the process. The first is polled: gunicorn tells nobody of a SIGTERM. The second is called
        # by the watchdog when the generation thread has died of a fault or is stuck, after every stream has ended.
        self.should_drain: Callable[[], bool] = lambda: False
        self.on_dead: Callable[[], None] = lambda: None

    # ---- any thread

    def start(self) -> None:
        """Start the generation thread, which loads the model first, and its watchdog."""
        self._supervisor.done.acquire()
        start_thread(self._main)
        start_thread(lambda: watch(self._supervisor))

    @property
    def model(self) -> "LoadedModel":
        """The loaded model.

        Raises:
            NotReady: It is not there yet, or the engine is draining or dead.
        """
        self._admission.check_ready()
        assert self._model is not None
        return self._model

    @property
    def state(self) -> EngineState:
        """Whether requests are accepted."""
        return self._admission.state

    @property
    def reason(self) -> str:
        """Why they are not."""
        return self._admission.reason

    @property
    def num_open(self) -> int:
        """Requests accepted and not ended."""
        return self._admission.num_open

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._scheduler.running)

    @property
    def device(self) -> str:
        """Where the model runs; until it is loaded, where it is to run."""
        model = self._model
        return model.device if model is not None else self._settings.device

    def numbers(self) -> EngineNumbers:
        """The engine at this moment, for a monitor. Waits for nothing that the generation thread holds for long."""
        now = time.monotonic()
        supervisor, scheduler, num_running = self._supervisor, self._scheduler, self.num_running
        times = supervisor.phase_times
        pool, stamp, looked_at = scheduler.pool, supervisor.stamp, supervisor.standstills.looked_at
        return EngineNumbers(
            state=self.state.value,
            device=self.device,
            uptime_s=now - self.started_at,
            num_running=num_running,
            num_waiting=max(0, self.num_open - num_running),
            cache_usage=1 - pool.num_free / pool.num_blocks if pool.num_blocks else 0.0,
            cache_remembered=pool.num_remembered / pool.num_blocks if pool.num_blocks else 0.0,
            num_prefix_tokens=scheduler.num_prefix_tokens,
            num_prefix_hits=scheduler.num_prefix_hits,
            num_preempted=scheduler.num_preempted,
            num_guessed=scheduler.num_guessed,
            num_ended_outside=self._admission.num_ended_outside,
            num_standstills=supervisor.standstills.num_standstills,
            phase=stamp.phase.name.lower(),
            phase_age_s=max(0.0, now - stamp.at),
            watchdog_age_s=0.0 if looked_at is None else max(0.0, now - looked_at),
            backlog_events=self._admission.num_unread_events,
            phase_total_s={phase.name.lower(): times.total_s[phase] for phase in Phase},
            phase_longest_s={phase.name.lower(): times.longest_s[phase] for phase in Phase},
        )

    def open_sequences(self) -> list[Sequence]:
        """Requests accepted and not ended, to look at: the generation thread goes on changing them."""
        return self._admission.open_sequences()

    def check_room(self, client: str | None = None) -> None:
        """Refuse early what `submit` would refuse, before the work of encoding a prompt; see `Admission.check_room`."""
        self._admission.check_room(client)

    def submit(self, *sequences: Sequence) -> None:
        """Queue the sequences of one request, all or none; see `Admission.submit`."""
        self._admission.submit(*sequences)
        self._waiter.wake()

    def allowance(self, client: str) -> Allowance:
        """What a client may still ask for."""
        return self._admission.allowance(client)

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
        self._supervisor.is_stopping = True
        self._waiter.wake()
        return self.wait_ended(timeout_s)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the generation thread is gone. A real wait: under gevent it stops the hub, so keep it short."""
        return self._supervisor.wait_ended(timeout_s)

    def liveness(self) -> str:
        """Why the engine does not live, or an empty string."""
        return self._supervisor.liveness()

    def abandon(self) -> bool:
        """End every stream if the engine does not live; see `Supervisor.abandon`."""
        return self._supervisor.abandon()

    def end_now(self) -> None:
        """End every stream, because the process leaves; see `Supervisor.end_now`."""
        self._supervisor.end_now()

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
            # A submit that comes later than this is refused, one that came before is ended.
            self._admission.stop_accepting()
            is_given_up = self.state is EngineState.DEAD  # by the watchdog, which tells the others the same
            self._end_everyone(self._supervisor.death if is_given_up else ShuttingDown(SHUTTING_DOWN))
        except BaseException as error:  # law 7: a fault of the loop ends everyone, with a code
            self._die(error)
        finally:
            self._model = None  # frees the tensors on this thread
            self._mask_thread.close()
            self._supervisor.begin(Phase.ENDED)
            self._admission.thread_ended()
            self._supervisor.done.release()

    def _report_progress(self, progress: "LoadingProgress") -> None:
        self.progress = progress

    def _become_ready(self) -> None:
        assert self._model is not None
        admission = self._admission
        with admission.lock:
            if admission.state is EngineState.DEAD:  # given up already
                return
            now = self._supervisor.begin(Phase.SCHEDULING)
            admission.state, admission.reason = EngineState.READY, ""
            admission.is_accepting = True
        self._records.log(logging.INFO, f"ready after {now - self.started_at:.1f} s: {self._model.description}")

    def _loop(self) -> None:
        while True:
            self._waiter.arm()
            if self._supervisor.is_stopping:  # behind `arm`: a stop in between would be slept over
                return
            now = self._supervisor.begin(Phase.SCHEDULING)
            self._take_inbox()
            self._end_unwanted(now)
            self._drain_if_asked(now)
            narrate_places(self._scheduler.waiting)
            rows = self._scheduler.schedule()
            if rows:
                self._step(rows)
            else:
                self._supervisor.begin(Phase.IDLE)
                self._waiter.wait(IDLE_TICK_S)

    def _take_inbox(self) -> None:
        while self._admission.inbox:
            sequence = self._admission.inbox.popleft()
            self._scheduler.add(sequence)
            sequence.endings = self._endings_of(sequence.params)
            if not self._is_known(sequence.prompt_ids):
                self._fail(sequence, InferenceFailed("the prompt has a token that the model does not know"))

    def _endings_of(self, params: SamplingParams) -> dict[int, StopReason]:
        """The tokens that end an answer, and what it is then said to have ended with."""
        endings = dict.fromkeys(params.stop_token_ids, StopReason.STOP_SEQUENCE)
        if self._model is not None and not params.ignore_eos:
            endings |= dict.fromkeys(self._model.eos_ids, StopReason.EOS)
        return endings

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
            elif is_deadline_tick and (terminal := overdue_event(sequence, now)):
                self._finish(sequence, terminal)

    def _drain_if_asked(self, now: float) -> None:
        if self._drain_limit_s is None and self.should_drain():
            self._drain_limit_s = self._settings.drain_s
        if self._drain_limit_s is None:
            return
        if self._drain_at is None:
            self._admission.stop_accepting()
            self._drain_at = now
            self._records.log(logging.INFO, f"draining {self.num_open} requests for up to {self._drain_limit_s:g} s")
        if now - self._drain_at >= self._drain_limit_s and self.num_open:
            self._end_everyone(ShuttingDown(SHUTTING_DOWN))

    def _step(self, rows: list[Row]) -> None:
        """Compute rows together; where that fails, in ever smaller groups, until the rows at fault stand alone."""
        assert self._model is not None
        narrate_starts(rows)
        groups = [rows] if self._model.runner.is_packed else [[row] for row in rows]
        while groups and not self._supervisor.is_stopping:
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
            begun_at = self._supervisor.begin(Phase.FORWARD, num_tokens)
            sampled, logits = self._model.runner.forward(rows)
            for row in rows:
                self._scheduler.computed(row)
            self._supervisor.begin(Phase.SAMPLING, num_tokens)  # on a GPU this is where the forward pass is waited for
            draws = draws_of(sampled)
            tokens = draw_tokens(logits, draws) if draws else None
        except torch.AcceleratorError:
            raise  # the device is lost for this process: nothing that comes after it would succeed
        except Exception as error:  # whatever a model's code raises must not end the engine
            if is_out_of_memory(error):
                return OutOfMemory("the device has no memory left for this step")
            return self._fault(error)
        # A step that came back too late has nobody to deliver to.
        while tokens is not None and not self._supervisor.is_stopping:
            draws = self._deliver(draws, tokens)
            tokens = self._sample_again(logits, draws, num_tokens) if draws else None
        self.tallies.step(time.monotonic() - begun_at, num_tokens)
        return None

    def _sample_again(self, logits: torch.Tensor, draws: list[Draw], num_tokens: int) -> SampledTokens | None:
        """Draw behind guesses that were right. None: it failed; the next step computes them again, and will say so."""
        self._supervisor.begin(Phase.SAMPLING, num_tokens)
        try:
            return draw_tokens(logits, draws)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fault(error)
            for draw in draws:
                self._scheduler.guessed_in_vain(draw.sequence)
            return None

    def _deliver(self, draws: list[Draw], tokens: SampledTokens) -> list[Draw]:
        """Give each sequence its token, or its ending.

        Returns:
            What can be drawn next without computing anything: behind the tokens that were guessed.
        """
        with self._admission.lock:  # who was ended from outside is known now, and nobody is while tokens are delivered
            now = self._supervisor.begin(Phase.DELIVERING)
        right = []
        for i, draw in enumerate(draws):
            sequence = draw.sequence
            if sequence.is_ended:
                continue
            try:
                if i in tokens.failures:
                    raise tokens.failures[i]
                if i in tokens.complete:
                    self._complete(sequence)
                else:
                    self._advance(sequence, tokens.token_ids[i], now, tokens.logprobs.get(i))
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
                self.tallies.num_accepted += 1  # the scheduler's own count goes back when the next draw fails
                right.append(Draw(sequence, draw.place + 1, draw.guesses[1:]))
        return right

    def _advance(self, sequence: Sequence, token_id: int, now: float, logprobs: Logprobs | None) -> None:
        """Give a sequence its next token, and its reader what has become decidable."""
        assert self._model is not None
        if self._is_sharing:
            self._scheduler.publish(sequence)
        told = spelled(logprobs, token_id, self._model.tokenizer.spell) if logprobs is not None else None
        if sequence.constraint is not None:
            sequence.constraint.advance(token_id)
        if sequence.last_token_at is None:
            self.tallies.first_token(len(sequence.prompt_ids), now - sequence.submitted_at)
        else:
            self.tallies.next_token(now - sequence.last_token_at)
        reason = deliver_token(sequence, token_id, now, told)
        if reason is not None:
            self._finish(sequence, end_event(sequence, reason))
        elif sequence.constraint is not None:
            self._mask_thread.find(sequence.constraint)

    def _complete(self, sequence: Sequence) -> None:
        """End an answer to which its grammar lets nothing be added, which only looking for the next token has shown."""
        deliver_rest(sequence)
        self._finish(sequence, end_event(sequence, StopReason.EOS))

    def _cancel(self, sequence: Sequence, by: str) -> None:
        """End a sequence that nobody wants any more. Who said so first is named."""
        sequence.cancelled_by = sequence.cancelled_by or by
        self._finish(sequence, end_event(sequence, StopReason.CANCELLED))

    def _fail(self, sequence: Sequence, error: GenerationFailed) -> None:
        self._finish(sequence, failure_event(error, sequence.usage))

    def _finish(self, sequence: Sequence, terminal: Terminal) -> None:
        """End a sequence: slot and blocks free, channel closed, outcome noted. Each exactly once."""
        self._free(sequence)
        self._admission.close(sequence, terminal, self._vram_bytes())

    def _free(self, sequence: Sequence) -> None:
        blocks = sequence.blocks
        self._scheduler.remove(sequence)
        if blocks:
            self._forget(blocks)

    def _forget(self, blocks: list[int]) -> None:
        if self._model is not None:
            self._model.runner.forget(blocks)

    def _fault(self, error: Exception) -> InferenceFailed:
        """Translate a fault for the client, who gets its kind, and for the log, which gets all of it."""
        self._records.log(logging.ERROR, "".join(traceback.format_exception(error)))
        return InferenceFailed(f"the model failed ({type(error).__name__}); the server's log has the details")

    def _vram_bytes(self) -> int:
        device = self._model.device if self._model is not None else ""
        return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0

    def _end_everyone(self, error: GenerationFailed) -> None:
        self._take_inbox()
        for sequence in self._scheduler.sequences():
            try:
                self._fail(sequence, error)
            except Exception as fault:  # one stream that cannot be ended well must not cost the others their ending
                self._admission.close(sequence, failure_event(error, sequence.usage))
                self._records.log(logging.ERROR, "".join(traceback.format_exception(fault)))

    def _die(self, error: BaseException) -> None:
        admission = self._admission
        with admission.lock:
            admission.is_accepting = False
            admission.state = EngineState.DEAD
            admission.reason = "the generation thread died"  # should the error be unable to say more
            # For anybody who asks, so without what is in a message of somebody else's, and without paths.
            admission.reason = f"the generation thread died of {type(error).__name__}; the server's log has the details"
            is_expected = isinstance(error, ModelLoadError)
            if is_expected:
                admission.reason = without_paths(str(error))
        self._records.log(logging.CRITICAL, str(error) if is_expected else self.reason)
        if not is_expected:
            self._records.log(logging.CRITICAL, "".join(traceback.format_exception(error)))
        try:
            self._end_everyone(self._supervisor.death)
        except BaseException as fault:  # the watchdog ends those who are left
            self._records.log(logging.CRITICAL, "".join(traceback.format_exception(fault)))
