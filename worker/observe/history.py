"""The last minutes, for whoever looks at how the server is doing now and has no monitor that remembers.

Bounded, and gone with the process. Written by the housekeeper; read by any thread or greenlet of the web side.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from worker.observe.log import Outcome
from worker.observe.tallies import EngineNumbers, Tallies

SAMPLE_S = 2.0
MAX_SAMPLES = 150  # five minutes
# Of each a line is sent to every page that looks, every two seconds.
MAX_ENDED = 200


@dataclass(frozen=True, slots=True)
class Sample:
    """The engine at one moment. `at` is monotonic."""

    at: float
    tokens_per_s: float  # since the sample before
    num_running: int
    num_waiting: int
    cache_usage: float


class History:
    """What has been, sampled now and then, and the requests that ended last."""

    def __init__(self, engine: Callable[[], EngineNumbers], tallies: Tallies) -> None:
        """Remember nothing yet.

        Args:
            engine: What is sampled.
            tallies: Of the same engine.
        """
        self._engine = engine
        self._tallies = tallies
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._ended: deque[tuple[float, Outcome]] = deque(maxlen=MAX_ENDED)
        self._sampled_at = time.monotonic()
        self._num_generated = 0

    def note_outcome(self, outcome: Outcome) -> None:
        """Remember how a request ended. Thread: the housekeeper."""
        self._ended.append((time.monotonic(), outcome))

    def sample(self, now: float) -> None:
        """Look at the engine, if it is time to. Thread: the housekeeper."""
        elapsed_s = now - self._sampled_at
        if elapsed_s < SAMPLE_S:
            return
        num_generated, numbers = self._tallies.num_generated, self._engine()
        tokens_per_s = (num_generated - self._num_generated) / elapsed_s
        self._samples.append(Sample(now, tokens_per_s, numbers.num_running, numbers.num_waiting, numbers.cache_usage))
        self._sampled_at, self._num_generated = now, num_generated

    @property
    def samples(self) -> list[Sample]:
        """The oldest first."""
        return list(self._samples)

    @property
    def ended(self) -> list[tuple[float, Outcome]]:
        """Requests and when they ended (monotonic), the oldest first."""
        return list(self._ended)
