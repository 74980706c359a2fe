"""OpenAI's responses. A translation and no logic of its own.

An answer is a list of items: messages, reasoning, calls. Its events are numbered from 0. For whoever comes back for the
rest the journal is translated again from its beginning, so that every reader sees the same numbers.
Source: OpenAI's API reference, "Responses", and the types of openai-python, against which tests/web/test_responses.py
holds every event.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, assert_never

from flask import Blueprint, Response, jsonify, request
from pydantic import Discriminator, Field, Tag, TypeAdapter

from worker.answer import AnswerParser, CallArguments, CallBegun, CallEnded, Part, Reasoning, Text
from worker.body import shorten
from worker.errors import FieldError, InvalidRequest, Overloaded, UnknownJob
from worker.events import End, Event, Failure, Metrics, Narration, Started, StopReason, Token, Usage
from worker.job import Job
from worker.request import (
    IS_AUTOMATIC,
    MAX_MESSAGES,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    NO_CONTROL,
    NOT_ELSEWHERE,
    TAG_PREFIX,
    TEXT_ONLY,
    ArgumentsText,
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
    StrictModel,
    Tool,
    ToolCall,
    ToolFields,
)
from worker.web.answers import OF_AN_ANSWER, check_model, failure_of, naming, respond
from worker.web.auth import client
from worker.web.context import IDEMPOTENCY_KEY, context, read_body, start_jobs
from worker.web.description import describes, path_parameter
from worker.web.responses_answers import DeletedResponse, ResponseEvent, ResponseObject
from worker.web.sse import HEADERS, encode_event, event_stream_response, logprob_fields, stream_job

blueprint = Blueprint("responses", __name__)

ID_PREFIX = "resp_"
LOGPROBS = "message.output_text.logprobs"
# A cancelled job ends within one step. Who asks for that is told of the end, not that it is near.
CANCEL_WAIT_S = 1.0
# No mark behind reasoning is longer.
MARK_CHARACTERS = 40

# Fields of the internal vocabulary, and what they are called here.
_NAMES = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
}


# --- The body


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


def _text_or_list(value: object) -> str:
    return TAG_PREFIX + ("list" if isinstance(value, list) else "text")


TextPart = Annotated[
    Annotated[InputText, Tag("=input_text")] | Annotated[OutputText, Tag("=output_text")],
    Discriminator(_part_kind, "type", "a part of type input_text or output_text is needed; the model reads text only"),
]
TextParts = Annotated[
    Annotated[str, Tag("=text")] | Annotated[list[TextPart], Field(min_length=1), Tag("=list")],
    Discriminator(_text_or_list),
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
_INPUT_ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])
Input = Annotated[
    Annotated[str, Tag("=text")]
    | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES), Tag("=list")],
    Discriminator(_text_or_list),
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


def _name_of(field: str) -> str:
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


def _messages_of(items: str | Sequence[InputItem]) -> list[Message]:
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


@dataclass(frozen=True, slots=True)
class Asked:
    """What a job remembers of the request that made it.

    Attributes:
        conversation: What the model was told, without the instructions, which are those of one request only.
    """

    body: ResponseRequest
    conversation: list[Message]

    @property
    def num_bytes(self) -> int:
        """What it weighs, about. A conversation that several jobs share counts for each: any may be the last."""
        return len(self.body.model_dump_json()) + sum(len(message.text) for message in self.conversation)


class ResponseTranslator:
    """The events of `/v1/responses`, and the response that they tell of."""

    done = b""  # OpenAI's streams end with the terminal event on this route

    def __init__(self, job: Job, asked: Asked, starting_after: float = -1) -> None:
        """Translate the events of `job` for a client that has those up to number `starting_after`."""
        self.num_events = 0
        self._job = job
        self._asked = asked
        self._starting_after = starting_after
        self._parser = AnswerParser(job.answer_format, job.id)
        self._output: list[dict[str, Any]] = []
        self._is_open = False  # the last item of the output is being written
        self._pieces: list[str] = []  # of its text or its arguments
        self._logprobs: list[dict[str, Any]] = []  # of its text
        self._num_reasoning_tokens = 0
        self._end_of_thought = ""  # the last characters of it, in which a mark may have begun
        self._is_queued = asked.body.background
        self._created_at = int(datetime.fromisoformat(job.started.started_at).timestamp())
        self._told: dict[str, Any] = {}  # the response as the last event has it that has it whole
        self._encoded: list[bytes] = []

    def encode(self, number: int, event: Event) -> bytes:
        self._push(event)
        encoded, self._encoded = self._encoded, []
        return b"".join(encoded)

    def whole(self, events: Sequence[tuple[int, Event]]) -> dict[str, Any]:
        self._starting_after = math.inf  # nobody reads the events themselves
        for _, event in events:
            self._push(event)
        return self._told

    def _push(self, event: Event) -> None:
        match event:
            case Started() if self._is_queued:
                self._tell("created", "queued")
                self._tell("queued", "queued")
            case Started():
                self._tell("created", "in_progress")
                self._tell("in_progress", "in_progress")
            case Token():
                self._leave_queue()
                parts = self._parser.push(event)
                self._count(event, parts)
                self._write(parts)
            case End() if failure_of(event) is None:
                self._leave_queue()
                self._write(self._parser.flush())
                self._end(event)
            case End() | Failure():
                self._fail(event)
            case Narration() | Metrics():
                pass
            case _:
                assert_never(event)

    def _leave_queue(self) -> None:
        if self._is_queued:
            self._is_queued = False
            self._tell("in_progress", "in_progress")

    def _count(self, token: Token, parts: list[Part]) -> None:
        """Tokens are reasoning until there is something else. Their marks, which the model writes too, are counted."""
        if any(item["type"] != "reasoning" for item in self._output):
            return
        before, self._end_of_thought = self._end_of_thought, (self._end_of_thought + token.text)[-MARK_CHARACTERS:]
        if all(isinstance(part, Reasoning) for part in parts):
            self._num_reasoning_tokens += token.count
        elif self._job.answer_format.reasoning is not None:
            # Merged tokens do not say where one of them ends: those up to the mark have their share of the text.
            thought, mark, _ = (before + token.text).partition(self._job.answer_format.reasoning[1])
            if mark:
                share = len((thought + mark)[len(before) :]) / len(token.text)
                self._num_reasoning_tokens += min(token.count - 1, round(token.count * share))

    def _end(self, end: End) -> None:
        is_cut = end.stop_reason is StopReason.MAX_TOKENS
        self._close("incomplete" if is_cut or self._is_in("function_call") else "completed")
        if is_cut:
            fields: dict[str, Any] = {"incomplete_details": {"reason": "max_output_tokens"}}
            self._tell("incomplete", "incomplete", end.usage, **fields)
            return
        if not self._output:  # an answer of no words is a message all the same
            self._open_message()
            self._close("completed")
        assert self._job.ended_at is not None
        completed_at = self._created_at + int(self._job.ended_at - self._job.begun_at)
        self._tell("completed", "completed", end.usage, completed_at=completed_at)

    def _fail(self, terminal: End | Failure) -> None:
        error = failure_of(terminal)
        assert error is not None
        if self._is_open:
            self._write_down("incomplete")
        # There is a status for a cancelled response, and no event. Of codes OpenAI's types know OpenAI's only; `type`
        # is the name that the error had where it came from.
        status = "cancelled" if isinstance(terminal, End) else "failed"
        told = {"code": "server_error", "message": error.message, "type": error.code}
        self._tell("failed", status, terminal.usage, error=told)

    def _write(self, parts: list[Part]) -> None:
        for part in parts:
            match part:
                case Text() if part.text or part.logprobs:
                    if not self._is_in("message"):
                        self._close_for_another()
                        self._open_message()
                    self._pieces.append(part.text)
                    logprobs = [logprob_fields(one) for one in part.logprobs]
                    self._logprobs += logprobs
                    self._emit_in_part("output_text.delta", delta=part.text, logprobs=_without_bytes(logprobs))
                case Reasoning():
                    if not self._is_in("reasoning"):
                        self._close_for_another()
                        self._open("rs_", {"type": "reasoning", "summary": [], "content": []})
                        self._add_part({"type": "reasoning_text", "text": ""})
                    self._pieces.append(part.text)
                    self._emit_in_part("reasoning_text.delta", delta=part.text)
                case CallBegun():
                    self._close_for_another()
                    call = {"type": "function_call", "call_id": part.call_id, "name": part.name, "arguments": ""}
                    self._open("fc_", call)
                case CallArguments():
                    self._pieces.append(part.text)
                    self._emit_in_item("function_call_arguments.delta", delta=part.text)
                case CallEnded():
                    self._close("completed")

    @property
    def _item(self) -> dict[str, Any]:
        return self._output[-1]

    def _is_in(self, kind: str) -> bool:
        return self._is_open and self._item["type"] == kind

    def _open(self, id_prefix: str, item: dict[str, Any]) -> None:
        self._output.append(item | {"id": f"{id_prefix}{self._job.id}_{len(self._output)}", "status": "in_progress"})
        self._is_open, self._pieces, self._logprobs = True, [], []
        self._emit_of_item("output_item.added")

    def _open_message(self) -> None:
        self._open("msg_", {"type": "message", "role": "assistant", "content": []})
        self._add_part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})

    def _add_part(self, part: dict[str, Any]) -> None:
        self._emit_in_part("content_part.added", part=part)
        self._item["content"].append(part)

    def _close_for_another(self) -> None:
        # A call that has not said that it is complete is not.
        self._close("incomplete" if self._is_in("function_call") else "completed")

    def _close(self, status: str) -> None:
        """End the open item, if there is one."""
        if not self._is_open:
            return
        item = self._write_down(status)
        match item["type"]:
            case "message":
                [part] = item["content"]
                self._emit_in_part("output_text.done", text=part["text"], logprobs=_without_bytes(part["logprobs"]))
                self._emit_in_part("content_part.done", part=part)
            case "reasoning":
                [part] = item["content"]
                self._emit_in_part("reasoning_text.done", text=part["text"])
                self._emit_in_part("content_part.done", part=part)
            case "function_call" if status == "completed":
                self._emit_in_item("function_call_arguments.done", arguments=item["arguments"])
        self._emit_of_item("output_item.done")

    def _write_down(self, status: str) -> dict[str, Any]:
        """What has come of the open item, to be read as a whole from now on."""
        item, text = self._item, "".join(self._pieces)
        match item["type"]:
            case "message":
                item["content"][0] |= {"text": text, "logprobs": self._logprobs}
            case "reasoning":
                item["content"][0]["text"] = text
            case _:
                item["arguments"] = text
        item["status"] = status
        self._is_open = False
        return item

    def _emit_of_item(self, kind: str) -> None:
        self._emit(kind, output_index=len(self._output) - 1, item=self._item)

    def _emit_in_item(self, kind: str, **fields: Any) -> None:
        self._emit(kind, item_id=self._item["id"], output_index=len(self._output) - 1, **fields)

    def _emit_in_part(self, kind: str, **fields: Any) -> None:
        self._emit_in_item(kind, content_index=0, **fields)

    def _tell(self, kind: str, status: str, usage: Usage | None = None, **fields: Any) -> None:
        self._told = self.response(status, usage) | fields
        self._emit(kind, response=self._told)

    def _emit(self, kind: str, **fields: Any) -> None:
        """Write an event down at once: what it has of an item may be written to later."""
        number = self.num_events
        self.num_events += 1
        if number > self._starting_after:
            self._encoded.append(encode_event({"type": "response." + kind, "sequence_number": number} | fields))

    def response(self, status: str, usage: Usage | None = None) -> dict[str, Any]:
        """The response as far as it has come."""
        body = self._asked.body
        return {
            "id": ID_PREFIX + self._job.id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": None,
            "status": status,
            "background": body.background,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._job.started.model,
            "output": self._output,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "temperature": body.temperature,
            "text": body.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            "tools": [tool.model_dump() for tool in body.tools],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": body.truncation,
            "usage": None if usage is None else self._usage_fields(usage),
            "user": body.user,
        }

    def _usage_fields(self, usage: Usage) -> dict[str, Any]:
        has_reasoning = any(item["type"] == "reasoning" for item in self._output)
        return {
            "input_tokens": usage.prompt_tokens,
            # Nobody pays for what is written to the cache: it is not counted.
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._num_reasoning_tokens if has_reasoning else 0},
            "total_tokens": usage.total_tokens,
        }


def _without_bytes(logprobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the events have them. A part of an item has the bytes too."""
    return [
        {
            "token": one["token"],
            "logprob": one["logprob"],
            "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in one["top_logprobs"]],
        }
        for one in logprobs
    ]


