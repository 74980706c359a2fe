"""Anthropic's messages. A translation and no logic of its own.

An answer is a list of blocks: text, thinking, calls. A stream ends with `message_stop`, or with `error`.
Source: Anthropic's API reference, "Messages", and the types of its Python SDK, against which tests/web/test_messages.py
holds every event.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, assert_never

from flask import Blueprint, Response, jsonify
from pydantic import Discriminator, Field, Tag

from worker.answer import AnswerParser, CallArguments, CallBegun, CallEnded, Part, Reasoning, Text
from worker.errors import FieldError, InvalidRequest, NotReady, UnknownModel
from worker.events import End, Event, Failure, Metrics, Narration, Started, StopReason, Token, Usage
from worker.job import Job
from worker.request import (
    MAX_MESSAGES,
    MAX_TOOLS,
    NOT_ELSEWHERE,
    TAG_PREFIX,
    CalledFunction,
    Function,
    GenerateRequest,
    JsonSchema,
    MaxTokens,
    Message,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    SamplingFields,
    StopStrings,
    StrictModel,
    Tool,
    ToolCall,
    ToolFields,
    ToolParameters,
)
from worker.web.answers import OF_AN_ANSWER, check_model, failure_of, naming, respond
from worker.web.context import IDEMPOTENCY_KEY, context, read_body
from worker.web.description import describes
from worker.web.messages_answers import InputTokens, MessageEvent, MessageObject
from worker.web.refusals import anthropic_error
from worker.web.sse import encode_event

blueprint = Blueprint("messages", __name__)

# Fields of the internal vocabulary, and what they are called here.
_NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema.schema": "output_config.format.schema",
}


# --- The body


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


def _text_or_list(value: object) -> str:
    return TAG_PREFIX + ("list" if isinstance(value, list) else "text")


Texts = Annotated[
    Annotated[str, Tag("=text")] | Annotated[list[TextBlock], Field(min_length=1), Tag("=list")],
    Discriminator(_text_or_list),
]


# What a tool has given back may be nothing, in Anthropic's API too.
AnyTexts = Annotated[
    Annotated[str, Tag("=text")] | Annotated[list[TextBlock], Tag("=list")], Discriminator(_text_or_list)
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
        Discriminator(_text_or_list),
    ]


class AssistantMessage(StrictModel):
    """The model's turn."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("=text")] | Annotated[list[AssistantBlock], Tag("=list")],  # it may have said nothing
        Discriminator(_text_or_list),
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


def _name_of(field: str) -> str:
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


