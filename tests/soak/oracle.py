"""What the soak's model says: its n-th token is a function of the prompt and n. Pure; server and client share it.

Every token is one byte, and four tokens make a group: letters mostly, but also characters of two, three and four
bytes, so that the text of a stream is not simply its tokens. Two groups in the wrong order, one that is missing or
one too many, or one of another prompt, give another text.
"""

import codecs
import functools
import zlib
from dataclasses import dataclass

GROUP = 4
_MASK = 0xFFFFFFFF
_WIDE = ("語 ", "😀", "éü")  # four bytes each
_LETTERS = b"abcdefghijklmnopqrstuvwxyz"


def key_of(prompt: bytes) -> int:
    """What the answer depends on: all of the prompt, as the model's tokens spell it."""
    return zlib.crc32(prompt)


def length_of(key: int) -> int | None:
    """After how many tokens the model ends by itself; None: never."""
    return 5 + key // 3 % 90 if key % 3 == 0 else None


def byte_of(key: int, n: int) -> int:
    """The n-th token of the answer, a byte."""
    mixed = _mix(key, n // GROUP)
    kind = mixed & 7
    if kind < len(_WIDE):
        return _WIDE[kind].encode()[n % GROUP]
    return _LETTERS[(mixed >> (8 + 5 * (n % GROUP))) % len(_LETTERS)]


def _mix(key: int, n: int) -> int:
    """murmur3's finalizer: neighbours in, strangers out."""
    x = (key ^ (n * 0x9E3779B1)) & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def spoken(key: int, num_tokens: int) -> str:
    """The text that is decidable after this many tokens: an unfinished character at the end is not."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return decoder.decode(bytes(byte_of(key, n) for n in range(num_tokens)))


def shown(key: int, num_tokens: int, stops: tuple[str, ...] = ()) -> str:
    """The text that a client has after this many tokens, when the answer is not over.

    All but what is not decidable: of the last character less than 4 bytes, which are as many tokens here; and of the
    text before it the longest end that begins a stop string, less than the whole one.
    """
    text = spoken(key, num_tokens)
    beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
    held = max((len(beginning) for beginning in beginnings if text.endswith(beginning)), default=0)
    return text[: len(text) - held]


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer to a request that nothing happens to.

    Attributes:
        num_tokens: As usage counts them: the end-of-sequence token is one.
        stop_reason: EOS, MAX_TOKENS or STOP_SEQUENCE.
    """

    text: str
    num_tokens: int
    stop_reason: str
    stop_sequence: str | None = None


@functools.lru_cache(maxsize=1000)
def answer(key: int, max_tokens: int, stops: tuple[str, ...] = ()) -> Answer:
    """What a request has to get. Plain and slow on purpose: it looks at the whole text after every token."""
    end = length_of(key)
    said = bytearray()
    for num_tokens in range(1, max_tokens + 1):
        is_eos = end is not None and num_tokens > end
        is_last = is_eos or num_tokens == max_tokens
        if not is_eos:
            said.append(byte_of(key, num_tokens - 1))
        text = bytes(said).decode("utf-8", "replace") if is_last else _decidable(said)
        found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
        if found:
            _, at, stop = min(found)
            return Answer(text[:at], num_tokens, "STOP_SEQUENCE", stop)
        if is_last:
            return Answer(text, num_tokens, "EOS" if is_eos else "MAX_TOKENS")
    raise AssertionError("max_tokens is at least 1")


def _decidable(said: bytearray) -> str:
    return codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(said))
