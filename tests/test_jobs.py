"""Jobs without a server: the journal and its readers, idempotency keys, and what is forgotten when."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.streams.threads import LookingWaiter, ShownWakeup, SleeplessWakeup, start_consumer
from tests.support.engines import loaded_model, new_sequence, wait_until
from tests.support.gated_runner import GatedRunner
from tests.support.random_models import VOCAB_SIZE
from tests.support.waiters import InterruptedWaiter
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.errors import InvalidRequest, KeyReused, Overloaded, UnknownJob
from worker.events import End, Event, Failure, Narration, Started, StopReason, Terminal, Token, Usage, merge_waiting
from worker.job import Job, JobReader, OnDisconnect
from worker.jobs import Jobs
from worker.message import Message
from worker.prompts import LONG_CHARACTERS, SHORT_CHARACTERS
from worker.request import GenerateRequest
from worker.settings import Settings
from worker.streams.channel import ReceiveChannel, SendChannel, open_channel
from worker.streams.wakeup import ThreadWakeup, Wakeup

WAIT_S = 60.0


@contextmanager
def jobs_of(**changed: Any) -> Iterator[tuple[Jobs, Engine, GatedRunner]]:
    """A door to an engine whose model waits at a gate. Everything is ended behind the test."""
    settings = replace(Settings(), **{"max_slots": 2, "max_queue": 2, **changed})
    runner = GatedRunner()
    wakeup = ThreadWakeup()
    engine = Engine(settings, wakeup, lambda settings, report: runner.adopt(loaded_model(runner)))
    engine.start()
    wait_until(lambda: engine.state == "READY")
    try:
        yield Jobs(settings, engine, wakeup), engine, runner
    finally:
        runner.open()
        assert engine.stop(WAIT_S)


def request(prompt: str | None = "hello", **fields: Any) -> GenerateRequest:
    return GenerateRequest(**{"prompt": prompt, "max_tokens": 3, "temperature": 0.0, **fields})


def start(
    jobs: Jobs, request: GenerateRequest, on_disconnect: OnDisconnect, default_max_tokens: int | None = None
) -> Job:
    [job] = jobs.start([request], on_disconnect, default_max_tokens=default_max_tokens)
    return job


def start_once(jobs: Jobs, key: str, request: GenerateRequest, on_disconnect: OnDisconnect) -> tuple[Job, bool]:
    [job], is_known = jobs.start_once(key, [request], on_disconnect)
    return job, is_known


def read_to_the_end(job: Job, after: int = -1) -> list[tuple[int, Event]]:
    reader, events = job.read(after), []
    while not reader.is_done:
        batch = reader.read(WAIT_S)
        assert batch or reader.is_done, "no event in time"
        events += batch
    reader.close()
    return events


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        (
            {"stop_token_ids": [0, VOCAB_SIZE]},
            "stop_token_ids",
            f"names the token {VOCAB_SIZE}, and the model has 0 to",
        ),
        ({"logit_bias": {"5": 1.0, str(VOCAB_SIZE): 1.0}}, "logit_bias", f"names the token {VOCAB_SIZE}"),
        ({"min_tokens": 4}, "min_tokens", "is 4, and the answer may have 3; ask for at most that"),
        ({"min_tokens": 600, "max_tokens": None}, "min_tokens", "is 600, and the answer may have 5"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(fields: dict[str, Any], field: str, says: str) -> None:
    with jobs_of() as (jobs, engine, _):
        with pytest.raises(InvalidRequest) as refusal:
            start(jobs, request(**fields), "cancel")
        (error,) = refusal.value.errors
        assert error.field == field
        assert says in error.message
        assert engine.num_open == 0
        last: dict[str, Any] = {
            "stop_token_ids": [VOCAB_SIZE - 1],
            "logit_bias": {str(VOCAB_SIZE - 1): 1.0},
            "min_tokens": 3,
        }
        assert start(jobs, request(**last), "cancel")


# ---- idempotency keys


def test_the_same_key_and_request_are_one_job() -> None:
    with jobs_of() as (jobs, engine, runner):
        first, was_known = start_once(jobs, "key", request(), "continue")
        again, is_known = start_once(jobs, "key", request(), "continue")
        other, _ = start_once(jobs, "other", request(), "continue")
        assert (was_known, is_known) == (False, True)
        assert first is again
        assert first is not other
        assert engine.num_open == 2
        runner.open()
        assert [number for number, _ in read_to_the_end(again)] == list(range(len(read_to_the_end(first))))


def test_a_key_belongs_to_its_request() -> None:
    with jobs_of() as (jobs, engine, _):
        start_once(jobs, "key", request(), "continue")
        with pytest.raises(KeyReused, match="'key' belongs to another request"):
            start_once(jobs, "key", request("another"), "continue")
        assert engine.num_open == 1


def test_a_refused_request_uses_up_no_key() -> None:
    with jobs_of(max_slots=1, max_queue=0) as (jobs, engine, runner):
        occupant = start(jobs, request(), "continue")
        with pytest.raises(Overloaded):
            start_once(jobs, "key", request("one"), "continue")
        runner.open()
        read_to_the_end(occupant)
        wait_until(lambda: engine.num_open == 0)
        _, is_known = start_once(jobs, "key", request("two"), "continue")
        assert not is_known


def test_a_key_is_free_again_when_its_job_has_been_forgotten() -> None:
    with jobs_of(job_ttl_s=0.0) as (jobs, _, runner):
        runner.open()
        first, _ = start_once(jobs, "key", request(), "continue")
        read_to_the_end(first)
        wait_until(lambda: not is_kept(jobs, first))
        again, is_known = start_once(jobs, "key", request("another"), "continue")
        assert not is_known
        assert again is not first


def test_requests_with_one_key_that_come_together_are_one_job() -> None:
    with jobs_of(max_slots=8, max_queue=8) as (jobs, engine, _):
        barrier, made = threading.Barrier(8), list[Job]()

        def post() -> None:
            barrier.wait()
            made.append(start_once(jobs, "key", request(), "continue")[0])

        threads = [threading.Thread(target=post) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert len(made) == 8
        assert len({job.id for job in made}) == 1
        assert engine.num_open == 1


def test_while_a_job_is_made_its_key_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with jobs_of() as (jobs, engine, _):
        submit = engine.submit
        made: list[Job] = []
        other = threading.Thread(target=lambda: made.append(start_once(jobs, "key", request(), "continue")[0]))

        def submit_and_be_overtaken(sequence: Sequence) -> None:
            if other.ident is None:
                other.start()
                other.join(0.05)  # it has to wait for us
            submit(sequence)

        monkeypatch.setattr(engine, "submit", submit_and_be_overtaken)
        made.append(start_once(jobs, "key", request(), "continue")[0])
        other.join(WAIT_S)
        assert made[0] is made[1]
        assert engine.num_open == 1


def test_a_request_that_is_sent_again_needs_no_room() -> None:
    with jobs_of(max_slots=1, max_queue=0) as (jobs, _, _runner):
        job, _ = start_once(jobs, "key", request(), "continue")
        assert start_once(jobs, "key", request(), "continue") == (job, True)


def test_of_two_that_encode_with_one_key_the_later_gets_the_job_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """And meanwhile the lock around the keys is free: a greenlet that waited for it would stop everybody."""
    with jobs_of() as (jobs, engine, _):
        encode = engine.model.tokenizer.encode
        made: list[Job] = []

        def encode_and_be_overtaken(text: str, *options: Any) -> list[int]:
            assert jobs._keys_lock.acquire(False)
            jobs._keys_lock.release()
            monkeypatch.setattr(engine.model.tokenizer, "encode", encode)
            made.append(start_once(jobs, "key", request(), "continue")[0])
            return encode(text)

        monkeypatch.setattr(engine.model.tokenizer, "encode", encode_and_be_overtaken)
        later, is_known = start_once(jobs, "key", request(), "continue")
        assert is_known
        assert later is made[0]
        assert engine.num_open == 1


def test_the_key_of_a_job_that_was_just_forgotten_is_free() -> None:
    with jobs_of() as (jobs, _, _runner):
        first, _ = start_once(jobs, "key", request(), "continue")
        jobs.forget(first)
        again, is_known = start_once(jobs, "key", request("another"), "continue")
        assert not is_known
        assert again is not first


def test_keys_are_forgotten_with_their_jobs() -> None:
    with jobs_of() as (jobs, _, _runner):
        start_once(jobs, "kept", request(), "continue")
        job, _ = start_once(jobs, "forgotten", request(), "continue")
        jobs.forget(job)
        jobs.sweep()
        assert list(jobs._keyed) == [("", "kept")]


def test_a_key_that_comes_while_old_ones_are_forgotten_is_kept() -> None:
    with jobs_of() as (jobs, _, _runner):
        start_once(jobs, "old", request(), "continue")
        other = threading.Thread(target=jobs.start_once, args=("new", [request("another")], "continue"))

        class Watched(dict[str, Job]):
            def __contains__(self, job_id: object) -> bool:
                if other.ident is None:
                    other.start()
                    other.join(0.05)  # it has to wait for us
                return super().__contains__(job_id)

        jobs._jobs = Watched(jobs._jobs)
        jobs.sweep()
        other.join(WAIT_S)
        assert list(jobs._keyed) == [("", "old"), ("", "new")]


# ---- admission


def test_prompts_that_wait_are_bounded_in_tokens() -> None:
    with jobs_of(max_slots=1, max_queue=50, max_queue_tokens=100) as (jobs, engine, _):
        start(jobs, request("a"), "continue")
        wait_until(lambda: engine.num_running == 1)
        start(jobs, request("a" * 60), "continue")
        with pytest.raises(Overloaded, match="ENDSTOP_MAX_QUEUE_TOKENS") as refusal:
            start(jobs, request("a" * 60), "continue")
        assert refusal.value.retry_after_s is not None
        assert refusal.value.retry_after_s >= 1
        start(jobs, request("a" * 30), "continue")  # this one fits


def test_a_prompt_above_the_limit_is_accepted_when_nothing_waits() -> None:
    with jobs_of(max_slots=1, max_queue_tokens=10) as (jobs, engine, _):
        start(jobs, request("a" * 100), "continue")
        wait_until(lambda: engine.num_running == 1)
        start(jobs, request("a" * 100), "continue")


def test_a_full_server_refuses_before_it_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    with jobs_of(max_slots=1, max_queue=0) as (jobs, engine, _):
        start(jobs, request(), "continue")
        tokenizer = engine.model.tokenizer

        def encode(text: str) -> list[int]:
            raise AssertionError("a prompt was encoded for nothing")

        monkeypatch.setattr(tokenizer, "encode", encode)
        with pytest.raises(Overloaded):
            start(jobs, request(), "continue")


@pytest.mark.parametrize(
    "fields",
    [{"prompt": "a" * 1_000_000}, {"prompt": None, "messages": [Message(role="user", content="a" * 1_000_000)]}],
)
def test_what_is_far_too_long_is_refused_and_not_encoded(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 MB took 2 s, of a native lock that every other request waited for."""
    with jobs_of() as (jobs, engine, _):

        def encode(*args: object) -> list[int]:
            raise AssertionError("a prompt was encoded for nothing")

        monkeypatch.setattr(engine.model.tokenizer, "_encode", encode)
        with pytest.raises(InvalidRequest, match="at least") as refusal:
            start(jobs, request(**fields), "continue")
        assert [error.field for error in refusal.value.errors] == ["messages" if "messages" in fields else "prompt"]
        assert "so send at most 511" in refusal.value.message


