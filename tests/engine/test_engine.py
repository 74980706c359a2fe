"""Everything that is submitted ends, once, with the right reason, and harms nobody else on the way."""

import _thread
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.streams.threads import LookingWaiter
from tests.support.bench import TOKENIZER, Bench, bench, code, end_of, ids, model_of, stop_reason, texts
from tests.support.engines import PATIENT, WAIT_S, Reply, new_sequence, wait_until
from tests.support.random_models import VOCAB_SIZE
from tests.support.runners import ScriptedRunner
from tests.support.waiters import InterruptedWaiter
from worker.engine.admission import EngineState
from worker.engine.endings import INCOMPLETE
from worker.engine.engine import Engine
from worker.engine.loader import LoadedModel, LoadingProgress
from worker.engine.scheduler import Row
from worker.engine.sequence import Deadlines, Sequence, SequenceState
from worker.errors import GenerationFailed, ModelLoadError, NotReady, Overloaded
from worker.events import End, Event, Failure, Metrics, Narration, StopReason, Token, Usage
from worker.observe.log import LogLine, Outcome
from worker.observe.watchdog import Phase, Stamp
from worker.settings import Settings
from worker.streams.channel import EndOfChannel, ReceiveChannel, SendChannel, open_channel
from worker.streams.narration import Narrator
from worker.streams.native import new_lock
from worker.streams.wakeup import ThreadWakeup

EOS = 2


# ---- endings


def test_max_tokens_is_a_length_stop() -> None:
    with bench() as b:
        reply = b.submit([5, 6], max_tokens=7)
        terminal = end_of(reply)
        assert isinstance(terminal, End)
        assert (terminal.stop_reason, terminal.usage) == (StopReason.MAX_TOKENS, Usage(2, 7))
        assert b.outcomes(reply) == ["end{MAX_TOKENS}"]


@pytest.mark.parametrize("last", [2, 300])
def test_every_eos_id_ends_and_none_has_text(last: int) -> None:
    with bench(ScriptedRunner({9: [*ids("the fox"), last]}), frozenset({2, 300})) as b:
        reply = b.submit([9], max_tokens=50)
        events = reply.events()
        terminal = events[-1]
        assert texts(events) == "the fox"
        assert isinstance(terminal, End)
        assert (terminal.stop_reason, terminal.stop_sequence_matched) == (StopReason.EOS, None)
        assert terminal.usage.completion_tokens == len(ids("the fox")) + 1
        assert b.outcomes(reply) == ["end{EOS}"]


def test_an_eos_as_the_last_allowed_token_is_an_eos() -> None:
    with bench(ScriptedRunner({9: [EOS]}), frozenset({EOS})) as b:
        assert stop_reason(b.submit([9], max_tokens=1)) is StopReason.EOS


def test_without_eos_ids_nothing_but_the_limit_ends() -> None:
    with bench(ScriptedRunner({9: [EOS]})) as b:
        assert stop_reason(b.submit([9], max_tokens=5)) is StopReason.MAX_TOKENS


def test_an_end_that_is_to_be_ignored_ends_nothing() -> None:
    with bench(ScriptedRunner({9: [*ids("the"), EOS, *ids("fox")]}), frozenset({EOS})) as b:
        reply = b.submit([9], max_tokens=len(ids("the")) + 1 + len(ids("fox")), ignore_eos=True)
        events = reply.events()
        assert texts(events) == "thefox"
        assert isinstance(events[-1], End)
        assert events[-1].stop_reason is StopReason.MAX_TOKENS


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_token_ends_without_its_text(ignore_eos: bool) -> None:
    last = ids("x")[0]
    with bench(ScriptedRunner({9: [*ids("the"), last, *ids("fox")]}), frozenset({EOS})) as b:
        reply = b.submit([9], max_tokens=50, stop_token_ids=frozenset({last}), ignore_eos=ignore_eos)
        events = reply.events()
        assert texts(events) == "the"
        assert isinstance(events[-1], End)
        assert (events[-1].stop_reason, events[-1].stop_sequence_matched) == (StopReason.STOP_SEQUENCE, None)
        assert events[-1].usage.completion_tokens == len(ids("the")) + 1


def test_before_so_many_tokens_neither_an_end_nor_a_stop_ends() -> None:
    """What may not be drawn yet is not; a stop string before is text, and one behind it a stop."""
    answer = ids("a b a b")
    with bench(ScriptedRunner({9: [*answer, EOS]}), frozenset({EOS})) as b:
        reply = b.submit([9], max_tokens=50, stop=("b",), min_tokens=len(ids("a b")))
        assert texts(reply.events()) == "a b a "
        reply = b.submit([9], max_tokens=len(answer) + 1, min_tokens=len(answer) + 1)
        assert stop_reason(reply) is StopReason.MAX_TOKENS
        assert EOS not in reply.sequence.output_ids
        assert stop_reason(b.submit([9], max_tokens=50, min_tokens=len(answer))) is StopReason.EOS


def test_a_stop_string_ends_without_leaking() -> None:
    with bench(ScriptedRunner({9: ids("the quick brown END of it")})) as b:
        reply = b.submit([9], max_tokens=50, stop=("brown END", "never"))
        events = reply.events()
        terminal = events[-1]
        assert texts(events) == "the quick "
        assert isinstance(terminal, End)
        assert (terminal.stop_reason, terminal.stop_sequence_matched) == (StopReason.STOP_SEQUENCE, "brown END")
        assert b.outcomes(reply) == ["end{STOP_SEQUENCE}"]


def test_a_stop_string_in_the_last_allowed_token_is_a_stop() -> None:
    answer = ids("a b")
    with bench(ScriptedRunner({9: answer})) as b:
        assert stop_reason(b.submit([9], max_tokens=len(answer), stop=("b",))) is StopReason.STOP_SEQUENCE


@pytest.mark.parametrize("eos_ids", [frozenset({EOS}), frozenset[int]()])
def test_what_was_held_back_is_released_at_the_end(eos_ids: frozenset[int]) -> None:
    """The beginning of a stop string, and half a character behind it."""
    for more, shown in (([], ""), (ids("é")[:1], "\ufffd")):
        answer = [*ids("the fo"), *more]
        with bench(ScriptedRunner({9: [*answer, EOS]}), eos_ids) as b:
            reply = b.submit([9], max_tokens=len(answer) + len(eos_ids), stop=("fox",))
            assert texts(reply.events()) == "the fo" + shown


def test_text_held_back_at_a_cancel_is_not_sent() -> None:
    """Nobody waits for it; what has been sent stays a prefix of the answer."""
    with bench(ScriptedRunner({9: ids("the fox")})) as b:
        b.gate.hold()
        reply = b.submit([9], max_tokens=500, stop=("the fox t",))
        b.gate.wait_until_held()
        b.engine.cancel(reply.sequence, "api")
        b.gate.open()
        assert stop_reason(reply) is StopReason.CANCELLED


def test_a_token_is_sent_in_the_step_that_made_it() -> None:
    with bench(ScriptedRunner({9: ids("abcdef")})) as b:
        b.gate.hold()
        reply = b.submit([9], max_tokens=3)
        for expected in "ab":
            b.gate.wait_until_held()
            b.gate.pass_and_hold()
            b.gate.wait_until_held()
            assert texts(reply.receiver.take()) == expected
        b.gate.open()
        assert texts(reply.events()) == "c"


