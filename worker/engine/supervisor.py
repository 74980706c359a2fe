"""What ends streams from outside: while the generation thread is stuck, dead or in a long step, or the process leaves.

The generation thread says here what it begins; the watchdog (observe/watchdog.py), a stream at its ping and who runs
the process ask what to make of that. Law: nobody here touches scheduler, slots or cache. What an ended stream holds of
them the generation thread frees when it comes back; if it never does, that is lost with the process.
"""

import logging
import time
from collections.abc import Callable

from worker.engine.admission import Admission, EngineState
from worker.engine.endings import failure_event, overdue_event
from worker.engine.sequence import Sequence
from worker.errors import SHUTTING_DOWN, DeadlineExceeded, EngineDead, GenerationFailed, ShuttingDown
from worker.events import Terminal
from worker.observe.log import RecordSender
from worker.observe.tallies import PhaseTimes
from worker.observe.watchdog import Phase, Stamp, Standstills, all_stacks
from worker.settings import Settings
from worker.streams.native import new_lock

# From here on a step is long: who is overdue in it is ended from outside.
LONG_STEP_S = 0.1


class Supervisor:
    """Knows what the generation thread does, and ends streams where it cannot. What the watchdog watches.

    Attributes:
        is_stopping: The generation thread ends when it sees this.
        death: What is told to those who are open when the engine dies.
        done: Held from the start of the generation thread to its end.
    """

    def __init__(
        self, settings: Settings, admission: Admission, records: RecordSender, on_dead: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._records = records
        self._on_dead = on_dead
        self.started_at = time.monotonic()
        self.stamp = Stamp(Phase.LOADING, self.started_at)
        self.standstills = Standstills()
        self.phase_times = PhaseTimes(list(Phase))
        self.is_stopping = False
        self.death: GenerationFailed = EngineDead("the generation thread has died; the server is being replaced")
        self.done = new_lock()

    def begin(self, phase: Phase, num_tokens: int = 0) -> float:
        """Note what comes now. Returns the time. Thread: the generation thread."""
        now = time.monotonic()
        self.phase_times.note(self.stamp.phase, now - self.stamp.at)
        self.stamp = Stamp(phase, now, num_tokens)
        return now

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until the generation thread is gone. A real wait: under gevent it stops the hub, so keep it short."""
        if self.done.acquire(True, timeout_s):
            self.done.release()
            return True
        return False

    def gone(self) -> None:
        """Everyone has been told; now the process may be replaced."""
        self._on_dead()

    def liveness(self) -> str:
        """Why the engine does not live, or an empty string."""
        if self._admission.state is EngineState.DEAD:
            return self._admission.reason
        now = time.monotonic()
        if self._admission.state is EngineState.LOADING:
            limit_s = self._settings.load_timeout_s
            return f"the model is still loading after {limit_s:g} s" if now - self.started_at > limit_s else ""
        settings = self._settings
        return self.standstills.overdue(self.stamp, now, settings.step_limit_s, settings.total_timeout_s)

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
        admission = self._admission
        with admission.lock:
            is_stalled = admission.state is not EngineState.DEAD
            admission.is_accepting = False
            admission.state, admission.reason = EngineState.DEAD, reason
            if is_stalled:  # whoever else comes to give it up meanwhile says the same
                message = "the model has stopped answering; the server is being replaced"
                self.death = DeadlineExceeded(message, "STALLED")
        if is_stalled:
            self._records.log(logging.CRITICAL, reason)
        self.is_stopping = True  # should the step come back after all
        self._end_from_outside(lambda sequence: failure_event(self.death, sequence.usage))
        if is_stalled:
            self._records.log(logging.CRITICAL, all_stacks())
        return True

    def end_now(self) -> None:
        """End every stream from outside, because the process leaves and the generation thread is still in a step.

        Thread: any other. Idempotent. As with `abandon`, the rest is lost with the process.
        """
        self._admission.stop_accepting()
        self.is_stopping = True
        self._end_from_outside(lambda sequence: failure_event(ShuttingDown(SHUTTING_DOWN), sequence.usage))

    def end_overdue(self) -> None:
        """End from outside who is overdue in a step that takes long. Thread: the watchdog's.

        Between two steps the generation thread does it. It frees what they hold when its step is over.
        """
        now = time.monotonic()
        if self._is_computing and now - self.stamp.at > LONG_STEP_S:
            self._end_from_outside(lambda sequence: overdue_event(sequence, now) if self._is_computing else None)

    @property
    def _is_computing(self) -> bool:
        return self.stamp.phase in (Phase.FORWARD, Phase.SAMPLING)

    def _end_from_outside(self, ending: Callable[[Sequence], Terminal | None]) -> None:
        self._admission.end_from_outside(ending, lambda: self.stamp.phase is Phase.DELIVERING)
