"""What an answer is made of besides text: reasoning and tool calls, found in the text as it comes.

Law: how the text is cut into tokens makes no difference, and no text is lost: what turns out to be no markup is text.
Pure: no I/O, any thread. Each reader of a job has a parser of its own.
"""

from dataclasses import dataclass

from worker.events import Token, TokenLogprob


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of what the model says to the user."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model says to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A tool is called. Its arguments follow in pieces.

    Attributes:
        index: Of the call in the answer, from 0.
        call_id: Names it for the answer of the tool.
    """

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments of a call; joined they are a JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call is complete."""

    index: int


Part = Text | Reasoning | CallBegun | CallArguments | CallEnded


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How the model of a request marks what is not text. Without marks all is text."""


PLAIN = AnswerFormat()


class AnswerParser:
    """Finds the parts of one answer.

    Attributes:
        num_calls: Calls that are complete; 0 if one is not.
    """

    def __init__(self, format: AnswerFormat) -> None:
        self.num_calls = 0

    def push(self, token: Token) -> list[Part]:
        """Take the next token and give back what has become decidable."""
        return [Text(token.text, token.logprobs)]

    def flush(self) -> list[Part]:
        """The rest, at the end of the answer."""
        return []
