"""What tests/clients/test_litellm.py has LiteLLM do. One line of JSON on standard output.

In a process of its own: LiteLLM leaves sockets and an event loop open when it goes.
"""

import json
import sys
from typing import Any

import litellm


def main(base_url: str, model: str, question: str) -> None:
    asked: dict[str, Any] = {
        "model": f"openai/{model}",
        "api_base": base_url,
        "api_key": "none",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_retries": 0,
    }
    whole = litellm.completion(**asked)
    chunks = list(litellm.completion(**asked, stream=True))
    try:
        litellm.completion(**asked, extra_body={"top_k": -1})
        refusal = None
    except litellm.exceptions.BadRequestError as error:
        refusal = str(error)
    try:
        litellm.completion(**{**asked, "messages": [{"role": "user", "content": "hello " * 3000}]})
        is_known_to_be_too_long = False
    except litellm.exceptions.ContextWindowExceededError:
        is_known_to_be_too_long = True
    said = {
        "whole": whole.choices[0].message.content,
        "completion_tokens": whole.usage.completion_tokens,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "finish_reason": chunks[-1].choices[0].finish_reason,
        "refusal": refusal,
        "is_known_to_be_too_long": is_known_to_be_too_long,
    }
    sys.stdout.write(json.dumps(said) + "\n")


main(*sys.argv[1:])
