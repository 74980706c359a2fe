"""Turns texts into the arrays that training reads: fixed rows of whole conversations, and windows of verse.

A row holds several conversations that cannot see each other (`Rows.document`), at the positions where they lie in the
row, so that an answer is learned at every position and not only at the start of a context.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from models.training.chats import Conversation
from models.training.tokenizer import CHAT_TEMPLATE, END, START

PADDING = -1
_OPEN_ROWS = 32


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as tokens, and which of them the model has to say itself."""

    token_ids: list[int]
    is_answer: list[bool]


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed conversations, each array (num_rows, row_length).

    Attributes:
        token_ids: int32; padding is token 0.
        is_answer: bool; tokens that carry loss.
        document: int32; which conversation of the row a token belongs to, `PADDING` for none.
    """

    token_ids: NDArray[np.int32]
    is_answer: NDArray[np.bool_]
    document: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.token_ids)


def encode(conversations: Iterable[Conversation], tokenizer: PreTrainedTokenizerFast, max_length: int) -> list[Encoded]:
    """Tokenizes as the chat template will at serving time; a conversation over `max_length` loses its last turns."""
    vocab = tokenizer.get_vocab()
    start, end = vocab[START], vocab[END]
    assistant = tokenizer.encode("assistant\n")
    rendered = tokenizer.apply_chat_template(
        [conversation.messages() for conversation in conversations], chat_template=CHAT_TEMPLATE, tokenize=False
    )
    encoded = []
    for token_ids in tokenizer(rendered, return_attention_mask=False, verbose=False)["input_ids"]:
        is_answer, last_end = [False] * len(token_ids), 0
        answering_from = -1
        for at, token_id in enumerate(token_ids[:max_length]):
            if token_id == start:
                header = token_ids[at + 1 : at + 1 + len(assistant)]
                answering_from = at + 1 + len(assistant) if header == assistant else -1
            elif token_id == end and answering_from >= 0:
                is_answer[answering_from : at + 1] = [True] * (at + 1 - answering_from)
                last_end = at + 1
        if last_end:
            encoded.append(Encoded(token_ids[:last_end], is_answer[:last_end]))
    return encoded


def pack(documents: Iterable[Encoded], row_length: int) -> Rows:
    """Fills rows with whole documents: each goes to the fullest of the open rows that has room for it."""
    full: list[list[Encoded]] = []
    open_rows: list[tuple[int, list[Encoded]]] = []
    for document in documents:
        length = len(document.token_ids)
        fitting = [at for at, (room, _) in enumerate(open_rows) if room >= length]
        best = min(fitting, key=lambda at: open_rows[at][0]) if fitting else None
        room, row = open_rows.pop(best) if best is not None else (row_length, [])
        row.append(document)
        open_rows.append((room - length, row))
        if len(open_rows) > _OPEN_ROWS:
            fullest = min(range(len(open_rows)), key=lambda at: open_rows[at][0])
            full.append(open_rows.pop(fullest)[1])
    full.extend(row for _, row in open_rows)
    rows = Rows(
        np.zeros((len(full), row_length), np.int32),
        np.zeros((len(full), row_length), np.bool_),
        np.full((len(full), row_length), PADDING, np.int32),
    )
    for at, row in enumerate(full):
        offset = 0
        for number, document in enumerate(row):
            span = slice(offset, offset + len(document.token_ids))
            rows.token_ids[at, span] = document.token_ids
            rows.is_answer[at, span] = document.is_answer
            rows.document[at, span] = number
            offset = span.stop
    return rows


def attention_mask(document: Tensor) -> Tensor:
    """Who may see whom: tokens of the same document, not later.

    (num_rows, length) -> (num_rows, 1, length, length), bool.

    Padding sees itself, since a row of softmax with nothing to see is not a number.
    """
    length = document.shape[1]
    is_same = document[:, None, :, None] == document[:, None, None, :]
    return is_same & torch.ones(length, length, dtype=torch.bool).tril()
