"""Model folders to measure, built once into `bench/out/models`: random weights of real shapes, and the embedded model.

None of them has an end-of-sequence token, so that every answer has as many tokens as were asked for.
"""

import json
import random
import shutil
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from worker.settings import EMBEDDED_MODEL

OUT = Path(__file__).resolve().parent / "out"
PROMPT_TOKENS = 128
_NUM_TRAINED_TOKENS = 4096
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_WORDS = sorted({word for text in topics.values() for word in text.split() if word.isalpha()})


def _smollm2_135m() -> Any:
    return LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )


def _qwen25_05b() -> Any:
    return Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151936,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )


SHAPES = {"smollm2-135m": _smollm2_135m, "qwen2.5-0.5b": _qwen25_05b}
EMBEDDED = "embedded"
MODELS = (*SHAPES, EMBEDDED)


def model_folder(name: str) -> Path:
    """The folder of a model, built if it is not there yet. Weights have 16 bits, but the embedded model's."""
    folder = OUT / "models" / name
    if not (folder / "config.json").is_file():
        unfinished = folder.with_name(name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        if name == EMBEDDED:
            _copy_without_end(Path(EMBEDDED_MODEL), unfinished)
        else:
            _build(SHAPES[name](), unfinished)
        unfinished.rename(folder)
    return folder


def _build(config: Any, folder: Path) -> None:
    torch.manual_seed(0)
    config.bos_token_id = config.eos_token_id = None
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.04)  # wider than the default, under which greedy answers repeat one token
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.to(torch.bfloat16).save_pretrained(folder)
    _tokenizer(config.vocab_size).save_pretrained(folder)


def _tokenizer(vocab_size: int) -> Any:
    """A byte-level BPE of a few thousand merges; the rest of the vocabulary are words that are never encoded."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_NUM_TRAINED_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    trained.train_from_iterator(topics.values(), trainer)
    state = json.loads(trained.to_str())
    vocab: dict[str, int] = state["model"]["vocab"]
    for i in range(len(vocab), vocab_size):
        vocab[f"\u0120w{i}"] = i
    whole = Tokenizer.from_str(json.dumps(state))
    whole.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=whole, pad_token="<|pad|>")
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _copy_without_end(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            fields = json.loads(path.read_text())
            # Not left out: a config that does not say has its family's.
            fields |= dict.fromkeys(fields.keys() & {"eos_token_id", "eos_token"})
            path.write_text(json.dumps(fields, indent=2))


class Prompts:
    """Chat messages that are so and so long behind the model's template, each of them new."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._rng = random.Random(seed)

    def next(self, num_tokens: int = PROMPT_TOKENS) -> list[dict[str, str]]:
        """Another one. Nobody's cache has seen it."""
        for _ in range(1000):
            words = [self._rng.choice(_WORDS)]
            while self._length(words) < num_tokens:
                words.append(self._rng.choice(_WORDS))
            if self._length(words) == num_tokens:
                return self._messages(words)
        raise RuntimeError(f"no prompt of {num_tokens} tokens was found")

    def _length(self, words: list[str]) -> int:
        messages = self._messages(words)
        return len(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])

    @staticmethod
    def _messages(words: list[str]) -> list[dict[str, str]]:
        return [{"role": "user", "content": " ".join(words)}]
