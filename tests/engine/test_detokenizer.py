"""The pieces joined are the decoding of the whole, for every kind of decoder, and each comes as early as it can."""

import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.support.tokenizers import tokenizer_of_kind
from worker.engine.detokenizer import ByteLevelDetokenizer, IncrementalDetokenizer, WindowDetokenizer
from worker.engine.tokenizer import Tokenizer

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=80)

KINDS = ["byte-level", "sentencepiece", "metaspace", "word-piece", "word-suffix"]
DIFFICULT = [
    "🙂",
    "👩‍👩‍👧‍👦 a family of one glyph",
    "語の 中の 空白",
    "e\u0301 n\u0303 o\u0323\u0302",
    "  two  spaces  ",
    "\u2028\u2029\x00\x7f",
    "\ufffd is a character too",
    "the fox 🦊\n\tthe é",
    "<tool>{}<tool> the",
    "I do n't , it is the fox 's ! you 've '",
]

texts = st.one_of(
    st.sampled_from(DIFFICULT),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.text("the asé🙂語\u0301\u200d ", max_size=20),
)


def reference(tokenizer: Any, ids: list[int]) -> str:
    """What the library itself makes of the whole."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def detokenizer(kind: str) -> IncrementalDetokenizer:
    return Tokenizer(tokenizer_of_kind(kind)).new_detokenizer()


def pieces(kind: str, ids: list[int]) -> list[str]:
    one = detokenizer(kind)
    return [*(one.push(i) for i in ids), one.flush()]


def ids_of(kind: str) -> st.SearchStrategy[list[int]]:
    """Random ids, special and added ones as often as others, and some that have no token."""
    size = len(tokenizer_of_kind(kind))
    rare = sorted(tokenizer_of_kind(kind).backend_tokenizer.get_added_tokens_decoder())
    return st.lists(
        st.one_of(st.integers(0, size - 1), st.sampled_from(rare), st.integers(size, size + 3)), max_size=24
    )


@pytest.mark.parametrize("kind", KINDS)
def test_which_detokenizer_serves(kind: str) -> None:
    assert type(detokenizer(kind)) is (ByteLevelDetokenizer if kind == "byte-level" else WindowDetokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_random_ids_give_the_text_of_the_whole(kind: str) -> None:
    tokenizer = tokenizer_of_kind(kind)

    @repeatable
    @given(ids_of(kind))
    def check(ids: list[int]) -> None:
        known = [i for i in ids if tokenizer.backend_tokenizer.id_to_token(i) is not None]
        assert "".join(pieces(kind, ids)) == reference(tokenizer, known)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_that_are_shown_stand_between_the_texts_around_them(kind: str) -> None:
    tokenizer = tokenizer_of_kind(kind)
    shown, ours = tokenizer.eos_token, Tokenizer(tokenizer)

    @repeatable
    @given(st.lists(ids_of(kind), max_size=4))
    def check(runs: list[list[int]]) -> None:
        runs = [[i for i in run if i != tokenizer.eos_token_id] for run in runs]
        one = ours.new_detokenizer({shown: tokenizer.eos_token_id})
        ids = [i for run in runs for i in [*run, tokenizer.eos_token_id]]
        known = [[i for i in run if tokenizer.backend_tokenizer.id_to_token(i) is not None] for run in runs]
        assert "".join([*map(one.push, ids), one.flush()]) == "".join(
            reference(tokenizer, run) + shown for run in known
        )

    check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_encoded_text_gives_the_text_of_the_whole(kind: str) -> None:
    tokenizer = tokenizer_of_kind(kind)

    @repeatable
    @given(texts)
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        got = "".join(pieces(kind, ids))
        assert got == reference(tokenizer, ids)
        if kind == "byte-level":
            assert got == text

    for text in DIFFICULT:
        check = example(text)(check)
    check()


@pytest.mark.slow
@repeatable
@given(st.lists(st.one_of(st.integers(0, 255), st.sampled_from([*"🙂é語".encode()])), max_size=16))
def test_random_bytes_give_the_text_of_the_whole(data: list[int]) -> None:
    for kind in ("sentencepiece", "byte-level"):
        tokenizer = tokenizer_of_kind(kind)
        ids = [byte_token(kind, byte) for byte in data]
        assert "".join(pieces(kind, ids)) == reference(tokenizer, ids)


def test_a_character_behind_eight_broken_bytes_is_whole_in_a_nested_decoder() -> None:
    """A window that is full of broken bytes must not be cut inside the next character."""
    ids = [byte_token("byte-level", byte) for byte in b"\x80" * 7 + "é".encode()]
    assert "".join(pieces("nested-byte-level", ids)) == "\ufffd" * 7 + "é"


def byte_token(kind: str, byte: int) -> int:
    backend = tokenizer_of_kind(kind).backend_tokenizer
    if kind == "sentencepiece":
        found = backend.token_to_id(f"<0x{byte:02X}>")
    else:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [b for b in range(256) if b not in printable]
        found = backend.token_to_id(chr(byte) if byte in printable else chr(256 + others.index(byte)))
    assert found is not None
    token_id: int = found
    return token_id


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_ends_inside_a_character(kind: str) -> None:
    tokenizer = tokenizer_of_kind(kind)

    @repeatable
    @given(texts.filter(lambda text: "\ufffd" not in text))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        whole = reference(tokenizer, ids)
        so_far = ""
        for piece in pieces(kind, ids):
            assert "\ufffd" not in piece or "\ufffd" in whole
            so_far += piece
            assert whole.startswith(so_far)

    check()


def _could_go_on(tail: bytes) -> bool:
    """Whether more bytes can still make one character of this, in the eyes of Python's incremental decoder."""
    if len(tail) == 2 and tail[0] == 0xED and 0xA0 <= tail[1] < 0xC0:
        return True  # half of a surrogate: never a character, and the decoder waits for its third byte all the same
    for length in (1, 2, 3):
        for more in itertools.product(b"\x80\x8f\x90\x9f\xa0\xbf", repeat=length):
            try:
                if len((tail + bytes(more)).decode()) == 1:
                    return True
            except UnicodeDecodeError:
                pass
    return False


