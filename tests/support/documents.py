"""The documents, as their readers have them: headings, links, code in the text, and blocks of code that can be run."""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from worker.settings import ROOT

_FOLDERS = (ROOT, ROOT / "docs", ROOT / "spec", ROOT / "models" / "endstop-tiny")
DOCUMENTS = [document for folder in _FOLDERS for document in sorted(folder.glob("*.md"))]

_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->\s*\Z", re.DOTALL)


def name_of(document: Path) -> str:
    """Its path in the repository."""
    return document.relative_to(ROOT).as_posix()


@dataclass(frozen=True, slots=True)
class Block:
    """One block of code.

    Attributes:
        line: Of the document, from 1.
        language: What the fence says; empty for an indented block and for a fence that says nothing.
        note: The comment right above it, which says how it is treated.
    """

    document: str
    line: int
    language: str
    note: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


@functools.cache
def _tokens(document: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(document.read_text())


def blocks_of(document: Path) -> list[Block]:
    """All blocks of code, in order."""
    blocks = []
    before: Token | None = None
    for token in _tokens(document):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            comment = _COMMENT.search(before.content) if before is not None and before.type == "html_block" else None
            note = comment[1] if comment else ""
            blocks.append(Block(name_of(document), token.map[0] + 1, token.info.strip(), note, token.content))
        before = token
    return blocks


def _inline(document: Path) -> Iterator[Token]:
    for token in _tokens(document):
        yield from token.children or ()


def code_of(document: Path) -> list[str]:
    """What is marked as code in the text."""
    return [token.content for token in _inline(document) if token.type == "code_inline"]


def links_of(document: Path) -> list[str]:
    """Where its links and images point to."""
    links = [token.attrGet("href") or token.attrGet("src") for token in _inline(document)]
    return [str(link) for link in links if link]


@functools.cache
def anchors_of(document: Path) -> set[str]:
    """What can stand behind `#` in a link to it, as GitHub makes it of headings."""
    anchors: set[str] = set()
    tokens = _tokens(document)
    for heading, text in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            words = "".join(child.content for child in text.children or ())
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            number = next(n for n in range(len(tokens)) if (f"{slug}-{n}" if n else slug) not in anchors)
            anchors.add(f"{slug}-{number}" if number else slug)
    return anchors
