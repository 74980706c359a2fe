"""OpenAI's chat completions. A translation and no logic of its own."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from flask import Blueprint, Response
from pydantic import Field

from worker.answer import CallArguments, CallBegun, CallEnded, Part, Reasoning, Text
from worker.answer_parser import AnswerParser
from worker.events import Token
from worker.job import Job
from worker.message import Messages
from worker.request import (
    IS_AUTOMATIC,
    MAX_TOP_LOGPROBS,
    NO_CONTROL,
    NOT_ELSEWHERE,
    TEXT_ONLY,
    GenerateRequest,
    MaxTokens,
    ToolFields,
)
from worker.web.answers import OF_AN_ANSWER, check_model, naming, respond
from worker.web.context import IDEMPOTENCY_KEY, read_body
from worker.web.description import describes
from worker.web.openai import OpenAIFields, OpenAITranslator
from worker.web.openai_answers import ChatCompletion, ChatCompletionChunk, OpenAIErrorEvent
from worker.web.sse import logprob_fields

blueprint = Blueprint("chat_completions", __name__)


class ChatCompletionRequest(ToolFields, OpenAIFields):
    """Body of `POST /v1/chat/completions`."""

    refused: ClassVar[Mapping[str, str]] = {
        "audio": TEXT_ONLY,
        "function_call": "replaced by `tool_choice`, in OpenAI's API too",
        "functions": "replaced by `tools`, in OpenAI's API too",
        "moderation": NOT_ELSEWHERE,
        "prediction": "guesses are taken from the text itself (`ENDSTOP_SPECULATION`)",
        "prompt_cache_options": IS_AUTOMATIC,
        "prompt_cache_retention": IS_AUTOMATIC,
        "reasoning_effort": NO_CONTROL,
        "verbosity": NO_CONTROL,
        "web_search_options": NOT_ELSEWHERE,
    }

    messages: Messages
    """The conversation that is answered, as the model's chat template writes it."""
    max_completion_tokens: MaxTokens | None = None
    """OpenAI's newer name of `max_tokens`. Give one of them."""
    logprobs: bool = False
    """Whether each token comes with how likely it was."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """How many of the likeliest tokens are told with each token. Only with `logprobs: true`."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """For the caller's own records; nothing depends on it."""
    safety_identifier: str | None = None
    """OpenAI's newer name of `user`; nothing depends on it."""
    prompt_cache_key: str | None = None
    """Nothing depends on it: prompts that begin alike share what was computed, without being asked."""
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    """The model reads and writes text."""
    service_tier: Literal["auto", "default"] = "auto"
    """There is one."""
    store: Literal[False] = False
    """An answer is kept for its reader, no longer."""

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        found = super().conflicts(data)
        if "max_tokens" in data and "max_completion_tokens" in data:
            found.append("give either max_tokens or max_completion_tokens, not both")
        if "top_logprobs" in data and data.get("logprobs") is not True:
            found.append("top_logprobs is only allowed with logprobs: true")
        return found

    def to_generate(self) -> GenerateRequest:
        """The same request in the internal vocabulary."""
        limit = self.max_completion_tokens or self.max_tokens
        tools = {name: getattr(self, name) for name in ToolFields.model_fields}
        return GenerateRequest.model_construct(
            **{**self.internal_fields(), **tools, "messages": self.messages, "max_tokens": limit}
        )


class ChatTranslator(OpenAITranslator):
    """The shapes of `/v1/chat/completions`."""

    id_prefix = "chatcmpl-"
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, jobs: list[Job], num_choices: int, include_usage: bool) -> None:
        super().__init__(jobs, num_choices, include_usage)
        self._parsers = [AnswerParser(job.answer_format, job.id) for job in jobs]

    def opening(self, number: int) -> list[dict[str, Any]]:
        return [_choice(number, {"role": "assistant", "content": "", "refusal": None})]

    def pieces(self, number: int, token: Token) -> list[dict[str, Any]]:
        return _pieces(number, self._parsers[number].push(token))

    def closing(self, number: int, finish_reason: str) -> list[dict[str, Any]]:
        parser = self._parsers[number]
        rest = _pieces(number, parser.flush())
        return [*rest, _choice(number, {}, None, _finish_reason(parser, finish_reason))]

    def whole_choice(self, number: int, tokens: list[Token], finish_reason: str) -> dict[str, Any]:
        parser = self._parsers[number]
        parts = [part for token in tokens for part in parser.push(token)] + parser.flush()
        return {
            "index": number,
            "message": _message(parts),
            "logprobs": _logprobs([part for part in parts if isinstance(part, Text)]),
            "finish_reason": _finish_reason(parser, finish_reason),
        }


def _finish_reason(parser: AnswerParser, finish_reason: str) -> str:
    """A call that is not complete is not a reason, nor is one behind which the limit was reached."""
    return "tool_calls" if parser.num_calls and finish_reason == "stop" else finish_reason


def _message(parts: list[Part]) -> dict[str, Any]:
    text = "".join(part.text for part in parts if isinstance(part, Text))
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, CallBegun):
            function = {"name": part.name, "arguments": ""}
            calls.append({"id": part.call_id, "type": "function", "function": function})
        elif isinstance(part, CallArguments):
            calls[part.index]["function"]["arguments"] += part.text
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _pieces(number: int, parts: list[Part]) -> list[dict[str, Any]]:
    found = []
    for part in parts:
        match part:
            case Text():
                found.append(_choice(number, {"content": part.text}, _logprobs([part])))
            case Reasoning():
                found.append(_choice(number, {"reasoning_content": part.text}))
            case CallBegun():
                function = {"name": part.name, "arguments": ""}
                call = {"index": part.index, "id": part.call_id, "type": "function", "function": function}
                found.append(_choice(number, {"tool_calls": [call]}))
            case CallArguments():
                call = {"index": part.index, "function": {"arguments": part.text}}
                found.append(_choice(number, {"tool_calls": [call]}))
            case CallEnded():
                pass  # OpenAI's stream does not say so; `finish_reason` does
    return found


def _choice(
    number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(texts: list[Text]) -> dict[str, Any] | None:
    content = [logprob_fields(one) for text in texts for one in text.logprobs]
    return {"content": content, "refusal": None} if content else None


@blueprint.post("/v1/chat/completions")
@describes(
    "OpenAI",
    body=ChatCompletionRequest,
    answers={200: ChatCompletion},
    events=ChatCompletionChunk | OpenAIErrorEvent,
    raises=OF_AN_ANSWER,
    parameters=(IDEMPOTENCY_KEY,),
    example={
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    },
)
def chat_completions() -> Response:
    """Answer a conversation."""
    body = read_body(ChatCompletionRequest)
    check_model(body.model)
    limit = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    with naming(lambda field: limit if field == "max_tokens" else field):
        return respond(
            [body.to_generate()],
            lambda jobs: ChatTranslator(jobs, body.n, body.include_usage),
            is_streamed=body.stream,
            num_choices=body.n,
        )
