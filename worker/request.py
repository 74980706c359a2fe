"""What a request may ask for, in one vocabulary for every API.

The body of a native route is a `GenerateRequest`; the other APIs translate theirs to it, differ in the names of a few
fields and share every rule through `SamplingFields`. Unknown fields are refused, never ignored. body.py makes one of
bytes. Pure: no I/O, any thread.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from worker.message import Messages, NamedTool, Tool, ToolChoice, Tools
from worker.schema import StrictModel, text_or_list

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 100
MAX_STOP_TOKENS = 64
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20  # OpenAI's
MAX_CHOICE_CHARACTERS = 1000

# Why several APIs' fields are refused.
TEXT_ONLY = "the model reads and writes text"
NO_CONTROL = "the model has no such control"
NOT_ELSEWHERE = "nothing is sent elsewhere"
IS_AUTOMATIC = "prompts that begin alike share what was computed, without being asked"

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
_ListOfStops = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]
StopStrings = Annotated[
    _ListOfStops,
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=StopString | _ListOfStops
    ),
]
TokenId = Annotated[int, Field(ge=0)]
# In JSON a name is a string.
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Field(min_length=1), Tag("=text")] | Annotated[TokenIds, Tag("=list")], Discriminator(text_or_list)
]
MaxTokens = Annotated[int, Field(ge=1)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Choice = Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARACTERS)]


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


class JsonSchema(StrictModel):
    """OpenAI's `response_format.json_schema`. A schema is always kept to, whatever `strict` says."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None  # for the caller's own records: the model is shown neither this nor the schema
    schema_: Annotated[dict[str, Any], Field(alias="schema")]  # pydantic has the name for itself
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_a_schema_where_it_needs_one(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError("json_schema", "json_schema goes with type 'json_schema' and with no other")
        return self


# How a request says what form its answer must have.
STRUCTURES = ("response_format", "regex", "choice", "grammar")
# What would cut such an answer, or keep it from ending.
_CUTS = ("stop", "stop_token_ids", "ignore_eos", "min_tokens")


def _structures_in(data: dict[str, Any]) -> list[str]:
    """Which of them raw data has."""
    return [name for name in STRUCTURES if name in data and data[name] != {"type": "text"}]


def _cuts_in(data: dict[str, Any], field: str) -> list[str]:
    """What does not go with a field that says what form the answer must have."""
    return [
        f"{name} does not go with {field}: it could cut the answer or keep it from ending; leave one of them out"
        for name in _CUTS
        if data.get(name)
    ]


class SamplingFields(StrictModel):
    """The fields that every generating route shares. How each names the limit of an answer is its own."""

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    """How freely the next token is drawn; 0: always the likeliest."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Only the likeliest tokens that together have this probability are drawn from."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only so many of the likeliest tokens are drawn from; 0: all."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Only tokens are drawn from that have this share of the likeliest one's probability; 0: all."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1.0
    """Above 1, tokens of prompt and output become less likely, as in transformers."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] = 0.0
    """Taken from the logit of each token that the output has."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] = 0.0
    """Taken from the logit of a token each time that the output has it."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    """The same request with the same seed has the same answer. Default: another one each time."""
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=MAX_BIASES)] | None = None
    """What is added to the logits of tokens, by token id."""
    stop: StopStrings | None = None
    """Texts that end the answer, one or a list of them. They are not part of it."""
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] | None = None
    """Tokens that end the answer as the model's own end does. Their text is not part of it."""
    ignore_eos: bool = False
    """Whether the answer goes on behind the model's own end."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Before so many tokens nothing ends the answer but its limit."""
    response_format: ResponseFormat | None = None
    """What the answer has to be: any text, a JSON object, or JSON that fits a schema."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """A regular expression, in Rust's syntax, that the whole answer matches."""
    choice: Annotated[list[Choice], Field(min_length=1)] | None = None
    """Texts of which the answer is one."""
    grammar: Annotated[str, Field(min_length=1)] | None = None
    """A grammar, in llguidance's Lark, of which the answer is a text."""

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        given = _structures_in(data)
        if len(given) > 1:
            return [f"give at most one of {', '.join(STRUCTURES)}, and not {' and '.join(given)}"]
        return _cuts_in(data, given[0]) if given else []

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

    @property
    def has_form(self) -> bool:
        """Whether it says what form the whole answer must have."""
        if self.response_format is not None and self.response_format.type != "text":
            return True
        return self.regex is not None or self.choice is not None or self.grammar is not None


class ToolFields(StrictModel):
    """What a conversation may say of tools."""

    tools: Tools | None = None
    """Functions that the model may call."""
    tool_choice: ToolChoice | None = None
    """Whether a tool is called, or which one. Only with `tools`. Default: `auto`."""
    parallel_tool_calls: bool = True
    """Whether an answer may have more than one call. Only with `tools`."""

    @property
    def offered_tools(self) -> list[Tool]:
        """Those that the model gets to see."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    @property
    def has_to_call(self) -> bool:
        """Whether the answer is calls and nothing else."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        found = super().conflicts(data)
        tools, choice = data.get("tools"), data.get("tool_choice")
        if tools is None:
            named = [name for name in ("tool_choice", "parallel_tool_calls") if name in data]
            return found + [f"{name} is only allowed with tools; give tools or leave it out" for name in named]
        names = Counter(_names_of(tools))
        [(most_frequent, number)] = names.most_common(1) or [("", 0)]
        if number > 1:
            found.append(f"{number} tools have the name {most_frequent!r:.70}; give each a name of its own")
        wanted = _names_of([choice])
        if wanted and wanted[0] not in names:
            found.append(f"tool_choice names {wanted[0]!r:.70}, which is none of the tools; add it or name another")
        if choice != "none":
            has_to_call = choice == "required" or bool(wanted)
            found += [
                f"{name} and tools do not go together; leave one out, or set tool_choice to none"
                for name in _structures_in(data)
                if has_to_call or name != "response_format"  # of this and calls, the answer is one or the other
            ]
        if choice == "required" or wanted:
            found += _cuts_in(data, "tool_choice")
        return found


def _names_of(tools: object) -> list[str]:
    """The names of the functions in raw data of any kind."""
    found = []
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            found.append(name)
    return found


def _given(field: str) -> dict[str, Any]:
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


# For the schema of a request: what its `conflicts` says in words.
PROMPT_OR_MESSAGES = ConfigDict(json_schema_extra={"oneOf": [_given("prompt"), _given("messages")]})


class GenerateRequest(ToolFields, SamplingFields):
    """A request, whatever API it came by: the body of the native routes, and what the others translate to."""

    model_config = PROMPT_OR_MESSAGES

    prompt: Prompt | None = None
    """What is continued: a text, or its token ids."""
    messages: Messages | None = None
    """A conversation that is answered, in place of a prompt: as the model's chat template writes it."""
    max_tokens: MaxTokens | None = None
    """The longest answer, in tokens. Prompt and answer share the context, and the default is what the prompt leaves."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """How many of the likeliest tokens are told with each token, and how likely they were. Default: nothing is told."""
    narrate: bool = False
    """Whether progress is told in words, merged with the tokens."""
    on_disconnect: Literal["cancel", "continue"] | None = None
    """What becomes of the job when its reader leaves. Default: `continue` for /v1/jobs, `cancel` for /execute."""
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds from acceptance to the end. Default, and the most: the server's own limit (ENDSTOP_TOTAL_TIMEOUT_S)."""

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        found = super().conflicts(data)
        if ("prompt" in data) == ("messages" in data):
            found.append("give either prompt or messages, one of them and not both")
        if "prompt" in data and "tools" in data:
            found.append("tools go with messages and not with a prompt, which nothing is written around")
        return found
