"""Text to token ids for whoever asks, and detokenizers for the generation thread.

Law: whatever two threads share is only read. A tokenizer of the `tokenizers` library that is changed while another
thread uses it raises `Already borrowed`, so encoding changes nothing (transformers' own `encode` sets truncation and
padding each time), and decoding is done on a copy. No lock is held while a long text is encoded: a greenlet that waited
for a native one would stop everybody.
A panic of the library leaves here as a RuntimeError. Torch-free.
"""

import copy
import json
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from worker.answer import answer_format_of
from worker.engine.conversation import schemas, turns
from worker.engine.detokenizer import (
    BYTE_TOKEN,
    ByteLevelDetokenizer,
    IncrementalDetokenizer,
    TokenBytes,
    WindowDetokenizer,
    is_byte_level,
)
from worker.engine.panics import without_panics
from worker.engine.token_span import token_span
from worker.errors import FieldError, InvalidRequest
from worker.message import Message, Tool

# What a model without a chat template gets: roles as plain words, which any language model can follow a little.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

_NONE: Mapping[str, int] = MappingProxyType({})

_without_panics = without_panics("the tokenizers library")


def _drops_first_space(decoder: dict[str, Any] | None) -> bool | None:
    """See `Tokenizer.drops_first_space`. Of all decoders only two kinds join tokens as they are.

    Args:
        decoder: Of a tokenizer.json: `ByteLevel`, or that of SentencePiece's BPE with byte fallback.
    """
    match decoder:
        case {"type": "ByteLevel"}:
            return False
        case {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *rest,
            ],
        }:
            if rest in ([], [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]):
                return bool(rest)
    return None