def test_a_character_of_several_tokens_is_one_event_with_their_count() -> None:
    answer = ids("a🙂b")
    with bench(ScriptedRunner({9: answer})) as b:
        reply = b.submit([9], max_tokens=len(answer))
        tokens = [event for event in reply.events() if isinstance(event, Token)]
        assert tokens == [Token("a", 0, 1), Token("🙂", 1, 4), Token("b", 5, 1)]


def test_metrics_come_once_before_the_terminal() -> None:
    with bench() as b:
        reply = b.submit([5], max_tokens=5)
        events = reply.events()
        (metrics,) = [event for event in events if isinstance(event, Metrics)]
        assert events[-2] is metrics
        assert metrics.ttft_ms is not None
        assert metrics.ttft_ms >= metrics.queue_ms >= 0
        assert metrics.vram_bytes == 0
        assert metrics.tokens_per_sec > 0


def test_narration_says_what_happens_and_ends_with_the_stream() -> None:
    with bench() as b:
        words: SendChannel[Event, None]
        heard: ReceiveChannel[Event, None]
        words, heard = open_channel(ThreadWakeup(), None)
        reply = new_sequence([5, 6], tokenizer=TOKENIZER, max_tokens=3)
        reply.sequence.narrator = Narrator("job", words)
        b.engine.submit(reply.sequence)
        end_of(reply)
        said = heard.receive(WAIT_S)
        assert [one.action for one in said if isinstance(one, Narration)] == ["queued", "prefilling", "decoding"]
        with pytest.raises(EndOfChannel):
            heard.receive(WAIT_S)


# ---- company


def test_seeded_requests_are_the_same_alone_and_in_company() -> None:
    prompts = [[n, n + 1, n + 2] for n in range(3, 15)]
    kinds: list[dict[str, Any]] = [{}, {"top_k": 20}, {"top_p": 0.9, "repetition_penalty": 1.2}, {"temperature": 0.0}]
    params = [{"temperature": 1.0, "max_tokens": 12, "seed": n, **kinds[n % len(kinds)]} for n in range(len(prompts))]
    with bench() as b:
        alone = [b.alone(prompt, **chosen) for prompt, chosen in zip(prompts, params, strict=True)]
        assert alone == [b.alone(prompt, **chosen) for prompt, chosen in zip(prompts, params, strict=True)]
        b.gate.hold()
        replies = [b.submit(prompt, **chosen) for prompt, chosen in zip(prompts, params, strict=True)]
        b.gate.open()
        for reply in replies:
            end_of(reply)
        assert [reply.sequence.output_ids for reply in replies] == alone
        assert len({tuple(tokens) for tokens in alone}) == len(alone)


def test_without_a_seed_answers_differ() -> None:
    with bench() as b:
        answers = {tuple(b.alone([5], temperature=1.0, max_tokens=12)) for _ in range(4)}
        assert len(answers) == 4


def test_a_prompt_in_chunks_is_sampled_once() -> None:
    with bench(step_tokens=16) as b:
        expected = b.alone([5] * 50, max_tokens=4)
        assert len(expected) == 4
    with bench(step_tokens=512) as b:
        assert b.alone([5] * 50, max_tokens=4) == expected


def test_more_requests_than_slots_are_all_served_in_order() -> None:
    with bench(max_slots=2) as b:
        b.gate.hold()
        replies = [b.submit([n], max_tokens=3) for n in range(3, 13)]
        b.gate.open()
        assert [stop_reason(reply) for reply in replies] == [StopReason.MAX_TOKENS] * 10
        starts = [reply.sequence.scheduled_at for reply in replies]
        assert starts == sorted(starts, key=lambda at: at or math.inf)


# ---- faults of a row


def test_a_row_without_usable_logits_ends_alone() -> None:
    with bench() as b:
        expected = [b.alone([n], max_tokens=9) for n in (3, 5)]
        b.runner.is_poisoned = lambda row: row.sequence.prompt_ids == [4] and row.end == 3
        b.gate.hold()
        replies = [b.submit([n], max_tokens=9) for n in (3, 4, 5)]
        b.gate.open()
        assert code(replies[1]) == "INFERENCE_FAILED"
        assert replies[1].sequence.usage == Usage(1, 2)
        for reply in (replies[0], replies[2]):
            assert stop_reason(reply) is StopReason.MAX_TOKENS
        assert [replies[0].sequence.output_ids, replies[2].sequence.output_ids] == expected
        assert b.outcomes(*replies) == ["end{MAX_TOKENS}", "error{INFERENCE_FAILED}", "end{MAX_TOKENS}"]


class BrokenDetokenizer:
    """Works for two tokens."""

    def __init__(self, when: str) -> None:
        self._when = when
        self._num_pushed = 0

    def push(self, token_id: int) -> str:
        self._num_pushed += 1
        if self._when == "push" and self._num_pushed > 2:
            raise KeyError(token_id)
        return "x"

    def flush(self) -> str:
        if self._when == "flush":
            raise RuntimeError("Already borrowed")
        return ""


@pytest.mark.parametrize("when", ["push", "flush"])
def test_a_detokenizer_that_raises_ends_its_row_alone(when: str) -> None:
    with bench() as b:
        expected = b.alone([3], max_tokens=6)
        b.gate.hold()
        good = b.submit([3], max_tokens=6)
        bad = new_sequence([4], tokenizer=TOKENIZER, max_tokens=4)
        bad.sequence.detokenizer = BrokenDetokenizer(when)
        b.engine.submit(bad.sequence)
        b.gate.open()
        assert code(bad) == "INFERENCE_FAILED"
        assert stop_reason(good) is StopReason.MAX_TOKENS
        assert good.sequence.output_ids == expected
        assert "Traceback" in b.log()


def test_the_client_learns_the_kind_of_a_fault_and_the_log_all_of_it() -> None:
    with bench() as b:

        def fail(number: int, rows: list[Row]) -> None:
            raise ValueError("secret path /etc/model")

        b.runner.before_step = fail
        terminal = end_of(b.submit([3]))
        assert isinstance(terminal, Failure)
        assert "ValueError" in terminal.message
        assert "secret" not in terminal.message
        assert "secret path /etc/model" in b.log()


def test_a_stream_that_was_ended_from_outside_costs_only_its_own_row() -> None:
    """A body whose engine seemed stalled closes the stream itself; then the step comes back after all."""
    with bench() as b:
        b.gate.hold()
        given_up = b.submit([3], max_tokens=9)
        neighbour = b.submit([4], max_tokens=9)
        b.gate.wait_until_held()
        failure = Failure("ENGINE_DEAD", "a step has not come back", Usage(1, 0))
        assert given_up.sequence.sender.close(failure)
        b.gate.open()
        assert given_up.events() == [failure]
        assert stop_reason(neighbour) is StopReason.MAX_TOKENS
        assert b.engine.state is EngineState.READY
        b.alone([5])
        assert b.outcomes(given_up) == ["error{ENGINE_DEAD}"]
        assert "Traceback" not in b.log()


