"""What the soak's model says, and that a client can know it beforehand."""

import random

import pytest

from tests.soak.asks import new_ask
from tests.soak.faults import CALM, Faults
from tests.soak.oracle import answer, byte_of, key_of, length_of, shown, spoken
from tests.soak.runner import SoakTokenizer
from tests.support.random_models import byte_level_tokenizer
from worker.engine.stop_strings import StopStrings
from worker.message import Message

KEYS = [key_of(str(n).encode()) for n in range(60)]


def test_answers_differ_by_prompt_and_by_place() -> None:
    assert len({spoken(key, 40) for key in KEYS}) == len(KEYS)
    for key in KEYS:
        text = spoken(key, 400)
        assert len({text[i : i + 12] for i in range(0, len(text) - 12, 12)}) > len(text) // 12 - 3


def test_an_answer_holds_characters_of_all_widths() -> None:
    assert {len(c.encode()) for c in spoken(KEYS[0], 400)} == {1, 2, 3, 4}


def test_the_model_ends_some_answers_by_itself() -> None:
    lengths = [length_of(key) for key in KEYS]
    assert None in lengths
    key = next(key for key in KEYS if (length_of(key) or 99) < 40)
    end = length_of(key)
    assert end is not None
    assert answer(key, 200).stop_reason == "EOS"
    assert answer(key, 200).num_tokens == end + 1
    assert answer(key, end).stop_reason == "MAX_TOKENS"


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    key = KEYS[0]
    cut = next(n for n in range(1, 100) if byte_of(key, n) & 0xC0 == 0x80)
    assert answer(key, cut).text == spoken(key, cut) + "\ufffd"


@pytest.mark.parametrize("seed", range(200))
def test_stop_strings_as_the_product_sees_them(seed: int) -> None:
    """Two implementations that have nothing in common: the oracle looks at the whole text after every token."""
    ask = new_ask(random.Random(seed), "/execute", seed)
    due = ask.due()
    stops = StopStrings(ask.stops)
    text = ""
    for n in range(1, due.num_tokens + 1):
        is_last = n == due.num_tokens and due.stop_reason != "STOP_SEQUENCE"
        so_far = due_text(ask.key, n, due.stop_reason == "EOS" and is_last, is_last)
        before = due_text(ask.key, n - 1, False, False)
        text += stops.push(so_far[len(before) :])
    if stops.matched is None:
        text += stops.flush()
    assert (text, stops.matched) == (due.text, due.stop_sequence)


@pytest.mark.parametrize("seed", range(200))
def test_what_is_shown_of_an_answer_that_is_not_over(seed: int) -> None:
    """Again two implementations that have nothing in common."""
    ask = new_ask(random.Random(seed), "/execute", seed)
    stops = StopStrings(ask.stops)
    text = ""
    for n in range(1, ask.due().num_tokens):
        text += stops.push(spoken(ask.key, n)[len(spoken(ask.key, n - 1)) :])
        assert text == shown(ask.key, n, ask.stops)


def due_text(key: int, num_tokens: int, is_eos: bool, is_last: bool) -> str:
    said = bytes(byte_of(key, n) for n in range(num_tokens - is_eos))
    return said.decode("utf-8", "replace") if is_last else spoken(key, num_tokens)


def test_client_and_server_agree_about_the_prompt() -> None:
    """The client hashes text; the model hashes what is spelled by the tokens that it has computed."""
    tokenizer = SoakTokenizer(byte_level_tokenizer(), Faults(CALM))
    spelling = tokenizer.spelling()
    for number in range(100):
        ask = new_ask(random.Random(number), random.Random(number).choice(("/execute", "/v1/chat/completions")), number)
        if "prompt" in ask.fields:
            token_ids = tokenizer.encode(ask.fields["prompt"])
        else:
            token_ids = tokenizer.encode_chat([Message(**turn) for turn in ask.fields["messages"]])
        assert key_of(b"".join(spelling[token_id] for token_id in token_ids)) == ask.key


def test_asks_depend_on_the_seed_alone() -> None:
    one, other = (new_ask(random.Random("7 gevent 3"), "/execute", 3) for _ in range(2))
    assert one == other
