"""What a request may ask for, in one vocabulary for every API.

The body of a native route is a `GenerateRequest`; the other APIs translate theirs to it, differ in the names of a few
fields and share every rule through `SamplingFields`. Unknown fields are refused, never ignored. body.py makes one of
bytes. Pure: no I/O, any thread.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 100
MAX_STOP_TOKENS = 64
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20  # OpenAI's

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
TokenId = Annotated[int, Field(ge=0)]
# In JSON a name is a string.
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
MaxTokens = Annotated[int, Field(ge=1)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn, and when to stop. Validated; neutral by default."""

    max_tokens: int
    temperature: float = 1.0  # 0: the most likely token, always
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output, as in transformers
    presence_penalty: float = 0.0  # over the output, as in OpenAI's API
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: a fresh one
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, and what is added to their logits
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()  # end the answer as the model's own end does; their text is not sent
    ignore_eos: bool = False
    min_tokens: int = 0  # before so many tokens nothing ends the answer but its limit
    logprobs: int | None = None  # how many of the likeliest tokens are told with each; None: nothing


class StrictModel(BaseModel):
    """What every part of a request is: unknown fields are refused, and types are not converted."""

    # strict: "7" is not 7 and true is not 1; a client that sends them has a bug worth hearing about.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        """Fields that do not go together, in words. Looks at raw data: what else is wrong must not hide it."""
        return []


# Tags of a union name its members for pydantic; body.py leaves them out of the names of fields.
TAG_PREFIX = "="


def _kind(value: object) -> str:
    """The member of a union of a string and a list that a value is meant for."""
    return TAG_PREFIX + ("list" if isinstance(value, list) else "text")


class TextPart(StrictModel):
    """A part of a message. There are no others: the model reads text."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag(_kind(""))] | Annotated[list[TextPart], Field(min_length=1), Tag(_kind([]))],
    Discriminator(_kind),
]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Field(min_length=1), Tag(_kind(""))] | Annotated[TokenIds, Tag(_kind([]))], Discriminator(_kind)
]


class Message(StrictModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None

    @property
    def text(self) -> str:
        """All of it that the model reads."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


Messages = Annotated[list[Message], Field(min_length=1)]


class SamplingFields(StrictModel):
    """The fields that every generating route shares. How each names the limit of an answer is its own."""

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=MAX_BIASES)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0

    def sampling(self, max_tokens: int) -> SamplingParams:
        """The validated parameters, with the limit that the context leaves."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            logit_bias=tuple((int(name), bias) for name, bias in (self.logit_bias or {}).items()),
            stop=tuple(self.stop or ()),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            logprobs=self.num_logprobs,
        )

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told with each token; None: nothing is. APIs name it differently."""
        return None


class GenerateRequest(SamplingFields):
    """A request, whatever API it came by: the body of the native routes, and what the others translate to."""

    prompt: Prompt | None = None
    messages: Messages | None = None
    max_tokens: MaxTokens | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    narrate: bool = False
    on_disconnect: Literal["cancel", "continue"] | None = None  # None: the route's default
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        if ("prompt" in data) == ("messages" in data):
            return ["give either prompt or messages, one of them and not both"]
        return []