@pytest.mark.parametrize("when", ["queued", "cancelled"])
def test_a_stream_that_was_ended_from_outside_can_be_cancelled_and_overdue(when: str) -> None:
    with bench(max_slots=1) as b:
        b.gate.hold()
        occupant = b.submit([3], max_tokens=9)
        b.gate.wait_until_held()
        given_up = b.submit([4], replace(PATIENT, queue_s=0.01) if when == "queued" else PATIENT)
        given_up.sequence.sender.close(Failure("ENGINE_DEAD", "a step has not come back", Usage(1, 0)))
        if when == "cancelled":
            b.engine.cancel(given_up.sequence, "api")
        b.gate.open()
        assert stop_reason(occupant) is StopReason.MAX_TOKENS
        wait_until(lambda: given_up.sequence.state is SequenceState.FINISHED)
        assert b.engine.state is EngineState.READY
        assert len(b.outcomes(given_up)) == 1


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE])
def test_a_prompt_with_a_token_that_the_model_does_not_know_fails_alone(token_id: int) -> None:
    """No tokenizer that fits its model makes one; the embedding would fail the step of everybody."""
    with bench() as b:
        neighbour, unknown = b.submit_together([[3], [4, token_id]])
        terminal = end_of(unknown)
        assert isinstance(terminal, Failure)
        assert (terminal.code, terminal.usage) == ("INFERENCE_FAILED", Usage(2, 0))
        assert "does not know" in terminal.message
        assert stop_reason(neighbour) is StopReason.MAX_TOKENS


def test_requests_end_though_nobody_writes_the_log() -> None:
    with bench() as b:
        b.engine.records.close()

        def fail(number: int, rows: list[Row]) -> None:
            raise RuntimeError("which is logged")

        b.runner.before_step = fail
        assert code(b.submit([3])) == "INFERENCE_FAILED"
        b.runner.before_step = lambda number, rows: None
        assert stop_reason(b.submit([3])) is StopReason.MAX_TOKENS


# ---- faults of a step


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("shapes"), "INFERENCE_FAILED"),
        (torch.OutOfMemoryError("no memory"), "VRAM_OOM"),
        (MemoryError(), "VRAM_OOM"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."), "VRAM_OOM"),
        (IndexError("index out of range in self"), "INFERENCE_FAILED"),
    ],
)
@pytest.mark.parametrize("at_step", [1, 2, 4])
def test_a_fault_of_a_row_ends_that_row_alone(error: Exception, expected: str, at_step: int) -> None:
    """Which row it is nobody says: it fails with whoever is computed together with it."""
    with bench(max_slots=4) as b:
        alone = {n: b.alone([n], max_tokens=9) for n in (3, 4, 6, 7)}
        first_step = b.gate.num_arrived

        def fail(number: int, rows: list[Row]) -> None:
            if number >= first_step + at_step and any(row.sequence.prompt_ids == [5] for row in rows):
                raise error

        b.runner.before_step = fail
        at_fault, *others = b.submit_together([[5], [3], [4], [6], [7]], max_tokens=9)  # the last is queued
        assert code(at_fault) == expected
        assert at_fault.sequence.usage == Usage(1, at_step - 1)
        assert [stop_reason(reply) for reply in others] == [StopReason.MAX_TOKENS] * 4
        assert {reply.sequence.prompt_ids[0]: reply.sequence.output_ids for reply in others} == alone
        assert b.engine.state is EngineState.READY
        assert len(b.runner.forgotten) == 4 + 5, "and nothing is kept of anybody"
        assert b.outcomes(at_fault) == [f"error{{{expected}}}"]


def test_a_step_too_large_for_the_memory_is_computed_in_parts() -> None:
    with bench(max_slots=8) as b:
        alone = [b.alone([n], max_tokens=9) for n in range(3, 11)]

        def fail(number: int, rows: list[Row]) -> None:
            if len(rows) > 3:
                raise torch.OutOfMemoryError("no memory")

        b.runner.before_step = fail
        replies = b.submit_together([[n] for n in range(3, 11)], max_tokens=9)
        assert [stop_reason(reply) for reply in replies] == [StopReason.MAX_TOKENS] * 8
        assert [reply.sequence.output_ids for reply in replies] == alone


def test_what_a_failed_step_held_is_free_when_a_smaller_one_is_tried() -> None:
    class Large:
        """A tensor of the failed step."""

    alive = weakref.WeakSet[Large]()
    num_alive: list[int] = []
    with bench(max_slots=4) as b:

        def fail(number: int, rows: list[Row]) -> None:
            num_alive.append(len(alive))
            large = Large()
            alive.add(large)
            if len(rows) > 1:
                raise torch.OutOfMemoryError("no memory")

        b.runner.before_step = fail
        replies = b.submit_together([[n] for n in (3, 4, 5, 6)], max_tokens=1)
        assert [stop_reason(reply) for reply in replies] == [StopReason.MAX_TOKENS] * 4
    assert len(num_alive) > 4
    assert set(num_alive) == {0}


def test_a_step_in_many_parts_looks_between_them_who_has_left() -> None:
    runner = ScriptedRunner()
    runner.is_packed = False
    computed: list[int] = []
    with bench(runner, max_slots=4) as b:
        replies: list[Reply] = []

        def leave(number: int, rows: list[Row]) -> None:
            computed.extend(row.sequence.prompt_ids[0] for row in rows)
            b.engine.cancel(replies[1].sequence, "client")

        b.gate.hold()
        replies += b.submit_together([[3], [4], [5]], max_tokens=1)
        runner.before_step = leave
        b.gate.open()
        assert stop_reason(replies[1]) is StopReason.CANCELLED
        assert [stop_reason(replies[i]) for i in (0, 2)] == [StopReason.MAX_TOKENS] * 2
    assert sorted(computed) == [3, 5]


def test_a_fault_that_happens_once_costs_nobody_a_token() -> None:
    with bench(max_slots=2) as b:
        alone = [b.alone([n], max_tokens=9, temperature=1.0, seed=n) for n in (3, 4)]
        at_step = b.gate.num_arrived + 3

        def fail(number: int, rows: list[Row]) -> None:
            if number == at_step:
                raise RuntimeError("once")

        b.runner.before_step = fail
        b.gate.hold()
        replies = [b.submit([n], max_tokens=9, temperature=1.0, seed=n) for n in (3, 4)]
        b.gate.open()
        assert [stop_reason(reply) for reply in replies] == [StopReason.MAX_TOKENS] * 2
        assert [reply.sequence.output_ids for reply in replies] == alone


def test_a_runner_that_cannot_compute_rows_again_is_given_them_one_by_one() -> None:
    runner = ScriptedRunner()
    runner.is_packed = False
    sizes: list[int] = []
    runner.before_step = lambda number, rows: sizes.append(len(rows))
    with bench(runner, max_slots=4) as b:
        replies = b.submit_together([[3], [4], [5]])
        assert [stop_reason(reply) for reply in replies] == [StopReason.MAX_TOKENS] * 3
    assert set(sizes) == {1}


