"""The laws of scheduling, against any order of arrivals, steps and departures."""

import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.support.engines import PATIENT
from worker.engine.endings import INCOMPLETE
from worker.engine.kv_cache import SlotPool
from worker.engine.scheduler import MIN_PREFILL_TOKENS, Row, Scheduler
from worker.engine.sequence import Sequence, SequenceState
from worker.events import Event, Terminal
from worker.request import SamplingParams
from worker.streams.channel import SendChannel, open_channel
from worker.streams.wakeup import ThreadWakeup

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=80, stateful_step_count=40)


class NoText:
    """Nothing here is decoded."""

    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def sequence(num_prompt: int, name: str = "a") -> Sequence:
    sender: SendChannel[Event, Terminal]
    sender, _ = open_channel(ThreadWakeup(), INCOMPLETE)
    return Sequence(name, list(range(num_prompt)), SamplingParams(max_tokens=99), sender, NoText(), PATIENT)


def advance(scheduler: Scheduler, rows: list[Row]) -> None:
    """What the engine does with a step that went well."""
    for row in rows:
        scheduler.computed(row)
        if row.is_sampled:
            row.sequence.append(1000 + len(row.sequence.output_ids), time.monotonic())


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler as the engine does and holds every step against the laws."""

    alive = Bundle("alive")

    @initialize(num_slots=st.integers(1, 4), step_tokens=st.sampled_from([16, 17, 24, 64]))
    def start(self, num_slots: int, step_tokens: int) -> None:
        self.num_slots = num_slots
        self.step_tokens = step_tokens
        self.scheduler = Scheduler(num_slots, step_tokens)
        self.arrived: list[Sequence] = []
        self.started: list[Sequence] = []
        self.computed: dict[Sequence, list[int]] = {}

    @rule(target=alive, num_prompt=st.sampled_from([1, 2, 15, 16, 17, 40, 90]))
    def add(self, num_prompt: int) -> Sequence:
        new = sequence(num_prompt, str(len(self.arrived)))
        self.scheduler.add(new)
        self.arrived.append(new)
        self.computed[new] = []
        assert new.state is SequenceState.WAITING
        return new

    @rule(target=alive, gone=consumes(alive))
    def remove(self, gone: Sequence) -> object:
        was_running = gone.state is SequenceState.RUNNING
        slot = gone.slot
        num_free = self.scheduler._slots.num_free
        assert self.scheduler.remove(gone) == (slot if was_running else -1)
        assert self.scheduler._slots.num_free == num_free + was_running
        assert (gone.state, gone.slot) == (SequenceState.FINISHED, -1)
        assert gone not in self.scheduler.sequences()
        assert self.scheduler.remove(gone) == -1, "a second time changes nothing"
        self.arrived.remove(gone)
        return multiple()

    @rule()
    def step(self) -> None:
        waiting = list(self.scheduler.waiting)
        decoding = [s for s in self.scheduler.running if s.num_tokens - s.num_computed == 1]
        prefilling = [s for s in self.scheduler.running if s not in decoding]
        rows = self.scheduler.schedule()
        row_of = {row.sequence: row for row in rows}
        assert len(row_of) == len(rows), "two rows of one sequence"

        # every running sequence that has one token to go gets a row
        assert all(s in row_of for s in decoding)

        # the budget holds, and is not left lying while there is something to prefill
        prefills = [row for row in rows if row.sequence not in decoding]
        budget = max(self.step_tokens - len(decoding), MIN_PREFILL_TOKENS)
        num_prefilled = sum(len(row.token_ids) for row in prefills)
        assert num_prefilled <= budget
        has_more = any(
            s.num_computed + len(row_of[s].token_ids if s in row_of else ()) < s.num_tokens for s in prefilling
        )
        if num_prefilled < budget:
            assert not has_more
            assert not self.scheduler.waiting or not self.scheduler._slots.num_free

        # first come, first served: prompts advance in the order of arrival, only the last one may be cut
        order = [row.sequence for row in prefills]
        assert order == (prefilling + waiting)[: len(order)]
        assert all(row.end == row.sequence.num_tokens for row in prefills[:-1])
        self.started += [s for s in order if s in waiting]

        # the oldest prompt always advances
        if prefilling:
            first = prefilling[0]
            assert len(row_of[first].token_ids) >= min(MIN_PREFILL_TOKENS, first.num_tokens - first.num_computed)

        for row in rows:
            assert row.slot == row.sequence.slot
            assert row.start == len(self.computed[row.sequence]) == row.sequence.num_computed
            self.computed[row.sequence] += row.token_ids
            assert row.is_sampled == (row.end == row.sequence.num_tokens)
            assert row.token_ids
        advance(self.scheduler, rows)

    @invariant()
    def slots_have_one_owner(self) -> None:
        running = self.scheduler.running
        slots = [s.slot for s in running]
        assert len(set(slots)) == len(slots)
        assert all(0 <= slot < self.num_slots for slot in slots)
        assert self.scheduler._slots.num_free == self.num_slots - len(slots)
        assert all(s.state is SequenceState.RUNNING and s.scheduled_at is not None for s in running)
        assert all(s.state is SequenceState.WAITING and s.slot == -1 for s in self.scheduler.waiting)

    @invariant()
    def everyone_is_in_one_place_in_the_order_of_arrival(self) -> None:
        assert self.scheduler.sequences() == [*self.scheduler.running, *self.scheduler.waiting] == self.arrived

    @invariant()
    def every_token_is_computed_once_in_order(self) -> None:
        for one, computed in self.computed.items():
            everything = [*one.prompt_ids, *one.output_ids]
            assert computed == everything[: len(computed)]

    def teardown(self) -> None:
        """Nobody starves: with nothing new coming, everyone gets an answer while earlier ones leave."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(400):
            if not self.arrived:
                break
            advance(self.scheduler, self.scheduler.schedule())
            for one in [one for one in self.arrived if len(one.output_ids) >= 3]:
                self.scheduler.remove(one)
                self.arrived.remove(one)
        assert not self.arrived, "somebody starves"
        assert self.scheduler._slots.num_free == self.num_slots