class Tokenizer:
    """A transformers tokenizer that threads and greenlets share.

    Attributes:
        is_shareable: Whether several threads may encode at once. Not with a tokenizer in plain Python.
        answer_format: How the model marks reasoning and calls.
        drops_first_space: Whether a text loses a space at its beginning. None: what a token adds to a text depends on
            those around it.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take over `tokenizer` (a `PreTrainedTokenizerBase`): nobody else may use it from now on."""
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend
        self.is_shareable = backend is not None
        self._span: int | None = None
        self.drops_first_space: bool | None = None
        self._token_bytes: TokenBytes | None = None
        if backend is None:
            self._decode_copy = copy.deepcopy(tokenizer)
            self._token_of_id = _without_panics(self._decode_copy.convert_ids_to_tokens)
            self._special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
            self._special_ids = frozenset(self._special.values())
            self.answer_format = answer_format_of(self._template(has_tools=True), self._special)
            return
        backend.no_truncation()  # a tokenizer.json may say that inputs are cut or padded, as for training
        backend.no_padding()
        self._decode_copy = copy.deepcopy(backend)
        added = self._decode_copy.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        self._special_ids = frozenset(self._special.values())
        self.answer_format = answer_format_of(self._template(has_tools=True), self._special)
        self._token_of_id = _without_panics(self._decode_copy.id_to_token)
        description = self._decode_copy.to_str()
        self._span = token_span(json.loads(description))
        self.drops_first_space = _drops_first_space(json.loads(description).get("decoder"))
        if is_byte_level(description):
            self._token_bytes = TokenBytes(self._token_of_id, self._special_ids)

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that have no text in an answer."""
        return self._special_ids

    @property
    def eos_id(self) -> int | None:
        """The end-of-sequence token, if the tokenizer names one."""
        eos_id: int | None = self._tokenizer.eos_token_id
        return eos_id

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a raw prompt, with the special tokens that the model expects around one. Any thread."""
        return self._encode(text, add_special_tokens)

    def min_tokens(self, text: str) -> int:
        """How many tokens a raw prompt has at least. A count of bytes, without the work of encoding. Any thread."""
        return 0 if self._span is None else -(-len(text.encode()) // self._span)

    def encode_chat(
        self,
        messages: list[Message],
        tools: Collection[Tool] = (),
        *,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next turn begins. Any thread.

        Args:
            tools: Those that the model is offered.
            add_special_tokens: Those around a text. None: if the model has no template, which writes them itself.
            add_generation_prompt: Whether the assistant's next turn is begun.

        Raises:
            InvalidRequest: The model's chat template refuses this conversation.
        """
        if add_special_tokens is None:
            add_special_tokens = self._template(bool(tools)) is None
        return self._encode(self._write(messages, tools, add_generation_prompt), add_special_tokens)

    def min_chat_tokens(
        self, messages: list[Message], tools: Collection[Tool] = (), *, add_generation_prompt: bool = True
    ) -> int:
        """How many tokens a conversation has at least, once the template has written it: it may leave some out.

        Raises:
            InvalidRequest: As `encode_chat`.
        """
        return 0 if self._span is None else self.min_tokens(self._write(messages, tools, add_generation_prompt))

    def _template(self, has_tools: bool) -> str | None:
        """The chat template of the model. Some have two, and the one with this name is for tools."""
        own = getattr(self._tokenizer, "chat_template", None)
        if isinstance(own, dict):
            own = own.get("tool_use" if has_tools and "tool_use" in own else "default")
        return own or None

    def _write(self, messages: list[Message], tools: Collection[Tool], add_generation_prompt: bool = True) -> str:
        own = self._template(bool(tools))
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns(messages, tools, own),
                chat_template=own or DEFAULT_CHAT_TEMPLATE,
                tools=schemas(tools) or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template is a program of the model's author and may raise anything
            raise InvalidRequest(
                [FieldError("messages", "chat_template", f"the model's chat template refuses them: {error}")]
            ) from error
        return text

    def tokens_of(self, token_ids: list[int]) -> list[str]:
        """Tokens as the vocabulary writes them; empty where the embedding has a row without a token. Any thread."""
        return [self._token_of_id(token_id) or "" for token_id in token_ids]

    def spell(self, token_id: int) -> tuple[str, bytes]:
        """A token alone: as text, with replacement characters where it is none, and as bytes.

        A special token, which has no text in an answer, is spelled by its name. Generation thread only.
        """
        data = self.spell_bytes(token_id)
        return data.decode("utf-8", "replace"), data

    def spell_bytes(self, token_id: int) -> bytes:
        """The same as bytes alone. Any thread: it changes nothing."""
        token: str | None = self._token_of_id(token_id)
        if token is None:  # a row of the embedding without a token behind it
            return b""
        if token_id in self._special_ids:
            return token.encode()
        if self._token_bytes is not None:
            return self._token_bytes[token_id]
        if BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()  # SentencePiece writes its spaces in this way

    @_without_panics
    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self._backend is None:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return ids
        # Unlike `encode` it releases the GIL: 1 MB of text held it for 360 ms through that, 8 ms through this.
        encoding: list[int] = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
        return encoding

    def new_detokenizer(self, shown: Mapping[str, int] = _NONE) -> IncrementalDetokenizer:
        """A detokenizer for one stream. Any thread may make it; only the generation thread uses it.

        Args:
            shown: Special tokens that are part of the text, by name.
        """
        marks = {token_id: mark for mark, token_id in shown.items()}
        if self._token_bytes is not None:
            return ByteLevelDetokenizer(self._token_bytes, marks)
        return WindowDetokenizer(self._decode, self._token_of_id, self._special_ids, marks)

    @_without_panics
    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, that of special tokens too. Any thread: it changes nothing."""
        if self._backend is not None:
            text: str = self._backend.decode(token_ids, skip_special_tokens=False)
        else:
            text = self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
        return text

    @_without_panics
    def _decode(self, token_ids: list[int]) -> str:
        if self._backend is not None:
            text: str = self._decode_copy.decode(token_ids, skip_special_tokens=True)
        else:
            text = self._decode_copy.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
