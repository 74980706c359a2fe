"""What a request of Anthropic's messages may say, and the same in the internal vocabulary. Pure: no I/O, any thread."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from worker.message import (
    MAX_MESSAGES,
    MAX_TOOLS,
    CalledFunction,
    Function,
    Message,
    NamedFunction,
    NamedTool,
    Tool,
    ToolCall,
    ToolParameters,
)
from worker.request import (
    NOT_ELSEWHERE,
    GenerateRequest,
    JsonSchema,
    MaxTokens,
    ResponseFormat,
    SamplingFields,
    StopStrings,
    ToolFields,
)
from worker.schema import TAG_PREFIX, StrictModel, text_or_list

# Fields of the internal vocabulary, and what they are called here.
_NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema.schema": "output_config.format.schema",
}


class CacheControl(StrictModel):
    """A wish to have the prompt up to here kept. It is anyway: prompts that begin alike share what was computed."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(StrictModel):
    """What the blocks of a message share."""

    cache_control: CacheControl | None = None


class TextBlock(Block):
    """Something said."""

    type: Literal["text"]
    text: str
    citations: None = None


Texts = Annotated[
    Annotated[str, Tag("=text")] | Annotated[list[TextBlock], Field(min_length=1), Tag("=list")],
    Discriminator(text_or_list),
]


# What a tool has given back may be nothing, in Anthropic's API too.
AnyTexts = Annotated[
    Annotated[str, Tag("=text")] | Annotated[list[TextBlock], Tag("=list")], Discriminator(text_or_list)
]


class ThinkingBlock(StrictModel):
    """Something that the model has said to itself."""

    type: Literal["thinking"]
    thinking: str
    signature: str  # made by nobody here, and checked by nobody


class ToolUseBlock(Block):
    """A call."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: str
    input: dict[str, Any]
    caller: None = None
    toolset_name: None = None


class ToolResultBlock(Block):
    """What a call has given back."""

    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1)]
    content: AnyTexts | None = None
    is_error: bool = False  # the content says what went wrong; templates have no other place for it
    toolset_name: None = None


def _type_of(value: object) -> str:
    return TAG_PREFIX + str(value.get("type") if isinstance(value, dict) else None)


UserBlock = Annotated[
    Annotated[TextBlock, Tag("=text")] | Annotated[ToolResultBlock, Tag("=tool_result")],
    Discriminator(_type_of, "type", "a block of type text or tool_result is needed; the model reads text only"),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("=text")]
    | Annotated[ThinkingBlock, Tag("=thinking")]
    | Annotated[ToolUseBlock, Tag("=tool_use")],
    Discriminator(_type_of, "type", "a block of type text, thinking or tool_use is needed"),
]


class UserMessage(StrictModel):
    """The user's turn."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("=text")] | Annotated[list[UserBlock], Field(min_length=1), Tag("=list")],
        Discriminator(text_or_list),
    ]


class AssistantMessage(StrictModel):
    """The model's turn."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("=text")] | Annotated[list[AssistantBlock], Tag("=list")],  # it may have said nothing
        Discriminator(text_or_list),
    ]


class SystemMessage(StrictModel):
    """An instruction in the middle of a conversation."""

    role: Literal["system"]
    content: Texts


def _role_of(value: object) -> str:
    return TAG_PREFIX + str(value.get("role") if isinstance(value, dict) else None)


AnyMessage = Annotated[
    Annotated[UserMessage, Tag("=user")]
    | Annotated[AssistantMessage, Tag("=assistant")]
    | Annotated[SystemMessage, Tag("=system")],
    Discriminator(_role_of, "role", "a message of role user, assistant or system is needed"),
]


class FunctionTool(StrictModel):
    """A tool of the client's own. There are no others."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]  # Anthropic's limit is twice OpenAI's
    description: str | None = None
    input_schema: ToolParameters
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None  # calls are always streamed as they are written


class ModeChoice(StrictModel):
    """Whether a tool is to be called."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool = False


class ToolChoice(StrictModel):
    """The tool that is to be called."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool = False


def _choice_kind(value: object) -> str:
    return TAG_PREFIX + ("tool" if isinstance(value, dict) and value.get("type") == "tool" else "mode")


class Thinking(StrictModel):
    """Whether the model says something to itself first. There is no budget for it but `max_tokens`.

    adaptive: as its template has it. disabled: only where it never does.
    """

    type: Literal["adaptive", "disabled"]
    display: None = None


class SchemaFormat(StrictModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]  # pydantic has the name for itself


class OutputConfig(StrictModel):
    """What form the answer must have."""

    format: SchemaFormat | None = None


class Metadata(StrictModel):
    """For the caller's own records: nothing here depends on it."""

    user_id: str | None = None


