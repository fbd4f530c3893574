"""Tiny configs of every text architecture of Transformers, and variants of their settings."""

from __future__ import annotations

import dataclasses

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 300
WINDOW = 11

SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048,
    "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 2, "decoder_start_token_id": 0, "sep_token_id": 2,
    "cls_token_id": 1, "forced_eos_token_id": None, "forced_bos_token_id": None, "unk_token_id": 1,
    # attention and mixtures
    "sliding_window": WINDOW, "sliding_window_size": WINDOW, "window_size": WINDOW, "local_attention": WINDOW * 2,
    "attention_chunk_size": 16, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16, "dense_intermediate_size": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "n_shared_experts": 1, "moe_num_shared_experts": 1, "n_group": 2, "topk_group": 1,
    "moe_k": 2, "moe_topk": 2, "first_k_dense_replace": 1, "num_dense_layers": 1, "decoder_sparse_step": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "index_head_dim": 8, "index_n_heads": 32, "index_topk": 8, "index_block_size": 4, "index_topk_blocks": 2,
    "intermediate_size_mlp": 64, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 64, "zero_expert_num": 2,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "d_rel": 4, "rel_extent": 32,
    "global_head_dim": 16, "num_global_key_value_heads": 2,
    # scales that released checkpoints have and defaults hide
    "logit_scale": 0.25, "logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.7,
    "attention_multiplier": 0.3, "lm_head_multiplier": 0.5, "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "scale_emb": 3, "dim_model_base": 16,
    "attention_in_multiplier": 0.8, "attention_out_multiplier": 0.9, "key_multiplier": 0.7,
    "routed_scaling_factor": 1.5,
    # state space and linear attention
    "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_n_groups": 1, "mamba_chunk_size": 8, "mamba_d_ssm": 64, "n_mamba_heads": 2, "mamba_num_heads": 8,
    "mamba_head_dim": 8, "ssm_state_size": 8, "state_size": 8, "conv_kernel": 4, "n_groups": 1, "chunk_size": 8,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_head_dim": 8, "linear_num_heads": 4, "num_heads": 4, "time_step_rank": 4, "mamba_dt_rank": 4,
    "lru_width": 32, "attention_window_size": WINDOW, "attention_hidden_size": 32, "block_multiple_of": 8,
    "mamba_headdim": 8, "mamba_ngroups": 1, "adapter_rank": 4, "qk_head_dim": 8, "v_head_dim_factor": 1,
    # other names of the same
    "n_layer": 4, "n_layers": 4, "num_layers": 4, "n_head": 4, "n_heads": 4, "n_embd": 32, "n_positions": 2048,
    "n_ctx": 2048, "n_inner": 64, "d_model": 32, "d_ff": 64, "d_kv": 8, "d_inner": 64, "rotary_dim": 4,
    "max_seq_len": 2048, "ffn_dim": 64, "word_embed_proj_dim": 32, "attention_heads": 4, "emb_dim": 32,
    "embedding_size": 32, "context_length": 256, "dff": 64, "num_decoder_layers": 3, "num_encoder_layers": 2,
    "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "max_source_positions": 256,
    "max_target_positions": 256, "max_encoder_position_embeddings": 256, "max_decoder_position_embeddings": 256,
    "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 64, "attention_window": 8,
    "input_embedding_size": 32, "output_embedding_size": 32, "multi_query": True, "block_size": 4,
    "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2,
    "laurel_rank": 4, "backbone_hidden_size": 32, "num_centroids": 8, "centroid_intermediate_top_k": 2,
    "o_groups": 2, "o_lora_rank": 8, "hc_mult": 2, "hc_sinkhorn_iters": 3, "num_nextn_predict_layers": 0,
    "num_mtp_layers": 0, "dim_head": 8, "dim_ff": 64, "src_vocab_size": VOCAB, "tgt_vocab_size": VOCAB,
    "type_vocab_size": 2, "keep_window_size": WINDOW, "kv_channels": 8, "router_hidden_size": 8,
    "depth": 2, "out_hidden_size": 32, "projection_dim": 32, "image_size": 28, "patch_size": 14,
}  # fmt: skip
NEVER_FROM_NONE = {  # set only where the default is a number: to set them changes the architecture
    "sliding_window", "q_lora_rank", "final_logit_softcapping", "attn_logit_softcapping", "n_inner", "lru_width",
    "num_global_key_value_heads", "global_head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim",
    "forced_eos_token_id", "forced_bos_token_id", "hidden_size_per_layer_input", "num_kv_shared_layers",
    "head_dim", "multi_query", "embedding_size", "moe_topk", "topk_group", "n_group", "shared_expert_intermediate_size",
    "num_experts", "num_local_experts", "window_size", "attention_chunk_size", "vocab_size_per_layer_input",
}  # fmt: skip
HALF = ["sliding_attention", "full_attention"] * 2
MIXED = ["linear_attention", "full_attention"] * 2