# --- The routes


RESPONSE_ID = path_parameter("response_id", "The response, as `POST /v1/responses` has named it.")
QUERY = (
    {
        "name": "stream",
        "in": "query",
        "description": "Whether its events are wanted.",
        "schema": {"enum": ["true", "false"], "default": "false"},
    },
    {
        "name": "starting_after",
        "in": "query",
        "description": "The `sequence_number` of the last event that the client has. Only with `stream=true`.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
    },
    {
        "name": "include_obfuscation",
        "in": "query",
        "description": "Events are never padded.",
        "schema": {"const": "false"},
    },
)


@blueprint.post("/v1/responses")
@describes(
    "OpenAI",
    body=ResponseRequest,
    answers={200: ResponseObject},
    events=ResponseEvent,
    raises=OF_AN_ANSWER,
    parameters=(IDEMPOTENCY_KEY,),
    example={"input": "What is the capital of France?", "max_output_tokens": 16, "temperature": 0},
)
def create_response() -> Response:
    """Answer a conversation."""
    body = read_body(ResponseRequest)
    check_model(body.model)
    asked = Asked(body, [*_said_before(body.previous_response_id), *_messages_of(body.input)])
    if len(asked.conversation) > MAX_MESSAGES:
        message = f"makes a conversation of {len(asked.conversation)} messages; it may have {MAX_MESSAGES}"
        raise InvalidRequest([FieldError("previous_response_id", "too_long", message)])
    generate = body.to_generate(asked.conversation)

    def translator_for(jobs: list[Job]) -> ResponseTranslator:
        [job] = jobs
        job.is_detached = body.background
        if body.store:
            job.keep(asked, asked.num_bytes)
        # Of two requests with one idempotency key, the first has made the job.
        return ResponseTranslator(job, job.note if isinstance(job.note, Asked) else asked)

    with naming(_name_of):
        if body.background and not body.stream:
            jobs, headers = start_jobs([generate], "continue")
            response = jsonify(translator_for(jobs).response("queued"))
            response.headers.update(headers)
            return response
        return respond(
            [generate],
            translator_for,
            is_streamed=body.stream,
            on_disconnect="continue" if body.background else "cancel",
            is_kept=body.store,
        )


