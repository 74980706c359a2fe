"""vLLM's `/tokenize` and `/detokenize`: what the model reads for a text, and back. No logic of its own.

Bounded as generation is: what is long is encoded aside, and what could never be generated from is refused.
Source: vLLM's OpenAI-compatible server, "Tokenizer API".
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from flask import Blueprint, Response, jsonify
from pydantic import Field
from typing_extensions import TypedDict

from worker.errors import FieldError, InvalidRequest, NotReady, UnknownModel
from worker.message import Messages, Tools
from worker.prompts import check_known
from worker.request import PROMPT_OR_MESSAGES, TEXT_ONLY, GenerateRequest, TokenId
from worker.schema import StrictModel
from worker.web.answers import check_model
from worker.web.context import context, read_body
from worker.web.description import describes

blueprint = Blueprint("tokenization", __name__)


class TokenizeRequest(StrictModel):
    """Body of `POST /tokenize`."""

    model_config = PROMPT_OR_MESSAGES
    refused: ClassVar[Mapping[str, str]] = {
        "chat_template": "a template is a program; the model's own is used",
        "chat_template_kwargs": "the model's template gets what generation gives it",
        "continue_final_message": "an answer begins with a turn of its own",
        "mm_processor_kwargs": TEXT_ONLY,
    }

    model: str | None = None
    """The model that is served, or nothing."""
    prompt: Annotated[str, Field(min_length=1)] | None = None
    """A text."""
    messages: Messages | None = None
    """A conversation, in place of a text: as the model's chat template writes it."""
    tools: Tools | None = None
    """With messages: functions that the model is shown."""
    add_special_tokens: bool | None = None
    """The tokens that the model expects around a text, such as the one that begins it. Default: as for generation."""
    add_generation_prompt: bool = True
    """With messages: whether the assistant's turn is begun behind them."""
    return_token_strs: bool = False
    """Whether each token is given as the vocabulary writes it too."""

    @classmethod
    def conflicts(cls, data: dict[str, Any]) -> list[str]:
        found = GenerateRequest.conflicts(data)
        if "add_generation_prompt" in data and "messages" not in data:
            found.append("add_generation_prompt is only allowed with messages")
        return found


class Tokens(TypedDict):
    """The tokens of a text or a conversation."""

    count: int
    max_model_len: Annotated[int, Field(description="Tokens that prompt and answer may have together.")]
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(StrictModel):
    """Body of `POST /detokenize`."""

    model: str | None = None
    """The model that is served, or nothing."""
    tokens: list[TokenId]
    """Token ids, no more than prompt and answer may have together."""


class Detokenized(TypedDict):
    """The text of tokens, with that of special ones."""

    prompt: str


@blueprint.post("/tokenize")
@describes(
    "Tokens",
    body=TokenizeRequest,
    answers={200: Tokens},
    raises=(UnknownModel, NotReady),
    example={"prompt": "The capital of France is"},
)
def tokenize() -> Response:
    """Count and show the tokens of a text or a conversation."""
    body = read_body(TokenizeRequest)
    check_model(body.model)
    shared = context()
    tokens = shared.jobs.tokenize(
        GenerateRequest.model_construct(prompt=body.prompt, messages=body.messages, tools=body.tools),
        add_special_tokens=body.add_special_tokens,
        add_generation_prompt=body.add_generation_prompt,
    )
    model = shared.engine.model
    token_strs = model.tokenizer.tokens_of(tokens) if body.return_token_strs else None
    return jsonify(count=len(tokens), max_model_len=model.max_context, tokens=tokens, token_strs=token_strs)


@blueprint.post("/detokenize")
@describes(
    "Tokens",
    body=DetokenizeRequest,
    answers={200: Detokenized},
    raises=(UnknownModel, NotReady),
    example={"tokens": [5, 6, 7]},
)
def detokenize() -> Response:
    """The text of token ids."""
    body = read_body(DetokenizeRequest)
    check_model(body.model)
    model = context().engine.model
    if len(body.tokens) > model.max_context:
        message = f"has {len(body.tokens)} tokens; send at most {model.max_context}, what prompt and answer may have"
        raise InvalidRequest([FieldError("tokens", "context_length", message)])
    check_known({"tokens": body.tokens}, model.vocab_size)
    return jsonify(prompt=model.tokenizer.decode(body.tokens))
