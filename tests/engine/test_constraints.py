"""An answer is in its grammar, whoever is beside it, and a fault of one grammar ends one row."""

import gc
import json
import math
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_sampler import FakeRow, draw, params
from tests.support.engines import Reply, new_engine, new_sequence
from tests.support.random_models import VOCAB_SIZE, byte_level_tokenizer, random_model
from tests.support.runners import ScriptedRunner
from tests.support.tokenizers import KINDS, tokenizer_of_kind
from worker.engine.constraints import Constraint, GrammarCompiler, MaskThread
from worker.engine.engine import Engine
from worker.engine.tokenizer import Tokenizer
from worker.errors import InferenceFailed, InvalidRequest
from worker.events import End, Event, Failure, StopReason, Token
from worker.structure import Structure, json_rule

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=40)

TOKENIZER = Tokenizer(byte_level_tokenizer())
END_ID = 2  # <|im_end|>
OTHER_END_ID = 0  # <|endoftext|>


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    """For a model that ends its answers."""
    return GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset({END_ID, OTHER_END_ID}))


@pytest.fixture(scope="module")
def endless() -> GrammarCompiler:
    """For a model that never ends one."""
    return GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset())


def compiled(compiler: GrammarCompiler, grammar: str) -> Constraint:
    structure = Structure("grammar", grammar)
    compiler.try_out(structure)
    return compiler.compile(structure)


