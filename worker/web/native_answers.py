"""The JSON of the answers on the native routes, for /openapi.json. No code: native.py makes it.

tests/web/test_openapi.py holds real answers against these, and no field may be missing or be one too many.
"""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from worker.web.openai_answers import TokenCounts, TokenLogprobs


class StartedEvent(TypedDict):
    """The first event, sent before the model has produced anything."""

    type: Literal["started"]
    job_id: str
    model: str
    started_at: Annotated[str, Field(description="RFC 3339, UTC.")]


class NarrationEvent(TypedDict):
    """Progress in words, if the request asks for it."""

    type: Literal["narration"]
    actor: str
    action: str
    target: str
    human: str
    job_id: str


class TextPart(TypedDict):
    """A piece of what the model says to the user, or to itself."""

    type: Literal["text", "reasoning"]
    text: str


class CallPart(TypedDict):
    """A tool is called. Its arguments follow in pieces."""

    type: Literal["call"]
    index: Annotated[int, Field(description="Of the call in the answer, from 0.")]
    id: Annotated[str, Field(description="Names the call for the answer of the tool.")]
    name: str


class ArgumentsPart(TypedDict):
    """A piece of the arguments of a call; joined they are the text of a JSON object."""

    type: Literal["arguments"]
    index: int
    text: str


class CallEndPart(TypedDict):
    """A call is complete."""

    type: Literal["call_end"]
    index: int


AnswerPart = TextPart | CallPart | ArgumentsPart | CallEndPart


class TokenEvent(TypedDict):
    """Text that has become decidable."""

    type: Literal["token"]
    t: Annotated[str, Field(description="The text.")]
    i: Annotated[int, Field(description="Index of its first token in the answer, from 0.")]
    n: NotRequired[Annotated[int, Field(description="Number of tokens in it, when there are several.")]]
    parts: NotRequired[
        Annotated[list[AnswerPart], Field(description="What it adds to the answer, unless that is its text as it is.")]
    ]
    logprobs: NotRequired[list[TokenLogprobs]]


class MetricsEvent(TypedDict):
    """How the request went, once before the end."""

    type: Literal["metrics"]
    tokens_per_sec: float
    vram_bytes: Annotated[int, Field(description="0 on a CPU.")]
    queue_ms: float
    ttft_ms: Annotated[float | None, Field(description="Time to the first token.")]


class EndEvent(TypedDict):
    """The last event, if all went well."""

    type: Literal["end"]
    tokens_out: int
    decode_time_ms: float
    stop_reason: Literal["EOS", "MAX_TOKENS", "STOP_SEQUENCE", "CANCELLED"]
    stop_sequence_matched: str | None
    usage: TokenCounts
    parts: NotRequired[Annotated[list[AnswerPart], Field(description="What has become decidable by the end.")]]


class ErrorEvent(TypedDict):
    """The last event, if the request was accepted and failed."""

    type: Literal["error"]
    code: str
    message: str
    usage: TokenCounts
    parts: NotRequired[Annotated[list[AnswerPart], Field(description="What has become decidable by the end.")]]


JobEvent = StartedEvent | NarrationEvent | TokenEvent | MetricsEvent | EndEvent | ErrorEvent


class JobCreated(TypedDict):
    """Where a job can be read."""

    job_id: str
    sse_url: str


class JobState(TypedDict):
    """A job now."""

    job_id: str
    state: Literal["QUEUED", "RUNNING", "ENDED", "FAILED", "CANCELLED"]
    usage: TokenCounts
    outcome: Annotated[EndEvent | ErrorEvent | None, Field(description="Its last event, if it has ended.")]
