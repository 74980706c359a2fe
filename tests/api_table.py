"""The tables of docs/api.md: each field of each API, and what becomes of it. `python -m tests.api_table` writes them.

Which fields there are is said by the schemas that validate and by what the APIs' own clients can send; why a field is
refused is said here. tests/test_api_table.py holds the page against both.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from anthropic.types import message_count_tokens_params, message_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from worker.request import GenerateRequest, StrictModel
from worker.settings import ROOT
from worker.web.chat_completions import ChatCompletionRequest
from worker.web.completions import CompletionRequest
from worker.web.messages import CountRequest, MessagesRequest
from worker.web.responses import ResponseRequest
from worker.web.tokenization import DetokenizeRequest, TokenizeRequest

PAGE = ROOT / "docs" / "api.md"

_TEXT_ONLY = "the model reads and writes text"
_NO_CONTROL = "the model has no such control"
_NOT_ELSEWHERE = "nothing is sent elsewhere"
_IS_AUTOMATIC = "prompts that begin alike share what was computed, without being asked"


@dataclass(frozen=True, slots=True)
class Api:
    """A route, what validates it, and what else the clients of its API know.

    Attributes:
        known: The fields that the API has elsewhere; None: it is ours.
        refused: Those of them that are refused, and why.
    """

    path: str
    body: type[StrictModel]
    known: frozenset[str] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


# OpenAI's types have it in two classes that say whether it is set.
_STREAM = frozenset({"stream"})

APIS = [
    Api(
        "/v1/chat/completions",
        ChatCompletionRequest,
        frozenset(chat_create_params.CompletionCreateParamsBase.__annotations__) | _STREAM,
        {
            "audio": _TEXT_ONLY,
            "modalities": _TEXT_ONLY,
            "function_call": "replaced by `tool_choice`, in OpenAI's API too",
            "functions": "replaced by `tools`, in OpenAI's API too",
            "moderation": _NOT_ELSEWHERE,
            "web_search_options": _NOT_ELSEWHERE,
            "store": "an answer is kept for its reader, no longer",
            "prediction": "guesses are taken from the text itself (`ENDSTOP_SPECULATION`)",
            "prompt_cache_key": _IS_AUTOMATIC,
            "prompt_cache_options": _IS_AUTOMATIC,
            "prompt_cache_retention": _IS_AUTOMATIC,
            "safety_identifier": "`user` is the caller's own tag",
            "service_tier": "there is one",
            "verbosity": _NO_CONTROL,
            "reasoning_effort": _NO_CONTROL,
        },
    ),
    Api(
        "/v1/completions",
        CompletionRequest,
        frozenset(completion_create_params.CompletionCreateParamsBase.__annotations__) | _STREAM,
        {
            "best_of": "answers are not ranked; `n` gives several",
            "suffix": "the model continues texts and does not fill gaps",
        },
    ),
    Api(
        "/v1/responses",
        ResponseRequest,
        frozenset(response_create_params.ResponseCreateParamsBase.__annotations__) | _STREAM,
        {
            "access_programs": _NOT_ELSEWHERE,
            "background_options": "`background` has none",
            "context_management": "what does not fit is refused, not left out",
            "conversation": "`previous_response_id` goes on from a response",
            "image": _TEXT_ONLY,
            "max_tool_calls": "there are no tools of the server's own",
            "moderation": _NOT_ELSEWHERE,
            "prompt": "no prompts are stored",
            "prompt_cache_options": _IS_AUTOMATIC,
            "prompt_cache_retention": _IS_AUTOMATIC,
            "reasoning": _NO_CONTROL,
        },
    ),
    Api(
        "/v1/messages",
        MessagesRequest,
        frozenset(message_create_params.MessageCreateParamsBase.__annotations__) | _STREAM,
        {
            "container": _NOT_ELSEWHERE,
            "diagnostics": _NOT_ELSEWHERE,
            "inference_geo": "it runs where the server is",
            "speed": "there is one",
            "user_profile_id": "`metadata.user_id` is the caller's own tag",
            "workspace_id": "there are none",
        },
    ),
    Api(
        "/v1/messages/count_tokens",
        CountRequest,
        frozenset(message_count_tokens_params.MessageCountTokensParams.__annotations__),
        {
            "speed": "there is one",
            "user_profile_id": "nobody's tokens are counted",
            "workspace_id": "there are none",
        },
    ),
    Api("/execute, /v1/jobs, /v1/inference", GenerateRequest),
    Api(
        "/tokenize",
        TokenizeRequest,
        # vLLM's TokenizeCompletionRequest and TokenizeChatRequest
        frozenset(
            {
                *("model", "prompt", "messages", "add_special_tokens", "add_generation_prompt", "return_token_strs"),
                *("continue_final_message", "chat_template", "chat_template_kwargs", "mm_processor_kwargs", "tools"),
            }
        ),
        {
            "continue_final_message": "an answer begins with a turn of its own",
            "chat_template": "a template is a program; the model's own is used",
            "chat_template_kwargs": "the model's template gets what generation gives it",
            "mm_processor_kwargs": _TEXT_ONLY,
        },
    ),
    Api("/detokenize", DetokenizeRequest, frozenset({"model", "tokens"})),
]


def rows(api: Api) -> Iterator[tuple[str, str, str]]:
    """Field, what becomes of it, and what it means or why it is refused."""
    for name, info in api.body.model_fields.items():
        status = "supported" if api.known is None or name in api.known else "extension"
        yield name, status, info.description or ""
    for name in sorted(api.refused):
        yield name, "refused", api.refused[name]


def table(api: Api) -> str:
    """The table of one API, in Markdown."""
    lines = ["| field | | |", "|---|---|---|"]
    lines += [f"| `{name}` | {status} | {about} |" for name, status, about in rows(api)]
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with its tables as they have to be, each between a comment with its path and the next blank line."""
    for api in APIS:
        begin = re.escape(f"<!-- fields of {api.path} -->\n")
        replacement: Any = lambda match, api=api: match[1] + table(api) + "\n"
        page, count = re.subn(rf"({begin})(?:\|.*\n)*", replacement, page)
        if count != 1:
            raise ValueError(f"docs/api.md has {count} places for the fields of {api.path}")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