def test_a_lost_device_ends_everyone_and_the_process() -> None:
    """After a CUDA error everything that is tried on the device fails: to go on would fail every request to come."""
    with bench(max_slots=1) as b:
        was_told = threading.Event()
        b.engine.on_dead = was_told.set

        def fail(number: int, rows: list[Row]) -> None:
            raise torch.AcceleratorError("device-side assert triggered")

        b.gate.hold()
        replies = [b.submit([3]), b.submit([4])]
        b.runner.before_step = fail
        b.gate.open()
        assert [code(reply) for reply in replies] == ["ENGINE_DEAD"] * 2
        assert was_told.wait(WAIT_S)


def test_every_step_may_fail_and_requests_still_end() -> None:
    with bench() as b:

        def fail(number: int, rows: list[Row]) -> None:
            raise RuntimeError("always")

        b.runner.before_step = fail
        assert [code(b.submit([n])) for n in range(3, 13)] == ["INFERENCE_FAILED"] * 10
        b.runner.before_step = lambda number, rows: None
        assert stop_reason(b.submit([3])) is StopReason.MAX_TOKENS


# ---- faults of the loop


def test_a_fault_of_the_loop_ends_everyone_and_marks_the_engine_dead() -> None:
    with bench(max_slots=2) as b:
        has_died = threading.Event()
        b.engine.on_dead = has_died.set

        class Killed(BaseException):
            pass

        def die(number: int, rows: list[Row]) -> None:
            raise Killed("the loop")

        b.gate.hold()
        replies = [b.submit([n], max_tokens=9) for n in range(3, 7)]
        b.runner.before_step = die
        b.gate.open()
        assert [code(reply) for reply in replies] == ["ENGINE_DEAD"] * 4
        assert has_died.wait(WAIT_S)
        assert b.engine.state is EngineState.DEAD
        assert "Killed" in b.engine.reason
        assert "Killed" in b.engine.liveness()
        assert b.engine.num_open == 0
        assert b.outcomes(*replies) == ["error{ENGINE_DEAD}"] * 4
        with pytest.raises(NotReady) as refusal:
            b.submit([3])
        assert refusal.value.code == "DEAD"
        assert "Traceback" in b.log()


def test_who_came_while_the_last_step_ran_is_ended_too() -> None:
    with bench() as b:

        class Killed(BaseException):
            pass

        def die(number: int, rows: list[Row]) -> None:
            raise Killed("the loop")

        b.gate.hold()
        running = b.submit([3])
        b.gate.wait_until_held()
        late = b.submit([4])  # nobody has looked at it yet
        b.runner.before_step = die
        b.gate.open()
        assert [code(reply) for reply in (running, late)] == ["ENGINE_DEAD"] * 2


def test_while_a_dying_engine_ends_everyone_nothing_is_accepted() -> None:
    """Who came in now would be behind those that are ended, and wait for a thread that is gone."""
    with bench() as b:
        refusals: list[str] = []

        class Killed(BaseException):
            pass

        def die(number: int, rows: list[Row]) -> None:
            raise Killed("the loop")

        def try_to_come_in(blocks: list[int]) -> None:
            try:
                b.submit([4])
            except NotReady as refusal:
                refusals.append(refusal.code)

        b.runner.before_step = die
        b.runner.forget = try_to_come_in  # type: ignore[method-assign]
        assert code(b.submit([3])) == "ENGINE_DEAD"
        assert refusals == ["DEAD"]


def test_one_stream_that_cannot_be_ended_well_does_not_cost_the_others_their_ending() -> None:
    with bench() as b:

        class Killed(BaseException):
            pass

        def die(number: int, rows: list[Row]) -> None:
            raise Killed("the loop")

        def cannot_forget(blocks: list[int]) -> None:
            raise RuntimeError("the device is gone")

        b.runner.before_step = die
        b.runner.forget = cannot_forget  # type: ignore[method-assign]
        b.gate.hold()
        replies = [b.submit([n], max_tokens=9) for n in range(3, 6)]
        b.gate.open()
        assert [code(reply) for reply in replies] == ["ENGINE_DEAD"] * 3
        assert b.outcomes(*replies) == ["error{ENGINE_DEAD}"] * 3


def test_a_sequence_that_is_dropped_ends_as_incomplete() -> None:
    reply = new_sequence([3], tokenizer=TOKENIZER)
    receiver = reply.receiver
    reply.sequence = None  # type: ignore[assignment]
    with pytest.raises(EndOfChannel) as end:
        receiver.receive(WAIT_S)
    assert end.value.reason == INCOMPLETE
    assert INCOMPLETE.code == "INCOMPLETE"


# ---- cancel


def test_a_cancel_while_queued_ends_within_a_step() -> None:
    with bench(max_slots=1) as b:
        b.gate.hold()
        occupant = b.submit([3], max_tokens=400)
        step = b.gate.wait_until_held()
        queued = b.submit([4])
        b.engine.cancel(queued.sequence, "api")
        b.gate.pass_and_hold()
        assert b.gate.wait_until_held() == step + 1
        assert stop_reason(queued) is StopReason.CANCELLED
        assert queued.sequence.usage == Usage(1, 0)
        b.engine.cancel(occupant.sequence, "api")
        b.gate.open()
        assert stop_reason(occupant) is StopReason.CANCELLED
        assert b.outcomes(queued, occupant) == ["cancelled{api}"] * 2


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_a_cancel_while_prefilling_or_decoding_ends_within_a_step_and_frees_the_slot(num_tokens: int) -> None:
    prompt = [3] * (100 if num_tokens == 0 else 1)
    with bench(max_slots=1, step_tokens=16) as b:
        b.gate.hold()
        running = b.submit(prompt, max_tokens=400)
        next_one = b.submit([4], max_tokens=1)
        for _ in range(max(1, num_tokens)):
            b.gate.wait_until_held()
            b.gate.pass_and_hold()
        step = b.gate.wait_until_held()
        assert len(running.sequence.output_ids) == num_tokens
        assert running.sequence.num_computed < running.sequence.num_tokens
        b.engine.cancel(running.sequence, "api")
        b.gate.pass_and_hold()
        assert b.gate.wait_until_held() == step + 1  # the step that ran when it came, and then the next one's
        assert next_one.sequence.state is SequenceState.RUNNING
        assert stop_reason(running) is StopReason.CANCELLED
        assert b.engine.num_running == 1
        b.gate.open()
        assert stop_reason(next_one) is StopReason.MAX_TOKENS
        assert b.outcomes(running) == ["cancelled{api}"]


def test_a_second_cancel_and_one_behind_the_end_change_nothing() -> None:
    with bench() as b:
        b.gate.hold()
        reply = b.submit([3], max_tokens=400)
        b.gate.wait_until_held()
        b.engine.cancel(reply.sequence, "first")
        b.engine.cancel(reply.sequence, "second")
        b.gate.open()
        assert stop_reason(reply) is StopReason.CANCELLED
        assert b.outcomes(reply) == ["cancelled{first}"]
        ended = b.submit([4], max_tokens=1)
        assert stop_reason(ended) is StopReason.MAX_TOKENS
        b.engine.cancel(ended.sequence, "late")
        b.alone([5])
        assert b.outcomes(ended) == ["end{MAX_TOKENS}"]