def _decidable(data: bytes) -> str:
    """The text that no later byte can change."""
    for num_open in (3, 2, 1):
        if len(data) >= num_open and _could_go_on(data[-num_open:]):
            return data[:-num_open].decode(errors="replace")
    return data.decode(errors="replace")


@pytest.mark.slow
@repeatable
@given(st.lists(st.one_of(st.integers(0, 255), st.sampled_from([*"🙂é語\ud7ff".encode()])), max_size=10).map(bytes))
@example("🙂é語".encode())
@example(b"\xed\xa0\x80a")  # a surrogate: broken at its second byte
@example(b"\xf0\x80\xf4\x90\xc0a")
def test_bytes_are_released_as_soon_as_they_are_decidable(data: bytes) -> None:
    one = detokenizer("byte-level")
    so_far = ""
    for i, byte in enumerate(data):
        so_far += one.push(byte_token("byte-level", byte))
        assert so_far == _decidable(data[: i + 1])
    assert so_far + one.flush() == data.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte-level"])
def test_a_window_holds_nothing_back_behind_a_plain_token(kind: str) -> None:
    tokenizer = tokenizer_of_kind(kind)
    backend = tokenizer.backend_tokenizer
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}

    @repeatable
    @given(ids_of(kind))
    def check(ids: list[int]) -> None:
        one = detokenizer(kind)
        so_far = ""
        known = []
        for i in ids:
            so_far += one.push(i)
            token = backend.id_to_token(i)
            if token is None:
                continue
            known.append(i)
            if i not in special and not token.startswith("<0x") and "\ufffd" not in token:
                assert so_far == reference(tokenizer, known)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_without_a_token_have_no_text(kind: str) -> None:
    size = len(tokenizer_of_kind(kind))
    assert pieces(kind, [size, size + 1000]) == ["", "", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_no_text_and_added_ones_do(kind: str) -> None:
    backend = tokenizer_of_kind(kind).backend_tokenizer
    special = next(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
    assert pieces(kind, [special]) == ["", ""]
    if kind != "byte-level":
        assert "".join(pieces(kind, [special, backend.token_to_id("<tool>"), special])) == "<tool>"


def test_a_special_token_does_not_end_a_run_of_bytes() -> None:
    backend = tokenizer_of_kind("sentencepiece").backend_tokenizer
    first, second = (byte_token("sentencepiece", byte) for byte in "é".encode())
    assert pieces("sentencepiece", [first, backend.token_to_id("<|end|>"), second]) == ["", "", "", "é"]


def test_one_bad_byte_breaks_the_whole_run_and_so_the_run_is_held() -> None:
    ids = [byte_token("sentencepiece", byte) for byte in [*"é".encode(), 0x80]]
    assert pieces("sentencepiece", ids) == ["", "", "", "\ufffd" * 3]


class DetokenizerMachine(RuleBasedStateMachine):
    """Streams of one tokenizer, as the engine runs them: side by side, each at a place of its own, ended at any.

    After every token: what was given out is what the library makes of the tokens so far, but for a tail that a later
    token may still change, and that is held back only behind such a token. At the end: it is the whole.
    """

    kind = ""
    num_streams = 3

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(tokenizer_of_kind(self.kind))
        self.library = tokenizer_of_kind(self.kind)
        self.backend = self.library.backend_tokenizer
        self.special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        self.open = [self.tokenizer.new_detokenizer() for _ in range(self.num_streams)]
        self.ids: list[list[int]] = [[] for _ in self.open]
        self.text = [""] * self.num_streams

    @rule(stream=st.integers(0, num_streams - 1), data=st.data())
    def push(self, stream: int, data: st.DataObject) -> None:
        self._push(stream, data.draw(st.integers(0, len(self.library) + 2)))

    @rule(stream=st.integers(0, num_streams - 1), data=st.data())
    def push_special(self, stream: int, data: st.DataObject) -> None:
        self._push(stream, data.draw(st.sampled_from(sorted(self.backend.get_added_tokens_decoder()))))

    @rule(stream=st.integers(0, num_streams - 1), text=texts)
    def push_text(self, stream: int, text: str) -> None:
        for token_id in self.library.encode(text, add_special_tokens=False):
            self._push(stream, token_id)

    @rule(stream=st.integers(0, num_streams - 1), text=texts, data=st.data())
    def push_half_of_a_text(self, stream: int, text: str, data: st.DataObject) -> None:
        ids = self.library.encode(text, add_special_tokens=False)
        for token_id in ids[: data.draw(st.integers(0, len(ids)))]:
            self._push(stream, token_id)

    @rule(stream=st.integers(0, num_streams - 1))
    def end(self, stream: int) -> None:
        assert self.text[stream] + self.open[stream].flush() == reference(self.library, self.ids[stream])
        self.open[stream] = self.tokenizer.new_detokenizer()
        self.ids[stream], self.text[stream] = [], ""

    def _push(self, stream: int, token_id: int) -> None:
        self.text[stream] += self.open[stream].push(token_id)
        if self.backend.id_to_token(token_id) is not None:
            self.ids[stream].append(token_id)

    @invariant()
    def what_is_given_out_is_settled_and_nothing_else_is_held(self) -> None:
        for ids, text in zip(self.ids, self.text, strict=True):
            if self.tokenizer._token_bytes is not None:
                assert text == _decidable(b"".join(self.tokenizer._token_bytes[i] for i in ids))
                continue
            heard = [i for i in ids if i not in self.special]
            num_settled = len(heard)
            while num_settled and self._is_part(heard[num_settled - 1]):
                num_settled -= 1
            settled = reference(self.library, heard[:num_settled])
            if num_settled == len(heard):
                assert text == settled
            else:
                assert text.startswith(settled.rstrip("\ufffd"))

    def _is_part(self, token_id: int) -> bool:
        """Whether the text of this token depends on those behind it."""
        token = self.backend.id_to_token(token_id)
        return token.startswith("<0x") or "\ufffd" in token

    def teardown(self) -> None:
        for stream in range(self.num_streams):
            self.end(stream)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_streams_side_by_side_keep_the_law_at_every_token(kind: str) -> None:
    machine = type("Machine", (DetokenizerMachine,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(repeatable, max_examples=60, stateful_step_count=25))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte-level"])
def test_a_window_does_not_grow_with_the_stream(kind: str) -> None:
    one = detokenizer(kind)
    assert isinstance(one, WindowDetokenizer)
    lengths: list[int] = []
    for _ in range(40):
        for token_id in tokenizer_of_kind(kind).encode("the fox"):
            one.push(token_id)
            lengths.append(len(one._window))
    assert max(lengths) == max(lengths[:20])


def test_flush_without_anything_pushed_is_empty() -> None:
    for kind in KINDS:
        assert detokenizer(kind).flush() == ""