def allowed(constraint: Constraint, vocab_size: int = VOCAB_SIZE) -> set[int]:
    mask = constraint.wait()
    assert len(mask) * 8 >= vocab_size
    return {i for i in range(len(mask) * 8) if mask[i // 8] >> i % 8 & 1}


def step(constraint: Constraint, token_id: int) -> None:
    """Take a token, and find what may come behind it."""
    constraint.advance(token_id)
    constraint.begin()
    constraint.find()


def spell(constraint: Constraint, text: str) -> None:
    for token_id in TOKENIZER.encode(text):
        step(constraint, token_id)


def refusal(compiler: GrammarCompiler, grammar: str) -> str:
    with pytest.raises(InvalidRequest) as refused:
        compiled(compiler, grammar)
    [error] = refused.value.errors
    assert (error.field, error.constraint) == ("grammar", "structure")
    return error.message


# ---- what may come next


def text_of(data: bytes) -> str | None:
    """None if it ends within a character, of which the judge says nothing."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("pattern", ["[a-f]{2,4}", "(the|a) (quick )?fox", "[^ ]+", ".*", "a(bc)*d?", "é{1,3}|語+"])
def test_a_token_is_allowed_if_the_text_with_it_can_become_one_of_the_language(
    compiler: GrammarCompiler, pattern: str
) -> None:
    for seed in range(5):
        constraint, rng, data = compiled(compiler, f"start: /{pattern}/"), random.Random(seed), b""
        for _ in range(6):
            found = allowed(constraint)
            for token_id in range(VOCAB_SIZE):
                spelled, text = TOKENIZER.spell_bytes(token_id), text_of(data + TOKENIZER.spell_bytes(token_id))
                if spelled and text is not None and token_id not in TOKENIZER.special_ids:
                    fits = regex.fullmatch(pattern, text, partial=True) is not None
                    assert (token_id in found) == fits, (data, spelled)
            text = text_of(data)
            is_whole = text is not None and regex.fullmatch(pattern, text) is not None
            assert ({END_ID, OTHER_END_ID} <= found) == is_whole
            choices = sorted(found - {END_ID, OTHER_END_ID})
            if not choices:
                break
            token_id = rng.choice(choices)
            data += TOKENIZER.spell_bytes(token_id)
            step(constraint, token_id)


def test_the_end_is_allowed_exactly_where_the_text_is_whole(compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "start: /(ab)+/")
    for token_id, may_end in zip(TOKENIZER.encode("a") + TOKENIZER.encode("b"), (False, True), strict=True):
        assert not {END_ID, OTHER_END_ID} & allowed(constraint)
        step(constraint, token_id)
        assert ({END_ID, OTHER_END_ID} <= allowed(constraint)) == may_end
    assert not constraint.is_complete
    constraint.advance(OTHER_END_ID)
    assert constraint.is_complete


def test_it_is_complete_with_the_token_behind_which_nothing_can_follow(endless: GrammarCompiler) -> None:
    constraint = compiled(endless, 'start: "the fox"')
    spell(constraint, "the fo")
    assert not constraint.is_complete
    constraint.advance(*TOKENIZER.encode("x"))
    assert constraint.is_complete


def test_that_nothing_can_follow_may_show_only_when_it_is_looked_for(endless: GrammarCompiler) -> None:
    constraint = compiled(endless, 'start: ""')
    assert constraint.wait().strip(b"\0") == b""
    assert constraint.is_complete


def test_what_is_no_text_is_never_a_text(compiler: GrammarCompiler) -> None:
    without_text = {i for i in range(VOCAB_SIZE) if not TOKENIZER.spell_bytes(i)}
    assert without_text
    found = allowed(compiled(compiler, "start: /(?s:.+)/"))
    assert found
    assert not found & (without_text | TOKENIZER.special_ids)


def test_tokens_that_spell_the_same_are_equals() -> None:
    twice = GrammarCompiler(Twins(), 8, frozenset())
    assert allowed(compiled(twice, 'start: "A"'), 8) == {1, 3}


class Twins(Tokenizer):
    """Four tokens, two of which spell the same."""

    def __init__(self) -> None:
        self.drops_first_space = False

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset({0})

    def spell_bytes(self, token_id: int) -> bytes:
        return [b"<end>", b"A", b"B", b"A", b"", b"", b"", b""][token_id]


def test_json_may_be_set_in_lines_and_is_not_blown_up(compiler: GrammarCompiler) -> None:
    value: Any = [{"a": [1, {"b": {}}]}, []]
    for _ in range(12):
        value = {"inner": value}
    for layout in ({}, {"indent": 4}, {"indent": "\t"}, {"separators": (",", ":")}):
        constraint = compiled(compiler, f"start: {json_rule({'type': 'object'})}")
        spell(constraint, json.dumps(value, **layout))
        assert constraint.is_complete
    constraint = compiled(compiler, f"start: {json_rule({'type': 'object'})}")
    spell(constraint, "{ ")
    assert not set(TOKENIZER.encode(" ") + TOKENIZER.encode("\n")) & allowed(constraint)


# ---- special tokens


def test_a_grammar_may_name_special_tokens_and_numbers(compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, 'start: <|im_start|> "a" <[300]>')
    assert allowed(constraint) == {1}
    step(constraint, 1)
    spell(constraint, "a")
    assert allowed(constraint) == {300}
    constraint.advance(300)
    assert constraint.is_complete


def test_a_grammar_may_end_with_a_token_that_ends_answers(compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, 'start: "a" <|im_end|>')
    spell(constraint, "a")
    assert allowed(constraint) == {END_ID}
    constraint.advance(END_ID)
    assert constraint.is_complete


def test_a_grammar_that_goes_on_behind_such_a_token_fails_by_name(compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, 'start: "a" <|im_end|> "b"')
    spell(constraint, "a")
    with pytest.raises(InferenceFailed, match="goes on behind token 2"):
        constraint.advance(END_ID)


# ---- other tokenizers


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_of_which_tokenizers_it_is_known_what_a_token_spells(kind: str) -> None:
    known = {"byte-level": False, "sentencepiece": True}
    assert Tokenizer(tokenizer_of_kind(kind)).drops_first_space is known.get(kind)


def test_of_a_text_that_loses_its_first_space_none_begins_with_one() -> None:
    tokenizer = Tokenizer(KINDS["sentencepiece"]())
    compiler = GrammarCompiler(tokenizer, 300, frozenset({2}))
    rng = random.Random(0)
    for _ in range(20):
        constraint, detokenizer, text = (
            compiled(compiler, "start: /( |the|<tool>|é){3,9}/"),
            tokenizer.new_detokenizer(),
            "",
        )
        while not constraint.is_complete:
            token_id = rng.choice(sorted(allowed(constraint, 300)))
            text += detokenizer.push(token_id)
            step(constraint, token_id)
        text += detokenizer.flush()
        assert regex.fullmatch("( |the|<tool>|é){3,9}", text), text
    assert "no token" in refusal(compiler, 'start: " the"')


# ---- faults


class Panic(BaseException):
    """As pyo3's: no Exception."""


class BrokenMatcher:
    """Says what it is told to."""

    def __init__(self, fault: BaseException | None = None, is_error: bool = False) -> None:
        self.fault, self.error = fault, "too many states" if is_error else ""

    def compute_bitmask(self) -> bytes:
        if self.fault is not None:
            raise self.fault
        return b"\xff" * 8

    def consume_token(self, token_id: int) -> bool:
        if self.fault is not None:
            raise self.fault
        return not self.error

    def is_error(self) -> bool:
        return bool(self.error)

    def get_error(self) -> str:
        return self.error


def broken(fault: BaseException | None = None, is_error: bool = False) -> Constraint:
    matcher: Any = BrokenMatcher(fault, is_error)
    return Constraint(matcher, 60, frozenset(), [])


@pytest.mark.parametrize("fault", [ValueError("x"), Panic("x")])
def test_whoever_waits_for_a_mask_is_told_of_a_fault(fault: BaseException) -> None:
    constraint = broken(fault)
    constraint.begin()
    constraint.find()
    for _ in range(2):
        with pytest.raises(InferenceFailed, match="x"):
            constraint.wait()


def test_the_mask_of_a_matcher_that_is_at_its_end_is_not_believed() -> None:
    constraint = broken(is_error=True)
    constraint.begin()
    constraint.find()
    with pytest.raises(InferenceFailed, match="too many states"):
        constraint.wait()


def test_a_panic_on_the_generation_thread_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="panicked"):
        broken(Panic("x")).advance(1)
    with pytest.raises(InferenceFailed, match="too many states"):
        broken(is_error=True).advance(1)


@pytest.mark.timeout(20)
def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.constraints.MASK_LIMIT_S", 0.01)
    constraint = broken()
    constraint.begin()
    with pytest.raises(InferenceFailed, match=r"within 0\.01 s"):
        constraint.wait()


def test_the_thread_finds_the_masks_that_it_is_asked_for(compiler: GrammarCompiler) -> None:
    thread = MaskThread()
    rows = [compiled(compiler, f'start: "{letter}" "x"') for letter in "abc"]
    faulty = broken(Panic("x"))
    for row, letter in zip(rows, "abc", strict=True):
        row.advance(*TOKENIZER.encode(letter))
        thread.find(row)
    thread.find(faulty)
    thread.find(rows[0])
    for row in rows:
        assert allowed(row) == set(TOKENIZER.encode("x"))
    with pytest.raises(InferenceFailed):
        faulty.wait()
    thread.close()


# ---- the sampler


@pytest.mark.parametrize(
    "chosen", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 300}, {"min_p": 0.01, "top_k": 3}]
)
def test_only_what_is_allowed_is_drawn_and_neighbours_do_not_notice(
    compiler: GrammarCompiler, chosen: dict[str, Any]
) -> None:
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 3
    for seed in range(20):
        rows = [FakeRow(params(**chosen), rng=random.Random(seed)) for _ in range(3)]
        alone = [
            draw(logits[i : i + 1], FakeRow(params(**chosen), rng=random.Random(seed))).token_ids[0] for i in range(3)
        ]
        rows[1].constraint = compiled(compiler, "start: /[xyz]/")
        sampled = draw(logits, *rows)
        assert not sampled.failures
        assert TOKENIZER.spell(sampled.token_ids[1])[0] in "xyz"
        assert [sampled.token_ids[0], sampled.token_ids[2]] == [alone[0], alone[2]]


