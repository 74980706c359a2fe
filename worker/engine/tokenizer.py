"""Text to token ids for whoever asks, and detokenizers for the generation thread.

Law: encoding is done under a lock and decoding on copies: a tokenizer of the `tokenizers` library that two threads
share raises `Already borrowed`. Torch-free.
"""

import copy
from typing import Any

from worker.engine.detokenizer import (
    ByteLevelDetokenizer,
    IncrementalDetokenizer,
    TokenBytes,
    WindowDetokenizer,
    is_byte_level,
)
from worker.errors import FieldError, InvalidRequest
from worker.request import Message
from worker.streams.native import new_lock

# What a model without a chat template gets: roles as plain words, which any language model can follow a little.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


class Tokenizer:
    """A transformers tokenizer behind a lock."""

    def __init__(self, tokenizer: Any) -> None:
        """Take over `tokenizer` (a `PreTrainedTokenizerBase`): nobody else may use it from now on."""
        self._tokenizer = tokenizer
        # A native lock: threads and greenlets encode here. `encode_batch` releases the GIL (1 MB of text held it
        # for 360 ms through `encode`, 8 ms through this), and a greenlet does not yield in it.
        self._lock = new_lock()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend
        if backend is not None:  # a tokenizer.json may say that inputs are cut or padded, as for training
            backend.no_truncation()
            backend.no_padding()
        self._decode_copy = copy.deepcopy(backend if backend is not None else tokenizer)
        if backend is not None:
            added = self._decode_copy.get_added_tokens_decoder()
            self._special_ids = frozenset(i for i, token in added.items() if token.special)
            self._token_of_id = self._decode_copy.id_to_token
        else:
            self._special_ids = frozenset(tokenizer.all_special_ids)
            self._token_of_id = self._decode_copy.convert_ids_to_tokens
        self._token_bytes: TokenBytes | None = None
        if backend is not None and is_byte_level(self._decode_copy.to_str()):
            self._token_bytes = TokenBytes(self._token_of_id, self._special_ids)

    @property
    def eos_id(self) -> int | None:
        """The end-of-sequence token, if the tokenizer names one."""
        eos_id: int | None = self._tokenizer.eos_token_id
        return eos_id

    def encode(self, text: str) -> list[int]:
        """Token ids of a raw prompt, with the special tokens that the model expects around one. Any thread."""
        with self._lock:
            return self._encode(text, add_special_tokens=True)

    def encode_chat(self, messages: list[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next turn begins. Any thread.

        Raises:
            InvalidRequest: The model's chat template refuses this conversation.
        """
        conversation = [message.model_dump() for message in messages]
        template = None if self._tokenizer.chat_template else DEFAULT_CHAT_TEMPLATE
        with self._lock:
            try:
                text = self._tokenizer.apply_chat_template(
                    conversation, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # a template is a program of the model's author and may raise anything
                raise InvalidRequest(
                    [FieldError("messages", "chat_template", f"the model's chat template refuses them: {error}")]
                ) from error
            # The template has written the special tokens already.
            return self._encode(text, add_special_tokens=template is not None)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self._backend is None:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return ids
        encoding: list[int] = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
        return encoding

    def new_detokenizer(self) -> IncrementalDetokenizer:
        """A detokenizer for one stream. Any thread may make it; only the generation thread uses it."""
        if self._token_bytes is not None:
            return ByteLevelDetokenizer(self._token_bytes)
        return WindowDetokenizer(self._decode, self._token_of_id, self._special_ids)

    def _decode(self, token_ids: list[int]) -> str:
        if self._backend is not None:
            text: str = self._decode_copy.decode(token_ids, skip_special_tokens=True)
        else:
            text = self._decode_copy.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
