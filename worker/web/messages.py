"""Anthropic's messages. A translation and no logic of its own.

An answer is a list of blocks: text, thinking, calls. A stream ends with `message_stop`, or with `error`.
Source: Anthropic's API reference, "Messages", and the types of its Python SDK, against which tests/web/test_messages.py
holds every event.
"""

import json
from collections.abc import Sequence
from typing import Any, assert_never

from flask import Blueprint, Response, jsonify

from worker.answer import CallArguments, CallBegun, CallEnded, Part, Reasoning, Text
from worker.answer_parser import AnswerParser
from worker.errors import FieldError, InvalidRequest, NotReady, UnknownModel
from worker.events import End, Event, Failure, Metrics, Narration, Started, StopReason, Token, Usage
from worker.job import Job
from worker.web.answers import OF_AN_ANSWER, check_model, failure_of, naming, respond
from worker.web.context import IDEMPOTENCY_KEY, context, read_body
from worker.web.description import describes
from worker.web.messages_answers import InputTokens, MessageEvent, MessageObject
from worker.web.messages_request import CountRequest, MessagesFields, MessagesRequest, name_of
from worker.web.refusals import anthropic_error
from worker.web.sse import encode_event

blueprint = Blueprint("messages", __name__)


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
    with naming(name_of):
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
