"""OpenAI's completions, the older API: texts are continued. A translation and no logic of its own."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from flask import Blueprint, Response
from pydantic import Discriminator, Field, Tag

from worker.events import Token, TokenLogprob
from worker.job import Job
from worker.request import MAX_TOP_LOGPROBS, GenerateRequest, TokenIds
from worker.schema import TAG_PREFIX
from worker.web.answers import OF_AN_ANSWER, check_model, respond
from worker.web.context import IDEMPOTENCY_KEY, context, read_body
from worker.web.description import describes
from worker.web.openai import OpenAIFields, OpenAITranslator
from worker.web.openai_answers import OpenAIErrorEvent, TextCompletion, TextCompletionChunk

blueprint = Blueprint("completions", __name__)

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 128

Text = Annotated[str, Field(min_length=1)]


def _kind(value: object) -> str:
    """Which of the four forms of a prompt a value is meant for: its first element tells."""
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, list):
        return TAG_PREFIX + "lists"
    if isinstance(first, int) and not isinstance(first, bool):
        return TAG_PREFIX + "ids"
    return TAG_PREFIX + ("texts" if isinstance(value, list) else "text")


Prompts = Annotated[
    Annotated[Text, Tag("=text")]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS), Tag("=texts")]
    | Annotated[TokenIds, Tag("=ids")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS), Tag("=lists")],
    Discriminator(_kind),
]


class CompletionRequest(OpenAIFields):
    """Body of `POST /v1/completions`."""

    refused: ClassVar[Mapping[str, str]] = {
        "suffix": "the model continues texts and does not fill gaps",
    }

    prompt: Prompts
    """What is continued: a text, several, the token ids of one, or those of several."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The longest answer, in tokens. Default: 16, as far as the context leaves them."""
    echo: bool = False
    """Whether the answer begins with the prompt. Not with `logprobs`."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """How many of the likeliest tokens are told with each token, and how likely they were. Default: nothing is told."""
    best_of: int | None = None
    """Of how many answers the best `n` are given: of as many, for answers are not ranked."""

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        found = super().conflicts(data)
        if data.get("echo") is True and "logprobs" in data:
            found.append("echo and logprobs do not go together: those of a prompt are not computed; leave one out")
        if "best_of" in data and data["best_of"] != (num_answers := data.get("n", 1)):
            found.append(f"best_of is only allowed as n, {num_answers!r:.10}: answers are not ranked; leave it out")
        return found

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several, each as text or as token ids."""
        if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int):
            return list(self.prompt)
        return [self.prompt]

    def to_generate(self) -> list[GenerateRequest]:
        """The same requests in the internal vocabulary."""
        fields = self.internal_fields()
        return [GenerateRequest.model_construct(**{**fields, "prompt": prompt}) for prompt in self.prompts]


class TextTranslator(OpenAITranslator):
    """The shapes of `/v1/completions`."""

    id_prefix = "cmpl-"
    chunk_object = "text_completion"
    whole_object = "text_completion"

    def __init__(self, jobs: list[Job], num_choices: int, include_usage: bool, echoes: list[str]) -> None:
        """Translate, with `echoes` in front of the answers to the prompts."""
        super().__init__(jobs, num_choices, include_usage)
        self._echoes = echoes
        self._num_characters = dict.fromkeys(range(len(jobs)), 0)

    def opening(self, number: int) -> list[dict[str, Any]]:
        # Headers and a first event leave before the first token, with the echo or with nothing in it.
        return [_choice(number, self._echo(number))]

    def pieces(self, number: int, token: Token) -> list[dict[str, Any]]:
        return [_choice(number, token.text, self._logprobs(number, [token]))]

    def closing(self, number: int, finish_reason: str) -> list[dict[str, Any]]:
        return [_choice(number, "", None, finish_reason)]

    def whole_choice(self, number: int, tokens: list[Token], finish_reason: str) -> dict[str, Any]:
        text = self._echo(number) + "".join(token.text for token in tokens)
        return _choice(number, text, self._logprobs(number, tokens), finish_reason)

    def _echo(self, number: int) -> str:
        return self._echoes[number // self._num_choices] if self._echoes else ""

    def _logprobs(self, number: int, tokens: list[Token]) -> dict[str, Any] | None:
        found: list[TokenLogprob] = [one for token in tokens for one in token.logprobs]
        if not found:
            return None
        offsets = []
        for one in found:
            offsets.append(self._num_characters[number])
            # Of the bytes of a character only the first begins it.
            self._num_characters[number] += sum(byte & 0xC0 != 0x80 for byte in one.drawn.data)
        return {
            "text_offset": offsets,
            "token_logprobs": [one.drawn.logprob for one in found],
            "tokens": [one.drawn.token for one in found],
            # The likeliest, and the one that was drawn if it is none of them.
            "top_logprobs": [{each.token: each.logprob for each in (*one.top, one.drawn)} for one in found],
        }


def _choice(
    number: int, text: str, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


@blueprint.post("/v1/completions")
@describes(
    "OpenAI",
    body=CompletionRequest,
    answers={200: TextCompletion},
    events=TextCompletionChunk | OpenAIErrorEvent,
    raises=OF_AN_ANSWER,
    parameters=(IDEMPOTENCY_KEY,),
    example={"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0},
)
def completions() -> Response:
    """Continue texts."""
    body = read_body(CompletionRequest)
    check_model(body.model)
    return respond(
        body.to_generate(),
        lambda jobs: TextTranslator(jobs, body.n, body.include_usage, _echoes(body)),
        is_streamed=body.stream,
        num_choices=body.n,
        default_max_tokens=DEFAULT_MAX_TOKENS,
    )


def _echoes(body: CompletionRequest) -> list[str]:
    if not body.echo:
        return []
    tokenizer = context().engine.model.tokenizer
    return [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in body.prompts]
