"""Finds reasoning and tool calls in the text of an answer, as it comes.

Law: how the text is cut into tokens makes no difference, and no text is lost: what turns out to be no markup is text.
Pure: no I/O, any thread. Each reader of a job has a parser of its own, and all of them find the same.

Markup is the marks themselves, newlines beside those of reasoning, and white space beside calls. A call is one when it
names a tool that was offered; it is begun when that is known and its arguments have come or begin, and it is complete
when these are closed and are JSON. They are passed on as the model writes them, piece by piece.
"""

import json
import re
from collections import deque
from collections.abc import Collection, Generator

from worker.answer import (
    ARGUMENTS,
    CALL_ID,
    CALL_MARKS,
    CLOSING,
    AnswerFormat,
    CallArguments,
    CallBegun,
    CallEnded,
    CallFormat,
    Part,
    Reasoning,
    Text,
)
from worker.events import Token, TokenLogprob
from worker.message import is_json_object

_NEWLINES = "\n"
_SPACES = " \t\r\n"  # JSON's
_SPACE = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[a-zA-Z0-9_.-]*")
_ID = re.compile(r"[a-zA-Z0-9]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# No key or name of a call is longer; what is, is no call, and need not be waited for.
_MAX_STRING = 300

_ARGUMENT_KEYS = ("arguments", "parameters")
_IDLE_KEYS = ("type", "id")  # which some models add

# A step of the parser: it yields when it needs more text, and returns what it has found.
_Step = Generator[None, None, bool]
_Scan = Generator[None, None, int]
_NOWHERE = -1  # where a scan ends that did not find what it looked for


class AnswerParser:
    """Finds the parts of one answer.

    It is written for a text that is there as a whole: each step is a generator, which yields where the text that has
    come so far does not decide.
    """

    def __init__(self, format: AnswerFormat, job_id: str) -> None:
        """Begin an answer.

        Args:
            job_id: Of the job that writes it. The calls are named after it, the same for every reader.
        """
        self._format = format
        self._job_id = job_id
        self._rest = ""  # the text that has not become a part yet
        self._is_over = False  # there will be no more
        self._num_taken = 0  # characters that have become parts, or were markup
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()  # of tokens in the rest, by where they begin
        self._parts: list[Part] = []
        self._num_begun = self._num_ended = 0
        self._reading = self._answer()
        next(self._reading)

    @property
    def num_calls(self) -> int:
        """Calls that are complete; 0 if one is not."""
        return self._num_ended if self._num_ended == self._num_begun else 0

    def push(self, token: Token) -> list[Part]:
        """Take the next token and give back what has become decidable."""
        begin = self._num_taken + len(self._rest)
        last = begin + len(token.text) - 1
        for one in token.logprobs:
            self._logprobs.append((min(begin, last), one))
            begin += sum(byte & 0xC0 != 0x80 for byte in one.drawn.data)  # of a character's bytes only the first
        self._rest += token.text
        next(self._reading)
        return self._given()

    def flush(self) -> list[Part]:
        """The rest, at the end of the answer."""
        self._is_over = True
        next(self._reading, None)
        return self._given()

    def _given(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    # ---- the whole

    def _answer(self) -> Generator[None]:
        yield  # to the constructor
        yield from self._reasoning()
        if self._format.calls is CallFormat.LLAMA3:
            yield from self._calls("")
        while not self._is_full and (yield from self._text()):
            pass
        if self._is_full:  # what the model adds is no part of the answer
            self._take(len(self._rest))
            while (yield from self._more()):
                self._take(len(self._rest))

    def _more(self) -> _Step:
        """Wait for text. False at the end of the answer."""
        if self._is_over:
            return False
        yield
        return True

    @property
    def _is_full(self) -> bool:
        """Whether there may be no further call."""
        return self._num_begun > 0 and not self._format.has_many_calls

    # ---- from the rest to parts

    def _take(self, num: int) -> Text:
        """Take so many characters off the rest, with the log-probabilities of the tokens that begin in them."""
        text, self._rest = self._rest[:num], self._rest[num:]
        self._num_taken += num
        logprobs = []
        while self._logprobs and self._logprobs[0][0] < self._num_taken:
            logprobs.append(self._logprobs.popleft()[1])
        return Text(text, tuple(logprobs))

    def _say(self, num: int) -> None:
        if num:
            said = self._take(num)
            if self._parts and isinstance(last := self._parts[-1], Text):
                self._parts[-1] = Text(last.text + said.text, last.logprobs + said.logprobs)
            else:
                self._parts.append(said)

    def _think(self, num: int) -> None:
        if num:
            self._parts.append(Reasoning(self._take(num).text))

    def _begin_call(self, name: str) -> None:
        self._parts.append(CallBegun(self._num_begun, f"call_{self._job_id}_{self._num_begun}", name))
        self._num_begun += 1

    def _give_arguments(self, text: str) -> None:
        if text:
            self._parts.append(CallArguments(self._num_begun - 1, text))

    def _end_call(self) -> None:
        self._parts.append(CallEnded(self._num_begun - 1))
        self._num_ended += 1

    # ---- reasoning

    def _reasoning(self) -> Generator[None]:
        if self._format.reasoning is None:
            return
        opening, closing = self._format.reasoning
        if not self._format.is_reasoning:
            at = yield from self._skip(0)
            if not (yield from self._is_at(at, opening)):
                return
            self._take(at + len(opening))
        yield from self._drop(_NEWLINES)
        while (at := self._rest.find(closing)) < 0:
            # Newlines in front of the mark are part of it.
            self._think(len(self._rest[: _undecided_from(self._rest, [closing])].rstrip(_NEWLINES)))
            if not (yield from self._more()):
                self._think(len(self._rest))
                return
        self._think(len(self._rest[:at].rstrip(_NEWLINES)))
        self._take(self._rest.index(closing) + len(closing))
        yield from self._drop(_NEWLINES)

    # ---- text and calls

    def _text(self) -> _Step:
        """Text up to the next calls, and these. False at the end of the answer."""
        opening = CALL_MARKS[self._format.calls][0] if self._format.calls else None
        marks = {*self._format.special_marks, *([opening] if opening else [])}
        while True:
            found = [(at, mark) for mark in marks if (at := self._rest.find(mark)) >= 0]
            end, mark = min(found, default=(_undecided_from(self._rest, marks), ""))
            # White space in front of a call is part of it.
            self._say(len(self._rest[:end].rstrip(_SPACES)) if opening else end)
            if not mark:
                if not (yield from self._more()):
                    self._say(len(self._rest))
                    return False
            elif mark == opening and (yield from self._calls(mark)):
                return True
            else:
                self._say(self._rest.index(mark))
                if mark in self._format.special_marks:
                    self._take(len(mark))
                else:
                    self._say(len(mark))

    def _calls(self, mark: str) -> _Step:
        """The calls at the beginning of the rest, behind a mark. False, and nothing taken, if there are none."""
        at = yield from self._skip(0)
        at = yield from self._skip(at + len(mark))
        if self._format.calls in (CallFormat.MISTRAL, CallFormat.MISTRAL_NAMED):
            is_array = self._has("[", at)
            if not (yield from (self._array(at) if is_array else self._named(at))):
                return False
        elif not (yield from self._object(at)):
            return False
        if self._format.calls is CallFormat.LLAMA3:
            yield from self._others(";")
        if self._format.calls is CallFormat.HERMES:
            yield from self._take_mark(CLOSING)
        if not self._is_full:
            yield from self._drop(_SPACES)
        return True

    def _array(self, at: int) -> _Step:
        """`[{...}, {...}]`, as far as it holds calls."""
        at = yield from self._skip(at + 1)
        if not (yield from self._object(at)):
            return False
        yield from self._others(",")
        yield from self._take_mark("]")
        return True

    def _others(self, separator: str) -> Generator[None]:
        """More calls, behind separators."""
        while not self._is_full:
            at = yield from self._skip(0)
            if not self._has(separator, at):
                return
            at = yield from self._skip(at + 1)
            if not (yield from self._object(at)):
                return

    def _named(self, at: int) -> _Step:
        """`name[ARGS]{...}`."""
        end = yield from self._span(_NAME, at)
        name = self._rest[at:end]
        if name not in self._format.tool_names:
            return False
        if (yield from self._is_at(end, CALL_ID)):
            end = yield from self._span(_ID, end + len(CALL_ID))
        if (yield from self._is_at(end, ARGUMENTS)):
            end += len(ARGUMENTS)
        end = yield from self._skip(end)
        if not self._has("{", end):
            return False
        self._take(end)
        self._begin_call(name)
        yield from self._arguments()
        return True

    def _object(self, at: int) -> _Step:
        """A call as a JSON object, at a place of the rest. False, and nothing taken, if there is none."""
        if not self._has("{", at):
            return False
        name, held, is_begun = None, None, False
        while True:
            key, at = yield from self._key(at + 1)
            if key in _ARGUMENT_KEYS and held is None and not is_begun and self._has("{", at):
                if name is not None:
                    self._take(at)
                    self._begin_call(name)
                    yield from self._arguments()
                    at, is_begun = 0, True
                else:
                    end = yield from self._object_end(at)
                    held, at = self._rest[at:end], end
            elif key == "name" and name is None:
                end = yield from self._string_end(at)
                name, at = _string(self._rest[at:end]), end
                if name not in self._format.tool_names:
                    return is_begun
            elif key in _IDLE_KEYS:
                at = yield from self._string_end(at)
            else:
                return is_begun
            at = yield from self._skip(at)
            if self._has("}", at):
                break
            if not self._has(",", at):
                return is_begun
        if not is_begun:
            if name is None or not is_json_object(held or "{}"):
                return False
            self._begin_call(name)
            self._give_arguments(held or "{}")
            self._end_call()
        self._take(at + 1)
        return True

    def _arguments(self) -> Generator[None]:
        """The JSON object at the beginning of the rest, as it comes."""
        brackets, given = _Brackets(), ""
        while (end := brackets.end_in(self._rest)) is None:
            given += self._rest
            self._give_arguments(self._take(len(self._rest)).text)
            if not (yield from self._more()):
                return
        given += self._rest[:end]
        self._give_arguments(self._take(end).text)
        if is_json_object(given):
            self._end_call()

    # ---- what is taken if it is there

    def _drop(self, characters: str) -> Generator[None]:
        """Take all that there is of these characters."""
        while True:
            self._take(len(self._rest) - len(self._rest.lstrip(characters)))
            if self._rest or not (yield from self._more()):
                return

    def _take_mark(self, mark: str) -> Generator[None]:
        """Take a mark, and the white space in front of it."""
        at = yield from self._skip(0)
        if (yield from self._is_at(at, mark)):
            self._take(at + len(mark))

    # ---- looking, from a place of the rest, and taking nothing. From nowhere, nothing is found.

    def _has(self, character: str, at: int) -> bool:
        return at != _NOWHERE and self._rest[at] == character

    def _is_at(self, at: int, mark: str) -> _Step:
        if at == _NOWHERE:
            return False
        while (there := self._rest[at : at + len(mark)]) != mark:
            if not (mark.startswith(there) and (yield from self._more())):
                return False
        return True

    def _span(self, pattern: re.Pattern[str], at: int) -> _Scan:
        """The place behind all that a pattern matches."""
        if at == _NOWHERE:
            return _NOWHERE
        while True:
            match = pattern.match(self._rest, at)
            assert match is not None  # such a pattern matches nothing, too
            if match.end() < len(self._rest) or not (yield from self._more()):
                return match.end()

    def _skip(self, at: int) -> _Scan:
        """The place of the next character that is no white space."""
        end = yield from self._span(_SPACE, at)
        return end if end < len(self._rest) else _NOWHERE

    def _key(self, at: int) -> Generator[None, None, tuple[str | None, int]]:
        """A key of an object, and the place of its value."""
        at = yield from self._skip(at)
        end = yield from self._string_end(at)
        key = _string(self._rest[at:end])
        at = yield from self._skip(end)
        if not self._has(":", at):
            return None, _NOWHERE
        at = yield from self._skip(at + 1)
        return key, at

    def _string_end(self, at: int) -> _Scan:
        """The place behind a string."""
        if not self._has('"', at):
            return _NOWHERE
        while (match := _STRING.match(self._rest, at)) is None:
            if len(self._rest) > at + _MAX_STRING or not (yield from self._more()):
                return _NOWHERE
        return match.end() if match.end() <= at + _MAX_STRING else _NOWHERE

    def _object_end(self, at: int) -> _Scan:
        """The place behind an object."""
        brackets = _Brackets()
        while (end := brackets.end_in(self._rest[at:])) is None:
            at = len(self._rest)
            if not (yield from self._more()):
                return _NOWHERE
        return at + end


class _Brackets:
    """Finds the end of a JSON object that comes in pieces. Brackets in strings are none."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = self._is_escaped = False

    def end_in(self, text: str) -> int | None:
        """Look through the next piece. Gives the place behind the object, if its end is in there."""
        for at, character in enumerate(text):
            if self._is_in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._is_in_string = False
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None


def _string(text: str) -> str | None:
    """What a JSON string says. None: it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _undecided_from(text: str, marks: Collection[str]) -> int:
    """The place from which a text may be the beginning of a mark that goes on behind it."""
    longest = max(map(len, marks), default=0) - 1
    for at in range(max(0, len(text) - longest), len(text)):
        if any(mark.startswith(text[at:]) for mark in marks):
            return at
    return len(text)
