"""The tables of docs/api.md: each field of each API, and what becomes of it. `python -m tests.api_table` writes them.

Which fields there are, and why one is refused, is said by the schemas that validate, and by what the APIs' own clients
can send. tests/test_api_table.py holds the page against both.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from anthropic.types import message_count_tokens_params, message_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from worker.request import GenerateRequest
from worker.schema import StrictModel
from worker.settings import ROOT
from worker.web.chat_completions import ChatCompletionRequest
from worker.web.completions import CompletionRequest
from worker.web.messages_request import CountRequest, MessagesRequest
from worker.web.responses_request import ResponseRequest
from worker.web.tokenization import DetokenizeRequest, TokenizeRequest

PAGE = ROOT / "docs" / "api.md"

REQUIRED = "**required**"


@dataclass(frozen=True, slots=True)
class Api:
    """A route, what validates it, and what else the clients of its API know.

    Attributes:
        known: The fields that the API has elsewhere; None: it is ours.
    """

    path: str
    body: type[StrictModel]
    known: frozenset[str] | None = None

    @property
    def refused(self) -> Mapping[str, str]:
        """Those of them that are refused, and why."""
        return self.body.refused


# OpenAI's types have it in two classes that say whether it is set.
_STREAM = frozenset({"stream"})

APIS = [
    Api(
        "/v1/chat/completions",
        ChatCompletionRequest,
        frozenset(chat_create_params.CompletionCreateParamsBase.__annotations__) | _STREAM,
    ),
    Api(
        "/v1/completions",
        CompletionRequest,
        frozenset(completion_create_params.CompletionCreateParamsBase.__annotations__) | _STREAM,
    ),
    Api(
        "/v1/responses",
        ResponseRequest,
        frozenset(response_create_params.ResponseCreateParamsBase.__annotations__) | _STREAM,
    ),
    Api(
        "/v1/messages",
        MessagesRequest,
        frozenset(message_create_params.MessageCreateParamsBase.__annotations__) | _STREAM,
    ),
    Api(
        "/v1/messages/count_tokens",
        CountRequest,
        frozenset(message_count_tokens_params.MessageCountTokensParams.__annotations__),
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
    ),
    Api("/detokenize", DetokenizeRequest, frozenset({"model", "tokens"})),
]


def limits_of(schema: Mapping[str, Any]) -> str:
    """What the schema of a field lets through, as far as a few words say it; of several forms, the limits of each."""
    forms = [form for key in ("anyOf", "oneOf") for form in schema.get(key, ())]
    if forms:
        return " or ".join(dict.fromkeys(filter(None, map(limits_of, forms))))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    least, most = schema.get("minimum"), schema.get("maximum")
    words = ""
    if least is not None:
        words = f"{least:g} and up" if most is None else f"{least:g} to {most:g}"
    if "exclusiveMaximum" in schema:
        above = schema["exclusiveMaximum"]
        words = f"{least:g} to {above - 1}" if schema["type"] == "integer" else f"{least:g}, below {above:g}"
    if "exclusiveMinimum" in schema:
        words = f"above {schema['exclusiveMinimum']:g}" + (f", to {most:g}" if most is not None else "")
    for key, unit in (("maxLength", " characters"), ("maxItems", ""), ("maxProperties", "")):
        if key in schema:
            words = f"up to {schema[key]}{unit}"
    for inner in (schema.get("items", {}), *schema.get("patternProperties", {}).values()):
        if inner and (each := limits_of(inner)) and each != "0 and up":  # which every token id is
            words += f"{', ' if words else ''}each {each}"
    return words


def default_of(schema: Mapping[str, Any]) -> str:
    """The value of a field that is left out, where it is a plain one."""
    default = schema.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{default:g}`" if isinstance(default, float) else f"`{json.dumps(default)}`"


def requirements_of(schema: Mapping[str, Any]) -> dict[str, str]:
    """What the table says in place of a default, of the fields that a body cannot do without."""
    forms = [form["required"][0] for form in schema.get("oneOf", ())]
    instead = {name: " or ".join(f"`{other}`" for other in forms if other != name) for name in forms}
    of_forms = {name: f"{REQUIRED}, this or {others}" for name, others in instead.items()}
    return dict.fromkeys(schema.get("required", ()), REQUIRED) | of_forms


def rows(api: Api) -> Iterator[tuple[str, str, str, str, str]]:
    """Field, what becomes of it, its limits and default, and what it means or why it is refused."""
    schema = api.body.model_json_schema()
    required = requirements_of(schema)
    # What has to be there is read first.
    for name, info in sorted(api.body.model_fields.items(), key=lambda field: field[0] not in required):
        status = "supported" if api.known is None or name in api.known else "extension"
        field = schema["properties"][info.alias or name]
        yield name, status, limits_of(field), required.get(name) or default_of(field), info.description or ""
    for name in sorted(api.refused):
        yield name, "refused", "", "", api.refused[name]


def table(api: Api) -> str:
    """The table of one API, in Markdown."""
    lines = ["| field | | limits | default | |", "|---|---|---|---|---|"]
    lines += [f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in rows(api)]
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
