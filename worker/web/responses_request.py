"""What a request of the Responses API may say, and the same in the internal vocabulary. Pure: no I/O, any thread."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from worker.message import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ArgumentsText,
    CalledFunction,
    Function,
    Message,
    NamedFunction,
    NamedTool,
    Tool,
    ToolCall,
)
from worker.request import (
    IS_AUTOMATIC,
    MAX_TOP_LOGPROBS,
    NO_CONTROL,
    NOT_ELSEWHERE,
    TEXT_ONLY,
    GenerateRequest,
    JsonSchema,
    MaxTokens,
    ResponseFormat,
    SamplingFields,
    ToolFields,
)
from worker.schema import TAG_PREFIX, StrictModel, text_or_list

LOGPROBS = "message.output_text.logprobs"

# Fields of the internal vocabulary, and what they are called here.
_NAMES = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
}


class InputText(StrictModel):
    """A part of a message to the model. There are no others: the model reads text."""

    type: Literal["input_text"]
    text: str


class OutputText(StrictModel):
    """A part of an answer, as it was given out or as openai-python sends it back."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None  # about the text, and no part of it
    logprobs: list[Any] | None = None
    parsed: Any = None  # the text once more, which the parse helpers of openai-python add


def _type_of(value: object, default: str) -> str:
    # Raw data, or a part that has been validated: pydantic asks again when it writes one.
    kind = value.get("type", default) if isinstance(value, dict) else getattr(value, "type", default)
    return TAG_PREFIX + str(kind)


def _part_kind(value: object) -> str:
    return _type_of(value, "input_text")


def _item_kind(value: object) -> str:
    return _type_of(value, "message")


TextPart = Annotated[
    Annotated[InputText, Tag("=input_text")] | Annotated[OutputText, Tag("=output_text")],
    Discriminator(_part_kind, "type", "a part of type input_text or output_text is needed; the model reads text only"),
]
TextParts = Annotated[
    Annotated[str, Tag("=text")] | Annotated[list[TextPart], Field(min_length=1), Tag("=list")],
    Discriminator(text_or_list),
]


class Item(StrictModel):
    """What the items of an input share: what an answer has said of them, which changes nothing."""

    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class MessageItem(Item):
    """Somebody has said something."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: TextParts
    phase: None = None


class FunctionCall(Item):
    """The model has called a function."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: str
    arguments: ArgumentsText
    parsed_arguments: Any = None  # the arguments once more, which the parse helpers of openai-python add
    namespace: None = None
    caller: None = None


class FunctionCallOutput(Item):
    """What the function has given back."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1)]
    output: TextParts
    name: str | None = None  # of the function; its call says so too
    namespace: None = None
    caller: None = None


class ReasoningText(StrictModel):
    """A piece of what the model has said to itself."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(StrictModel):
    """What somebody else's model has made of its reasoning."""

    type: Literal["summary_text"]
    text: str


class ReasoningItem(Item):
    """The model has said something to itself."""

    type: Literal["reasoning"]
    summary: Annotated[list[SummaryText], Field(default_factory=list)]
    content: list[ReasoningText] | None = None
    encrypted_content: None = None


InputItem = Annotated[
    Annotated[MessageItem, Tag("=message")]
    | Annotated[FunctionCall, Tag("=function_call")]
    | Annotated[FunctionCallOutput, Tag("=function_call_output")]
    | Annotated[ReasoningItem, Tag("=reasoning")],
    Discriminator(
        _item_kind, "type", "an item of type message, function_call, function_call_output or reasoning is needed"
    ),
]
INPUT_ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])
Input = Annotated[
    Annotated[str, Tag("=text")]
    | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES), Tag("=list")],
    Discriminator(text_or_list),
]


class FunctionTool(Function):
    """A function, without the wrapping that chat completions have around it."""

    type: Literal["function"]


class FunctionChoice(StrictModel):
    """The function that is to be called."""

    type: Literal["function"]
    name: str


