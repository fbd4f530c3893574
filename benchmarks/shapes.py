"""Shapes of models that benchmarks fill with random weights, which are as fast as learned ones."""

from __future__ import annotations

from typing import Any

from transformers import GraniteMoeHybridConfig, LlamaConfig, Qwen3_5TextConfig

_LLAMA_3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

SHAPES = {  # of the published config.json
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rope_parameters=_LLAMA_3_ROPE,
        tie_word_embeddings=True,
    ),
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters=_LLAMA_3_ROPE | {"factor": 8.0},
        tie_word_embeddings=False,
    ),
    # The kinds, proportions and order of layers of Qwen3.5 and Granite 4 h, at about 100 million weights.
    "qwen3.5-100m": Qwen3_5TextConfig(
        vocab_size=49152,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_num_key_heads=8,
        linear_num_value_heads=16,
        tie_word_embeddings=True,
    ),
    "granite4-100m": GraniteMoeHybridConfig(
        vocab_size=49152,
        hidden_size=512,
        intermediate_size=1536,
        shared_intermediate_size=1536,
        num_local_experts=0,
        num_hidden_layers=20,
        num_attention_heads=8,
        num_key_value_heads=2,
        mamba_n_heads=16,
        mamba_d_head=64,
        mamba_d_state=64,
        layer_types=(["linear_attention"] * 9 + ["full_attention"]) * 2,
        embedding_multiplier=12.0,
        logits_scaling=6.0,
        residual_multiplier=0.22,
        attention_multiplier=0.0156,
        tie_word_embeddings=True,
    ),
}
