"""The soak's model: the oracle's arithmetic over a cache of its own, faults included. Generation thread only.

It answers from what is in the cache of a row's slot, not from the sequence: a slot with two owners, a chunk of a
prompt that was computed twice or never, or a token that was not fed back gives a wrong answer or an error that no
injected fault explains.
"""

import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tests.soak import oracle
from tests.soak.faults import SLOW_STEP_S, Faults, Injected
from tests.support.blocks import TokenCache
from tests.support.random_models import VOCAB_SIZE
from worker.engine.detokenizer import IncrementalDetokenizer, TokenBytes
from worker.engine.scheduler import Row
from worker.engine.sequence import Sequence
from worker.engine.tokenizer import Tokenizer
from worker.streams.native import native_sleep

STUCK_S = 3600.0


def _out_of_memory() -> Exception:
    return torch.OutOfMemoryError("injected")


class SoakRunner:
    """Computes steps of the oracle's model."""

    is_packed = True

    def __init__(self, faults: Faults, step_s: float) -> None:
        self._faults = faults
        self._step_s = step_s
        self._cache = TokenCache()
        self._lost: weakref.WeakSet[Sequence] = weakref.WeakSet()
        self._broken: weakref.WeakSet[Sequence] = weakref.WeakSet()
        self._hungry: weakref.WeakSet[Sequence] = weakref.WeakSet()
        self._kept: weakref.WeakSet[Sequence] = weakref.WeakSet()
        self._token_bytes: TokenBytes
        self._id_of_byte: dict[int, int]
        self._eos_id: int
        self.num_steps = 0

    def adopt(self, token_bytes: TokenBytes, eos_id: int) -> None:
        """Learn how the tokenizer spells."""
        self._token_bytes = token_bytes
        self._eos_id = eos_id
        spelled = [(token_bytes[token_id], token_id) for token_id in range(VOCAB_SIZE)]
        self._id_of_byte = {spelling[0]: token_id for spelling, token_id in spelled if len(spelling) == 1}

    def forward(self, rows: list[Row]) -> tuple[list[Row], Tensor]:
        self.num_steps += 1
        self._fail_now_and_then(rows)
        native_sleep(self._step_s)
        self._cache.compute(rows)
        sampled = [row for row in rows if row.is_sampled and not self._is_lost(row.sequence)]
        logits = torch.zeros(len(sampled), VOCAB_SIZE)
        for i, row in enumerate(sampled):
            if self._faults.hits("poisoned_row"):
                self._faults.count("poisoned_row")
                logits[i] = float("nan")
            else:
                logits[i, self._next_token(row)] = 50.0
        return sampled, logits

    def forget(self, blocks: list[int]) -> None:
        pass

    def _fail_now_and_then(self, rows: list[Row]) -> None:
        faults = self._faults
        if faults.is_fatal_due:
            raise SystemExit("injected")  # not an Exception: it passes the step's own handler and ends the loop
        if faults.is_stuck_due:
            native_sleep(STUCK_S)
        if faults.hits("slow_step"):
            faults.count("slow_step")
            native_sleep(faults.between(*SLOW_STEP_S))
        if faults.is_breaking:
            self._raise("step_oom", _out_of_memory(), rows)
        for name, error in (("step_error", Injected("a step that raises")), ("step_oom", _out_of_memory())):
            if faults.hits(name):
                self._raise(name, error, rows)
        for name, hit, error in (
            ("broken_row", self._broken, Injected("a row that raises")),
            ("hungry_row", self._hungry, _out_of_memory()),
        ):
            for row in rows:
                if faults.hits(name):
                    hit.add(row.sequence)
            if any(row.sequence in hit for row in rows):
                self._raise(name, error, rows)

    def _raise(self, name: str, error: Exception, rows: list[Row]) -> None:
        """Fail. Where several rows are in it the engine tries again with fewer, so that nobody has been hit yet."""
        if len(rows) == 1:
            self._faults.count(name)
        raise error

    def _next_token(self, row: Row) -> int:
        cache = row.sequence.tokens(0, row.end)
        num_prompt_tokens = len(row.sequence.prompt_ids)
        key = oracle.key_of(b"".join(self._token_bytes[token_id] for token_id in cache[:num_prompt_tokens]))
        position = len(cache) - num_prompt_tokens
        if position and cache[-1] != self._id_of_byte[oracle.byte_of(key, position - 1)]:
            raise AssertionError("a row was fed another token than was drawn for it")
        if position == oracle.length_of(key):
            return self._eos_id
        return self._id_of_byte[oracle.byte_of(key, position)]

    def _is_lost(self, sequence: Sequence) -> bool:
        """Whether the model has forgotten this one, for good. Decided once."""
        if sequence not in self._kept and sequence not in self._lost:
            is_lost = self._faults.is_starving or self._faults.hits("lost_row")
            (self._lost if is_lost else self._kept).add(sequence)
            self._faults.counts["lost_row"] += is_lost
        return sequence in self._lost


class _FailingDetokenizer:
    """Raises at one token."""

    def __init__(self, inner: IncrementalDetokenizer, at: int, faults: Faults) -> None:
        self._inner = inner
        self._left = at
        self._faults = faults

    def push(self, token_id: int) -> str:
        if self._left == 0:
            self._faults.count("detokenizer")
            raise Injected("a detokenizer that raises")
        self._left -= 1
        return self._inner.push(token_id)

    def flush(self) -> str:
        return self._inner.flush()


class SoakTokenizer(Tokenizer):
    """The product's tokenizer, which now and then raises, as one of a library would."""

    def __init__(self, tokenizer: Any, faults: Faults) -> None:
        super().__init__(tokenizer)
        self._faults = faults

    def encode(self, text: str, *options: Any, **named: Any) -> list[int]:
        self._fail_now_and_then()
        return super().encode(text, *options, **named)

    def encode_chat(self, messages: Any, *options: Any, **named: Any) -> list[int]:
        self._fail_now_and_then()
        return super().encode_chat(messages, *options, **named)

    def new_detokenizer(self, shown: Mapping[str, int] = MappingProxyType({})) -> IncrementalDetokenizer:
        inner = super().new_detokenizer(shown)
        if self._faults.hits("detokenizer"):
            return _FailingDetokenizer(inner, int(self._faults.between(0, 20)), self._faults)
        return inner

    def spelling(self) -> TokenBytes:
        """The bytes of each token."""
        assert self._token_bytes is not None
        return self._token_bytes

    def _fail_now_and_then(self) -> None:
        if self._faults.hits("tokenizer"):
            self._faults.count("tokenizer")
            raise Injected("a tokenizer that raises")