def test_an_idle_engine_hears_a_cancel_and_a_submit_at_once() -> None:
    """No timer brings them: the idle tick is made longer than the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.engine.engine.IDLE_TICK_S", 10 * WAIT_S)
        with bench() as b:
            assert stop_reason(b.submit([3], max_tokens=2)) is StopReason.MAX_TOKENS
            assert stop_reason(b.submit([3], max_tokens=2)) is StopReason.MAX_TOKENS
            b.engine.drain(0)
            wait_until(lambda: b.engine.state is EngineState.DRAINING)


def test_a_submit_between_the_look_and_the_sleep_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.engine.IDLE_TICK_S", 10 * WAIT_S)
    with bench() as b:
        late = new_sequence([3], tokenizer=TOKENIZER)
        schedule = b.engine._scheduler.schedule

        def submit_when_there_is_nothing_to_do() -> list[Row]:
            rows = schedule()
            if not rows and late.sequence not in submitted:
                submitted.append(late.sequence)
                b.engine.submit(late.sequence)
            return rows

        submitted: list[Sequence] = []
        monkeypatch.setattr(b.engine._scheduler, "schedule", submit_when_there_is_nothing_to_do)
        b.engine._waiter.wake()
        assert stop_reason(late) is StopReason.MAX_TOKENS


@pytest.mark.parametrize("where", ["queued", "running"])
def test_a_reader_that_is_gone_is_a_cancel(where: str) -> None:
    with bench(max_slots=1) as b:
        b.gate.hold()
        first = b.submit([3], max_tokens=400)
        b.gate.wait_until_held()
        second = b.submit([4], max_tokens=400)
        gone, other = (first, second) if where == "running" else (second, first)
        gone.receiver.close()
        b.gate.open()
        wait_until(lambda: gone.sequence.state is SequenceState.FINISHED)
        b.engine.cancel(other.sequence, "api")
        assert stop_reason(other) is StopReason.CANCELLED
        assert b.outcomes(gone) == ["cancelled{client}"]


def test_a_reader_that_leaves_in_the_middle_of_a_step_is_a_cancel_and_no_failure() -> None:
    with bench(ScriptedRunner({4: ids("abcdef")})) as b:
        b.gate.hold()
        neighbour = b.submit([3], max_tokens=9)
        gone = b.submit([4], max_tokens=400)
        b.gate.wait_until_held()
        b.gate.pass_and_hold()
        b.gate.wait_until_held()
        gone.receiver.close()  # the step is running: its token finds nobody
        b.gate.open()
        assert stop_reason(neighbour) is StopReason.MAX_TOKENS
        assert b.outcomes(gone) == ["cancelled{client}"]
        assert "Traceback" not in b.log()


# ---- deadlines. The loop is what looks at them, so no gate is held here.


def test_queue_timeout() -> None:
    with bench(max_slots=1) as b:
        occupant = b.submit([3], max_tokens=10**6)
        queued = b.submit([4], replace(PATIENT, queue_s=0.02))
        assert code(queued) == "QUEUE_TIMEOUT"
        assert queued.sequence.usage == Usage(1, 0)
        b.engine.cancel(occupant.sequence, "api")
        end_of(occupant)
        assert b.outcomes(queued) == ["error{QUEUE_TIMEOUT}"]


@pytest.mark.parametrize(
    ("num_tokens", "deadlines", "expected"),
    [
        (0, {"first_token_s": 0.02}, "FIRST_TOKEN_TIMEOUT"),
        (3, {"token_s": 1.0}, "STALLED"),
        (0, {"total_s": 0.02}, "TIMEOUT"),
        (3, {"total_s": 1.0}, "TIMEOUT"),  # by then a busy machine has computed them too
    ],
)
def test_a_model_that_loses_a_row_meets_its_deadline(
    num_tokens: int, deadlines: dict[str, float], expected: str
) -> None:
    with bench() as b:
        b.runner.is_forgotten = lambda row: row.sequence.prompt_ids == [4] and row.end > num_tokens
        lost = b.submit([4], replace(PATIENT, **deadlines), max_tokens=100)
        assert code(lost) == expected
        assert lost.sequence.usage == Usage(1, num_tokens)
        assert stop_reason(b.submit([5], max_tokens=3)) is StopReason.MAX_TOKENS
        assert b.outcomes(lost) == [f"error{{{expected}}}"]


def test_timeout_of_a_request_that_goes_on_and_on() -> None:
    with bench() as b:
        reply = b.submit([3], replace(PATIENT, total_s=0.5), max_tokens=10**6)
        assert code(reply) == "TIMEOUT"
        assert reply.sequence.usage.completion_tokens > 0


def test_timeout_in_the_queue() -> None:
    with bench(max_slots=1) as b:
        occupant = b.submit([3], max_tokens=10**6)
        assert code(b.submit([4], replace(PATIENT, total_s=0.02))) == "TIMEOUT"
        b.engine.cancel(occupant.sequence, "api")
        end_of(occupant)


def test_a_consumer_that_stops_reading_is_ended() -> None:
    with bench() as b:
        reply = b.submit([3], replace(PATIENT, slow_consumer_s=0.05), max_tokens=10**6)
        reply.receiver.take()
        wait_until(lambda: reply.sequence.state is SequenceState.FINISHED)
        assert code(reply) == "SLOW_CONSUMER"
        assert b.outcomes(reply) == ["error{SLOW_CONSUMER}"]


def test_a_consumer_that_waits_for_a_slow_model_is_not_slow() -> None:
    """It has read everything there was. What it may not do is leave something lying."""
    with bench() as b:
        b.runner.is_forgotten = lambda row: row.sequence.prompt_ids == [4]
        limits = replace(PATIENT, slow_consumer_s=0.02, first_token_s=0.5)
        reply = b.submit([4], limits)
        assert code(reply) == "FIRST_TOKEN_TIMEOUT"


def test_a_stream_that_nobody_claims_is_cancelled() -> None:
    with bench() as b:
        reply = b.submit([3], replace(PATIENT, claim_s=0.02), max_tokens=10**6)
        assert b.outcomes(reply) == ["cancelled{unclaimed}"]
        assert stop_reason(reply) is StopReason.CANCELLED


def test_deadlines_by_the_clock() -> None:
    """The same without an engine: each limit alone, a moment before and a moment after."""
    limits = Deadlines(queue_s=2, first_token_s=3, token_s=4, total_s=100, claim_s=5, slow_consumer_s=50)
    reply = new_sequence([3], limits, TOKENIZER)
    one = reply.sequence
    start = one.submitted_at

    def overdue(after_s: float) -> str | None:
        found = one.overdue(start + after_s)
        return found.code if isinstance(found, GenerationFailed) else found

    assert (overdue(1.9), overdue(2.1)) == (None, "QUEUE_TIMEOUT")
    one.scheduled_at = start + 1
    assert (overdue(3.9), overdue(4.1)) == (None, "FIRST_TOKEN_TIMEOUT")
    one.append(5, start + 4)
    assert (overdue(4.9), overdue(5.1)) == (None, "unclaimed")
    reply.receiver.take()
    assert (overdue(7.9), overdue(8.1)) == (None, "STALLED")
    one.append(5, start + 99)
    one.sender.send(Token("x", 0))
    assert (overdue(49.9), overdue(60)) == (None, "SLOW_CONSUMER")
    reply.receiver.take()
    assert overdue(100.1) == "TIMEOUT"


# ---- drain and stop


def test_a_drain_refuses_and_lets_the_others_finish() -> None:
    with bench() as b:
        b.gate.hold()
        reply = b.submit([3], max_tokens=9)
        b.gate.wait_until_held()
        b.engine.drain(WAIT_S)
        b.gate.pass_and_hold()
        b.gate.wait_until_held()
        assert b.engine.state is EngineState.DRAINING
        with pytest.raises(NotReady) as refusal:
            b.submit([4])
        assert refusal.value.code == "DRAINING"
        assert refusal.value.retry_after_s
        with pytest.raises(NotReady):
            _ = b.engine.model
        b.gate.open()
        assert stop_reason(reply) is StopReason.MAX_TOKENS
        assert b.engine.liveness() == ""


@pytest.mark.parametrize("limit_s", [0.0, 0.05])
def test_a_drain_ends_what_still_runs_behind_its_limit(limit_s: float) -> None:
    with bench(max_slots=1) as b:
        replies = [b.submit([n], max_tokens=10**6) for n in (3, 4)]
        b.engine.drain(limit_s)
        assert [code(reply) for reply in replies] == ["SHUTTING_DOWN"] * 2
        assert b.outcomes(*replies) == ["error{SHUTTING_DOWN}"] * 2
        assert b.engine.num_open == 0


def test_a_second_drain_shortens_and_never_lengthens() -> None:
    with bench() as b:
        reply = b.submit([3], max_tokens=10**6)
        b.engine.drain(WAIT_S)
        wait_until(lambda: b.engine.state is EngineState.DRAINING)
        b.engine.drain(0)
        assert code(reply) == "SHUTTING_DOWN"
        b.engine.drain(WAIT_S)
        assert b.engine._drain_limit_s == 0


def test_the_process_is_asked_whether_to_drain() -> None:
    with bench(drain_s=0.0) as b:
        reply = b.submit([3], max_tokens=10**6)
        b.engine.should_drain = lambda: True
        assert code(reply) == "SHUTTING_DOWN"


def test_stop_ends_everyone_and_the_thread() -> None:
    with bench(max_slots=1) as b:
        replies = [b.submit([n], max_tokens=10**6) for n in (3, 4)]
        assert b.engine.stop(WAIT_S)
        assert [code(reply) for reply in replies] == ["SHUTTING_DOWN"] * 2
        assert b.outcomes(*replies) == ["error{SHUTTING_DOWN}"] * 2
        assert b.engine.stop(WAIT_S), "a second time changes nothing"
        b.records()
        with pytest.raises(EndOfChannel):
            b.engine.records.take()


def test_an_idle_engine_hears_a_stop_without_a_tick_whenever_it_comes() -> None:
    """Found by the model (STOP_BEFORE_ARM): who looks first and arms then sleeps through what came in between."""
    engine = Engine(Settings(), ThreadWakeup(), lambda *_: model_of(ScriptedRunner()))
    waiter = InterruptedWaiter(lambda: engine.stop(0))
    engine._waiter = waiter
    engine.start()
    assert engine.wait_ended(WAIT_S)
    assert waiter.num_waits == 0


def test_stop_says_when_the_thread_does_not_come_back() -> None:
    with bench() as b:
        b.gate.hold()
        reply = b.submit([3])
        b.gate.wait_until_held()
        assert not b.engine.stop(0.01)
        b.gate.open()
        assert code(reply) == "SHUTTING_DOWN"


def test_behind_a_stop_nothing_is_accepted() -> None:
    """Each submit is wholly before or wholly after a shutdown: what is taken is also ended."""
    with bench() as b:
        assert b.engine.stop(WAIT_S)
        reply = new_sequence([3], tokenizer=TOKENIZER)
        with pytest.raises(NotReady):
            b.engine.submit(reply.sequence)
        with pytest.raises(NotReady):
            _ = b.engine.model


def test_a_submit_is_wholly_before_or_wholly_after_a_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench() as b:
        check_room = b.engine._admission._check_room
        states: list[EngineState] = []
        stopping = threading.Thread(target=b.engine._admission.stop_accepting)

        def check_and_be_overtaken(num_requests: int, num_prompt_tokens: int) -> None:
            check_room(num_requests, num_prompt_tokens)
            stopping.start()
            stopping.join(0.05)  # it has to wait until the submit is done
            states.append(b.engine.state)

        monkeypatch.setattr(b.engine._admission, "_check_room", check_and_be_overtaken)
        assert stop_reason(b.submit([3])) is StopReason.MAX_TOKENS
        stopping.join(WAIT_S)
        assert states == [EngineState.READY], "accepted, and behind the shutdown"
        assert b.engine.state is EngineState.DRAINING


@pytest.mark.parametrize("by", ["the watchdog", "itself"])
def test_who_comes_in_the_moment_of_a_death_is_ended(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Settings(), ThreadWakeup(), lambda settings, report: model_of(ScriptedRunner()))
    engine._admission.state, engine._admission.is_accepting = EngineState.READY, True
    monkeypatch.setattr(engine._supervisor, "liveness", lambda: "a step has not come back")
    deaths: dict[str, Callable[[], object]] = {
        "the watchdog": engine.abandon,
        "itself": lambda: engine._die(RuntimeError("the loop")),
    }
    dying = threading.Thread(target=deaths[by])
    check_room = engine._admission._check_room

    def check_and_be_overtaken(num_requests: int, num_prompt_tokens: int) -> None:
        check_room(num_requests, num_prompt_tokens)
        dying.start()
        dying.join(0.05)  # it has to wait until the submit is done

    monkeypatch.setattr(engine._admission, "_check_room", check_and_be_overtaken)
    reply = new_sequence([3], tokenizer=TOKENIZER)
    engine.submit(reply.sequence)
    dying.join(WAIT_S)
    assert reply.receiver.statistics().is_closed, "taken and never ended"
    with pytest.raises(NotReady):
        check_room(1, 1)


@pytest.mark.slow
def test_submits_that_race_with_a_stop_are_refused_or_ended() -> None:
    for _ in range(20):
        with bench(max_slots=2) as b:
            taken: list[Reply] = []

            def submit_until_refused(b: Bench = b, taken: list[Reply] = taken) -> None:
                while len(taken) < 200:
                    try:
                        taken.append(b.submit([3], max_tokens=1))
                    except (NotReady, Overloaded):
                        return

            thread = threading.Thread(target=submit_until_refused)
            thread.start()
            wait_until(lambda taken=taken: len(taken) > 2)  # type: ignore[misc]
            b.engine.drain(0)
            assert b.engine.stop(WAIT_S)
            thread.join(WAIT_S)
            assert all(reply.receiver.statistics().is_closed for reply in taken), "taken and never ended"


# ---- admission


def test_overloaded_at_the_limit_and_not_before() -> None:
    with bench(max_slots=2, max_queue=3) as b:
        b.gate.hold()
        replies = [b.submit([n], max_tokens=2) for n in range(3, 8)]
        refused = new_sequence([9], tokenizer=TOKENIZER)
        with pytest.raises(Overloaded) as refusal:
            b.engine.submit(refused.sequence)
        assert (refusal.value.status, refusal.value.retry_after_s) == (429, 1)
        assert b.engine.num_open == 5
        b.gate.open()
        for reply in replies:
            assert stop_reason(reply) is StopReason.MAX_TOKENS
        wait_until(lambda: b.engine.num_open == 0)
        b.engine.submit(refused.sequence)  # it was not taken, so it can be tried again
        assert stop_reason(refused) is StopReason.MAX_TOKENS


def test_the_place_is_free_before_the_terminal_event_is_there() -> None:
    """Who reads an ending and asks again at once must not meet a full house."""
    with bench(max_slots=1, max_queue=0) as b:
        for _ in range(30):
            assert stop_reason(b.submit([3], max_tokens=1)) is StopReason.MAX_TOKENS


def test_when_the_terminal_event_is_there_slot_and_place_are_free() -> None:
    with bench(max_slots=1, max_queue=0) as b:
        reply = new_sequence([3], tokenizer=TOKENIZER)
        taken: list[tuple[int, int]] = []

        def look() -> None:
            if reply.receiver.peek_end() is not None:
                taken.append((b.engine.num_running, b.engine.num_open))

        reply.receiver.listen(LookingWaiter(look))
        b.engine.submit(reply.sequence)
        wait_until(lambda: reply.sequence.state is SequenceState.FINISHED)
        b.outcomes(reply)  # noted last
        assert taken == [(0, 0)]


def test_of_two_who_end_one_stream_at_once_one_does() -> None:
    """The generation thread and the watchdog, when a step comes back in the moment in which it is given up."""
    engine = Engine(Settings(), ThreadWakeup(), lambda settings, report: model_of(ScriptedRunner()))
    reply = new_sequence([3], tokenizer=TOKENIZER)
    others: list[threading.Thread] = []

    def end(code: str) -> None:
        engine._admission.close(reply.sequence, Failure(code, "ended", reply.sequence.usage))

    class Watched(set[Sequence]):
        def __contains__(self, item: object) -> bool:
            is_open = super().__contains__(item)
            if not others:
                others.append(threading.Thread(target=end, args=("SECOND",)))
                others[0].start()
                others[0].join(0.05)  # it has to wait for us
            return is_open

    engine._admission._open = Watched([reply.sequence])
    end("FIRST")
    others[0].join(WAIT_S)
    assert [record.detail for record in engine.records.take() if isinstance(record, Outcome)] == ["FIRST"]
    *_, terminal = reply.events()
    assert isinstance(terminal, Failure)
    assert terminal.code == "FIRST"


# ---- loading


class Loading:
    """A load that waits for the test."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.error: BaseException | None = None

    def __call__(self, settings: Settings, report: Callable[[LoadingProgress], None]) -> LoadedModel:
        report(LoadingProgress("weights", 0.5))
        assert self.go_on.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return model_of(ScriptedRunner())


