"""The JSON of the answers of Anthropic's messages, for /openapi.json. No code: messages.py makes it.

What the content is made of has Anthropic's own types, which tests/web/test_messages.py holds it against; here it is
open.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict


class MessageUsage(TypedDict):
    """What a message has cost. What was found in the cache is not counted among the input."""

    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int


class MessageObject(TypedDict):
    """The answer to a conversation."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: Annotated[list[dict[str, Any]], Field(description="Text, thinking and calls, as Anthropic has them.")]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


@with_config(extra="allow")
class MessageEvent(TypedDict):
    """An event of a message. The last is `message_stop`, or `error`."""

    type: str


class InputTokens(TypedDict):
    """How long a prompt is."""

    input_tokens: int