def _said_before(response_id: str | None) -> list[Message]:
    """The conversation up to an earlier response, and that response."""
    if response_id is None:
        return []
    try:
        job, asked = _find(response_id)
    except UnknownJob as error:
        raise _refuse_previous("unknown", error.message) from None
    terminal = job.status().terminal
    if terminal is None:
        raise _refuse_previous("running", "has not ended; wait for its end")
    if failure_of(terminal) is not None:
        raise _refuse_previous("failed", "has no answer, it failed or was cancelled; send its input again")
    output = _response_of(job, asked)["output"]
    # A call that was cut off has nothing to be answered with.
    complete = [item for item in output if item["type"] != "function_call" or item["status"] == "completed"]
    return [*asked.conversation, *_messages_of(_INPUT_ITEMS.validate_python(complete))]


def _refuse_previous(constraint: str, message: str) -> InvalidRequest:
    return InvalidRequest([FieldError("previous_response_id", constraint, message)])


def _find(response_id: str) -> tuple[Job, Asked]:
    """A response that is kept, by its id.

    Raises:
        UnknownJob: There is none.
    """
    jobs = context().jobs
    try:
        job = jobs.get(response_id.removeprefix(ID_PREFIX), client())
    except UnknownJob:
        job = None
    if job is None or not isinstance(job.note, Asked) or not response_id.startswith(ID_PREFIX):
        raise UnknownJob(
            f"no response has the id {shorten(repr(response_id))}; those that are stored are kept for "
            f"{context().settings.job_ttl_s:g} s after their end, or the server has been replaced since"
        )
    return job, job.note


