"""The tables of docs/api.md: each field of each API, and what becomes of it. `python -m tests.api_table` writes them.

Which fields there are is said by the schemas that validate and by what the APIs' own clients can send; why a field is
refused is said here. tests/test_api_table.py holds the page against both.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from worker.request import GenerateRequest, StrictModel
from worker.settings import ROOT
from worker.web.chat_completions import ChatCompletionRequest
from worker.web.completions import CompletionRequest
from worker.web.tokenization import DetokenizeRequest, TokenizeRequest

PAGE = ROOT / "docs" / "api.md"

_TEXT_ONLY = "the model reads and writes text"
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
            "verbosity": "the model has no such control",
            "reasoning_effort": "the model has no such control",
            "tools": "not yet",
            "tool_choice": "not yet",
            "parallel_tool_calls": "not yet",
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
            "tools": "not yet",
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
