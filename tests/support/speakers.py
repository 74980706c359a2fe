"""A model that says what its prompt asks for, behind any chat template: the text between the last <say> and </say>.

Of the prompt it is the tokens that are repeated, special ones too, and then the model ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from flask import Flask
from tokenizers import AddedToken
from torch import Tensor

from app import create_app
from tests.support.engines import wait_until
from tests.support.random_models import byte_level_tokenizer
from worker.engine.engine import Engine
from worker.engine.loader import LoadedModel
from worker.engine.scheduler import Row
from worker.engine.tokenizer import Tokenizer
from worker.settings import Settings
from worker.streams.wakeup import new_wakeup

SPECIAL = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "<|python_tag|>"]
MAX_CONTEXT = 4096


def say(text: str) -> Any:
    """A message that has the model say this."""
    return {"role": "user", "content": f"<say>{text}</say>"}


def speaking_tokenizer(template: str | None) -> Any:
    """With this template, and the marks of the public models as special tokens."""
    fast = byte_level_tokenizer()
    special = [AddedToken(text, special=True, normalized=False) for text in ["<say>", "</say>", *SPECIAL]]
    fast.backend_tokenizer.add_special_tokens(special)
    fast.chat_template = template
    return fast


class SpeakingRunner:
    """Says what the prompt asks for."""

    is_packed = True

    def __init__(self, fast: Any) -> None:
        self._vocab_size = len(fast)
        self._opening, self._closing, self._end = fast.convert_tokens_to_ids(["<say>", "</say>", "<|im_end|>"])

    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        sampled = [row for row in rows if row.is_sampled]
        logits = torch.zeros(len(sampled), self._vocab_size)
        for i, row in enumerate(sampled):
            script = [*self._script(row.sequence.prompt_ids), self._end]
            logits[i, script[min(len(row.sequence.output_ids), len(script) - 1)]] = 50.0
        return sampled, logits

    def _script(self, prompt_ids: list[int]) -> list[int]:
        if self._opening not in prompt_ids:
            return []
        begin = len(prompt_ids) - prompt_ids[::-1].index(self._opening)
        return prompt_ids[begin : prompt_ids.index(self._closing, begin)]

    def forget(self, blocks: list[int]) -> None:
        pass


def speaking_model(template: str | None) -> LoadedModel:
    """What the loader would give for it."""
    fast = speaking_tokenizer(template)
    runner, vocab_size = SpeakingRunner(fast), len(fast)
    end_ids = frozenset([fast.convert_tokens_to_ids("<|im_end|>")])
    return LoadedModel(runner, Tokenizer(fast), end_ids, MAX_CONTEXT, 2048, vocab_size, "cpu", "a test model")


@contextmanager
def speaking_app(template: str | None) -> Iterator[Flask]:
    """An app with such a model, READY. Everything is ended behind the test."""
    settings = replace(Settings(), max_slots=4, max_queue=4, max_context=MAX_CONTEXT)
    engine = Engine(settings, new_wakeup(), lambda settings, report: speaking_model(template))
    app = create_app(settings, engine)
    engine.start()
    wait_until(lambda: engine.state == "READY")
    try:
        yield app
    finally:
        assert engine.stop(10)