def test_only_what_is_long_is_encoded_aside_and_what_is_very_long_further_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with jobs_of(max_queue=20) as (jobs, engine, _):
        places: list[str] = []

        class Noting:
            def __init__(self, name: str) -> None:
                self.name = name

            def run(self, work: Callable[[], Any]) -> Any:
                places.append(self.name)
                return work()

        jobs._encoder._aside, jobs._encoder._far_aside = Noting("aside"), Noting("far")
        monkeypatch.setattr(engine.model.tokenizer, "_encode", lambda text, add_special_tokens: [5])
        monkeypatch.setattr(engine.model.tokenizer, "_span", 10**6)
        for length in (SHORT_CHARACTERS, SHORT_CHARACTERS + 1, LONG_CHARACTERS, LONG_CHARACTERS + 1):
            start(jobs, request("a" * length), "continue")
        assert places == ["aside", "aside", "far"]
        places.clear()
        many = [Message(role="user", content="a")] * 100
        start(jobs, request(prompt=None, messages=many), "continue")  # a template has work with each
        assert places == ["aside"]
        places.clear()
        monkeypatch.setattr(engine.model.tokenizer, "is_shareable", False)
        for length in (1, LONG_CHARACTERS + 1):
            start(jobs, request("a" * length), "continue")
        assert places == ["aside", "aside"], "a tokenizer in plain Python is used by one thread at a time"