def test_a_draw_among_what_is_allowed_follows_the_model(compiler: GrammarCompiler) -> None:
    x, y, z = (TOKENIZER.encode(letter)[0] for letter in "xyz")
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, x], logits[0, y], logits[0, z] = math.log(5), math.log(3), math.log(2)
    for chosen in ({}, {"top_p": 0.99}):
        row = FakeRow(params(**chosen), rng=random.Random(1))
        row.constraint = compiled(compiler, "start: /[xyz]/")
        drawn = [draw(logits, row).token_ids[0] for _ in range(2000)]
        assert [round(drawn.count(one) / 2000, 1) for one in (x, y, z)] == [0.5, 0.3, 0.2]


def test_biases_and_penalties_work_beneath_the_mask(compiler: GrammarCompiler) -> None:
    x, y = (TOKENIZER.encode(letter)[0] for letter in "xy")
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, x] = 3.0
    row = FakeRow(params(temperature=0.0, logit_bias=((y, 5.0), (END_ID, 100.0))))
    row.constraint = compiled(compiler, "start: /[xy]/")
    assert draw(logits, row).token_ids == [y]


def test_log_probabilities_stay_the_models_own(compiler: GrammarCompiler) -> None:
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    row = FakeRow(params(temperature=0.0, logprobs=3))
    row.constraint = compiled(compiler, "start: /[xyz]/")
    sampled = draw(logits, row)
    own = logits[0].log_softmax(-1)
    assert sampled.logprobs[0].drawn == pytest.approx(own[sampled.token_ids[0]].item())
    assert [i for i, _ in sampled.logprobs[0].top] == own.topk(3).indices.tolist()


