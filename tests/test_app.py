"""The housekeeper, who must go on for as long as streams are served."""

from typing import Any

from app import _keep_house
from worker.streams.channel import EndOfChannel


class FakeRecords:
    """Comes to an end after some rounds."""

    def __init__(self, num_rounds: int) -> None:
        self.num_left = num_rounds

    def write_waiting(self, timeout_s: float) -> None:
        if not self.num_left:
            raise EndOfChannel(None)
        self.num_left -= 1


class FakeJobs:
    """Fails in its first sweep."""

    num_sweeps = 0

    def sweep(self) -> None:
        self.num_sweeps += 1
        if self.num_sweeps == 1:
            raise RuntimeError("a bug")


class FakeHistory:
    """Looks at nothing."""

    def sample(self, now: float) -> None:
        pass


def test_the_housekeeper_survives_a_bug_and_ends_with_the_engine() -> None:
    jobs: Any = FakeJobs()
    records: Any = FakeRecords(3)
    history: Any = FakeHistory()
    _keep_house(jobs, records, history)
    assert jobs.num_sweeps == 3