def test_a_default_never_makes_a_request_too_long() -> None:
    with jobs_of(max_queue=20) as (jobs, _, _runner):

        def limit(*, prompt: str, max_tokens: int | None) -> int:
            job = start(jobs, request(prompt, max_tokens=max_tokens), "continue", 16)
            sequence = job._sequence()
            assert sequence is not None
            return sequence.params.max_tokens

        assert limit(prompt="a", max_tokens=None) == 16
        assert limit(prompt="a" * 506, max_tokens=None) == 6
        assert limit(prompt="a", max_tokens=100) == 100


def test_a_limit_of_many_digits_is_not_repeated_whole() -> None:
    with jobs_of() as (jobs, _, _runner), pytest.raises(InvalidRequest) as refusal:
        start(jobs, request(max_tokens=10**4000), "continue")
    assert len(refusal.value.message) < 300


def test_who_waits_is_told_each_place_on_the_way() -> None:
    with jobs_of(max_slots=1, max_queue=4) as (jobs, engine, runner):
        for _ in range(3):
            start(jobs, request(), "continue")
        last = start(jobs, request(narrate=True), "continue")
        wait_until(lambda: engine.num_running == 1)
        runner.open()
        said = [event.human for _, event in read_to_the_end(last) if isinstance(event, Narration)]
        places = [human for human in said if human.startswith("queued")]
        assert places[-3:] == ["queued at position 3", "queued at position 2", "queued at position 1"]
        assert said[len(places)].startswith("prefilling ")


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"prompt": "a" * 600}, "prompt"),
        ({"max_tokens": 600}, "max_tokens"),
        ({"deadline_s": 10**6}, "deadline_s"),
    ],
)
def test_what_can_never_fit_is_refused(fields: dict[str, Any], bad: str) -> None:
    with jobs_of() as (jobs, engine, _):
        with pytest.raises(InvalidRequest) as refusal:
            start(jobs, request(**fields), "continue")
        assert [error.field for error in refusal.value.errors] == [bad]
        assert engine.num_open == 0