@blueprint.get("/v1/responses/<response_id>")
@describes(
    "OpenAI",
    answers={200: ResponseObject},
    events=ResponseEvent,
    raises=(InvalidRequest, UnknownJob, Overloaded),
    parameters=(RESPONSE_ID, *QUERY),
)
def show_response(response_id: str) -> Response:
    """A response as it is now, or its events from the start or behind the last one that the client has."""
    job, asked = _find(response_id)
    starting_after = _starting_after()
    if starting_after is None:
        return jsonify(_response_of(job, asked))
    if request.method == "HEAD":  # Flask adds it to every GET; a reader that nobody reads would be left behind
        return Response(mimetype="text/event-stream", headers=HEADERS)
    shared = context()
    with shared.streams.reserve() as place:
        reader = job.read()
        place.take(reader)
        _check_is_there(job, asked, starting_after)
        if starting_after >= 0:
            shared.metrics.note_resume()
        translator = ResponseTranslator(job, asked, starting_after)
        chunks = stream_job(reader, translator, shared.engine, shared.settings.keep_alive_s)
        return event_stream_response(chunks, place.close)


def _starting_after() -> int | None:
    """The number of the last event that the client has, -1 for none. None: it wants the response and not its events.

    Raises:
        InvalidRequest: The query asks for something else.
    """
    asked = {"stream": "false", "starting_after": "-1", "include_obfuscation": "false"} | request.args
    errors = [
        FieldError(shorten(name), "unknown_field", "is not supported; remove it (supported: starting_after, stream)")
        for name in request.args
        if name not in ("stream", "starting_after", "include_obfuscation")
    ]
    if asked["stream"] not in ("true", "false"):
        errors.append(FieldError("stream", "bool", "must be true or false"))
    if asked["include_obfuscation"] != "false":
        errors.append(FieldError("include_obfuscation", "bool", "must be false: events are never padded"))
    text = asked["starting_after"]
    if "starting_after" in request.args:
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            errors.append(FieldError("starting_after", "integer", "must be the sequence_number of an event"))
        elif asked["stream"] == "false":
            errors.append(FieldError("starting_after", "conflict", "is only allowed with stream=true"))
    if errors:
        raise InvalidRequest(errors)
    return int(text) if asked["stream"] == "true" else None


