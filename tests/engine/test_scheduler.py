"""The laws of scheduling, against any order of arrivals, steps and departures."""

import time
from collections import Counter
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

from tests.support.blocks import TokenCache
from tests.support.engines import PATIENT
from worker.engine.endings import INCOMPLETE
from worker.engine.kv_cache import ROOT, BlockPool
from worker.engine.scheduler import MIN_PREFILL_TOKENS, Row, Scheduler
from worker.engine.sequence import Sequence, SequenceState
from worker.events import Event, Terminal
from worker.request import SamplingParams
from worker.streams.channel import SendChannel, open_channel
from worker.streams.wakeup import ThreadWakeup

MAX_OUTPUT = 54  # with the longest prompt it is what the smallest cache holds

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=80, stateful_step_count=40)


class NoText:
    """Nothing here is decoded."""

    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def sequence(num_prompt: int, name: str = "a", first: int = 0) -> Sequence:
    sender: SendChannel[Event, Terminal]
    sender, _ = open_channel(ThreadWakeup(), INCOMPLETE)
    prompt_ids = [first, *range(1, num_prompt)]
    return Sequence(name, prompt_ids, SamplingParams(max_tokens=99), sender, NoText(), PATIENT)


def new_scheduler(max_running: int, step_tokens: int, num_blocks: int = 100) -> Scheduler:
    scheduler = Scheduler(max_running, step_tokens)
    scheduler.pool = BlockPool(num_blocks)
    return scheduler