def test_a_prompt_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with jobs_of() as (jobs, engine, _):
        monkeypatch.setattr(engine.model.tokenizer, "encode", lambda text, add_special_tokens: [])
        with pytest.raises(InvalidRequest, match="holds no token"):
            start(jobs, request(), "continue")


def test_only_a_job_that_ends_with_its_reader_has_deadlines_for_it() -> None:
    """One that goes on is looked after by the housekeeper, and may wait for a reader."""

    def limits(job: Job) -> tuple[float, float]:
        sequence = job._sequence()
        assert sequence is not None
        return sequence.deadlines.claim_s, sequence.deadlines.slow_consumer_s

    with jobs_of(claim_timeout_s=5.0, slow_consumer_s=6.0) as (jobs, _, _runner):
        assert limits(start(jobs, request(), "cancel")) == (5.0, 6.0)
        assert limits(start(jobs, request(), "continue")) == (math.inf, math.inf)
        assert limits(start(jobs, request(on_disconnect="continue"), "cancel")) == (math.inf, math.inf)


# ---- what is forgotten


def ended_jobs(jobs: Jobs, count: int) -> list[Job]:
    made = []
    for _ in range(count):
        job = start(jobs, request(max_tokens=5), "continue")
        read_to_the_end(job)
        made.append(job)
    return made