# What an architecture needs besides; None leaves a name at the class's default, "=name" sets even None.
SPECIAL: dict[str, dict] = {}
VARIANTS: dict[str, tuple[str, dict]] = {}  # name -> (model type, changes)
VISION: list[str] = []
MLA = {"num_key_value_heads": 4}
LF = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
BERT = {"is_decoder": True}
FROM_END = {"decoder_start_token_id": 2, "scale_embedding": True}  # positions skip the padding token
SCALED = {"scale_embedding": True}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
QSA = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 2, "hc_count": 2, "hc_lowrank": 8,
}  # fmt: skip
GEMMA4 = {"layer_types": HALF, "num_kv_shared_layers": 2}
SPECIAL |= {
    "axk1": MLA, "axk2": MLA, "deepseek_v2": MLA, "deepseek_v3": MLA, "deepseek_v32": MLA, "glm4_moe_lite": MLA,
    "glm_moe_dsa": MLA, "minicpm3": MLA, "youtu": MLA, "dots3_note_text": MLA, "dots3_note": {"text_config": MLA | {"per_layer_config": {}}},
    "longcat_flash": MLA | {"qk_head_dim": 16},
    "mistral4": {"text_config": MLA}, "mistral_large4": {"text_config": MLA}, "kimi_k25": {"text_config": MLA},
    "blt": {
        "encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3, 4],
        "encoder_config": {"hidden_size_global": 32, "cross_attn_k": 1}, "cross_attn_k": 1,
        "decoder_config": {"hidden_size_global": 32, "cross_attn_k": 1},
    },
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}, "ffn_config": {"hidden_size": 32}},
    "gemma3": {"text_config": {"layer_types": HALF}}, "gemma3_text": {"layer_types": HALF},
    "gemma3n_text": {"layer_types": HALF}, "gemma3n": {"text_config": {"layer_types": HALF}},
    "gemma4_text": GEMMA4, "gemma4": {"text_config": GEMMA4},
    "gemma4_unified_text": GEMMA4, "gemma4_unified": {"text_config": GEMMA4},
    "gemma4_assistant": {"text_config": {"layer_types": HALF, "num_kv_shared_layers": 4, "hidden_size_per_layer_input": 0}},
    "gemma4_unified_assistant": {
        "text_config": {"layer_types": HALF, "num_kv_shared_layers": 4, "hidden_size_per_layer_input": 0}
    },
    "qwen2_vl": {"text_config": MROPE}, "qwen2_5_vl": {"text_config": MROPE}, "glm4v": {"text_config": MROPE},
    "glm46v": {"text_config": {"model_type": "glm4v_text"} | MROPE}, "qwen2_5_omni_thinker": {"text_config": MROPE},
    "glm4v_moe": {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}}},
    "step3p7": {"text_config": {"sliding_window": WINDOW}},
    "granite4_vision": {"deepstack_layer_map": [], "spatial_target_layers": []},
    "diffusion_gemma": {"text_config": {"layer_types": HALF}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 8}, "hunyuan_v1_moe": {"head_dim": 8}, "ministral": {"head_dim": 8},
    "lfm2": LF, "lfm2_moe": LF,
    "lfm2_vl": {"text_config": LF},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": QSA, "qwen4_exp": {"text_config": QSA},
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "local"], "axial_pos_embds": False, "attention_head_size": 8,
        "feed_forward_size": 64, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
    },
    "xmod": BERT | {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_key_value_heads": 4, "attention_hidden_size": None, "attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 6},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "num_key_value_heads": 4,
        "num_mem_blocks": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
    "kimi_linear": MLA | {"layer_types": MIXED},
    "bailing_hybrid": MLA | {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": {"layer_types": MIXED},
    "kolibri1": {"layer_types": HALF}, "beam": {"layer_types": HALF},
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid"] * 2},
    "inkling2_text": {"layer_types": ["hybrid_sliding", "hybrid"] * 2},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "laguna": {"layer_types": HALF}, "mellum": {"layer_types": HALF},
    "mimo_v2_flash": {"layer_types": HALF},
    "smollm3": {"no_rope_layer_interval": 2},
    "phi4_multimodal": {"vision_config": {}, "audio_config": {}},
    "led": {"attention_window": 8}, "m2m_100": FROM_END, "fsmt": FROM_END, "nllb-moe": FROM_END, "seamless_m4t": FROM_END,
    "seamless_m4t_v2": FROM_END, "pegasus": SCALED, "marian": SCALED, "mvp": SCALED, "mbart": SCALED,
    "encoder-decoder": {"decoder": BERT | {"add_cross_attention": True}, "decoder_start_token_id": 0},
    "t5": {"decoder_start_token_id": 0}, "longt5": {"decoder_start_token_id": 0}, "roc_bert": BERT | {"pronunciation_vocab_size": 40, "shape_vocab_size": 40},
}  # fmt: skip
for _name in (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "rembert", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl",
):  # fmt: skip
    SPECIAL[_name] = SPECIAL.get(_name, {}) | BERT