@contextmanager
def loading_engine(**settings: Any) -> Iterator[tuple[Engine, Loading]]:
    loading = Loading()
    engine = Engine(replace(Settings(), **settings), ThreadWakeup(), loading)
    engine.start()
    try:
        wait_until(lambda: engine.progress is not None)
        yield engine, loading
    finally:
        loading.go_on.set()
        assert engine.stop(WAIT_S)


def test_while_loading_nothing_is_accepted() -> None:
    with loading_engine() as (engine, loading):
        assert engine.state is EngineState.LOADING
        assert engine.progress == LoadingProgress("weights", 0.5)
        assert engine.liveness() == ""
        with pytest.raises(NotReady) as refusal:
            engine.submit(new_sequence([3], tokenizer=TOKENIZER).sequence)
        assert (refusal.value.code, refusal.value.status) == ("LOADING", 503)
        assert refusal.value.retry_after_s
        with pytest.raises(NotReady):
            _ = engine.model
        loading.go_on.set()
        wait_until(lambda: engine.state is EngineState.READY)
        assert engine.model.description == "a scripted model"
        assert engine.has_loaded


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelLoadError("model folder 'x' has no config.json"), "model folder 'x' has no config.json"),
        (ModelLoadError("model folder '/srv/x y' has none"), "model folder ... has none"),
        (RuntimeError("who knows"), "the generation thread died of RuntimeError; the server's log has the details"),
    ],
)
def test_a_load_that_fails_makes_the_engine_dead_with_its_reason(error: Exception, reason: str) -> None:
    with loading_engine() as (engine, loading):
        has_died = threading.Event()
        engine.on_dead = has_died.set
        loading.error = error
        loading.go_on.set()
        assert has_died.wait(WAIT_S)
        assert engine.state is EngineState.DEAD
        assert engine.reason == engine.liveness() == reason
        assert not engine.has_loaded
        with pytest.raises(NotReady, match=r"model|thread") as refusal:
            engine.submit(new_sequence([3], tokenizer=TOKENIZER).sequence)
        assert refusal.value.code == "DEAD"
        logged = "\n".join(r.text for r in engine.records.take() if isinstance(r, LogLine))
        assert str(error) in logged, "the log has all of it"
        assert ("Traceback" in logged) == (not isinstance(error, ModelLoadError))