def is_kept(jobs: Jobs, job: Job) -> bool:
    jobs.sweep()
    try:
        jobs.get(job.id)
    except UnknownJob:
        return False
    return True


def state_after_sweep(jobs: Jobs, job: Job) -> str:
    jobs.sweep()
    return job.status().state


def test_ended_jobs_are_capped_in_number_and_the_oldest_goes_first() -> None:
    with jobs_of(max_ended_jobs=2) as (jobs, _, runner):
        runner.open()
        made = ended_jobs(jobs, 4)
        assert [is_kept(jobs, job) for job in made] == [False, False, True, True]


def test_ended_jobs_are_capped_in_bytes_and_the_oldest_goes_first() -> None:
    with jobs_of() as (jobs, _, runner):
        runner.open()
        made = ended_jobs(jobs, 4)
        assert all(job.num_bytes > 0 for job in made)
        jobs._settings = replace(jobs._settings, max_journal_bytes=made[2].num_bytes + made[3].num_bytes)
        assert [is_kept(jobs, job) for job in made] == [False, False, True, True]


def test_an_ended_job_is_forgotten_after_its_time() -> None:
    with jobs_of() as (jobs, _, runner):
        runner.open()
        old, young = ended_jobs(jobs, 2)
        assert old.ended_at is not None
        old.ended_at -= jobs._settings.job_ttl_s + 1
        assert [is_kept(jobs, job) for job in (old, young)] == [False, True]


def test_a_job_that_is_forgotten_is_forgotten_once_and_tells_its_sender() -> None:
    with jobs_of() as (jobs, _, _runner):
        job = start(jobs, request(), "continue")
        sequence = job._sequence()
        assert sequence is not None
        jobs.forget(job)
        assert sequence.sender.is_broken
        jobs.forget(job)
        with pytest.raises(UnknownJob):
            jobs.get(job.id)


def test_a_job_that_somebody_reads_is_not_forgotten_with_another_reader() -> None:
    with jobs_of() as (jobs, _, runner):
        job = start(jobs, request(), "cancel")
        one, other = job.read(), job.read()
        one.close()
        jobs.forget_unread(job)
        assert jobs.get(job.id) is job
        runner.open()
        events: list[Event] = []
        while not other.is_done:
            events += [event for _, event in other.read(WAIT_S)]
        assert isinstance(events[-1], End)
        other.close()
        jobs.forget_unread(job)
        with pytest.raises(UnknownJob, match="has been replaced"):
            jobs.get(job.id)


def test_who_reads_a_job_that_is_forgotten_is_told_an_ending() -> None:
    """Who came just then. What waited is lost, so nothing may say that the answer is whole."""
    with jobs_of() as (jobs, _, _runner):
        job = start(jobs, request(), "continue")
        reader = job.read()
        assert [number for number, _ in reader.read(WAIT_S)] == [0]
        jobs.forget(job)
        ((number, terminal),) = reader.read(WAIT_S)
        assert number == 1
        assert isinstance(terminal, Failure)
        assert (terminal.code, terminal.usage.prompt_tokens) == ("INCOMPLETE", job.num_prompt_tokens)
        assert reader.is_done
        reader.close()


def test_a_job_that_runs_is_never_forgotten() -> None:
    with jobs_of(max_ended_jobs=0, max_journal_bytes=0, job_ttl_s=0.0) as (jobs, _, _runner):
        job = start(jobs, request(), "continue")
        assert is_kept(jobs, job)


