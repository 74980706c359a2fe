"""Encoding by many threads while one decodes, and whole prompts whatever the tokenizer's file says."""

import threading
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.support.random_models import byte_level_tokenizer
from tests.support.tokenizers import KINDS
from worker.engine.tokenizer import Tokenizer
from worker.errors import InvalidRequest
from worker.request import Message

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