def _choice_kind(value: object) -> str:
    return TAG_PREFIX + ("mode" if isinstance(value, str) else "function")


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("=mode")] | Annotated[FunctionChoice, Tag("=function")],
    Discriminator(_choice_kind),
]


class PlainFormat(StrictModel):
    """Text as the model likes, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(JsonSchema):
    """JSON that fits a schema, without the wrapping that chat completions have around it."""

    type: Literal["json_schema"]


def _format_kind(value: object) -> str:
    return TAG_PREFIX + ("schema" if _type_of(value, "text") == "=json_schema" else "plain")


class TextOptions(StrictModel):
    """OpenAI's `text`."""

    format: Annotated[
        Annotated[PlainFormat, Tag("=plain")] | Annotated[SchemaFormat, Tag("=schema")], Discriminator(_format_kind)
    ] = PlainFormat(type="text")
    verbosity: Literal["medium"] = "medium"


class StreamOptions(StrictModel):
    """OpenAI's `stream_options` of this route. Events are never padded."""

    include_obfuscation: Literal[False] = False


class ResponseRequest(SamplingFields):
    """Body of `POST /v1/responses`."""

    refused: ClassVar[Mapping[str, str]] = {
        "access_programs": NOT_ELSEWHERE,
        "background_options": "`background` has none",
        "context_management": "what does not fit is refused, not left out",
        "conversation": "`previous_response_id` goes on from a response",
        "image": TEXT_ONLY,
        "max_tool_calls": "there are no tools of the server's own",
        "moderation": NOT_ELSEWHERE,
        "prompt": "no prompts are stored",
        "prompt_cache_options": IS_AUTOMATIC,
        "prompt_cache_retention": IS_AUTOMATIC,
        "reasoning": NO_CONTROL,
    }

    model: str | None = None
    """The model that is served, or nothing."""
    input: Input
    """What is answered: a text, or a list of messages, calls, what they gave back, and reasoning. Text only."""
    instructions: str | None = None
    """A system message in front of the conversation. It is not carried on by `previous_response_id`."""
    previous_response_id: str | None = None
    """A stored response, which has ended well and is still kept, that the input goes on from."""
    max_output_tokens: MaxTokens | None = None
    """The longest answer, in tokens. Prompt and answer share the context, and the default is what the prompt leaves."""
    text: TextOptions = TextOptions()
    """The form that the answer must have."""
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, default_factory=list)]
    """Functions that the model may call. There are no tools of other types."""
    tool_choice: Choice = "auto"
    """Whether a tool is called, or which one."""
    parallel_tool_calls: bool = True
    """Whether an answer may have more than one call."""
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(default_factory=list)]
    """`message.output_text.logprobs`: each token comes with how likely it was."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    """How many of the likeliest tokens are told with each token."""
    stream: bool = False
    """Whether the answer comes in events as it is generated."""
    stream_options: StreamOptions | None = None
    """Only with `stream: true`."""
    background: bool = False
    """Whether the answer goes on without a reader. It is then asked for by its id."""
    store: bool = True
    """Whether the response can be asked for by its id, until ENDSTOP_JOB_TTL_S after its end."""
    truncation: Literal["disabled"] = "disabled"
    """Input that is too long is refused."""
    service_tier: Literal["auto", "default"] = "auto"
    """There is one."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """For the caller's own records; nothing depends on it."""
    user: str | None = None
    """A tag for the caller's own records; nothing depends on it."""
    safety_identifier: str | None = None
    """OpenAI's newer name of `user`; nothing depends on it."""
    prompt_cache_key: str | None = None
    """Nothing depends on it: prompts that begin alike share what was computed, without being asked."""

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.top_logprobs or LOGPROBS in self.include else None

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        inner = _inner(data)
        found = super().conflicts(inner)
        if "stream_options" in data and data.get("stream") is not True:
            found.append("stream_options is only allowed with stream: true")
        if data.get("background") is True and data.get("store") is False:
            found.append("background and store: false do not go together: nobody could ask for the answer")
        if inner.get("tools"):
            found += ToolFields.conflicts(inner)
        elif data.get("tool_choice", "auto") not in ("none", "auto"):
            found.append("tool_choice asks for a call, and there are no tools; give some")
        found = [message.replace("response_format", "text.format") for message in found]
        return [*found, "response_format is called text.format here"] if "response_format" in data else found

    def to_generate(self, conversation: list[Message]) -> GenerateRequest:
        """The same request in the internal vocabulary."""
        fields = {name: getattr(self, name) for name in SamplingFields.model_fields}
        instructions = [] if self.instructions is None else [_message("system", self.instructions)]
        fields |= {
            "messages": instructions + conversation,
            "max_tokens": self.max_output_tokens,
            "logprobs": self.num_logprobs,
            "response_format": _response_format(self.text.format),
        }
        if self.tools:
            fields |= {
                "tools": [Tool(type="function", function=_function(tool)) for tool in self.tools],
                "tool_choice": _tool_choice(self.tool_choice),
                "parallel_tool_calls": self.parallel_tool_calls,
            }
        return GenerateRequest.model_construct(**fields)


