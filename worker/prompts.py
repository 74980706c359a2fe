"""A prompt's way to tokens: where it is encoded, and whether it can ever fit. No Flask, no torch.

Web side: any thread or greenlet.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from worker.answer import AnswerFormat
from worker.body import shorten
from worker.errors import FieldError, InvalidRequest
from worker.message import Message
from worker.request import GenerateRequest
from worker.streams.aside import Aside, new_aside

if TYPE_CHECKING:
    from worker.engine.loader import LoadedModel

# What is shorter is encoded where it comes in, in a few milliseconds: a thread would be more trouble. What is longer
# than the second waits for its like only.
SHORT_CHARACTERS = 4_096
LONG_CHARACTERS = 65_536
MESSAGE_CHARACTERS = 50  # what a template writes around a message, about


class PromptEncoder:
    """Encodes prompts, long ones in threads of its own."""

    def __init__(self) -> None:
        self._aside, self._far_aside = new_aside(), new_aside()

    def encode(
        self,
        request: GenerateRequest,
        model: "LoadedModel",
        *,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt's token ids. What is long is encoded aside, and what can never fit is not encoded at all.

        Args:
            add_special_tokens: Those around a text. None: as the model expects it.
            add_generation_prompt: Whether the assistant's turn is begun behind messages.

        Raises:
            InvalidRequest: It holds no token, or more than ever fit.
        """
        tokenizer, messages, prompt = model.tokenizer, request.messages, request.prompt or ""
        tools = request.offered_tools
        if isinstance(prompt, list):
            return prompt
        encode: Callable[[], list[int]]
        if messages is None:
            num_characters = len(prompt)
            encode = partial(tokenizer.encode, prompt, add_special_tokens is not False)
        else:
            num_characters = sum(_num_characters(message) for message in messages)
            num_characters += sum(len(tool.model_dump_json()) for tool in tools)
            how = {"add_generation_prompt": add_generation_prompt}
            num_at_least = partial(tokenizer.min_chat_tokens, messages, tools, **how)
            encode = partial(tokenizer.encode_chat, messages, tools, add_special_tokens=add_special_tokens, **how)
        if num_characters <= SHORT_CHARACTERS and tokenizer.is_shareable:
            prompt_ids = encode()
        elif messages is None:
            check_fits(request, tokenizer.min_tokens(prompt), model.max_context, "at least ")
            prompt_ids = self._place(num_characters, model).run(encode)
        else:

            def encode_if_it_fits() -> list[int]:
                check_fits(request, num_at_least(), model.max_context, "at least ")
                return encode()

            prompt_ids = self._place(num_characters, model).run(encode_if_it_fits)
        if not prompt_ids:
            raise InvalidRequest([FieldError(_input_field(request), "too_short", "holds no token; send some text")])
        return prompt_ids

    def _place(self, num_characters: int, model: "LoadedModel") -> Aside:
        is_far = num_characters > LONG_CHARACTERS and model.tokenizer.is_shareable
        return self._far_aside if is_far else self._aside


def _num_characters(message: Message) -> int:
    """How long a template makes a message, about."""
    calls = sum(len(call.function.arguments) + MESSAGE_CHARACTERS for call in message.tool_calls or ())
    return len(message.text) + len(message.reasoning_content or "") + calls + MESSAGE_CHARACTERS


def check_fits(request: GenerateRequest, num_prompt_tokens: int, max_context: int, least: str = "") -> None:
    """See that the prompt leaves room for an answer.

    Raises:
        InvalidRequest: It can never fit.
    """
    if num_prompt_tokens >= max_context:
        # Clients that make a conversation shorter look for Anthropic's words, and for OpenAI's about the maximum.
        message = (
            f"the prompt is too long: it has {least}{num_prompt_tokens} tokens, and this model's maximum context "
            f"length is {max_context}, with the answer; so send at most {max_context - 1}"
        )
        raise InvalidRequest([FieldError(_input_field(request), "context_length", message)])


def check_tokens(request: GenerateRequest, vocab_size: int) -> None:
    """See that the model has every token that the request names.

    Raises:
        InvalidRequest: It has not.
    """
    named = {
        "prompt": request.prompt if isinstance(request.prompt, list) else (),
        "logit_bias": map(int, request.logit_bias or ()),
        "stop_token_ids": request.stop_token_ids or (),
    }
    check_known(named, vocab_size)


def check_known(named: Mapping[str, Iterable[int]], vocab_size: int) -> None:
    """See that the model has every token that fields name.

    Raises:
        InvalidRequest: It has not.
    """
    unknown = {name: max(ids, default=0) for name, ids in named.items()}
    errors = [
        FieldError(name, "token_id", f"names the token {shorten(str(id_))}, and the model has 0 to {vocab_size - 1}")
        for name, id_ in unknown.items()
        if id_ >= vocab_size
    ]
    if errors:
        raise InvalidRequest(errors)


def check_tools(request: GenerateRequest, format: AnswerFormat) -> None:
    """See that the model can be offered the tools of the request.

    Raises:
        InvalidRequest: It cannot.
    """
    if request.offered_tools and format.calls is None:
        message = (
            "cannot be used: the model's chat template writes calls in a form that is not known here; leave it out"
        )
        raise InvalidRequest([FieldError("tools", "chat_template", message)])


def max_tokens_of(
    request: GenerateRequest, num_prompt_tokens: int, max_context: int, default_max_tokens: int | None
) -> int:
    """The request's own limit, or the default as far as the context leaves room for it.

    Raises:
        InvalidRequest: The prompt, or the answer behind it, can never fit.
    """
    check_fits(request, num_prompt_tokens, max_context)
    left = max_context - num_prompt_tokens
    if request.max_tokens is None:
        return left if default_max_tokens is None else min(left, default_max_tokens)
    if request.max_tokens > left:
        message = (
            f"is {shorten(str(request.max_tokens))}, and the prompt has {num_prompt_tokens} tokens; this model's "
            f"maximum context length is {max_context}, for both, so ask for at most {left}"
        )
        raise InvalidRequest([FieldError("max_tokens", "context_length", message)])
    return request.max_tokens


def check_min_tokens(request: GenerateRequest, max_tokens: int) -> None:
    """See that the answer may be as long as it has to be.

    Raises:
        InvalidRequest: It may not.
    """
    if request.min_tokens > max_tokens:
        message = f"is {shorten(str(request.min_tokens))}, and the answer may have {max_tokens}; ask for at most that"
        raise InvalidRequest([FieldError("min_tokens", "max_tokens", message)])


def _input_field(request: GenerateRequest) -> str:
    return "prompt" if request.messages is None else "messages"
