"""The JSON of the answers on OpenAI's routes, for /openapi.json. No code: the translators beside it make it.

tests/web/test_openapi.py holds real answers against these, and no field may be missing or be one too many.
"""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

FinishReason = Literal["stop", "length"]
ChatFinishReason = FinishReason | Literal["tool_calls"]


class PromptTokensDetails(TypedDict):
    """Where the tokens of a prompt came from."""

    cached_tokens: Annotated[int, Field(description="Computed for another request before.")]


class TokenCounts(TypedDict):
    """What a request has cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenLikelihood(TypedDict):
    """A token and how likely the model held it to be."""

    token: Annotated[str, Field(description="Its text, decoded alone.")]
    logprob: Annotated[
        float, Field(description="Natural logarithm of its probability, before temperature, penalties and filters.")
    ]
    bytes: Annotated[list[int], Field(description="What it stands for, also where that alone is no text.")]


class TokenLogprobs(TokenLikelihood):
    """A token of the answer, and the likeliest ones in its place."""

    top_logprobs: list[TokenLikelihood]


class ErrorFields(TypedDict):
    """What is wrong, in OpenAI's words."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: Annotated[str | None, Field(description="The first field that is wrong.")]
    code: str


class OpenAIError(TypedDict):
    """A refusal or a failure in OpenAI's shape. `type`: if the server refuses before it knows the route."""

    type: NotRequired[Literal["error"]]
    error: ErrorFields


class OpenAIErrorEvent(TypedDict):
    """The last event of a stream that failed."""

    error: ErrorFields
    usage: NotRequired[TokenCounts]


class ChoiceLogprobs(TypedDict):
    """How likely the tokens of a text were."""

    content: list[TokenLogprobs]
    refusal: None


class CalledFunction(TypedDict):
    """What is called."""

    name: str
    arguments: Annotated[str, Field(description="The text of a JSON object.")]


class ChatToolCall(TypedDict):
    """A tool that the model calls."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[Annotated[str, Field(description="What it says to itself.")]]
    tool_calls: NotRequired[list[ChatToolCall]]


class ChatChoice(TypedDict):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: ChatFinishReason


class ChatCompletion(TypedDict):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenCounts


class FunctionDelta(TypedDict, total=False):
    """What a chunk adds to a call: first its name, then its arguments in pieces."""

    name: str
    arguments: str


class ToolCallDelta(TypedDict):
    """What a chunk adds to a call, or the beginning of one."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class ChatDelta(TypedDict, total=False):
    """What a chunk adds to the message."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str
    tool_calls: list[ToolCallDelta]


class ChatChunkChoice(TypedDict):
    """What a chunk adds to one of the answers."""

    index: int
    delta: ChatDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatCompletionChunk(TypedDict):
    """A piece of the answers to a conversation."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[TokenCounts | None]


class TextLogprobs(TypedDict):
    """How likely the tokens of a text were; each list has an entry for each token."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class TextChoice(TypedDict):
    """One of the texts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(TypedDict):
    """Texts that continue prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenCounts


class TextChunkChoice(TypedDict):
    """What a chunk adds to one of the texts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextCompletionChunk(TypedDict):
    """A piece of the texts that continue prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: NotRequired[TokenCounts | None]


class Model(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Field(description="When it was loaded, in seconds since 1970.")]
    owned_by: Literal["endstop"]


class ModelList(TypedDict):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]