def test_a_row_in_which_nothing_is_left_fails_by_name_and_alone(compiler: GrammarCompiler) -> None:
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[0, TOKENIZER.encode("x")[0]] = float("-inf")
    rows = [FakeRow(params(top_p=0.5)), FakeRow(params(temperature=0.0))]
    rows[0].constraint = compiled(compiler, 'start: "x"')
    sampled = draw(logits, *rows)
    assert list(sampled.failures) == [0]
    assert "every token that the grammar allows" in sampled.failures[0].message


def test_a_row_whose_grammar_is_at_fault_fails_alone() -> None:
    rows = [FakeRow(params()), FakeRow(params())]
    rows[0].constraint = broken(Panic("x"))
    rows[0].constraint.begin()
    rows[0].constraint.find()
    sampled = draw(torch.zeros(2, VOCAB_SIZE), *rows)
    assert list(sampled.failures) == [0]
    assert isinstance(sampled.failures[0], InferenceFailed)


# ---- whole answers


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = new_engine(random_model("llama"), eos_ids=frozenset({END_ID}))
    yield engine
    engine.stop(10)


def constrained(constraint: Constraint, prompt_ids: list[int] | None = None, **chosen: Any) -> Reply:
    reply = new_sequence(prompt_ids or [5, 6, 7], **{"max_tokens": 300, "temperature": 1.0, "seed": 0, **chosen})
    reply.sequence.constraint = constraint
    return reply


def answer(engine: Engine, reply: Reply) -> tuple[str, End | Failure]:
    engine.submit(reply.sequence)
    return read(reply)


def read(reply: Reply) -> tuple[str, End | Failure]:
    events: list[Event] = reply.events()
    last = events[-1]
    assert isinstance(last, End | Failure)
    return "".join(event.text for event in events if isinstance(event, Token)), last


@pytest.fixture(scope="module")
def compiler_of_one() -> GrammarCompiler:
    return GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset({END_ID}))


SCALARS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-99, 99),
        st.integers(0, 99),
    ),
    st.builds(
        lambda least, span: {"type": "string", "minLength": least, "maxLength": least + span},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(st.text(max_size=4), st.integers(-9, 9), st.none()), min_size=1, max_size=4),
    ),
    st.builds(
        lambda pattern: {"type": "string", "pattern": pattern}, st.sampled_from(["^a+b$", "^[0-9]{2}$", "^(x|yz)$"])
    ),
)


def _objects(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda properties, is_required: {
            "type": "object",
            "properties": properties,
            "required": sorted(properties)[:1] if not is_required else sorted(properties),
            "additionalProperties": False,
        },
        st.dictionaries(st.sampled_from(["a", "b", "name", "é"]), schemas, min_size=1, max_size=3),
        st.booleans(),
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        _objects(inner),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=4,
)


