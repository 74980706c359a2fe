"""The JSON of the answers of OpenAI's responses, for /openapi.json. No code: responses.py makes it.

What the output is made of has OpenAI's own types, which tests/web/test_responses.py holds it against; here it is open.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict


class ResponseObject(TypedDict):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: float
    completed_at: float | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: Annotated[list[dict[str, Any]], Field(description="Messages, calls and reasoning, as OpenAI has them.")]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    safety_identifier: str | None
    service_tier: Literal["default"]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: dict[str, Any] | None
    user: str | None


@with_config(extra="allow")
class ResponseEvent(TypedDict):
    """An event of a response. The last is `response.completed`, `response.incomplete` or `response.failed`."""

    type: str
    sequence_number: int


class DeletedResponse(TypedDict):
    """A response that is forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
