"""A job's events as OpenAI's responses have them.

An answer is a list of items: messages, reasoning, calls. Its events are numbered from 0. For whoever comes back for the
rest the journal is translated again from its beginning, so that every reader sees the same numbers.
Source: OpenAI's API reference, "Responses", and the types of openai-python, against which tests/web/test_responses.py
holds every event.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never

from worker.answer import CallArguments, CallBegun, CallEnded, Part, Reasoning, Text
from worker.answer_parser import AnswerParser
from worker.events import End, Event, Failure, Metrics, Narration, Started, StopReason, Token, Usage
from worker.job import Job
from worker.message import Message
from worker.web.answers import failure_of
from worker.web.responses_request import ResponseRequest
from worker.web.sse import encode_event, logprob_fields

ID_PREFIX = "resp_"
# No mark behind reasoning is longer.
MARK_CHARACTERS = 40


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
