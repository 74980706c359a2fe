"""A model folder of `bench.models` as one GGUF file, for llama-server: the same weights, the same tokenizer.

Only for the two shapes that are measured. The general converter is llama.cpp's own, which knows no tokenizer that was
trained here.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}


_FILE_TYPES = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def gguf_file(folder: Path, weights: str = "bf16") -> Path:
    """The file beside a model folder, written if it is not there yet.

    Args:
        weights: `bf16`, or `q8_0`: 8 bits and a scale for each 32 of a row.

    Raises:
        KeyError: The model is of another architecture.
    """
    path = folder / f"{weights}.gguf"
    if path.is_file():
        return path
    config: Any = AutoConfig.from_pretrained(folder)
    architecture = _ARCHITECTURES[config.model_type]
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, gguf.MODEL_ARCH_NAMES[architecture])
    _write_shape(writer, config)
    writer.add_file_type(_FILE_TYPES[weights])
    _write_tokenizer(writer, folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name != "lm_head.weight":  # tied
            _write_tensor(writer, name, tensor, config, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
    return path


def _write_shape(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: Any, folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    vocab: dict[str, int] = state["model"]["vocab"]
    special = {token["id"] for token in state["added_tokens"]}
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    tokens = sorted(vocab, key=lambda token: vocab[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if vocab[token] in special else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
        or (folder / "chat_template.jinja").read_text()
    )


def _write_tensor(writer: Any, name: str, tensor: Tensor, config: Any, weights: str) -> None:
    stem, _, kind = name.removeprefix("model.").rpartition(".")
    if stem == "embed_tokens":
        stem = "token_embd"
    elif stem == "norm":
        stem = "output_norm"
    else:
        _, layer, part = stem.split(".", 2)
        if config.model_type == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            tensor = _interleaved(tensor, config, "q_proj" in part)
        stem = f"blk.{layer}.{_LAYER_NAMES[part]}"
    if tensor.dim() == 1:
        writer.add_tensor(f"{stem}.{kind}", tensor.float().numpy())
    elif weights == "q8_0":
        type_ = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{stem}.{kind}", gguf.quants.quantize(tensor.float().numpy(), type_), raw_dtype=type_)
    else:
        raw = tensor.contiguous().view(torch.uint16).numpy()
        writer.add_tensor(f"{stem}.{kind}", raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


def _interleaved(weight: Tensor, config: Any, is_query: bool) -> Tensor:
    """llama.cpp rotates neighbouring pairs where transformers rotates halves."""
    num_heads = config.num_attention_heads if is_query else config.num_key_value_heads
    out, size = weight.shape
    return weight.view(num_heads, 2, out // num_heads // 2, size).swapaxes(1, 2).reshape(out, size)