class MessagesFields(StrictModel):
    """What says how long a prompt is."""

    model: str
    """The model that is served."""
    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    """The conversation that is answered: text, calls, what they gave back, thinking. The last is not the model's."""
    system: AnyTexts | None = None
    """A system message in front of the conversation."""
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, default_factory=list)]
    """Functions that the model may call. There are no tools of the server's own."""
    tool_choice: (
        Annotated[
            Annotated[ModeChoice, Tag("=mode")] | Annotated[ToolChoice, Tag("=tool")], Discriminator(_choice_kind)
        ]
        | None
    ) = None
    """Whether a tool is called, or which one, and whether more than one."""
    thinking: Thinking | None = None
    """`adaptive`: as the model's template has it. `disabled`: only where the model never does. There is no budget."""
    output_config: OutputConfig | None = None
    """`format`: a JSON schema that the answer fits."""
    cache_control: CacheControl | None = None
    """Nothing depends on it: prompts that begin alike share what was computed, without being asked."""

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        inner = _inner(data)
        found = SamplingFields.conflicts(inner)
        messages = data.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        if isinstance(last, dict) and last.get("role") == "assistant":
            found.append("the last message is the assistant's, and an answer that is begun is not continued; remove it")
        if inner.get("tools"):
            found += ToolFields.conflicts(inner)
        elif _choice_type(data) in ("any", "tool"):
            found.append("tool_choice asks for a call, and there are no tools; give some")
        return [_in_our_words(message) for message in found]

    def conversation_fields(self) -> dict[str, Any]:
        """What of the internal vocabulary says how long a prompt is."""
        system = [_message("system", _text_of(self.system))] if self.system not in (None, []) else []
        fields: dict[str, Any] = {"messages": system + [one for each in self.messages for one in _messages_of(each)]}
        if self.tools:
            is_parallel = self.tool_choice is None or not self.tool_choice.disable_parallel_tool_use
            fields |= {
                "tools": [Tool(type="function", function=_function(tool)) for tool in self.tools],
                "tool_choice": _choice_of(self.tool_choice),
                "parallel_tool_calls": is_parallel,
            }
        if self.output_config is not None and self.output_config.format is not None:
            schema = JsonSchema.model_construct(name="answer", schema_=self.output_config.format.schema_)
            fields["response_format"] = ResponseFormat.model_construct(type="json_schema", json_schema=schema)
        return fields


class CountRequest(MessagesFields):
    """Body of `POST /v1/messages/count_tokens`."""

    refused: ClassVar[Mapping[str, str]] = {
        "speed": "there is one",
        "user_profile_id": "nobody's tokens are counted",
        "workspace_id": "there are none",
    }

    def to_generate(self) -> GenerateRequest:
        """The same prompt in the internal vocabulary."""
        return GenerateRequest.model_construct(**self.conversation_fields())


class MessagesRequest(MessagesFields):
    """Body of `POST /v1/messages`."""

    refused: ClassVar[Mapping[str, str]] = {
        "container": NOT_ELSEWHERE,
        "diagnostics": NOT_ELSEWHERE,
        "inference_geo": "it runs where the server is",
        "speed": "there is one",
        "user_profile_id": "`metadata.user_id` is the caller's own tag",
        "workspace_id": "there are none",
    }

    max_tokens: MaxTokens
    """The longest answer, in tokens. Where the context leaves less, the answer may end with it."""
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    """How freely the next token is drawn; 0: always the likeliest."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Only the likeliest tokens that together have this probability are drawn from."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only so many of the likeliest tokens are drawn from; 0: all."""
    stop_sequences: StopStrings | None = None
    """Texts that end the answer. They are not part of it."""
    stream: bool = False
    """Whether the answer comes in events as it is generated."""
    metadata: Metadata | None = None
    """For the caller's own records; nothing depends on it."""
    service_tier: Literal["auto", "standard_only"] = "auto"
    """There is one."""

    def to_generate(self) -> GenerateRequest:
        """The same request in the internal vocabulary, but for `max_tokens`: it has to be given here, and may be more
        than the context leaves."""
        return GenerateRequest.model_construct(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
            **self.conversation_fields(),
        )


def _inner(data: dict[str, Any]) -> dict[str, Any]:
    """Raw data as the conflicts of chat completions know it: functions and schemas are one level deeper there."""
    tools, choice, output = data.get("tools"), data.get("tool_choice"), data.get("output_config")
    inner = {"stop": data["stop_sequences"]} if "stop_sequences" in data else {}
    if isinstance(output, dict) and output.get("format") is not None:
        inner["response_format"] = output["format"]
    if isinstance(tools, list) and tools:
        kind = _choice_type(data)
        inner["tools"] = [{"function": tool} for tool in tools]
        inner["tool_choice"] = {"function": choice} if kind == "tool" else "required" if kind == "any" else kind
    return inner


def _choice_type(data: dict[str, Any]) -> object:
    choice = data.get("tool_choice")
    return choice.get("type") if isinstance(choice, dict) else None


def _in_our_words(message: str) -> str:
    if message.startswith("stop does not"):
        message = message.replace("stop", _NAMES["stop"], 1)
    return message.replace("response_format", _NAMES["response_format"])


def name_of(field: str) -> str:
    return _NAMES.get(field, field.replace(".function.", "."))


def _message(role: str, text: str | None, **more: Any) -> Message:
    return Message.model_construct(role=role, content=text, **more)


def _text_of(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _function(tool: FunctionTool) -> Function:
    return Function.model_construct(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )


def _choice_of(choice: ModeChoice | ToolChoice | None) -> str | NamedTool | None:
    match choice:
        case None:
            return None
        case ToolChoice():
            return NamedTool(type="function", function=NamedFunction(name=choice.name))
        case ModeChoice():
            return "required" if choice.type == "any" else choice.type


def _messages_of(message: UserMessage | AssistantMessage | SystemMessage) -> list[Message]:
    """A message of Anthropic's in the internal vocabulary, where each answer of a tool is a message of its own."""
    if isinstance(message.content, str):
        return [_message(message.role, message.content)]
    texts: list[str] = []
    thinking: list[str] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    for block in message.content:
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thinking.append(block.thinking)
            case ToolUseBlock():
                function = CalledFunction.model_construct(name=block.name, arguments=json.dumps(block.input))
                calls.append(ToolCall.model_construct(id=block.id, type="function", function=function))
            case ToolResultBlock():
                results.append(_message("tool", _text_of(block.content or ""), tool_call_id=block.tool_use_id))
    if results and not texts:
        return results
    more = {"tool_calls": calls or None, "reasoning_content": "".join(thinking) or None}
    return [*results, _message(message.role, "".join(texts), **more)]


# --- The answer
