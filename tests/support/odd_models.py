"""Random tiny models of families whose layers, masks, heads or embeddings are not those of a Llama."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

from softprompt.models.frozen_lm import FrozenLM
from tests.support.tiny import VOCAB, tiny_tokenizer

_common: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 2,
}
_attention: dict[str, Any] = _common | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
_mla: dict[str, Any] = _attention | {"num_key_value_heads": 4}
_gemma4: dict[str, Any] = _attention | {"num_hidden_layers": 4, "global_head_dim": 8}
_gemma4_dense: dict[str, Any] = _gemma4 | {"global_head_dim": 16, "num_global_key_value_heads": 1}
_mamba_layers: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "mamba_n_groups": 1,
}

# Layers that carry recurrent or convolution states.
STATE_CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "mamba": lambda: tf.MambaConfig(**_common, state_size=8, time_step_rank=4),
    "mamba2": lambda: tf.Mamba2Config(
        **_common, num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=8, tie_word_embeddings=False
    ),
    "qwen3_5": lambda: tf.Qwen3_5TextConfig(
        **_attention,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "granite4": lambda: tf.GraniteMoeHybridConfig(
        **_attention,
        **_mamba_layers,
        logits_scaling=4.0,
        embedding_multiplier=3.0,
        residual_multiplier=0.7,
        num_local_experts=0,
        shared_intermediate_size=64,
        layer_types=["linear_attention", "full_attention"],
    ),
    "falcon_h1": lambda: tf.FalconH1Config(
        **_attention, **_mamba_layers, mamba_d_ssm=64, lm_head_multiplier=0.5, embedding_multiplier=3.0
    ),
    "lfm2": lambda: tf.Lfm2Config(**_attention, layer_types=["conv", "full_attention"], block_multiple_of=8),
}
# Masks that depend on places in the cache, which a prefix shifts.
MASK_CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "bloom": lambda: tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: tf.MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=256),
    "gpt_neo": lambda: tf.GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        attention_types=[[["global", "local"], 1]],
        window_size=7,
        max_position_embeddings=256,
    ),
    "llama4": lambda: tf.Llama4TextConfig(
        **_attention,
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=2,
        attention_chunk_size=7,
        layer_types=["chunked_attention", "full_attention"],
    ),
}
# A cache that holds something else than the attention's keys, or keys that other layers share.
CACHE_CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "deepseek_v3": lambda: tf.DeepseekV3Config(
        **_mla,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "diffllama": lambda: tf.DiffLlamaConfig(**_attention),
}
# Logits that are not the output embedding's alone.
HEAD_CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "cohere": lambda: tf.CohereConfig(**_attention, logit_scale=0.25),
    "granite": lambda: tf.GraniteConfig(**_attention, logits_scaling=4.0, embedding_multiplier=3.0),
}
# Second embeddings that are looked up by token id.
PER_LAYER_CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "gemma4": lambda: tf.Gemma4TextConfig(
        **_gemma4,
        head_dim=8,
        sliding_window=11,
        layer_types=["sliding_attention", "full_attention"] * 2,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
    ),
}
# No cache that could be used: the prefix is run with each row.
NO_CACHE_CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    # Keeps its recurrent states on its layers, not in the cache.
    "recurrent_gemma": lambda: tf.RecurrentGemmaConfig(
        **_attention, lru_width=32, attention_window_size=11, block_types=["recurrent", "attention"]
    ),
    "rwkv": lambda: tf.RwkvConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, context_length=256, attention_hidden_size=32
    ),
}
# Exact models whose attention or cache is not that of a Llama, for the serving engine.
SERVED_CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "gpt_oss": lambda: tf.GptOssConfig(
        **_attention,
        head_dim=8,
        sliding_window=11,
        layer_types=["sliding_attention", "full_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "gemma4_dense": lambda: tf.Gemma4TextConfig(
        **_gemma4_dense,
        head_dim=8,
        sliding_window=11,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    ),
    "stablelm": lambda: tf.StableLmConfig(**_attention),
    "nemotron": lambda: tf.NemotronConfig(**_attention),
}
# Attention outside Transformers' interface.
UNSERVED_CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "gptj": lambda: tf.GPTJConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, rotary_dim=4),
}
ODD_CONFIGS = STATE_CONFIGS | MASK_CONFIGS | CACHE_CONFIGS | HEAD_CONFIGS | PER_LAYER_CONFIGS | NO_CACHE_CONFIGS


@functools.cache
def odd_lm(family: str) -> FrozenLM:
    """A frozen tiny model; shared between tests. Its weights are large enough that a mistake shows."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config((ODD_CONFIGS | SERVED_CONFIGS | UNSERVED_CONFIGS)[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return FrozenLM(model, tiny_tokenizer(), f"odd-{family}")
