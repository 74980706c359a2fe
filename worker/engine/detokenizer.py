"""Token ids to text, one at a time, exactly. No torch.

Law: the pieces joined are the decoding of the whole, whatever the splits: no broken character, no lost or doubled
space. A piece is given out as soon as no further token can change it, and not before.

What is decidable depends on the tokenizer's decoder, so there are two ways:
- byte-level tokenizers (GPT-2, Llama 3, Qwen, most new ones) are bytes: an incremental UTF-8 decoder is exact.
- all others are decoded in a window that begins at a token whose text is settled, and the known part is cut off.
  With byte fallback (Llama 2, Gemma, Mistral) a run of byte tokens is decided only when it ends: the `tokenizers`
  library decodes a run as a whole, and one bad byte turns all of it into replacement characters.

Special tokens have no text, but for those that a stream is to show. Generation thread only: a tokenizer shared between
threads raises `Already borrowed`.
"""

import codecs
import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

_NONE: Mapping[int, str] = MappingProxyType({})


class IncrementalDetokenizer(Protocol):
    """Turns one stream of token ids into text."""

    def push(self, token_id: int) -> str:
        """Take one token and give back the text that has become decidable."""
        ...

    def flush(self) -> str:
        """The rest, at the end of the stream."""
        ...


def _byte_of_character() -> dict[str, int]:
    """The inverse of GPT-2's printable stand-ins for bytes.

    Source: `bytes_to_unicode` in openai/gpt-2, encoder.py: printable bytes stand for themselves, the others for the
    characters from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


class TokenBytes:
    """The bytes of each token of a byte-level vocabulary, found when first asked for."""

    def __init__(self, token_of_id: Callable[[int], str | None], special_ids: frozenset[int]) -> None:
        self._token_of_id = token_of_id
        self._known: dict[int, bytes] = dict.fromkeys(special_ids, b"")

    def __getitem__(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._find(token_id)
        return known

    def _find(self, token_id: int) -> bytes:
        token = self._token_of_id(token_id)
        if token is None:  # a row of the embedding without a token behind it
            return b""
        try:
            return bytes(BYTE_OF_CHARACTER[character] for character in token)
        except KeyError:  # an added token, spelled in plain characters
            return token.encode()


class ByteLevelDetokenizer:
    """Exact for tokenizers whose decoder is `ByteLevel`. Constant time per token."""

    def __init__(self, token_bytes: TokenBytes, shown: Mapping[int, str] = _NONE) -> None:
        """Begin a stream in which the special tokens `shown` have these texts."""
        self._token_bytes = token_bytes
        self._shown = {token_id: text.encode() for token_id, text in shown.items()}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._shown.get(token_id) or self._token_bytes[token_id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class WindowDetokenizer:
    """For every other tokenizer: decodes the last few tokens again and cuts off what is known."""

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        token_of_id: Callable[[int], str | None],
        special_ids: frozenset[int],
        shown: Mapping[int, str] = _NONE,
    ) -> None:
        """Begin a stream in which the special tokens `shown` have these texts."""
        self._decode = decode
        self._token_of_id = token_of_id
        self._special_ids = special_ids
        self._shown = shown
        # Tokens whose text is settled, kept as context for the spaces between them and the next, and then those since.
        self._window: list[int] = []
        self._num_settled = 0
        self._num_given = 0  # characters of the window's text that have been given out

    def push(self, token_id: int) -> str:
        if token_id in self._shown:
            return self.flush() + self._shown[token_id]
        token = self._token_of_id(token_id)
        if token_id in self._special_ids or token is None:
            return ""  # not even the end of a run of bytes: the decoder never sees it
        self._window.append(token_id)
        if BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._decode(self._window)
        if text.endswith("\ufffd"):  # perhaps the beginning of a character; what is before it cannot change
            new, self._num_given = text[self._num_given : -1], max(self._num_given, len(text) - 1)
            return new
        new = text[self._num_given :]
        self._window = self._window[self._num_settled :]
        self._num_settled = len(self._window)
        self._num_given = len(self._decode(self._window))
        return new

    def flush(self) -> str:
        new = self._decode(self._window)[self._num_given :]
        self._window, self._num_settled, self._num_given = [], 0, 0
        return new


def is_byte_level(tokenizer_json: str) -> bool:
    """Whether a `tokenizer.json` decodes by bytes alone."""
    decoder = json.loads(tokenizer_json).get("decoder") or {}
    return bool(decoder.get("type") == "ByteLevel")
