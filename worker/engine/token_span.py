"""How much text one token can stand for, at most, from a tokenizer.json. Plain Python, any thread.

A prompt that is longer than the context times this can never fit, and is refused without the work of encoding it.
Law: the bound is never too low. Of what a tokenizer.json may hold, only what is known to drop no text has one:

- A model of bytes: BPE whose vocabulary spells every byte, else any run of unknown text may be one token, or none.
- Normalizers that do not shorten (`Prepend`, `Replace` by something as long), and NFC, which shortens to a quarter at
  most: a Greek letter of 3 bytes and two accents of 2 become one of 2. Others may drop as much as they like.
- Pre-tokenizers that keep what they split at.
- No added token that swallows the spaces around it (`lstrip`, `rstrip`).
"""

from typing import Any

from worker.engine.detokenizer import BYTE_OF_CHARACTER

NFC_SHRINKS = 4  # tests/engine/test_token_span.py goes through all of Unicode


def token_span(description: dict[str, Any]) -> int | None:
    """The most bytes of UTF-8 that one token can stand for, or None if there is no bound.

    Args:
        description: A tokenizer.json, parsed.
    """
    model = description.get("model") or {}
    pre_tokenizers = _flat(description.get("pre_tokenizer"), "pretokenizers")
    normalizers = _flat(description.get("normalizer"), "normalizers")
    added = description.get("added_tokens") or []
    factors = [_shrinks(normalizer) for normalizer in normalizers]
    if (
        not _spells_bytes(model, [*normalizers, *pre_tokenizers])
        or None in factors
        or not all(_keeps_text(part) for part in pre_tokenizers)
        or any(token["lstrip"] or token["rstrip"] for token in added)
    ):
        return None
    # As UTF-8 a token is at least as long as what it stands for: ▁ is longer than a space, and of the characters that
    # stand for bytes each is one byte or two.
    longest = max(len(token.encode()) for token in [*model["vocab"], *(token["content"] for token in added)])
    for factor in factors:
        longest *= factor or 1
    return longest


def _flat(part: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [leaf for child in part[children] for leaf in _flat(child, children)]
    return [part]


def _spells_bytes(model: dict[str, Any], parts: list[dict[str, Any]]) -> bool:
    """Whether no text is unknown to it."""
    if model.get("type") != "BPE":
        return False
    vocab = model["vocab"]
    if any(part["type"] == "ByteLevel" for part in parts):
        return all(character in vocab for character in BYTE_OF_CHARACTER)
    return bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in vocab for byte in range(256))


def _shrinks(normalizer: dict[str, Any]) -> int | None:
    """To which part of its length a normalizer can shorten a text, or None for any."""
    match normalizer:
        case {"type": "NFC"}:
            return NFC_SHRINKS
        case {"type": "Prepend" | "ByteLevel"}:
            return 1
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return 1 if len(content.encode()) >= len(pattern.encode()) else None
    return None


def _keeps_text(part: dict[str, Any]) -> bool:
    if part["type"] in ("Split", "Punctuation"):
        return bool(part.get("behavior") != "Removed")
    return part["type"] in ("ByteLevel", "Metaspace", "Digits")