def _inner(data: dict[str, Any]) -> dict[str, Any]:
    """Raw data as the conflicts of chat completions know it: functions and schemas are one level deeper there."""
    tools, choice, text = data.get("tools"), data.get("tool_choice"), data.get("text")
    inner = {name: value for name, value in data.items() if name not in ("response_format", "tools")}
    if isinstance(text, dict) and text.get("format") is not None:
        inner["response_format"] = text["format"]
    if isinstance(tools, list) and tools:
        inner["tools"] = [{"function": tool} for tool in tools]
        inner["tool_choice"] = {"function": choice} if isinstance(choice, dict) else choice
    return inner


def name_of(field: str) -> str:
    return _NAMES.get(field, field.replace(".function.", "."))


def _response_format(form: PlainFormat | SchemaFormat) -> ResponseFormat | None:
    if isinstance(form, SchemaFormat):
        schema = JsonSchema.model_construct(**{name: getattr(form, name) for name in JsonSchema.model_fields})
        return ResponseFormat.model_construct(type="json_schema", json_schema=schema)
    return ResponseFormat(type=form.type)


def _message(role: str, text: str | None, **more: Any) -> Message:
    return Message.model_construct(role=role, content=text, **more)


def _function(tool: FunctionTool) -> Function:
    return Function.model_construct(**{name: getattr(tool, name) for name in Function.model_fields})


def _tool_choice(choice: str | FunctionChoice) -> str | NamedTool:
    if isinstance(choice, str):
        return choice
    return NamedTool(type="function", function=NamedFunction(name=choice.name))


def _text_of(content: str | list[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def messages_of(items: str | Sequence[InputItem]) -> list[Message]:
    """The conversation that items tell. Reasoning, what was said behind it and calls behind that are one message."""
    if isinstance(items, str):
        return [_message("user", items)]
    messages: list[Message] = []
    reasoning: str | None = None
    for item in items:
        match item:
            case MessageItem():
                of_assistant = {"reasoning_content": reasoning} if item.role == "assistant" else {}
                messages.append(_message(item.role, _text_of(item.content), **of_assistant))
                reasoning = None
            case FunctionCall():
                call = _call(item.call_id, item.name, item.arguments)
                last = messages[-1] if messages and reasoning is None else None
                if last is not None and last.role == "assistant":
                    messages[-1] = last.model_copy(update={"tool_calls": [*(last.tool_calls or ()), call]})
                else:
                    messages.append(_message("assistant", None, tool_calls=[call], reasoning_content=reasoning))
                reasoning = None
            case FunctionCallOutput():
                messages.append(_message("tool", _text_of(item.output), tool_call_id=item.call_id))
            case ReasoningItem():
                reasoning = "".join(part.text for part in item.content or item.summary)
    return messages


def _call(call_id: str, name: str, arguments: str) -> ToolCall:
    function = CalledFunction.model_construct(name=name, arguments=arguments)
    return ToolCall.model_construct(id=call_id, type="function", function=function)


# --- The answer