def test_a_job_without_readers_is_cancelled_after_its_time() -> None:
    with jobs_of(orphan_ttl_s=0.01) as (jobs, _, runner):
        job = start(jobs, request(max_tokens=500), "continue")
        with_reader = start(jobs, request(max_tokens=500), "continue")
        reader = with_reader.read()
        runner.pace_s = 0.02
        runner.open()
        wait_until(lambda: state_after_sweep(jobs, job) == "CANCELLED")
        assert with_reader.status().state == "RUNNING"
        reader.close()
        wait_until(lambda: state_after_sweep(jobs, with_reader) == "CANCELLED")


def test_looking_at_a_job_does_not_look_like_reading_it() -> None:
    """Or a reader that is too slow, and a stream that nobody ever reads, would never be noticed."""
    with jobs_of() as (jobs, _, runner):
        job = start(jobs, request(max_tokens=500), "cancel")
        sequence = job._sequence()
        assert sequence is not None
        runner.allow(2)
        wait_until(lambda: sequence.sender.statistics().num_waiting == 2)
        jobs.sweep()
        assert job.status().state == "RUNNING"
        statistics = sequence.sender.statistics()
        assert statistics.num_waiting == 2
        assert statistics.last_take_at is None
        assert statistics.waiting_since is not None


# ---- the journal


class FakeEngine:
    """What a job asks of the engine."""

    def __init__(self) -> None:
        self.cancelled_by: list[str] = []

    def cancel(self, sequence: object, by: str) -> None:
        self.cancelled_by.append(by)


def test_a_reader_that_is_closed_from_outside_does_not_sleep_on_whenever_that_comes() -> None:
    """Found by the model (CLOSED_BEFORE_ARM): who looks first and arms then sleeps through what came in between."""
    with jobs_of() as (jobs, _, _):
        job = start(jobs, request(), "continue")
        reader = job.read(after=0)
        waiter = InterruptedWaiter(reader.close)
        reader._waiter = waiter
        assert reader.read(0.01) == []
        assert waiter.num_waits == 0


END = End(StopReason.EOS, Usage(1, 1), 0.0)


def lone_job(
    on_disconnect: OnDisconnect = "continue", wakeup: Wakeup | None = None
) -> tuple[Job, Sequence, FakeEngine]:
    """A job whose engine only notes who cancels."""
    reply = new_sequence([1])
    engine = FakeEngine()
    known_as: Any = engine
    job = Job(
        Started("job", "model", "now"),
        reply.sequence,
        reply.receiver,
        known_as,
        wakeup or ThreadWakeup(),
        on_disconnect,
    )
    return job, reply.sequence, engine


def test_a_job_does_not_keep_a_forgotten_stream_open() -> None:
    job, sequence, engine = lone_job()
    assert job.status().state == "QUEUED"
    del sequence
    status = job.status()
    assert status.state == "FAILED"
    assert isinstance(status.terminal, Failure)
    assert status.terminal.code == "INCOMPLETE"
    job.cancel("delete")
    assert engine.cancelled_by == []


def test_only_the_last_reader_who_leaves_cancels() -> None:
    job, _sequence, engine = lone_job("cancel")
    first, second = job.read(), job.read()
    first.close()
    first.close()
    assert engine.cancelled_by == []
    second.close()
    assert engine.cancelled_by == ["client"]


def test_who_has_been_told_the_end_does_not_cancel_by_leaving() -> None:
    job, sequence, engine = lone_job("cancel")
    reader = job.read()
    sequence.sender.close(END)
    reader.close()
    assert engine.cancelled_by == []


def test_a_job_that_is_to_go_on_is_not_cancelled_by_leaving() -> None:
    job, _sequence, engine = lone_job("continue")
    job.read().close()
    assert engine.cancelled_by == []


def test_the_time_without_readers_begins_when_the_last_one_leaves() -> None:
    job, _sequence, engine = lone_job()
    job._unread_since -= 1000
    reader = job.read()
    job.expire(time.monotonic(), orphan_ttl_s=500)
    reader.close()
    job.expire(time.monotonic(), orphan_ttl_s=500)
    assert engine.cancelled_by == []
    job.expire(time.monotonic() + 501, orphan_ttl_s=500)
    assert engine.cancelled_by == ["orphan"]


