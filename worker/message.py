"""What a conversation is made of: messages, the calls in them, and the tools that may be called. Pure data."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from worker.schema import TAG_PREFIX, StrictModel, text_or_list

MAX_TOOLS = 128  # OpenAI's
MAX_MESSAGES = 2048  # OpenAI's


class TextPart(StrictModel):
    """A part of a message. There are no others: the model reads text."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("=text")] | Annotated[list[TextPart], Field(min_length=1), Tag("=list")],
    Discriminator(text_or_list),
]


def is_json_object(text: str) -> bool:
    """Whether a text is a JSON object that can be written again: Python reads more than that."""
    try:
        value = json.loads(text)
        # Half of a surrogate pair is no text that a model could read, and NaN and 1e999 are no numbers of JSON.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _json_object(text: str) -> str:
    if not text:  # what clients have that join the pieces of a stream, if a call without arguments had none
        return "{}"
    if not is_json_object(text):
        raise PydanticCustomError("json_object", "must be the text of a JSON object")
    return text


ArgumentsText = Annotated[str, AfterValidator(_json_object)]


class CalledFunction(StrictModel):
    """What a call was of."""

    name: str
    arguments: ArgumentsText
    parsed_arguments: Any = None  # the arguments once more, which the parse helpers of openai-python add


class ToolCall(StrictModel):
    """A call that the assistant has made earlier in a conversation."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None  # its place among the calls once more, which openai-python leaves in what was streamed

    @property
    def arguments(self) -> dict[str, Any]:
        """As an object, the form that chat templates read."""
        arguments: dict[str, Any] = json.loads(self.function.arguments)
        return arguments


class Message(StrictModel):
    """One turn of a conversation. An answer's message is one too, as openai-python sends it back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: Annotated[str | None, Field(validate_default=True)] = None
    reasoning_content: str | None = None
    content: Annotated[Content | None, Field(validate_default=True)] = None
    # Fields of an answer that say nothing when they are null or empty, and are nothing here when they say something.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None  # the content once more, which the parse helpers of openai-python add

    @field_validator("tool_calls", "reasoning_content", "parsed")
    @classmethod
    def _is_said_by_the_assistant(cls, value: object, info: ValidationInfo) -> object:
        if value is not None and info.data.get("role", "assistant") != "assistant":
            raise PydanticCustomError("role", "only a message of the assistant has this; remove it")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _belongs_to_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        is_tool = info.data.get("role") == "tool"
        if is_tool and not value:
            raise PydanticCustomError("tool_call_id", "a message of a tool names the call that it answers")
        if value is not None and not is_tool and "role" in info.data:
            raise PydanticCustomError("role", "only a message of a tool has this; remove it")
        return value

    @field_validator("content")
    @classmethod
    def _is_there_unless_something_else_is(cls, value: object, info: ValidationInfo) -> object:
        if value is None and not info.data.get("tool_calls"):
            raise PydanticKnownError("missing")
        return value

    @property
    def text(self) -> str:
        """All of it that the model reads, besides calls and reasoning."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


def _schema_of_an_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("json_schema", "must be the JSON schema of an object: arguments have names")
    return schema


ToolParameters = Annotated[dict[str, Any], AfterValidator(_schema_of_an_object)]


class Function(StrictModel):
    """What the model may call."""

    name: ToolName
    description: str | None = None
    parameters: ToolParameters | None = None  # None: it takes none
    strict: bool | None = None


class Tool(StrictModel):
    """OpenAI's wrapping of a function. There are no tools of other types."""

    type: Literal["function"]
    function: Function


class NamedFunction(StrictModel):
    """A function by its name."""

    name: str


class NamedTool(StrictModel):
    """The tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


def _choice_kind(value: object) -> str:
    return TAG_PREFIX + ("mode" if isinstance(value, str) else "tool")


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("=mode")] | Annotated[NamedTool, Tag("=tool")],
    Discriminator(_choice_kind),
]

Tools = Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)]
