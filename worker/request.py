"""One schema for every API: what a request may ask for, and every bad field of it at once.

The bytes of a body become a `GenerateRequest`. The OpenAI shapes are translations: they differ in the names of a
few fields and share every rule through `SamplingFields`. Unknown fields are refused, never ignored. Pure: no I/O,
any thread.
"""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from worker.errors import FieldError, InvalidRequest

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 100
MAX_STOP_TOKENS = 64
MAX_BIASES = 1024

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
TokenId = Annotated[int, Field(ge=0)]
# In JSON a name is a string.
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn, and when to stop. Validated; neutral by default."""

    max_tokens: int
    temperature: float = 1.0  # 0: the most likely token, always
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output, as in transformers
    presence_penalty: float = 0.0  # over the output, as in OpenAI's API
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: a fresh one
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, and what is added to their logits
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()  # end the answer as the model's own end does; their text is not sent
    ignore_eos: bool = False
    min_tokens: int = 0  # before so many tokens nothing ends the answer but its limit


class StrictModel(BaseModel):
    """What every part of a request is: unknown fields are refused, and types are not converted."""

    # strict: "7" is not 7 and true is not 1; a client that sends them has a bug worth hearing about.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        """Fields that do not go together, in words. Looks at raw data: what else is wrong must not hide it."""
        return []


class Message(StrictModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class SamplingFields(StrictModel):
    """The fields that every generating route shares."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=MAX_BIASES)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0

    def sampling(self, max_tokens: int) -> SamplingParams:
        """The validated parameters, with the limit that the context leaves."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            logit_bias=tuple((int(name), bias) for name, bias in (self.logit_bias or {}).items()),
            stop=tuple(self.stop or ()),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
        )


class GenerateRequest(SamplingFields):
    """A request, whatever API it came by: the body of the native routes, and what the others translate to."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    narrate: bool = False
    on_disconnect: Literal["cancel", "continue"] | None = None  # None: the route's default
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        if ("prompt" in data) == ("messages" in data):
            return ["give either prompt or messages, one of them and not both"]
        return []


class StreamOptions(StrictModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class _OpenAIFields(SamplingFields):
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1
    user: str | None = None  # an opaque tag for the caller's own records; nothing here depends on it

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        found = []
        if "stream_options" in data and data.get("stream") is not True:
            found.append("stream_options is only allowed with stream: true")
        if "max_tokens" in data and "max_completion_tokens" in data:
            found.append("give either max_tokens or max_completion_tokens, not both")
        return found


class ChatCompletionRequest(_OpenAIFields):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def to_generate(self) -> GenerateRequest:
        """The same request in the internal vocabulary."""
        return _translate(self, messages=self.messages, max_tokens=self.max_completion_tokens or self.max_tokens)


class CompletionRequest(_OpenAIFields):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[str, Field(min_length=1)]

    def to_generate(self) -> GenerateRequest:
        """The same request in the internal vocabulary."""
        return _translate(self, prompt=self.prompt, max_tokens=self.max_tokens)


def _translate(request: _OpenAIFields, **fields: Any) -> GenerateRequest:
    shared = {name: getattr(request, name) for name in SamplingFields.model_fields}
    return GenerateRequest.model_construct(**{**shared, **fields})


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
    data = {name: value for name, value in data.items() if value is not None or name not in schema.model_fields}
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


def _field_errors(error: ValidationError, schema: type[BaseModel]) -> list[FieldError]:
    if error.error_count() > _NO_MORE_THAN:
        return [FieldError("body", "too_many", f"{error.error_count()} fields are wrong; mend the first and try again")]
    found = []
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        field = shorten(".".join(path)) or "body"
        if problem["type"] == "extra_forbidden":
            message = "is not supported; remove it"
            if len(path) == 1:
                message += f" (supported: {', '.join(sorted(schema.model_fields))})"
            entry = FieldError(field, "unknown_field", message)
        else:
            value = "" if problem["type"] == "missing" else f", not {_short(problem['input'])}"
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
