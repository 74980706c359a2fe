"""Encoding by many threads while one decodes, and whole prompts whatever the tokenizer's file says."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders
from transformers import AutoTokenizer

from tests.support.random_models import byte_level_tokenizer
from tests.support.tokenizers import KINDS
from worker.engine.tokenizer import Tokenizer
from worker.errors import InvalidRequest
from worker.message import Message

TEXT = "the quick brown fox jumps over the lazy dog"
PATIENCE_S = 60.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_many_threads_encode_while_one_decodes(kind: str) -> None:
    """`tokenizers` raises `Already borrowed` when threads share one that is being changed."""
    tokenizer = Tokenizer(KINDS[kind]())
    expected = tokenizer.encode(TEXT)
    chat = [Message(role="user", content=TEXT)]
    expected_chat = tokenizer.encode_chat(chat)
    faults: list[BaseException] = []
    is_over = threading.Event()
    start = threading.Barrier(5)

    def encode() -> None:
        try:
            start.wait(PATIENCE_S)
            for _ in range(100):
                assert tokenizer.encode(TEXT) == expected
                assert tokenizer.encode_chat(chat) == expected_chat
        except BaseException as fault:
            faults.append(fault)

    def decode() -> None:
        try:
            start.wait(PATIENCE_S)
            while not is_over.is_set():
                one = tokenizer.new_detokenizer()
                assert "".join([*map(one.push, expected), one.flush()]) == TEXT
        except BaseException as fault:
            faults.append(fault)

    decoder = threading.Thread(target=decode)
    encoders = [threading.Thread(target=encode) for _ in range(4)]
    for thread in (decoder, *encoders):
        thread.start()
    for thread in encoders:
        thread.join(PATIENCE_S)
    is_over.set()
    decoder.join(PATIENCE_S)
    assert faults == []


def test_a_prompt_is_neither_cut_nor_padded(tmp_path: Path) -> None:
    """A tokenizer.json may carry the truncation and padding of its training."""
    fast = byte_level_tokenizer()
    expected = Tokenizer(byte_level_tokenizer()).encode(TEXT)
    fast.backend_tokenizer.enable_truncation(4)
    fast.backend_tokenizer.enable_padding(length=64)
    fast.save_pretrained(tmp_path)
    assert Tokenizer(AutoTokenizer.from_pretrained(tmp_path)).encode(TEXT) == expected


def test_a_chat_is_written_by_the_template_of_the_model() -> None:
    tokenizer = Tokenizer(byte_level_tokenizer())
    ids = tokenizer.encode_chat([Message(role="user", content="the fox")])
    assert ids == tokenizer.encode("<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_without_a_template_gets_plain_words() -> None:
    fast = byte_level_tokenizer()
    fast.chat_template = None
    tokenizer = Tokenizer(fast)
    assert tokenizer.encode_chat([Message(role="user", content="the fox")]) == tokenizer.encode(
        "user: the fox\nassistant:"
    )


def test_a_template_that_refuses_is_a_bad_request() -> None:
    fast = byte_level_tokenizer()
    fast.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate") as refusal:
        Tokenizer(fast).encode_chat([Message(role="user", content="the fox")])
    assert [error.field for error in refusal.value.errors] == ["messages"]


def test_the_end_of_sequence_token_is_known() -> None:
    fast = byte_level_tokenizer()
    assert Tokenizer(fast).eos_id == fast.convert_tokens_to_ids("<|im_end|>")


# ---- what the library does when it is at a loss


def _panic(*args: object, **kwargs: object) -> Any:
    """The library's own panic, which is no `Exception`."""
    return decoders.Strip(" ", 1, 1).decode([" "])


class Panicking:
    """A backend whose every answer is a panic."""

    encode_batch = decode = id_to_token = staticmethod(_panic)


def test_a_panic_of_the_library_is_not_an_exception() -> None:
    with pytest.raises(BaseException, match="slice") as panic:
        _panic()
    assert not isinstance(panic.value, Exception)


def test_a_panic_of_the_library_is_an_error_here() -> None:
    tokenizer = Tokenizer(byte_level_tokenizer())
    ids = tokenizer.encode(TEXT)
    tokenizer._backend = Panicking()
    tokenizer._decode_copy = Panicking()
    for call in (lambda: tokenizer.encode(TEXT), lambda: tokenizer._decode(ids)):
        with pytest.raises(RuntimeError, match="panicked"):
            call()


def test_a_panic_at_the_name_of_a_token_is_an_error_here() -> None:
    fast = byte_level_tokenizer()
    backend = fast.backend_tokenizer

    class Backend:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def __deepcopy__(self, memo: object) -> "Backend":
            return self

        id_to_token = staticmethod(_panic)

    class Fast:
        backend_tokenizer = Backend()

    with pytest.raises(RuntimeError, match="panicked"):
        Tokenizer(Fast()).new_detokenizer().push(300)


def test_an_exit_passes() -> None:
    class Leaving:
        def encode_batch(self, *args: object, **kwargs: object) -> Any:
            raise SystemExit

    tokenizer = Tokenizer(byte_level_tokenizer())
    tokenizer._backend = Leaving()
    with pytest.raises(SystemExit):
        tokenizer.encode(TEXT)


# ---- how many tokens there are at least


def test_a_conversation_is_measured_as_the_template_writes_it() -> None:
    """A template may leave parts of a conversation out: their length must not be held against it."""
    fast = byte_level_tokenizer()
    fast.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer = Tokenizer(fast)
    chat = [Message(role="user", content="x" * 10_000), Message(role="user", content="the fox")]
    assert 0 < tokenizer.min_chat_tokens(chat) <= len(tokenizer.encode_chat(chat)) < 10


def test_without_a_bound_nothing_is_too_long() -> None:
    tokenizer = Tokenizer(KINDS["word-piece"]())
    assert tokenizer.min_tokens("x" * 100_000) == 0
    assert tokenizer.min_chat_tokens([Message(role="user", content="x" * 100_000)]) == 0


@pytest.mark.slow
def test_a_short_text_does_not_wait_for_long_ones() -> None:
    """Neither for a lock of ours nor for the library's own threads, of which there are as many as cores."""
    tokenizer = Tokenizer(byte_level_tokenizer())
    long = "the quick brown fox " * 15_000
    threads = [threading.Thread(target=tokenizer.encode, args=(long,)) for _ in range((os.cpu_count() or 1) + 1)]
    for thread in threads:
        thread.start()
    tokenizer.encode(TEXT)
    is_first = all(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert is_first