def test_a_load_that_takes_too_long_is_given_up_for_good() -> None:
    with loading_engine(load_timeout_s=0.01) as (engine, loading):
        wait_until(lambda: engine.state is EngineState.DEAD)
        assert "still loading" in engine.liveness()
        loading.go_on.set()
        assert engine.wait_ended(WAIT_S)
        assert engine.state is EngineState.DEAD
        assert "still loading" in engine.reason


def test_an_engine_that_is_given_up_while_it_becomes_ready_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Settings(), ThreadWakeup(), lambda settings, report: model_of(ScriptedRunner()))
    engine._model = model_of(ScriptedRunner())
    engine._supervisor.started_at -= Settings().load_timeout_s + 1
    giving_up = threading.Thread(target=engine.abandon)
    begin = engine._supervisor.begin

    def begin_and_be_overtaken(phase: Phase, num_tokens: int = 0) -> float:
        giving_up.start()
        giving_up.join(0.05)  # it has to wait until the engine is ready
        return begin(phase, num_tokens)

    monkeypatch.setattr(engine._supervisor, "begin", begin_and_be_overtaken)
    engine._become_ready()
    giving_up.join(WAIT_S)
    assert engine.state is EngineState.DEAD
    assert not engine._admission.is_accepting


# ---- liveness


def abandoned(*replies: Reply) -> list[str]:
    """The codes of streams that the watchdog ended. Slots and sequences are lost with the process."""
    codes = []
    for reply in replies:
        *_, metrics, failure = reply.events()
        assert isinstance(metrics, Metrics)
        assert isinstance(failure, Failure)
        codes.append(failure.code)
    return codes


