"""Tiny random models as GGUF files, as llama.cpp's own converter writes them: llama, qwen2, qwen3 and gemma3."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

from softprompt.models.frozen_lm import FrozenLM

_ARCHITECTURES = {name: getattr(gguf.MODEL_ARCH, name.upper()) for name in ("llama", "qwen2", "qwen3", "gemma3")}
FORMATS = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}


def write_gguf(path: Path, lm: FrozenLM, family: str, number_format: str = "f32", *, tied: bool = False) -> Path:
    """Write the file. Untied files have the embedding once more as output weights, if the model has none."""
    writer = gguf.GGUFWriter(path, family)
    _write_sizes(writer, lm, family)
    _write_tokenizer(writer, lm)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[family], len(lm.geometry.layers))
    state = {
        name: tensor for name, tensor in lm.hf_model.state_dict().items() if tied is False or "lm_head" not in name
    }
    for name, tensor in state.items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        values = _converted(name, tensor.float(), lm, family)
        matrix = FORMATS[number_format if values.ndim > 1 else "f32"]
        writer.add_tensor(known, gguf.quantize(values, matrix), raw_dtype=matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _converted(name: str, tensor: torch.Tensor, lm: FrozenLM, family: str) -> np.ndarray:
    """As the converter changes it: rotated pairs side by side for Llama, norms with their one for Gemma."""
    if family == "llama" and ("q_proj" in name or "k_proj" in name):
        config = lm.hf_model.config
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    if family == "gemma3" and "norm" in name:
        tensor = tensor + 1
    return np.ascontiguousarray(tensor.numpy())


def _write_sizes(writer: gguf.GGUFWriter, lm: FrozenLM, family: str) -> None:
    config = lm.hf_model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if family == "gemma3":
        writer.add_rope_freq_base(1_000_000.0)
        writer.add_sliding_window(config.sliding_window)
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
    else:
        writer.add_rope_freq_base(10_000.0)


def _write_tokenizer(writer: gguf.GGUFWriter, lm: FrozenLM) -> None:
    by_id = {number: text for text, number in lm.tokenizer.get_vocab().items()}
    special = set(lm.tokenizer.all_special_ids)
    size = lm.geometry.vocab
    kinds = [3 if i in special else 1 if i in by_id else 5 for i in range(size)]  # control, normal, unused
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(["e r"])
    writer.add_eos_token_id(lm.tokenizer.get_vocab()["<|im_end|>"])
    writer.add_bos_token_id(lm.tokenizer.get_vocab()["<s>"])
    writer.add_add_bos_token(False)
