"""A conversation in the terminal, for trying a model and for feeling how the server streams.

Its law: the session outlives every answer. Ctrl-C ends an answer by closing its stream, which is how the server
learns that it may stop; an error is one line; only Ctrl-D and /exit end the session. The history holds what was
seen, so an answer that was stopped counts as far as it went, and a question without any answer is forgotten.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from worker.check import printable
from worker.client import Client, End, EndstopError, GenerateFields, Token
from worker.spawn import SpawnFailed, announced_server

PROMPT = "> "
HELP = "Ctrl-C stops an answer, /reset forgets the conversation, /exit or Ctrl-D ends it"


@dataclass
class Answer:
    """What has come of one answer so far, and when."""

    asked_at: float
    text: str = ""
    num_tokens: int = 0
    num_first_tokens: int = 0
    first_at: float | None = None
    last_at: float = 0.0
    ending: str = ""

    def add(self, token: Token, at: float) -> None:
        if self.first_at is None:
            self.first_at = at
            self.num_first_tokens = token.num_tokens
        self.last_at = at
        self.text += token.text
        self.num_tokens += token.num_tokens

    def summary(self) -> str:
        """Tokens, tokens/s and time to first token, as the user lived through them."""
        parts = [f"{self.num_tokens} token{'' if self.num_tokens == 1 else 's'}"]
        if self.first_at is not None:
            # What came with the first event was waited for by another name: the time to first token.
            num_later, took_s = self.num_tokens - self.num_first_tokens, self.last_at - self.first_at
            if num_later and took_s > 0:
                parts.append(f"{num_later / took_s:.1f} tokens/s")
            parts.append(f"first after {(self.first_at - self.asked_at) * 1000:.0f} ms")
        if self.ending:
            parts.append(self.ending)
        return ", ".join(parts)


# EOS and STOP_SEQUENCE are how answers should end and need no words.
ENDINGS = {"MAX_TOKENS": "cut off at max_tokens", "CANCELLED": "cancelled by the server"}


class Chat:
    """One session.

    Args:
        client: Whom to ask.
        options: Fields of every request, such as max_tokens.
        system: What the model is told before the conversation; survives /reset.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        client: Client,
        console: Console,
        *,
        options: GenerateFields | None = None,
        system: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self.console = console
        self.options: GenerateFields = options or {}
        self.opening: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.history = list(self.opening)
        self.clock = clock
        self.has_failed = False  # an answer

    def run(self, read_line: Callable[[], str]) -> None:
        """Converse until the lines end. `read_line` raises EOFError then, and KeyboardInterrupt for Ctrl-C."""
        while True:
            try:
                line = read_line().strip()
                if line == "/exit":
                    return
                self._obey(line)
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print()  # at the prompt: the line that was begun is dropped

    def _obey(self, line: str) -> None:
        if line == "/reset":
            self.history = list(self.opening)
            self._note("forgotten")
        elif line.startswith("/"):
            self._note(f"{line} is no command; {HELP}")
        elif line:
            self.ask(line)

    def ask(self, question: str) -> None:
        """One turn: send the history, show the answer as it comes, keep what was seen of it."""
        answer = Answer(asked_at=self.clock())
        messages = [*self.history, {"role": "user", "content": question}]
        error: EndstopError | None = None
        try:
            # closing: a generator that an exception leaves behind would live as long as its traceback does.
            with contextlib.closing(self.client.stream(**(self.options | {"messages": messages}))) as events:
                for event in events:
                    if isinstance(event, Token):
                        answer.add(event, self.clock())
                        self.console.file.write(printable(event.text))
                        self.console.file.flush()
                    elif isinstance(event, End):
                        answer.ending = ENDINGS.get(event.stop_reason, "")
        except KeyboardInterrupt:
            answer.ending = "stopped"
        except EndstopError as failure:
            error = failure
        if answer.text:
            self.history = [*messages, {"role": "assistant", "content": answer.text}]
            self.console.print()
        if error is not None:
            self.has_failed = True
            self.console.print(Text(" ".join(printable(f"error: {error}").split()), style="red"))
        if answer.num_tokens or error is None:
            self._note(answer.summary())

    def _note(self, text: str) -> None:
        self.console.print(Text(printable(text), style="dim"))


def run_chat(
    url: str | None,
    *,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    api_key: str | None = None,
    console: Console | None = None,
) -> bool:
    """Converse with the server at `url`, or with one that is started for it.

    Returns:
        Whether there was one and, for lines that no person types, whether each got its answer.
    """
    # input() then edits lines and remembers them; it is missing from some builds of Python.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

    console = console or Console()
    options: GenerateFields = {}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    with contextlib.ExitStack() as stack:
        if url is None:
            try:
                url = stack.enter_context(announced_server(console)).url
            except SpawnFailed as error:
                console.print(Text(printable(str(error)), style="red"))
                return False
        client = stack.enter_context(Client(url, api_key=api_key, max_retries=0))
        console.print(Text(f"{client.base_url}: {HELP}", style="dim"))
        session = Chat(client, console, options=options, system=system)
        session.run(lambda: input(PROMPT))
    return is_terminal() or not session.has_failed


def is_terminal() -> bool:
    """Whether a person types the lines, who sees what failed; a script has the exit status alone."""
    return sys.stdin.isatty()
