"""Small models with random weights, in the shapes of real families, and a byte-level tokenizer for them."""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    DogeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

VOCAB_SIZE = 400

_SHAPE: Any = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCAB_SIZE}
_GROUPED: Any = _SHAPE | {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 512}

_GPT2: Any = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "vocab_size": VOCAB_SIZE}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}

_ROPE: Any = {"rope_theta": 10000.0, "original_max_position_embeddings": 64, "partial_rotary_factor": 1.0}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_EXPERTS: Any = {"num_experts_per_tok": 2, "decoder_sparse_step": 1, "moe_intermediate_size": 48, "num_experts": 4}

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**_GROUPED),
    "qwen2": Qwen2Config(**_GROUPED),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=24),
    "gpt2": GPT2Config(**_GPT2),
    "gpt-neox": GPTNeoXConfig(**_SHAPE, intermediate_size=96, max_position_embeddings=512),
    "phi3": Phi3Config(**_GROUPED, pad_token_id=0),
    # other positions for sequences of more than 64 tokens, and so for all that are beside them
    "phi3-longrope": Phi3Config(
        **_GROUPED,
        pad_token_id=0,
        original_max_position_embeddings=64,
        rope_parameters=_ROPE | {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [*range(1, 9)]},
    ),
    "mixtral": MixtralConfig(**_GROUPED, num_local_experts=4),
    "qwen2-moe": Qwen2MoeConfig(**_GROUPED, **_EXPERTS, shared_expert_intermediate_size=64),
    # windows shorter than the prompts
    "mistral-window": MistralConfig(**_GROUPED, sliding_window=24),  # longer than those of the check at load time too
    "gemma2": Gemma2Config(**_GROUPED, head_dim=16, sliding_window=8, layer_types=_MIXED, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**_GROUPED, head_dim=16, sliding_window=8, layer_types=_MIXED),
    "gpt-oss": GptOssConfig(**_GROUPED, head_dim=16, sliding_window=8, layer_types=_MIXED, num_local_experts=4),
    # a window that only the model's mask knows of
    "qwen2-moe-window": Qwen2MoeConfig(
        **_GROUPED,
        **_EXPERTS,
        shared_expert_intermediate_size=64,
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=3,
    ),
    # a mask that the model makes of what it has seen
    "doge": DogeConfig(**_GROUPED, keep_window_size=24),
    # a position bias inside the attention, which does not go through transformers' interface
    "mpt": MptConfig(d_model=64, n_heads=4, n_layers=3, max_seq_len=512, vocab_size=VOCAB_SIZE),
    # a state in place of keys and values
    "mamba": MambaConfig(hidden_size=64, num_hidden_layers=3, vocab_size=VOCAB_SIZE, state_size=8),
}

BY_ROW = ("mpt", "qwen2-moe-window")
SHORTENED = ("phi3-longrope",)
REFUSED = ("mamba", "doge")
PACKED = [family for family in CONFIGS if family not in (*BY_ROW, *REFUSED, *SHORTENED)]


def random_model(family: str) -> Any:
    """A model of this family, float32, weights spread wide enough that greedy decoding is not degenerate."""
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(copy.deepcopy(CONFIGS[family]))
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