@pytest.mark.slow
@repeatable
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_an_answer_fits_its_schema(engine: Engine, compiler_of_one: GrammarCompiler, schema: Any, seed: int) -> None:
    reply = constrained(compiled(compiler_of_one, f"start: {json_rule(schema)}"), seed=seed, max_tokens=400)
    text, end = answer(engine, reply)
    assert isinstance(end, End)
    if end.stop_reason is not StopReason.MAX_TOKENS:
        assert end.stop_reason is StopReason.EOS
        jsonschema.validate(json.loads(text), schema)


def test_an_answer_ends_by_itself_where_the_model_has_no_end(endless: GrammarCompiler) -> None:
    engine = new_engine(random_model("llama"))
    text, end = answer(engine, constrained(compiled(endless, 'start: "the" | "quick fox"')))
    assert text in ("the", "quick fox")
    assert isinstance(end, End)
    assert end.stop_reason is StopReason.EOS
    text, end = answer(engine, constrained(compiled(endless, 'start: ""')))
    assert (text, end.usage.completion_tokens) == ("", 0)
    assert isinstance(end, End)
    assert end.stop_reason is StopReason.EOS
    engine.stop(10)


def test_an_answer_that_is_complete_takes_no_further_step(endless: GrammarCompiler) -> None:
    runner = ScriptedRunner()
    engine = new_engine(runner=runner)
    reply = constrained(compiled(endless, "start: /[bdk]{4}/"))
    text, _ = answer(engine, reply)
    assert len(text) == 4
    assert runner.gate.num_arrived == 4
    engine.stop(10)


def test_an_answer_that_is_cut_says_so(engine: Engine, compiler_of_one: GrammarCompiler) -> None:
    text, end = answer(engine, constrained(compiled(compiler_of_one, "start: /[a-z]{50}/"), max_tokens=5))
    assert isinstance(end, End)
    assert end.stop_reason is StopReason.MAX_TOKENS
    assert regex.fullmatch("[a-z]+", text)


def test_an_answer_that_is_complete_with_its_last_token_is_not_cut(
    engine: Engine, compiler_of_one: GrammarCompiler
) -> None:
    text, end = answer(engine, constrained(compiled(compiler_of_one, "start: /[bdk]{3}/"), max_tokens=3))
    assert isinstance(end, End)
    assert (len(text), end.stop_reason) == (3, StopReason.EOS)


REQUESTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"top_p": 0.9, "seed": 3},
    {"repetition_penalty": 1.2, "seed": 4},
]
GRAMMARS = [
    "start: /[a-z ]{20,40}/",
    f"start: {json_rule({'type': 'object'})}",
    'start: ("a" | "fox" "b"){9}',
    "start: /the .*/",
]


def test_an_answer_is_the_same_alone_and_in_company(engine: Engine, compiler_of_one: GrammarCompiler) -> None:
    def replies() -> list[Reply]:
        some = [
            constrained(compiled(compiler_of_one, grammar), [7 + i, 8, 9], max_tokens=30, **chosen)
            for i, (grammar, chosen) in enumerate(zip(GRAMMARS, REQUESTS, strict=True))
        ]
        others = [new_sequence([20 + i, 21], max_tokens=30, **chosen) for i, chosen in enumerate(REQUESTS)]
        return [one for pair in zip(some, others, strict=True) for one in pair]

    alone = []
    for reply in replies():
        answer(engine, reply)
        alone.append(list(reply.sequence.output_ids))
    together = replies()
    for reply in together:
        engine.submit(reply.sequence)
    for reply, expected in zip(together, alone, strict=True):
        read(reply)
        assert reply.sequence.output_ids == expected