SPECIAL["big_bird"] |= {"attention_type": "original_full"}
SPECIAL["xlm"] = {"causal": True, "use_lang_emb": False, "n_langs": 1}
ROPE = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 128},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}  # fmt: skip
VARIANTS |= {
    f"llama, rope {kind}": ("llama", {"rope_parameters": rope | {"rope_theta": 10000.0}}) for kind, rope in ROPE.items()
}
VARIANTS |= {
    "phi3, longrope (Phi-3/4 128k)": ("phi3", {"rope_parameters": ROPE["longrope"] | {"rope_theta": 10000.0}, "original_max_position_embeddings": 64}),
    "llama, tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "mistral, no window (v0.2 on)": ("mistral", {"=sliding_window": None}),
    "qwen2, with window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    "qwen3, with window": ("qwen3", {"use_sliding_window": True, "layer_types": HALF}),
    "falcon, ALiBi (RW)": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "falcon, new decoder (40B, Falcon 2)": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt, learned positions": ("mpt", {"attn_config": {"alibi": False}}),
    "gpt_bigcode, MHA": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neo, global layers only": ("gpt_neo", {"attention_types": [[["global"], 4]]}),
    "opt-350m (projected embeddings)": ("opt", {"word_embed_proj_dim": 16}),
    "granitemoehybrid, attention only (Granite 4 micro)": ("granitemoehybrid", {"layer_types": ["full_attention"] * 4}),
    "granitemoehybrid, dense hybrid (Granite 4 h-micro)": ("granitemoehybrid", {"num_local_experts": 0, "layer_types": MIXED}),
    "granite, scales of one": (
        "granite",
        {"logits_scaling": 1.0, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0},
    ),
    "cohere, logit_scale 1": ("cohere", {"logit_scale": 1.0}),
    "cohere2, logit_scale 1": ("cohere2", {"logit_scale": 1.0}),
    "gemma4_text, dense (31B)": (
        "gemma4_text",
        {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "global_head_dim": 16},
    ),
    "gemma4_text, MoE (26B-A4B)": (
        "gemma4_text",
        {
            "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "enable_moe_block": True, "num_experts": 4,
            "top_k_experts": 2, "moe_intermediate_size": 16,
        },
    ),
    "gemma4, dense, with vision and audio": (
        "gemma4",
        {"text_config": {"layer_types": HALF, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "global_head_dim": 16}},
    ),
    "gemma4, dense, with vision alone": (
        "gemma4",
        {"audio_config": None, "text_config": {"layer_types": HALF, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "global_head_dim": 16}},
    ),
    "gemma4_text, E2B (PLE, shared KV)": ("gemma4_text", {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2}),
    "gemma4_text, no PLE, shared KV": ("gemma4_text", {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2}),
    "deepseek_v2, lite": ("deepseek_v2", {"=q_lora_rank": None, "num_key_value_heads": 4}),
    "llama4_text, chunk beyond the context": ("llama4_text", {"attention_chunk_size": 8192}),
    "llama4_text, no chunks": ("llama4_text", {"layer_types": ["full_attention"] * 4}),
    "bert, as an encoder (is_decoder False)": ("bert", {"is_decoder": False}),
    "minimax_m3_vl_text, full attention": ("minimax_m3_vl_text", {"layer_types": ["full_attention"] * 4}),
    "inkling_text, full": ("inkling_text", {"layer_types": ["hybrid"] * 4}),
    "stablelm 2 (qk norm, parallel)": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True}),
    "exaone4, no window": ("exaone4", {"=sliding_window": None, "layer_types": ["full_attention"] * 4}),
    "gemma3_text, bidirectional (EmbeddingGemma)": ("gemma3_text", {"use_bidirectional_attention": True}),
    "olmo, clip_qkv": ("olmo", {"clip_qkv": 0.5}),
    "falcon_h1, scales of one": (
        "falcon_h1",
        {
            "embedding_multiplier": 1.0, "lm_head_multiplier": 1.0, "attention_in_multiplier": 1.0,
            "attention_out_multiplier": 1.0, "key_multiplier": 1.0,
        },
    ),
}  # fmt: skip
VISION += [
    "gemma3", "gemma4", "llama4", "mistral3", "mistral4", "mistral_large4", "mllama", "qwen2_vl", "qwen2_5_vl",
    "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "qwen2_5_omni_thinker", "llava", "llava_next",
    "llava_onevision", "internvl", "idefics2", "idefics3", "smolvlm", "paligemma", "glm4v", "glm46v", "glm4v_moe",
    "kimi_k25", "ovis2", "aya_vision", "cohere2_vision", "aria", "lfm2_vl", "ernie4_5_vl_moe", "step3p7",
    "granite4_vision", "got_ocr2", "chameleon", "janus", "molmo2", "muse_glimmer", "blip-2", "florence2",
    "minimax_m3_vl", "inkling_mm_model", "gemma3n",
]  # fmt: skip


