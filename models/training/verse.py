"""The verse: a plain text of speeches ("SPEAKER:", lines, blank line), of which the end is held out."""

from dataclasses import dataclass
from pathlib import Path

_HELD_OUT_SHARE = 0.05
_MAX_QUOTE_CHARS = 400


@dataclass(frozen=True, slots=True)
class Speech:
    """What one speaker says."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Verse:
    """The text, cut in two between speeches."""

    trained: str
    held_out: str

    def speeches(self) -> list[Speech]:
        """The speeches of the trained part, long ones cut at the end of a line."""
        speeches = []
        for block in self.trained.split("\n\n"):
            speaker, _, text = block.strip().partition(":\n")
            if text:
                cut = text if len(text) <= _MAX_QUOTE_CHARS else text[:_MAX_QUOTE_CHARS].rpartition("\n")[0]
                speeches.append(Speech(speaker, cut))
        return speeches


def read_verse(path: Path) -> Verse:
    """Reads the text at `path` and holds out its last twentieth."""
    text = path.read_text(encoding="utf-8")
    cut = text.rindex("\n\n", 0, int(len(text) * (1 - _HELD_OUT_SHARE))) + 2
    return Verse(text[:cut], text[cut:])
