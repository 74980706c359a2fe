"""Small tokenizers, one of each kind of decoder that models come with."""

import functools
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.random_models import byte_level_tokenizer

_MERGES = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("▁", "▁"), ("s", "t")]
_CHARACTERS = [*"▁abcdefghijklmnopqrstuvwxyz.,'!?éß語\ufffd"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _wrapped(tokenizer: Tokenizer) -> Any:
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    wrap: Any = PreTrainedTokenizerFast
    return wrap(tokenizer_object=tokenizer, eos_token="<|end|>")


def _bpe(*, byte_fallback: bool) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *_BYTES, *_CHARACTERS, *("".join(pair) for pair in _MERGES)]
    vocab = {token: i for i, token in enumerate(tokens)}
    bpe: Any = models.BPE
    tokenizer = Tokenizer(
        bpe(vocab=vocab, merges=_MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def sentencepiece() -> Any:
    """As Llama 2 and Mistral: spaces as ▁, bytes for what the vocabulary lacks."""
    tokenizer = _bpe(byte_fallback=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(tokenizer)


def metaspace() -> Any:
    """As T5 and its relatives: no bytes, the decoder itself drops the first space."""
    tokenizer = _bpe(byte_fallback=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrapped(tokenizer)


def word_piece() -> Any:
    """As BERT: a space before every token that does not continue a word, and cleaned up around punctuation."""
    words = [
        *["the", "quick", "fox", "do", "not", "it", "i", "is", "I", "was", "you", "can", "n", "m", "s", "ve", "re"],
        "n't",
        "'m",
        "'s",
    ]
    tokens = ["[UNK]", *words, *(f"##{word}" for word in words), *".,!?'-"]
    word_piece: Any = models.WordPiece
    tokenizer = Tokenizer(word_piece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return _wrapped(tokenizer)


def word_suffix() -> Any:
    """As the first GPT: a mark at the end of each word becomes a space, but not behind the last."""
    tokens = ["<unk>", "a", "b", "a</w>", "b</w>", ".</w>", "é</w>", "語"]
    bpe: Any = models.BPE
    tokenizer = Tokenizer(bpe(vocab={token: i for i, token in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return _wrapped(tokenizer)


def nested_byte_level() -> Any:
    """Bytes, but not only: its decoder is a sequence, so it is decoded in a window."""
    fast = byte_level_tokenizer()
    fast.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return fast


KINDS = {
    "byte-level": byte_level_tokenizer,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "word-piece": word_piece,
    "word-suffix": word_suffix,
    "nested-byte-level": nested_byte_level,
}


@functools.cache
def tokenizer_of_kind(kind: str) -> Any:
    """One for all tests that only read it."""
    return KINDS[kind]()