def _check_is_there(job: Job, asked: Asked, number: int) -> None:
    translator = ResponseTranslator(job, asked)
    translator.whole(list(enumerate(job.events())))
    if number >= translator.num_events:
        last = translator.num_events - 1
        message = f"must be between 0 and {last}, the newest event, not {number}"
        raise InvalidRequest([FieldError("starting_after", "range", message)])


@blueprint.post("/v1/responses/<response_id>/cancel")
@describes("OpenAI", answers={200: ResponseObject}, raises=(UnknownJob,), parameters=(RESPONSE_ID,))
def cancel_response(response_id: str) -> Response:
    """Cancel a response. Idempotent: an ended one stays as it ended."""
    job, asked = _find(response_id)
    job.cancel("delete")
    job.wait_end(CANCEL_WAIT_S)
    return jsonify(_response_of(job, asked))


@blueprint.delete("/v1/responses/<response_id>")
@describes("OpenAI", answers={200: DeletedResponse}, raises=(UnknownJob,), parameters=(RESPONSE_ID,))
def delete_response(response_id: str) -> Response:
    """Cancel a response and forget it. Who reads it now is told the end."""
    job, _ = _find(response_id)
    job.cancel("delete")
    job.note = None
    context().jobs.forget_unread(job)
    return jsonify(id=response_id, object="response", deleted=True)


def _response_of(job: Job, asked: Asked) -> dict[str, Any]:
    """What there is of it: all of one that has ended, nothing yet of the output of one that has not."""
    translator = ResponseTranslator(job, asked)
    status = job.status()
    if status.terminal is None:
        return translator.response("queued" if status.state == "QUEUED" else "in_progress")
    return translator.whole(list(enumerate(job.events())))
