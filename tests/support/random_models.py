"""Small models with random weights, in the shapes of real families, and a byte-level tokenizer for them."""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCAB_SIZE = 400

_SHAPE: Any = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCAB_SIZE}
_GROUPED: Any = _SHAPE | {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 512}

_GPT2: Any = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "vocab_size": VOCAB_SIZE}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**_GROUPED),
    "qwen2": Qwen2Config(**_GROUPED),
    "gpt2": GPT2Config(
        n_embd=64, n_layer=3, n_head=4, vocab_size=VOCAB_SIZE, n_positions=512, bos_token_id=0, eos_token_id=0
    ),
    # a window shorter than the prompts: attention that the packed runner does not know
    "mistral-window": MistralConfig(**_GROUPED, sliding_window=8),
}


def random_model(family: str) -> Any:
    """A model of this family, float32, weights spread wide enough that greedy decoding is not degenerate."""
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(copy.deepcopy(CONFIGS[family]), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.config.eos_token_id = None
    model.config.bos_token_id = None
    return model.eval()


def byte_level_tokenizer() -> Any:
    """A small BPE over bytes, with a ChatML-like template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog and runs away"] * 4, trainer)
    wrap: Any = PreTrainedTokenizerFast
    fast = wrap(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast


def save_random_model(folder: Path, family: str = "llama") -> Path:
    """Write a model folder that any loader of transformers models can read."""
    byte_level_tokenizer().save_pretrained(folder)
    random_model(family).save_pretrained(folder)
    return folder