def test_an_answer_survives_that_its_row_gives_way(compiler_of_one: GrammarCompiler) -> None:
    grammar, chosen = "start: /[a-z ]{1000}/", {"max_tokens": 150, "temperature": 1.0}
    engine = new_engine(random_model("llama"), eos_ids=frozenset({END_ID}), max_slots=6)
    expected = []
    for i in range(6):
        reply = constrained(compiled(compiler_of_one, grammar), [5 + i] * 40, seed=i, **chosen)
        answer(engine, reply)
        expected.append(list(reply.sequence.output_ids))
    pool = engine._scheduler.pool
    taken = pool.take(pool.num_free - 40)  # room for about three of them
    replies = [constrained(compiled(compiler_of_one, grammar), [5 + i] * 40, seed=i, **chosen) for i in range(6)]
    for reply in replies:
        engine.submit(reply.sequence)
    for reply in replies:
        read(reply)
    assert engine._scheduler.num_preempted > 0
    assert [reply.sequence.output_ids for reply in replies] == expected
    pool.release(taken)
    engine.stop(10)


def test_what_follows_in_a_grammar_is_not_guessed(compiler_of_one: GrammarCompiler) -> None:
    engine = new_engine(random_model("llama"), eos_ids=frozenset({END_ID}), speculation="ngram", speculation_tokens=4)
    text, _ = answer(engine, constrained(compiled(compiler_of_one, "start: /(ab){30}/"), [5, 6] * 10, max_tokens=80))
    assert text == "ab" * 30
    assert engine._scheduler.num_guessed == 0
    engine.stop(10)


def test_a_fault_in_a_matcher_ends_its_own_row(engine: Engine, compiler_of_one: GrammarCompiler) -> None:
    struck = constrained(compiled(compiler_of_one, "start: /[a-z ]{100}/"))
    neighbour = new_sequence([5, 6], max_tokens=20)
    assert struck.sequence.constraint is not None
    matcher: Any = BrokenMatcher(Panic("struck"))
    struck.sequence.constraint._matcher = matcher
    engine.submit(struck.sequence)
    engine.submit(neighbour.sequence)
    _, failure = read(struck)
    assert isinstance(failure, Failure)
    assert failure.code == "INFERENCE_FAILED"
    _, end = read(neighbour)
    assert isinstance(end, End)
    assert engine.state == "READY"


def test_what_a_grammar_names_too_early_is_a_failure_with_a_name(compiler: GrammarCompiler) -> None:
    engine = new_engine(runner=ScriptedRunner(), eos_ids=frozenset({END_ID}))
    text, failure = answer(engine, constrained(compiled(compiler, 'start: "a" <|im_end|> "b"')))
    assert text == "a"
    assert isinstance(failure, Failure)
    assert "goes on behind token 2" in failure.message
    engine.stop(10)


# ---- grammars that nobody should send


def chain(length: int, link: dict[str, Any], place: str) -> str:
    """A schema of so many references, each behind the other."""
    definitions: dict[str, Any] = {f"n{length}": {"type": "string"}}
    for i in range(length):
        definitions[f"n{i}"] = link | {
            place: {"x": {"$ref": f"#/$defs/n{i + 1}"}} if place == "properties" else {"$ref": f"#/$defs/n{i + 1}"}
        }
    return f"start: {json_rule({'$ref': '#/$defs/n0', '$defs': definitions})}"


