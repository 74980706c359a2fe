"""Which texts an answer may be, read from a request. Pure: no I/O, any thread.

Every way to say it becomes one language, the Lark of llguidance (docs/syntax.md of that project), which
engine/constraints.py compiles for the model's tokens. What is refused here and there names the field of the request.
"""

import json
from dataclasses import dataclass
from typing import Any

from worker.answer import AnswerFormat
from worker.errors import FieldError, InvalidRequest
from worker.request import SamplingFields

# A grammar is compiled in about the time that its length says. Longer ones than this take seconds.
MAX_GRAMMAR_CHARACTERS = 131_072

# By default as much of it as the model likes may stand between two values, and small models like it without end. This
# is a space, or a new line and what indents any schema that a body is deep enough for.
_WHITESPACE = r"\x20|\x0A[\x20\x09]{0,128}"
_OPTIONS = "x-guidance"  # how a schema says so to llguidance, at its top


@dataclass(frozen=True, slots=True)
class Structure:
    """The language that the whole answer has to be a text of.

    Attributes:
        field: Of the request, where it is said.
        grammar: In Lark. A special token is `<its name>`, any token `<[its id]>`, a schema `%json {...}`.
    """

    field: str
    grammar: str


def structure_of(request: SamplingFields, answer_format: AnswerFormat) -> Structure | None:
    """What the request says of its answer's form; None if it may be any text.

    Raises:
        InvalidRequest: It is too long.
    """
    structure = _structure_of(request)
    if structure is not None:
        check_length(structure)
    return structure


def check_length(structure: Structure) -> None:
    """See that a grammar is not too long to be compiled.

    Raises:
        InvalidRequest: It is.
    """
    if len(structure.grammar) > MAX_GRAMMAR_CHARACTERS:
        message = f"makes a grammar of {len(structure.grammar)} characters; it may have {MAX_GRAMMAR_CHARACTERS}"
        raise InvalidRequest([FieldError(structure.field, "too_long", message)])


def _structure_of(request: SamplingFields) -> Structure | None:
    response_format = request.response_format
    if response_format is not None and response_format.type == "json_object":
        return Structure("response_format", f"start: {json_rule({'type': 'object'})}")
    if response_format is not None and response_format.json_schema is not None:
        field = "response_format.json_schema.schema"
        schema = response_format.json_schema.schema_
        return Structure(field, f"start: {json_rule(schema, field)}")
    if request.regex is not None:
        return Structure("regex", f"start: {_regex_rule(request.regex)}")
    if request.choice is not None:
        return Structure("choice", f"start: {_regex_rule('|'.join(map(_escape, request.choice)))}")
    if request.grammar is not None:
        return Structure("grammar", request.grammar)
    return None


def json_rule(schema: dict[str, Any], field: str = "") -> str:
    """JSON that fits a schema, as a part of a grammar.

    Args:
        field: Of the request, where the schema is.

    Raises:
        InvalidRequest: The schema says what is not a client's to say.
    """
    if _OPTIONS in schema:
        message = f"has {_OPTIONS!r}, which is for the server to say; remove it"
        raise InvalidRequest([FieldError(field, "not_supported", message)])
    return f"%json {json.dumps(schema | {_OPTIONS: {'whitespace_pattern': _WHITESPACE}})}"


def _regex_rule(regex: str) -> str:
    """A regular expression of Rust's kind as a part of a grammar, in which slashes are around it and a line is one."""
    written, characters = "", iter(regex)
    for character in characters:
        if character == "\\":  # with what it escapes: a slash may be escaped already
            character = next(characters, "")
            written += "\\" + _AS_ESCAPED.get(character, character)
        else:
            written += "\\" + _AS_ESCAPED[character] if character in _AS_ESCAPED else character
    return f"/{written}/"


_AS_ESCAPED = {"/": "/", "\n": "n", "\r": "r"}


def _escape(text: str) -> str:
    """A text as a regular expression that nothing else matches, whatever is in it."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)
