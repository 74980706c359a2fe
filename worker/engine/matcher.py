"""llguidance: a grammar, and where a text is in it. Imports nothing else: vet.py starts a process with it.

Its panics are caught in its methods, or leave them as `BaseException`s; see panics.py.
"""

import re
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# For one step. By default a lexer may have more states than its memory is good for, 2 KiB each.
_LIMITS = LLParserLimits(verbose_errors=False, step_lexer_fuel=100_000, max_lexer_states=20_000)
# Behind the grammar, where it overrides what is before. What can go on in one way only would be cut into tokens by the
# tokenizer and the first one forced. So it is left to the model which of the tokens that spell it to take.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
_MAX_REASON_CHARACTERS = 300
_EXCERPT = re.compile(r"^ +\d+ \| |^<", re.MULTILINE)  # of the grammar, or of the stack


class _Tokens:
    """The model's tokens as llguidance reads them, which takes this for a `TokenizerWrapper`."""

    is_tokenizer_wrapper = True
    # It makes one of its own behind the last token. A model may have several, and a grammar may name them.
    eos_token_id = None
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special_ids: Sequence[int]) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids

    def __call__(self, text: object) -> list[int]:
        raise NotImplementedError("nothing is forced, so nothing is cut into tokens")


def new_vocabulary(tokens: Sequence[bytes], special_ids: Sequence[int]) -> LLTokenizer:
    """The tokens of a model. Takes half a second for a large one.

    Args:
        tokens: What each of them spells; the name of a special one.
        special_ids: Those that are no text. A grammar calls them by their names.
    """
    tokenizer: Any = _Tokens(tokens, special_ids)
    return LLTokenizer(tokenizer)


def new_matcher(vocabulary: LLTokenizer, grammar: str) -> LLMatcher:
    """A place at the beginning of a grammar. That it is none is said by `reason_of`."""
    return LLMatcher(vocabulary, grammar + _OPTIONS, log_level=0, limits=_LIMITS)


def find_mask(matcher: LLMatcher, vocab_size: int, shut_ids: Sequence[int] = ()) -> bytearray:
    """Which tokens may come next, a bit for each, the lowest of the first byte for token 0.

    Args:
        shut_ids: Tokens that may not, whatever the grammar says.

    Raises:
        RuntimeError: It has no answer.
    """
    mask = bytearray(matcher.compute_bitmask())
    if matcher.is_error():  # of which the mask says nothing: it allows the end
        raise RuntimeError(reason_of(matcher))
    for token_id in (*shut_ids, vocab_size):  # the last is its own end
        mask[token_id // 8] &= ~(1 << token_id % 8)
    if mask.count(0) == len(mask) and not matcher.is_accepting():
        raise RuntimeError("no token of this model can come next")
    return mask


def reason_of(matcher: LLMatcher) -> str:
    """What is wrong, in a line; empty if nothing is."""
    error = matcher.get_error()
    excerpt = _EXCERPT.search(error)
    reason = " ".join((error[: excerpt.start()] if excerpt else error).split())
    if reason == "NoExtensionBias":
        return "no token of this model can come next"
    return reason if len(reason) <= _MAX_REASON_CHARACTERS else reason[:_MAX_REASON_CHARACTERS] + "..."
