"""Stop strings in a stream of text. Pure Python, no torch.

Law: what has been released never holds a stop string nor the beginning of one that is completed later. How the text
is cut into pieces makes no difference.
"""


class StopStrings:
    """Watches one stream. Holds back the end of the text while it could be the beginning of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take the next piece of text and give back what can be released.

        After a match `matched` says which stop string it was, and nothing more may be pushed. Of several, the
        one that is complete first wins, and of those the longest: as if text came one character at a time.
        """
        if not self._stops:
            return text
        text = self._held + text
        ends = []
        for stop in self._stops:
            at = text.find(stop)
            if at >= 0:
                ends.append((at + len(stop), at, stop))
        if ends:
            _, at, self.matched = min(ends)
            self._held = ""
            return text[:at]
        num_held = self._num_undecided(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back, at the end of a stream that ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _num_undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