@pytest.mark.slow
def test_the_laws_hold_in_any_order_of_events() -> None:
    run_state_machine_as_test(SchedulerMachine, settings=repeatable)


def lengths(rows: Iterable[Row]) -> list[tuple[str, int, int]]:
    return [(row.sequence.request_id, row.start, row.end) for row in rows]


def test_a_long_prompt_is_cut_and_does_not_stop_the_decodes() -> None:
    scheduler = Scheduler(2, 20)
    first, second = sequence(3, "first"), sequence(50, "second")
    scheduler.add(first)
    scheduler.add(second)
    seen = []
    for _ in range(4):
        rows = scheduler.schedule()
        seen.append(lengths(rows))
        advance(scheduler, rows)
    assert seen == [
        [("first", 0, 3), ("second", 0, 17)],
        [("first", 3, 4), ("second", 17, 36)],
        [("first", 4, 5), ("second", 36, 50)],
        [("first", 5, 6), ("second", 50, 51)],
    ]


def test_prompts_advance_even_when_decodes_fill_the_budget() -> None:
    scheduler = Scheduler(20, 16)
    for _ in range(16):
        scheduler.add(sequence(1))
    advance(scheduler, scheduler.schedule())
    scheduler.add(sequence(100, "late"))
    rows = scheduler.schedule()
    assert lengths(rows)[-1] == ("late", 0, MIN_PREFILL_TOKENS)
    assert len(rows) == 17


def test_who_waits_gets_the_slot_of_who_left_in_the_next_step() -> None:
    scheduler = Scheduler(1, 16)
    first, second = sequence(1, "first"), sequence(1, "second")
    scheduler.add(first)
    scheduler.add(second)
    assert lengths(scheduler.schedule()) == [("first", 0, 1)]
    scheduler.remove(first)
    assert lengths(scheduler.schedule()) == [("second", 0, 1)]


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_leaving_in_every_state_gives_the_slot_back(num_steps: int) -> None:
    """0: queued; 1: in the middle of its prompt; 2: prompt done; 3: decoding."""
    scheduler = Scheduler(1, 16)
    only = sequence(30)
    scheduler.add(only)
    for _ in range(num_steps):
        advance(scheduler, scheduler.schedule())
    scheduler.remove(only)
    assert scheduler._slots.num_free == 1
    assert scheduler.sequences() == []
    assert scheduler.schedule() == []


def test_nothing_to_do_is_no_rows() -> None:
    assert Scheduler(2, 16).schedule() == []


# ---- slots


@repeatable
@given(st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=40))
def test_the_lowest_free_slot_is_taken(moves: list[int | None]) -> None:
    pool = SlotPool(4)
    free = set(range(4))
    for slot in moves:
        if slot is None:
            if free:
                assert pool.take() == min(free)
                free.remove(min(free))
            else:
                with pytest.raises(IndexError):
                    pool.take()
        elif slot in free or slot >= 4:
            with pytest.raises(ValueError, match="is not taken"):
                pool.give_back(slot)
        else:
            pool.give_back(slot)
            free.add(slot)
        assert pool.num_free == len(free)


# ---- the tokens of a sequence


@repeatable
@given(st.integers(1, 6), st.integers(0, 6), st.data())
def test_tokens_run_across_prompt_and_output(num_prompt: int, num_output: int, data: st.DataObject) -> None:
    one = sequence(num_prompt)
    for i in range(num_output):
        one.append(1000 + i, 0.0)
    everything = [*one.prompt_ids, *one.output_ids]
    start = data.draw(st.integers(0, len(everything)))
    stop = data.draw(st.integers(start, len(everything)))
    assert one.tokens(start, stop) == everything[start:stop]
    assert one.num_tokens == len(everything)
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (num_prompt, num_output)
    assert sum(one.output_counts.values()) == num_output
