"""The bytes of a body to a validated request, and every bad field of it at once. Pure: no I/O, any thread."""

import json
import re
from typing import Any, TypeVar

from pydantic import ValidationError

from worker.errors import FieldError, InvalidRequest
from worker.schema import TAG_PREFIX, StrictModel

Body = TypeVar("Body", bound=StrictModel)

_NO_LONGER_THAN = 80  # characters of a wrong value that a message repeats
_NO_MORE_THAN = 100  # bad fields in one answer; to name each of a million would take longer than to generate

# Values in a body; a message counts as three. To read and to judge 2 MB of tiny ones took 0.4 s of a process that does
# nothing else meanwhile, and a template needs 10 ms for a thousand messages.
MAX_VALUES = 10_000
# A request has three levels. The reader has a limit of its own, which depends on who calls it.
MAX_DEPTH = 32

# One that is not closed reaches to the end: to look for another string at each quote in it would take for ever.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)', re.DOTALL)


def parse_body(schema: type[Body], body: bytes) -> Body:
    """Turn the bytes of a request body into a validated request.

    Raises:
        InvalidRequest: Names every bad field, its limit and the remedy.
    """
    if not body:
        raise _no_json("the body is empty; send a JSON object")
    if _has_too_many_values(body):
        message = f"the body has more than {MAX_VALUES} values; send fewer fields or messages"
        raise InvalidRequest([FieldError("body", "too_many", message)])
    try:
        # by bytes, json.loads lets half of a surrogate pair through
        data = json.loads(body.decode(), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # JSONDecodeError, and UnicodeDecodeError for bytes that are not text
        raise _no_json(f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise _no_json(f"the body must be a JSON object, not {_json_type(data)}")
    if _is_deeper_than(MAX_DEPTH, data):
        raise _too_deep()
    if b"\\u" in body and not _is_text(data):
        raise _no_json("the body has half of a surrogate pair in it, which is no text")
    # An explicit null asks for the default, in OpenAI's API and so in ours; on an unknown field it is still unknown.
    known = schema.model_fields.keys() | schema.refused.keys()
    data = {name: value for name, value in data.items() if value is not None or name not in known}
    errors = [FieldError("body", "conflict", message) for message in schema.conflicts(data)]
    try:
        request = schema.model_validate(data)
    except ValidationError as error:
        errors = _field_errors(error, schema) + errors
    if errors:
        raise InvalidRequest(errors)
    return request


def _no_json(message: str) -> InvalidRequest:
    return InvalidRequest([FieldError("body", "json", message)])


def _too_deep() -> InvalidRequest:
    return _no_json(f"the body is nested too deeply, more than {MAX_DEPTH} levels; send plain fields and messages")


def _has_too_many_values(body: bytes) -> bool:
    """Whether to parse it is too much work. Says so quickly where it can: to find the strings of 2 MB takes 50 ms."""
    # At least so many quotes open or close a string, and a value has two strings at most, its name and itself.
    if body.count(b'"') - body.count(b'\\"') > 4 * MAX_VALUES:
        return True
    return _num_values(body) > MAX_VALUES and _num_values(_STRING.sub(b"", body)) > MAX_VALUES


def _num_values(text: bytes) -> int:
    """How many values JSON has outside of its strings, about."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of two fields with one name, a reader that says nothing drops the first."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for name, _ in pairs:
            if name not in fields:  # it was taken out when it came first
                raise InvalidRequest([FieldError(_ascii(name), "duplicate", "is there more than once; send it once")])
            del fields[name]
    return fields


def _ascii(name: str) -> str:
    """The name of a field as it can be sent, whatever is in it."""
    return shorten(json.dumps(name)[1:-1])


def _is_deeper_than(limit: int, data: object) -> bool:
    level = [data]
    for _ in range(limit):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)  # type: ignore[attr-defined]
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _is_text(data: object) -> bool:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_type(data: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(data), "null")


def _field_errors(error: ValidationError, schema: type[StrictModel]) -> list[FieldError]:
    if error.error_count() > _NO_MORE_THAN:
        return [FieldError("body", "too_many", f"{error.error_count()} fields are wrong; mend the first and try again")]
    found = []
    for problem in error.errors(include_url=False):
        path = [part for part in map(str, problem["loc"]) if not part.startswith(TAG_PREFIX)]
        field = shorten(".".join(path)) or "body"
        if problem["type"] == "extra_forbidden":
            message = "is not supported; remove it"
            if len(path) == 1 and field in schema.refused:
                message += f": {schema.refused[field]}"
            elif len(path) == 1:
                message += f" (supported: {', '.join(sorted(schema.model_fields))})"
            entry = FieldError(field, "unknown_field", message)
        else:
            says_it = problem["type"] in ("missing", "too_short", "too_long")
            value = "" if says_it else f", not {_short(problem['input'])}"
            message = problem["msg"][0].lower() + problem["msg"][1:]
            entry = FieldError(field, problem["type"], message + value)
        found.append(entry)
    return found


def _short(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return shorten(text)


def shorten(text: str) -> str:
    """A wrong value as far as a message repeats it."""
    return text if len(text) <= _NO_LONGER_THAN else text[:_NO_LONGER_THAN] + "..."