class MessagesTranslator:
    """The events of `/v1/messages`, and the message that they tell of."""

    done = b""  # Anthropic's streams end with the terminal event

    def __init__(self, job: Job, max_tokens: int) -> None:
        """Translate the answer of `job`, which has been asked for in at most `max_tokens` tokens."""
        self._job = job
        self._max_tokens = max_tokens
        self._parser = AnswerParser(job.answer_format, job.id)
        self._content: list[dict[str, Any]] = []
        self._is_open = False  # the last block is being written
        self._pieces: list[str] = []  # of what it says
        self._cut_calls: set[int] = set()  # the blocks of calls that never were complete, by their place
        self._is_streamed = True
        self._encoded: list[bytes] = []

    def encode(self, number: int, event: Event) -> bytes:
        match event:
            case Started():
                usage = Usage(self._job.num_prompt_tokens, 0)
                self._emit("message_start", message=self._message(usage, None, None))
            case Token():
                self._write(self._parser.push(event))
            case End() if failure_of(event) is None:
                reason = self._end(event)
                delta = {"stop_reason": reason, "stop_sequence": event.stop_sequence_matched}
                self._emit("message_delta", delta=delta, usage=_usage_fields(event.usage))
                self._emit("message_stop")
            case End() | Failure():
                error = failure_of(event)
                assert error is not None
                self._encoded.append(encode_event(anthropic_error(error.message, error.status, error.code)))
            case Narration() | Metrics():
                pass
            case _:
                assert_never(event)
        encoded, self._encoded = self._encoded, []
        return b"".join(encoded)

    def whole(self, events: Sequence[tuple[int, Event]]) -> dict[str, Any]:
        self._is_streamed = False
        for _, event in events:
            if isinstance(event, Token):
                self._write(self._parser.push(event))
        end = events[-1][1]
        assert isinstance(end, End)
        reason = self._end(end)
        # A call without all of its arguments is nothing to be called.
        self._content = [block for i, block in enumerate(self._content) if i not in self._cut_calls]
        return self._message(end.usage, reason, end.stop_sequence_matched)

    def _end(self, end: End) -> str:
        """End the last block, and say why it is the last."""
        self._write(self._parser.flush())
        self._stop()
        match end.stop_reason:
            case StopReason.MAX_TOKENS if end.usage.completion_tokens < self._max_tokens:
                return "model_context_window_exceeded"
            case StopReason.MAX_TOKENS:
                return "max_tokens"
            case StopReason.STOP_SEQUENCE:
                return "stop_sequence"
            case _:
                return "tool_use" if self._parser.num_calls else "end_turn"

    def _write(self, parts: list[Part]) -> None:
        for part in parts:
            match part:
                case Text() if part.text:
                    if not self._is_in("text"):
                        self._start({"type": "text", "text": ""})
                    self._pieces.append(part.text)
                    self._delta({"type": "text_delta", "text": part.text})
                case Reasoning():
                    if not self._is_in("thinking"):
                        self._start({"type": "thinking", "thinking": "", "signature": ""})
                    self._pieces.append(part.text)
                    self._delta({"type": "thinking_delta", "thinking": part.text})
                case CallBegun():
                    self._start({"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}})
                case CallArguments():
                    self._pieces.append(part.text)
                    self._delta({"type": "input_json_delta", "partial_json": part.text})
                case CallEnded():
                    self._stop(is_complete=True)

    def _is_in(self, kind: str) -> bool:
        return self._is_open and self._content[-1]["type"] == kind

    def _start(self, block: dict[str, Any]) -> None:
        self._stop()
        self._emit("content_block_start", index=len(self._content), content_block=block)
        self._content.append(block)
        self._is_open, self._pieces = True, []

    def _delta(self, delta: dict[str, Any]) -> None:
        self._emit("content_block_delta", index=len(self._content) - 1, delta=delta)

    def _stop(self, *, is_complete: bool = False) -> None:
        """End the open block, if there is one.

        Args:
            is_complete: Of a call: whether it has said that it is.
        """
        if not self._is_open:
            return
        self._is_open = False
        block, text = self._content[-1], "".join(self._pieces)
        match block["type"]:
            case "tool_use" if is_complete:
                block["input"] = json.loads(text)
            case "tool_use":
                self._cut_calls.add(len(self._content) - 1)
            case kind:
                block[kind] = text
        self._emit("content_block_stop", index=len(self._content) - 1)

    def _emit(self, kind: str, **fields: Any) -> None:
        if self._is_streamed:
            self._encoded.append(encode_event({"type": kind} | fields))

    def _message(self, usage: Usage, stop_reason: str | None, stop_sequence: str | None) -> dict[str, Any]:
        return {
            "id": "msg_" + self._job.id,
            "type": "message",
            "role": "assistant",
            "model": self._job.started.model,
            "content": self._content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": _usage_fields(usage),
        }


def _usage_fields(usage: Usage) -> dict[str, Any]:
    """What was found in the cache is not counted among the rest, as in Anthropic's API."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


# --- The routes


_EXAMPLE = {"model": "endstop-tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}]}


@blueprint.post("/v1/messages")
@describes(
    "Anthropic",
    body=MessagesRequest,
    answers={200: MessageObject},
    events=MessageEvent,
    raises=OF_AN_ANSWER,
    parameters=(IDEMPOTENCY_KEY,),
    example={**_EXAMPLE, "max_tokens": 16},
)
def create_message() -> Response:
    """Answer a conversation."""
    body = read_body(MessagesRequest)
    _check(body)
    with naming(_name_of):
        return respond(
            [body.to_generate()],
            lambda jobs: MessagesTranslator(jobs[0], body.max_tokens),
            is_streamed=body.stream,
            default_max_tokens=body.max_tokens,
        )


def _check(body: MessagesFields) -> None:
    """See that the model is the one that is served, and can do what is asked of it.

    Raises:
        UnknownModel, NotReady, InvalidRequest: It is not, or cannot.
    """
    check_model(body.model)
    if body.thinking is None or body.thinking.type != "disabled":
        return
    if context().engine.model.tokenizer.answer_format.reasoning is not None:
        message = "is disabled, and this model may say something to itself first; leave thinking out"
        raise InvalidRequest([FieldError("thinking.type", "unsupported", message)])


@blueprint.post("/v1/messages/count_tokens")
@describes(
    "Anthropic", body=CountRequest, answers={200: InputTokens}, raises=(UnknownModel, NotReady), example=_EXAMPLE
)
def count_tokens() -> Response:
    """How long the prompt of a conversation is."""
    body = read_body(CountRequest)
    _check(body)
    return jsonify(input_tokens=len(context().jobs.tokenize(body.to_generate())))