def advance(scheduler: Scheduler, rows: list[Row], is_sharing: bool = True) -> None:
    """What the engine does with a step that went well."""
    for row in rows:
        scheduler.computed(row)
        if row.is_sampled:
            if is_sharing:
                scheduler.publish(row.sequence)
            row.sequence.append(1000 + len(row.sequence.output_ids), time.monotonic())


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler as the engine does and holds every step against the laws."""

    alive = Bundle("alive")

    @initialize(
        max_running=st.integers(1, 4),
        step_tokens=st.sampled_from([16, 17, 24, 64]),
        num_blocks=st.sampled_from([9, 10, 13, 40]),  # 9 are what the longest sequence needs
        is_sharing=st.booleans(),
        num_output=st.sampled_from([3, MAX_OUTPUT]),
    )
    def start(self, max_running: int, step_tokens: int, num_blocks: int, is_sharing: bool, num_output: int) -> None:
        self.max_running = max_running
        self.step_tokens = step_tokens
        self.is_sharing = is_sharing
        self.num_output = num_output
        self.scheduler = Scheduler(max_running, step_tokens)
        self.scheduler.pool = BlockPool(num_blocks)
        self.arrived: list[Sequence] = []
        self.cache = TokenCache()

    @rule(target=alive, num_prompt=st.sampled_from([1, 2, 15, 16, 17, 33, 40, 90]), first=st.sampled_from([0, 0, 7]))
    def add(self, num_prompt: int, first: int) -> Sequence:
        new = sequence(num_prompt, str(len(self.arrived)), first)
        self.scheduler.add(new)
        self.arrived.append(new)
        assert new.state is SequenceState.WAITING
        return new

    @rule(target=alive, gone=consumes(alive))
    def remove(self, gone: Sequence) -> object:
        for _ in range(2):  # a second time changes nothing
            self.scheduler.remove(gone)
            assert (gone.state, gone.blocks) == (SequenceState.FINISHED, [])
            assert gone not in self.scheduler.sequences()
        if gone in self.arrived:
            self.arrived.remove(gone)
        return multiple()

    @rule()
    def step(self) -> None:
        self._step()

    def _step(self) -> None:
        scheduler = self.scheduler
        waiting = list(scheduler.waiting)
        was_running = list(scheduler.running)
        decoding = [s for s in was_running if s.num_tokens - s.num_computed == 1]
        prefilling = [s for s in was_running if s not in decoding]
        rows = scheduler.schedule()
        row_of = {row.sequence: row for row in rows}
        assert len(row_of) == len(rows), "two rows of one sequence"
        given_way = [s for s in was_running if s not in scheduler.running]

        # every running sequence that has one token to go gets a row, but the youngest, who gave way
        assert all(s in row_of for s in decoding if s not in given_way)
        assert given_way == was_running[len(was_running) - len(given_way) :]
        if was_running and was_running[0] in decoding:
            assert was_running[0] in row_of, "the oldest does not advance"

        # the budget holds, and is not left lying while there is something to prefill
        prefills = [row for row in rows if row.sequence not in decoding or row.sequence in given_way]
        num_decodes = len(rows) - len(prefills)
        budget = max(self.step_tokens - num_decodes, MIN_PREFILL_TOKENS)
        num_prefilled = sum(len(row.token_ids) for row in prefills)
        assert num_prefilled <= budget
        if num_prefilled < budget:
            assert all(s.num_computed + len(row_of[s].token_ids) == s.num_tokens for s in prefilling if s in row_of)
            is_full = len(scheduler.running) == self.max_running
            assert not scheduler.waiting or is_full or scheduler.running, "room for the first, and it waits"

        # first come, first served: prompts advance in the order of arrival, only the last one may be cut
        order = [row.sequence for row in prefills]
        kept = [s for s in prefilling if s not in given_way]
        assert order == (kept + given_way + waiting)[: len(order)]
        assert all(row.end == row.sequence.num_tokens for row in prefills[:-1])

        for row in rows:
            assert row.blocks == row.sequence.blocks
            assert row.start == row.sequence.num_computed
            assert row.is_sampled == (row.end == row.sequence.num_tokens)
            assert row.token_ids == row.sequence.tokens(row.start, row.end) != []
        self.cache.compute(rows)
        advance(scheduler, rows, self.is_sharing)
        self._end_those_of(MAX_OUTPUT)

    def _end_those_of(self, num_output: int) -> None:
        for one in [one for one in self.arrived if len(one.output_ids) >= num_output]:
            self.scheduler.remove(one)
            self.arrived.remove(one)

    @invariant()
    def blocks_are_owned_by_who_runs(self) -> None:
        scheduler = self.scheduler
        owners = Counter(block for s in scheduler.running for block in s.blocks)
        assert scheduler.pool.num_free == scheduler.pool.num_blocks - len(owners)
        assert self.is_sharing or all(number == 1 for number in owners.values())
        assert all(scheduler.pool._num_owners[block] == number for block, number in owners.items())
        assert len(scheduler.running) <= self.max_running
        pool = scheduler.pool
        assert {block: key for key, block in pool._block_of.items()} == pool._key_of, "a block has one content"
        assert all(s.state is SequenceState.RUNNING and s.scheduled_at is not None for s in scheduler.running)
        assert all(s.state is SequenceState.WAITING and not s.blocks for s in scheduler.waiting)

    @invariant()
    def everyone_is_in_one_place_in_the_order_of_arrival(self) -> None:
        assert self.scheduler.sequences() == self.arrived

    def teardown(self) -> None:
        """Nobody starves: with nothing new coming, everyone gets an answer while earlier ones leave.

        Long answers outgrow the cache here, and hardly ever before: the youngest have to give way.
        """
        if not hasattr(self, "scheduler"):
            return
        for _ in range(1000):
            if not self.arrived:
                break
            self._step()
            self._end_those_of(self.num_output)
            self.blocks_are_owned_by_who_runs()
            self.everyone_is_in_one_place_in_the_order_of_arrival()
        assert not self.arrived, "somebody starves"
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_blocks


@pytest.mark.slow
def test_the_laws_hold_in_any_order_of_events() -> None:
    run_state_machine_as_test(SchedulerMachine, settings=repeatable)


def lengths(rows: Iterable[Row]) -> list[tuple[str, int, int]]:
    return [(row.sequence.request_id, row.start, row.end) for row in rows]


def test_a_long_prompt_is_cut_and_does_not_stop_the_decodes() -> None:
    scheduler = new_scheduler(2, 20)
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
    scheduler = new_scheduler(20, 16)
    for _ in range(16):
        scheduler.add(sequence(1))
    advance(scheduler, scheduler.schedule())
    scheduler.add(sequence(100, "late"))
    rows = scheduler.schedule()
    assert lengths(rows)[-1] == ("late", 0, MIN_PREFILL_TOKENS)
    assert len(rows) == 17


def test_who_waits_gets_the_slot_of_who_left_in_the_next_step() -> None:
    scheduler = new_scheduler(1, 16)
    first, second = sequence(1, "first"), sequence(1, "second")
    scheduler.add(first)
    scheduler.add(second)
    assert lengths(scheduler.schedule()) == [("first", 0, 1)]
    scheduler.remove(first)
    assert lengths(scheduler.schedule()) == [("second", 0, 1)]


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_leaving_in_every_state_gives_the_blocks_back(num_steps: int) -> None:
    """0: queued; 1: in the middle of its prompt; 2: prompt done; 3: decoding."""
    scheduler = new_scheduler(1, 16)
    only = sequence(30)
    scheduler.add(only)
    for _ in range(num_steps):
        advance(scheduler, scheduler.schedule())
    scheduler.remove(only)
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert scheduler.sequences() == []
    assert scheduler.schedule() == []


def test_nothing_to_do_is_no_rows() -> None:
    assert new_scheduler(2, 16).schedule() == []


# ---- blocks


def run(scheduler: Scheduler, *sequences: Sequence, num_steps: int = 1) -> None:
    for one in sequences:
        scheduler.add(one)
    for _ in range(num_steps):
        advance(scheduler, scheduler.schedule())


def test_a_prompt_that_begins_alike_is_not_computed_again() -> None:
    scheduler = new_scheduler(2, 64)
    first = sequence(40, "first")
    run(scheduler, first)
    scheduler.remove(first)
    second, other = sequence(35, "second"), sequence(35, "other", first=7)
    scheduler.add(second)
    scheduler.add(other)
    assert lengths(scheduler.schedule()) == [("second", 32, 35), ("other", 0, 35)]
    assert (second.num_cached, other.num_cached) == (32, 0)
    assert second.usage.cached_tokens == 32


def test_the_last_token_of_a_prompt_is_computed_though_all_of_it_is_known() -> None:
    scheduler = new_scheduler(2, 64)
    run(scheduler, sequence(32, "first"))
    scheduler.add(sequence(32, "second"))
    assert lengths(scheduler.schedule())[1] == ("second", 16, 32)


def test_what_is_known_is_shared_while_its_first_owner_still_runs() -> None:
    scheduler = new_scheduler(2, 64, num_blocks=5)
    first, second = sequence(40, "first"), sequence(40, "second")
    run(scheduler, first)
    run(scheduler, second)
    assert first.blocks[:2] == second.blocks[:2]
    assert first.blocks[2] != second.blocks[2]
    scheduler.remove(first)
    assert scheduler.pool.num_free == 2


def test_the_answer_of_one_turn_is_known_in_the_next() -> None:
    scheduler = new_scheduler(2, 64)
    first = sequence(20, "first")
    run(scheduler, first, num_steps=15)  # 20 of the prompt and 14 of the answer are computed
    scheduler.remove(first)
    second = sequence(0, "second")
    second.prompt_ids = [*first.prompt_ids, *first.output_ids, 5]
    scheduler.add(second)
    assert lengths(scheduler.schedule()) == [("second", 32, 36)]


def test_nothing_is_shared_before_it_has_proved_to_be_numbers() -> None:
    """A prompt in chunks has no logits before its last one."""
    scheduler = new_scheduler(2, 32)
    scheduler.add(sequence(60, "first"))
    scheduler.add(sequence(60, "second"))
    first_half = scheduler.schedule()
    advance(scheduler, first_half)
    assert lengths(first_half) == [("first", 0, 32)]
    assert lengths(scheduler.schedule()) == [("first", 32, 60), ("second", 0, 4)]


def test_when_the_cache_is_full_the_youngest_gives_way_and_loses_no_token() -> None:
    scheduler = new_scheduler(2, 64, num_blocks=4)
    old, young, late = sequence(20, "old"), sequence(14, "young"), sequence(1, "late")
    run(scheduler, old, young, late, num_steps=13)
    assert lengths(scheduler.schedule()) == [("old", 32, 33)]
    assert list(scheduler.waiting) == [young, late]
    assert (young.state, len(young.output_ids), scheduler.num_preempted) == (SequenceState.WAITING, 13, 1)
    scheduler.remove(old)
    rows = lengths(scheduler.schedule())
    assert rows == [("young", 16, 27), ("late", 0, 1)], "and finds what it had computed, while it is there"


def test_who_gave_way_publishes_from_its_beginning_again() -> None:
    """Else one block would have two contents, and be found under the first when it has been given to another."""
    scheduler = new_scheduler(2, 64, num_blocks=5)
    old, young = sequence(30, "old"), sequence(17, "young", first=7)
    run(scheduler, old, young, num_steps=20)
    assert scheduler.num_preempted == 1
    scheduler.remove(old)
    run(scheduler, num_steps=2)
    assert len(scheduler.pool._block_of) == len(scheduler.pool._key_of)


def test_who_does_not_fit_is_not_overtaken() -> None:
    scheduler = new_scheduler(3, 64, num_blocks=5)
    run(scheduler, sequence(20, "first"), sequence(60, "large"), sequence(1, "small"))
    assert [one.request_id for one in scheduler.running] == ["first"]


def test_who_starts_leaves_room_for_those_who_run() -> None:
    """Else the next step would take back what this one has given."""
    scheduler = new_scheduler(3, 64, num_blocks=3)
    run(scheduler, sequence(20, "first"), sequence(3, "second", first=7))
    assert [one.request_id for one in scheduler.running] == ["first"]


def test_who_cannot_start_owns_nothing() -> None:
    scheduler = new_scheduler(2, 64, num_blocks=4)
    first, twin = sequence(40, "first"), sequence(60, "twin")
    run(scheduler, first)
    run(scheduler, twin)
    assert twin.state is SequenceState.WAITING
    scheduler.remove(first)
    assert scheduler.pool.num_free == 4


def test_equal_blocks_behind_different_beginnings_are_not_equal() -> None:
    pool = BlockPool(4)
    first, second = pool.take(2), pool.take(2)
    same = [9] * 16
    pool.publish(first[1], pool.publish(first[0], ROOT, [1] * 16), same)
    pool.publish(second[0], ROOT, [2] * 16)
    assert pool.match([2] * 16 + same) == second[:1]


def test_the_beginning_of_a_text_is_remembered_longer_than_its_end() -> None:
    pool = BlockPool(3)
    blocks = pool.take(2)
    tokens = list(range(32))
    pool.publish(blocks[1], pool.publish(blocks[0], ROOT, tokens[:16]), tokens[16:])
    pool.release(blocks)
    pool.take(2)
    assert pool.match(tokens) == blocks[:1]


def test_who_was_used_last_is_forgotten_last() -> None:
    pool = BlockPool(2)
    one, two = pool.take(1), pool.take(1)
    pool.publish(one[0], ROOT, [1] * 16)
    pool.publish(two[0], ROOT, [2] * 16)
    pool.release(one)
    pool.release(two)
    pool.release(pool.match([1] * 16))
    assert pool.take(1) == two


def test_two_who_compute_the_same_at_once_are_one_for_those_who_come() -> None:
    pool = BlockPool(4)
    twins = pool.take(2)
    contents = {pool.publish(block, ROOT, [1] * 16) for block in twins}
    assert len(contents) == 1
    assert pool.match([1] * 16) == twins[:1]
    pool.release(twins)
    pool.release(twins[:1])
    assert pool.num_free == 4


def test_a_block_that_nobody_owns_cannot_be_given_back() -> None:
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.release(blocks)
    for wrong in (blocks, [0], [3]):
        with pytest.raises(ValueError, match="is not taken"):
            pool.release(wrong)
    with pytest.raises(IndexError, match="3 blocks are wanted and 2 are free"):
        pool.take(3)


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
