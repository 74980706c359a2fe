"""The bound on what one token can stand for: never too low, and none where a tokenizer may drop text."""

import json
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tokenizers import KINDS
from worker.engine.token_span import NFC_SHRINKS, token_span
from worker.engine.tokenizer import Tokenizer

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=150)


def description(kind: str = "byte-level") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(KINDS[kind]().backend_tokenizer.to_str())
    return found


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "nested-byte-level"])
def test_a_model_of_bytes_has_a_bound(kind: str) -> None:
    known = description(kind)
    tokens = [*known["model"]["vocab"], *(added["content"] for added in known["added_tokens"])]
    longest = max(len(token.encode()) for token in tokens)
    assert token_span(known) == longest


@pytest.mark.parametrize("kind", ["metaspace", "word-piece", "word-suffix"])
def test_a_model_that_does_not_know_every_byte_has_none(kind: str) -> None:
    """A run of unknown text may become one token, or none at all."""
    assert token_span(description(kind)) is None


@repeatable
@given(st.sampled_from(["byte-level", "sentencepiece"]), st.text(max_size=40), st.integers(1, 30))
def test_no_text_has_fewer_tokens_than_the_bound_says(kind: str, text: str, times: int) -> None:
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.min_tokens(text * times) <= len(tokenizer.encode(text * times))


TOKENIZERS = {kind: Tokenizer(KINDS[kind]()) for kind in ("byte-level", "sentencepiece")}


def _normalized(*parts: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda known: known.update(normalizer={"type": "Sequence", "normalizers": list(parts)})


def _split(behavior: str) -> Callable[[dict[str, Any]], None]:
    removing = {"type": "Split", "pattern": {"String": " "}, "behavior": behavior, "invert": False}
    return lambda known: known.update(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [removing, known["pre_tokenizer"]]}
    )


def _swallowing(side: str) -> Callable[[dict[str, Any]], None]:
    return lambda known: known["added_tokens"][0].update({side: True})


PREPEND = {"type": "Prepend", "prepend": "_"}


@pytest.mark.parametrize(
    "change",
    [
        _normalized({"type": "Lowercase"}),
        _normalized(PREPEND, {"type": "Strip", "strip_left": True, "strip_right": True}),
        _normalized({"type": "Replace", "pattern": {"String": "aa"}, "content": "b"}),
        _normalized({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "aaaa"}),
        _split("Removed"),
        lambda known: known.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}),
        _swallowing("lstrip"),
        _swallowing("rstrip"),
        lambda known: known["model"]["vocab"].pop("a"),
        lambda known: known["model"].update(type="WordPiece"),
    ],
)
def test_what_may_drop_text_has_no_bound(change: Callable[[dict[str, Any]], Any]) -> None:
    known = description()
    change(known)
    assert token_span(known) is None


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        (_normalized(PREPEND, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}), 1),
        (_normalized({"type": "NFC"}), NFC_SHRINKS),
        (_split("Isolated"), 1),
    ],
)
def test_what_keeps_text_has_a_bound(change: Callable[[dict[str, Any]], Any], factor: int) -> None:
    known = description()
    before = token_span(known)
    change(known)
    assert before is not None
    assert token_span(known) == before * factor


def test_added_tokens_count() -> None:
    known = description()
    known["added_tokens"].append({"content": "x" * 999, "lstrip": False, "rstrip": False})
    assert token_span(known) == 999


@pytest.mark.slow
def test_nfc_shortens_no_text_further_than_is_said() -> None:
    """Whatever a character is composed of, as long as Unicode can spell each part of it."""
    longest: dict[str, int] = {}
    characters = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point <= 0xDFFF]
    decompositions = {character: unicodedata.normalize("NFD", character) for character in characters}
    for character, parts in decompositions.items():
        if len(parts) == 1:  # itself, or one that means the same
            longest[parts] = max(longest.get(parts, 0), len(character.encode()), len(parts.encode()))
    for character, parts in decompositions.items():
        spelled = sum(longest.get(part, len(part.encode())) for part in parts)
        assert len(character.encode()) <= spelled, "a spelling that is longer than its parts"
        if unicodedata.normalize("NFC", character) == character:
            assert spelled <= NFC_SHRINKS * len(character.encode()), character