def tiny_config(model_type: str, changes: dict | None = None):

    cls = CONFIG_MAPPING[model_type]
    return shrunk(cls, SPECIAL.get(model_type, {}) | (changes or {}))


def shrunk(cls, changes: dict):
    """The class's config, small; `changes` win, {"text_config": {...}} changes a part."""

    kwargs = {}
    for field in dataclasses.fields(cls):
        name, default = field.name, field.default
        if name not in SMALL or (default is None and name in NEVER_FROM_NONE):
            continue
        if default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            default = 0
        if "int" not in str(field.type) or str(field.type).startswith(("list[int] |", "tuple")):
            if not isinstance(default, float) and name not in ("mamba_d_head", "time_step_rank", "mamba_dt_rank"):
                continue
        if isinstance(default, (list, dict, str)) and name not in ("mamba_d_head", "time_step_rank", "mamba_dt_rank"):
            continue
        kwargs[name] = SMALL[name]
    parts = dict(getattr(cls, "sub_configs", {}) or {})
    for name, part in parts.items():
        own = changes.get(name, {})
        if own is None:
            kwargs[name] = None
            continue
        kind = own.pop("model_type", None) if isinstance(own, dict) and "model_type" in own else None
        if kind is None and part.__name__ in ("AutoConfig",):
            probe = cls()
            there = getattr(probe, name, None)
            if there is None:
                continue
            kind = there.model_type
        sub = CONFIG_MAPPING[kind] if kind else part
        kwargs[name] = shrunk(sub, dict(own))
    high = VOCAB - 1
    for field in dataclasses.fields(cls):  # ids of images and sounds: the last ones of the small vocabulary
        odd = field.name.endswith(("_token_id", "_token_index", "token_ids")) and field.name not in kwargs
        if odd and isinstance(field.default, int) and field.default >= VOCAB:
            kwargs[field.name], high = high, high - 1
    for name, value in changes.items():
        if name in parts:
            continue
        if value is None and name in kwargs:
            del kwargs[name]
        elif name.startswith("="):
            kwargs[name[1:]] = value  # even None
        else:
            kwargs[name] = value
    return cls(**kwargs)