def test_a_job_that_is_detached_is_no_orphan() -> None:
    job, _sequence, engine = lone_job()
    job.is_detached = True
    job.expire(time.monotonic() + 501, orphan_ttl_s=500)
    assert engine.cancelled_by == []


def test_what_is_kept_with_a_job_weighs_and_the_first_of_it_stays() -> None:
    """Of two requests with one idempotency key the first has made the job."""
    job, _sequence, _engine = lone_job()
    job.keep("first", 100)
    job.keep("second", 1000)
    assert job.note == "first"
    assert job.num_bytes == 100


def test_who_waits_for_the_end_takes_nothing_and_is_woken_by_it() -> None:
    job, sequence, _engine = lone_job()
    sequence.sender.send(Token("a", 0))
    job.wait_end(0.01)
    waiting = threading.Thread(target=job.wait_end, args=(WAIT_S,))
    waiting.start()
    wait_until(lambda: len(sequence.sender._shared.listeners) == 1)
    sequence.sender.close(END)
    waiting.join(WAIT_S / 2)
    assert not waiting.is_alive()
    assert sequence.sender.statistics().num_waiting == 1
    assert sequence.sender._shared.listeners == ()
    assert job.events()[1:] == [Token("a", 0), END]


@pytest.mark.parametrize("who", ["read", "expire"])
def test_between_taking_and_writing_down_nobody_looks(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who did would find neither, and sleep through the last event."""
    job, sequence, _ = lone_job()
    early, late = job.read(0), job.read(0)
    sequence.sender.send(Token("a", 0))
    sequence.sender.close(END)
    append = job._append
    seen: list[tuple[int, Event]] = []
    other = threading.Thread(target=lambda: seen.extend(late.read(0)))

    def append_and_be_overtaken(events: list[Event]) -> None:
        if other.ident is None:
            other.start()
            other.join(0.05)  # it has to wait for us
        append(events)

    monkeypatch.setattr(job, "_append", append_and_be_overtaken)
    takes: dict[str, Callable[[], object]] = {"read": lambda: early.read(0), "expire": lambda: job.expire(0.0, 1e9)}
    takes[who]()
    other.join(WAIT_S)
    assert seen == [(1, Token("a", 0)), (2, END)]
    assert late.is_done


def test_an_event_between_the_look_and_the_sleep_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    job, sequence, _ = lone_job(wakeup=SleeplessWakeup(at_sleep=lambda: None))
    reader = job.read(0)
    look = job._events_from
    num_looks = 0

    def look_and_be_overtaken(number: int) -> tuple[list[Event], bool]:
        nonlocal num_looks
        found = look(number)
        num_looks += 1
        if num_looks == 1:
            sequence.sender.send(Token("a", 0))
        return found

    monkeypatch.setattr(job, "_events_from", look_and_be_overtaken)
    assert reader.read(WAIT_S) == [(1, Token("a", 0))]


def test_who_comes_back_with_the_last_number_does_not_wait() -> None:
    job, sequence, _ = lone_job(wakeup=SleeplessWakeup(at_sleep=lambda: None))
    sequence.sender.close(END)
    last = read_to_the_end(job)[-1][0]
    reader = job.read(last)
    assert reader.read(WAIT_S) == []
    assert reader.is_done


def test_looking_is_not_waiting() -> None:
    job, _sequence, _ = lone_job(wakeup=SleeplessWakeup(at_sleep=lambda: None))
    assert job.read(0).read(0) == []


def test_a_close_ends_a_read_in_another_thread() -> None:
    shown = ShownWakeup(ThreadWakeup())
    job, _sequence, _ = lone_job(wakeup=shown)
    reader = job.read(0)
    reading = start_consumer(lambda: reader.read(WAIT_S))
    shown.wait_until_asleep()
    reader.close()
    assert reading.result() == []


def test_a_reader_who_has_left_is_not_woken_any_more() -> None:
    class LookingWakeup:
        def new_waiter(self) -> LookingWaiter:
            return LookingWaiter(lambda: woken.append("woken"))

    woken: list[str] = []
    job, sequence, _ = lone_job(wakeup=LookingWakeup())
    reader = job.read(0)
    sequence.sender.send(Token("a", 0))
    reader.close()
    woken.clear()
    sequence.sender.send(Token("b", 1))
    assert woken == []


class Journal(RuleBasedStateMachine):
    """One writer, many readers that come, leave, read and come back, in any order.

    Every reader sees the journal from where it began: the same events under the same numbers, none twice, none left
    out, the terminal event last and once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sender: SendChannel[Event, Terminal]
        receiver: ReceiveChannel[Event, Terminal]
        dropped = Failure("INCOMPLETE", "dropped", Usage(0, 0))
        self.sender, receiver = open_channel(ThreadWakeup(), dropped, merge_waiting)
        self.sequence = new_sequence([1]).sequence
        engine: Any = FakeEngine()
        started = Started("job", "model", "now")
        self.job = Job(started, self.sequence, receiver, engine, ThreadWakeup(), "continue")
        self.numbers: dict[int, Event] = {}  # what any reader has ever seen under a number
        self.readers: list[tuple[JobReader, int]] = []  # and the number that it is to see next
        self.text = ""  # everything that was sent
        self.num_tokens = 0
        self.is_closed = False

    @precondition(lambda self: not self.is_closed)
    @rule(text=st.text(min_size=1, max_size=3))
    def send(self, text: str) -> None:
        self.sender.send(Token(text, self.num_tokens))
        self.num_tokens += 1
        self.text += text

    @precondition(lambda self: not self.is_closed)
    @rule(is_dropped=st.booleans())
    def close(self, is_dropped: bool) -> None:
        self.is_closed = True
        if is_dropped:
            del self.sender
        else:
            self.sender.close(End(StopReason.EOS, Usage(1, self.num_tokens), 0.0))

    @rule(data=st.data())
    def come(self, data: st.DataObject) -> None:
        """From the start, or behind an event that somebody has seen."""
        after = data.draw(st.sampled_from([-1, *self.numbers]))
        self.readers.append((self.job.read(after), after + 1))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.readers) - 1))
        reader, expected = self.readers[place]
        for number, event in reader.read(0):
            assert number == expected
            assert self.numbers.setdefault(number, event) == event
            expected += 1
        self.readers[place] = reader, expected

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        reader, _ = self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1)))
        reader.close()
        reader.close()
        assert reader.read(0) == []

    @rule()
    def look(self) -> None:
        assert (self.job.status().terminal is not None) == self.is_closed

    @rule(ahead=st.integers(0, 5))
    def come_from_the_future(self, ahead: int) -> None:
        self.job.status()  # everything that was sent is written down now
        with pytest.raises(InvalidRequest):
            self.job.read(len(self.job._journal) + ahead)

    @invariant()
    def readers_are_counted(self) -> None:
        assert self.job._num_readers == len(self.readers)

    def teardown(self) -> None:
        if not self.is_closed:
            self.close(is_dropped=False)
        whole = [event for _, event in read_to_the_end(self.job)]
        assert isinstance(whole[0], Started)
        assert [isinstance(event, End | Failure) for event in whole] == [False] * (len(whole) - 1) + [True]
        tokens = [event for event in whole if isinstance(event, Token)]
        assert "".join(token.text for token in tokens) == self.text
        assert sum(token.count for token in tokens) == self.num_tokens
        for reader, expected in self.readers:
            rest = reader.read(0)
            assert [event for _, event in rest] == whole[expected:]
            assert reader.is_done
            assert reader.read(0) == []


TestJournal = Journal.TestCase
TestJournal.settings = hypothesis_settings(
    derandomize=True, database=None, deadline=None, max_examples=150, stateful_step_count=40
)
