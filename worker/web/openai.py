"""What OpenAI's chat completions and completions have in common, and the list of models.

Source: OpenAI's API reference, "Chat", "Completions" and "Models", and the types of openai-python, against which
tests/web/test_openai.py holds every chunk.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from flask import Blueprint, Response, jsonify
from pydantic import Field

from worker.errors import UnknownModel
from worker.events import End, Event, Failure, Metrics, Narration, Started, StopReason, Token, Usage
from worker.job import Job
from worker.request import MaxTokens, SamplingFields
from worker.schema import StrictModel
from worker.web.answers import failure_of
from worker.web.context import Context, context
from worker.web.description import describes, path_parameter
from worker.web.openai_answers import Model, ModelList
from worker.web.refusals import openai_error, openai_kind
from worker.web.sse import DONE, encode_data, usage_fields

blueprint = Blueprint("openai", __name__)

MAX_CHOICES = 128  # OpenAI's

_FINISH_REASONS = {
    StopReason.EOS: "stop",
    StopReason.STOP_SEQUENCE: "stop",
    StopReason.MAX_TOKENS: "length",
}


class StreamOptions(StrictModel):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None
    """Whether the last chunk has the counts of tokens. Every other chunk then has `usage: null`."""
    include_obfuscation: Literal[False] | None = None
    """Chunks are never padded."""


class OpenAIFields(SamplingFields):
    """What the bodies of both routes share."""

    model: str | None = None
    """The model that is served, or nothing."""
    max_tokens: MaxTokens | None = None
    """The longest answer, in tokens. Prompt and answer share the context, and the default is what the prompt leaves."""
    stream: bool = False
    """Whether the answer comes in chunks as it is generated."""
    stream_options: StreamOptions | None = None
    """Only with `stream: true`."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    """How many answers each prompt gets. With a seed, the next answer has the next seed."""
    user: str | None = None
    """A tag for the caller's own records; nothing depends on it."""

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with the counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        found = super().conflicts(data)
        if "stream_options" in data and data.get("stream") is not True:
            found.append("stream_options is only allowed with stream: true")
        return found

    def internal_fields(self) -> dict[str, Any]:
        """What needs no translation."""
        fields = {name: getattr(self, name) for name in SamplingFields.model_fields}
        return fields | {"max_tokens": self.max_tokens, "logprobs": self.num_logprobs}


class OpenAITranslator(ABC):
    """Events as chunks. No ids, no events of our own: clients parse every event as a chunk.

    Which choice an event belongs to is the number that comes with it.
    """

    done = DONE
    id_prefix: str
    chunk_object: str
    whole_object: str

    def __init__(self, jobs: list[Job], num_choices: int, include_usage: bool) -> None:
        """Translate for `jobs`, of which each `num_choices` have one prompt."""
        self._jobs = jobs
        self._num_choices = num_choices
        self._include_usage = include_usage
        self._num_ended = 0
        self._head = {
            "id": self.id_prefix + jobs[0].id,
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": context().settings.model_name,
        }

    @abstractmethod
    def opening(self, number: int) -> list[dict[str, Any]]:
        """The choices that leave before the model has produced anything."""

    @abstractmethod
    def pieces(self, number: int, token: Token) -> list[dict[str, Any]]:
        """The choices that a token becomes."""

    @abstractmethod
    def closing(self, number: int, finish_reason: str) -> list[dict[str, Any]]:
        """The last choices, with the reason in the last one."""

    @abstractmethod
    def whole_choice(self, number: int, tokens: list[Token], finish_reason: str) -> dict[str, Any]:
        """A choice that is not streamed."""

    def encode(self, number: int, event: Event) -> bytes:
        match event:
            case Started():
                return self._chunks(self.opening(number))
            case Token():
                return self._chunks(self.pieces(number, event))
            case End() if event.stop_reason in _FINISH_REASONS:
                last = self._chunks(self.closing(number, _FINISH_REASONS[event.stop_reason]))
                self._num_ended += 1
                is_over = self._num_ended == len(self._jobs)
                return last + self._chunk([], self._usage()) if self._include_usage and is_over else last
            case End() | Failure():
                error = failure_of(event)
                assert error is not None
                chunk = openai_error(error.message, openai_kind(error.status), error.code)
                if self._include_usage:  # beside the error, where every chunk has it; clients look no further
                    chunk["usage"] = usage_fields(self._usage())
                return encode_data(chunk)
            case Narration() | Metrics():
                return b""

    def whole(self, events: Sequence[tuple[int, Event]]) -> dict[str, Any]:
        choices = []
        for i in range(len(self._jobs)):
            own = [event for number, event in events if number == i]
            end = own[-1]
            assert isinstance(end, End)
            tokens = [event for event in own if isinstance(event, Token)]
            choices.append(self.whole_choice(i, tokens, _FINISH_REASONS[end.stop_reason]))
        return self._head | {
            "object": self.whole_object,
            "choices": choices,
            "usage": usage_fields(self._usage()),
        }

    def _usage(self) -> Usage:
        """Of all choices together. A prompt counts once, however many answers it gets."""
        usages = [job.status().usage for job in self._jobs]
        firsts = usages[:: self._num_choices]
        return Usage(
            sum(usage.prompt_tokens for usage in firsts),
            sum(usage.completion_tokens for usage in usages),
            sum(usage.cached_tokens for usage in firsts),
        )

    def _chunks(self, choices: list[dict[str, Any]]) -> bytes:
        return b"".join(self._chunk([choice]) for choice in choices)

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        chunk = self._head | {"choices": choices}
        if self._include_usage:  # null on every chunk but the last
            chunk["usage"] = usage_fields(usage) if usage is not None else None
        return encode_data(chunk)


@blueprint.get("/v1/models")
@describes("OpenAI", answers={200: ModelList})
def models() -> Response:
    """The one model that is served."""
    return jsonify(object="list", data=[_model(context())])


@blueprint.get("/v1/models/<path:name>")
@describes(
    "OpenAI",
    answers={200: Model},
    raises=(UnknownModel,),
    parameters=(path_parameter("name", "As `/v1/models` has it. It may hold slashes."),),
)
def model(name: str) -> Response:
    """That model, by its name."""
    shared = context()
    if name != shared.settings.model_name:
        raise UnknownModel(f"the model {name!r} is not served here; this server has {shared.settings.model_name!r}")
    return jsonify(_model(shared))


def _model(shared: Context) -> dict[str, Any]:
    created = int(time.time() - (time.monotonic() - shared.engine.started_at))
    return {"id": shared.settings.model_name, "object": "model", "created": created, "owned_by": "endstop"}