def test_a_step_that_does_not_come_back_ends_every_stream_from_outside() -> None:
    """Running and queued; and when it comes back after all, nobody is told a second ending."""
    with bench(max_slots=1, step_limit_s=0.05) as b:
        was_told = threading.Event()
        b.engine.on_dead = was_told.set
        assert b.engine.liveness() == ""
        b.gate.hold()
        running, queued = b.submit([3], max_tokens=2), b.submit([4], max_tokens=2)
        b.gate.wait_until_held()
        assert abandoned(running, queued) == ["STALLED"] * 2  # the gate is still held
        assert was_told.wait(WAIT_S)
        assert b.engine.state is EngineState.DEAD
        assert "has not come back for 0.05 s; it is in: the model's forward pass" in b.engine.liveness()
        assert b.engine.num_open == 0
        with pytest.raises(NotReady) as refusal:
            b.submit([5])
        assert refusal.value.code == "DEAD"
        b.gate.open()
        assert b.engine.wait_ended(WAIT_S)
        assert b.engine.state is EngineState.DEAD
        assert b.outcomes(running, queued) == ["error{STALLED}"] * 2
        assert "stacks of all threads" in b.log()


def test_one_stream_that_cannot_be_abandoned_well_does_not_cost_the_others_their_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with bench(max_slots=1, step_limit_s=0.05) as b:
        was_told = threading.Event()
        b.engine.on_dead = was_told.set
        tell = b.engine._admission._tell
        closed: list[Sequence] = []

        def fail_once(sequence: Sequence, terminal: Failure, vram_bytes: int = 0) -> None:
            closed.append(sequence)
            if len(closed) == 1:
                raise RuntimeError("its usage cannot be told")
            tell(sequence, terminal, vram_bytes)

        monkeypatch.setattr(b.engine._admission, "_tell", fail_once)
        b.gate.hold()
        replies = [b.submit([n]) for n in (3, 4, 5)]
        assert was_told.wait(WAIT_S)
        told = [reply for reply in replies if reply.sequence is not closed[0]]
        assert abandoned(*told) == ["STALLED"] * 2
        assert "its usage cannot be told" in b.log()


def test_an_engine_that_lives_is_not_abandoned() -> None:
    """Every keep-alive of every stream asks for it."""
    with bench() as b:
        b.gate.hold()
        reply = b.submit([3])
        b.gate.wait_until_held()
        b.engine.abandon()
        assert b.engine.state is EngineState.READY
        b.gate.open()
        assert stop_reason(reply) is StopReason.MAX_TOKENS


def test_two_who_give_up_a_stalled_engine_at_once_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog, and a stream at its ping. The second finds an engine that is declared dead already."""
    with bench(max_slots=1, step_limit_s=0.05) as b:
        end_from_outside = b.engine._supervisor._end_from_outside
        is_first = iter([True])

        def be_overtaken(*args: Any) -> None:
            if b.engine.state is EngineState.DEAD and next(is_first, False):
                b.engine.abandon()
            end_from_outside(*args)

        monkeypatch.setattr(b.engine._supervisor, "_end_from_outside", be_overtaken)
        b.gate.hold()
        running, queued = b.submit([3], max_tokens=2), b.submit([4], max_tokens=2)
        b.gate.wait_until_held()
        assert abandoned(running, queued) == ["STALLED"] * 2


def test_the_rate_of_those_who_leave_is_written_under_the_lock_it_is_read_under(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The watchdog writes it too, and a deque that changes while it is read raises."""
    with bench() as b:
        is_locked: list[bool] = []

        def left(now: float, num_prompt_tokens: int) -> None:
            is_locked.append(not b.engine._admission.lock.acquire(False))
            if not is_locked[-1]:
                b.engine._admission.lock.release()

        monkeypatch.setattr(b.engine._admission._service_rate, "left", left)
        b.alone([3])
        assert is_locked == [True]


def test_a_long_prefill_is_no_stall() -> None:
    stamp = Stamp(Phase.FORWARD, at=0.0, num_tokens=512)
    assert stamp.overdue(79.0, step_limit_s=10.0) == ""
    assert "512 tokens has not come back for 80 s" in stamp.overdue(81.0, step_limit_s=10.0)
    assert Stamp(Phase.FORWARD, 0.0, 1).overdue(10.1, 10.0)
    assert not Stamp(Phase.FORWARD, 0.0, 1).overdue(9.9, 10.0)


def test_a_thread_that_dies_while_it_ends_everyone_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(max_slots=1) as b:
        was_told = threading.Event()
        b.engine.on_dead = was_told.set

        def die(*args: object) -> None:
            raise MemoryError

        b.gate.hold()
        replies = [b.submit([3]), b.submit([4])]
        b.gate.wait_until_held()
        monkeypatch.setattr(b.engine, "_take_inbox", die)  # both the loop and the ending of everyone use it
        b.gate.open()
        assert abandoned(*replies) == ["ENGINE_DEAD"] * 2
        assert was_told.wait(WAIT_S)
        assert b.outcomes(*replies) == ["error{ENGINE_DEAD}"] * 2
        monkeypatch.undo()
        for sequence in b.engine._scheduler.sequences():  # the slot is lost with the process; the fixture looks
            b.engine._scheduler.remove(sequence)
        b.engine._admission.inbox.clear()


def test_an_idle_engine_lives() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.engine.engine.IDLE_TICK_S", 0.01)
        with bench() as b:
            stamp = b.engine._supervisor.stamp
            wait_until(lambda: b.engine._supervisor.stamp.at > stamp.at)
            assert b.engine.liveness() == ""


# ---- the thread


def test_the_generation_thread_is_an_os_thread_and_not_of_threading() -> None:
    with bench() as b:
        seen: list[tuple[int, bool]] = []

        def look(number: int, rows: list[Row]) -> None:
            me = _thread.get_ident()
            seen.append((me, any(thread.ident == me for thread in threading.enumerate())))

        b.runner.before_step = look
        b.alone([3], max_tokens=3)
        assert {me for me, _ in seen} != {_thread.get_ident()}
        assert len({me for me, _ in seen}) == 1
        assert not any(is_known for _, is_known in seen)


def test_the_model_is_let_go_with_the_thread() -> None:
    with bench() as b:
        assert b.engine._model is not None
        assert b.engine.stop(WAIT_S)
        assert b.engine._model is None


# ---- many at once


@pytest.mark.slow
def test_each_of_many_requests_has_exactly_one_outcome() -> None:
    """Every kind of ending at once, from several threads."""
    with bench(max_slots=3, max_queue=1000) as b:
        b.runner.is_poisoned = lambda row: row.sequence.prompt_ids[0] == 50 and row.end > 2

        def fail_sometimes(number: int, rows: list[Row]) -> None:
            if number % 37 == 0:
                raise RuntimeError("now and then")

        b.runner.before_step = fail_sometimes
        replies: list[Reply] = []
        guard = new_lock()

        def client(number: int) -> None:
            for n in itertools.count():
                if n == 25:
                    return
                kind = (n + number) % 5
                reply = b.submit([50 if kind == 0 else n + 3], max_tokens=6, temperature=1.0, seed=n)
                with guard:
                    replies.append(reply)
                if kind == 1:
                    b.engine.cancel(reply.sequence, "api")
                elif kind == 2:
                    reply.receiver.close()

        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        wait_until(lambda: b.engine.num_open == 0)
        assert len(b.outcomes(*replies)) == len(replies) == 100
        outcomes = [record for record in b.records() if isinstance(record, Outcome)]
        assert len(outcomes) == len(replies)
        assert {one.outcome for one in outcomes} == {"end", "error", "cancelled"}