HOSTILE = {
    "a chain of objects": (chain(2500, {"type": "object"}, "properties"), "nested too deeply"),
    "a chain of arrays": (chain(3000, {"type": "array"}, "items"), "nested too deeply"),
    "a chain of rules": (
        "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(5000)) + '\nr5000: "b"',
        "nested too deeply",
    ),
    "a chain of terminals": (
        "start: T0\n" + "\n".join(f'T{i}: "a" T{i + 1}' for i in range(5000)) + '\nT5000: "b"',
        "nested too deeply",
    ),
    "parentheses": ("start: " + "(" * 60_000 + '"a"' + ")" * 60_000, "too deeply nested"),
    "groups": ("start: /" + "(" * 60_000 + "a" + ")" * 60_000 + "/", "regex"),
    "sixty patterns at once": (
        f"start: {json_rule({'allOf': [{'type': 'string', 'pattern': f'a{{{i}}}.*b{{{i}}}'} for i in range(1, 60)]})}",
        "to compile",
    ),
    "too many properties": (
        f"start: {json_rule({'type': 'object', 'properties': {f'p{i}': {'type': 'integer'} for i in range(2500)}})}",
        "items",
    ),
    "false": ("start: %json false", "Unsatisfiable"),
    "two types": (f"start: {json_rule({'allOf': [{'type': 'string'}, {'type': 'integer'}]})}", "Unsatisfiable"),
    "an empty class": ("start: /[^\\s\\S]/", "no token"),
    "no beginning": ("start: a\na: b\nb: a", "no token"),
    "a loop of references": (f"start: {json_rule({'$ref': '#/$defs/a', '$defs': {'a': {'$ref': '#/$defs/a'}}})}", ""),
    "what is not there": (f"start: {json_rule({'not': {'type': 'string'}})}", "not"),
    "another server's schema": (f"start: {json_rule({'$ref': 'http://127.0.0.1/x'})}", "does not fetch"),
    "look-around": ("start: /(?=a)b/", "look-around"),
    "no grammar": ("hello", ""),
    "half a string": ('start: "a', "lexer error"),
    "an unknown special token": ("start: <|secret|>", "unknown special token"),
    "the token behind the last": ("start: <[400]>", "no token"),
    "a token that is not there": ("start: <[401]>", "too large"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_grammar_is_refused_in_time(compiler: GrammarCompiler, name: str) -> None:
    grammar, message = HOSTILE[name]
    assert regex.search(message, refusal(compiler, grammar)), refusal(compiler, grammar)
    assert compiled(compiler, 'start: "a"')  # nothing is left of it


def test_a_grammar_cannot_have_tokens_forced(compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, '%llguidance {"no_forcing": false}\nstart: "the"')
    assert allowed(constraint) == {i for i in range(VOCAB_SIZE) if TOKENIZER.spell_bytes(i) in (b"t", b"th", b"the")}


def too_many_patterns(number: int) -> str:
    """To say in which texts all of them are takes time and memory that grow with two to the power of their number."""
    return "start: X\nX: " + " & ".join(f"/a{{{i}}}.*b{{{i}}}/" for i in range(1, number))


@pytest.mark.slow
def test_a_grammar_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.vet.LIMIT_S", 0.2)
    compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset())
    assert "more than 0.2 s" in refusal(compiler, too_many_patterns(24))
    assert compiled(compiler, 'start: "a"')


@pytest.mark.slow
def test_a_grammar_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.vet.LIMIT_S", 60)
    monkeypatch.setattr("worker.engine.vet.LIMIT_BYTES", 32 * 2**20)
    assert "more than 32 MiB" in refusal(GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset()), too_many_patterns(24))


def test_a_process_that_somebody_ends_is_no_fault_of_the_grammar() -> None:
    compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset())
    assert compiled(compiler, 'start: "a"')
    os.kill(compiler._vetter._pid, signal.SIGTERM)  # as a platform tells every process; it goes on
    assert compiled(compiler, 'start: "b"')
    os.kill(compiler._vetter._pid, signal.SIGKILL)
    with pytest.raises(InferenceFailed, match="cannot be tried"):
        compiled(compiler, 'start: "c"')
    assert compiled(compiler, 'start: "c"')


def test_the_process_goes_with_who_has_started_it() -> None:
    compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset())
    assert compiled(compiler, 'start: "a"')
    pid = compiler._vetter._pid
    del compiler
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_was_tried_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.constraints.NUM_TRIED", 2)
    compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset())
    for letter in "abac":
        assert compiled(compiler, f'start: "{letter}"')
    tried = [letter for letter in "abc" if compiler.has_tried(Structure("x", f'start: "{letter}"'))]
    assert tried == ["b", "c"]


def test_where_nothing_can_be_tried_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> int:
        raise PermissionError

    monkeypatch.setattr("worker.engine.vet.native_spawn", fail)
    with pytest.raises(InferenceFailed, match="PermissionError"):
        compiled(GrammarCompiler(TOKENIZER, VOCAB_SIZE, frozenset()), 'start: "a"')
