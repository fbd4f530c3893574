"""Random tiny encoder–decoders beside T5: learned, sinusoidal and rotated positions, windows, blocks, biases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tokenizers.processors import TemplateProcessing

from softprompt.models.frozen_lm import FrozenLM
from tests.support.tiny import VOCAB, tiny_tokenizer

_ends: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 3}
_bart: dict[str, Any] = _ends | {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_t5gemma: dict[str, Any] = _ends | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
    "attn_logit_softcapping": None,
    "final_logit_softcapping": 3.0,
    "query_pre_attn_scalar": 8,
}


_longt5: dict[str, Any] = _ends | {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "local_radius": 3,
    "global_block_size": 4,
    "encoder_attention_type": "transient-global",
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
_bigbird: dict[str, Any] = _bart | {"max_position_embeddings": 128, "block_size": 4, "num_random_blocks": 1}


def _t5gemma_config() -> tf.PreTrainedConfig:
    """Halves of different widths and heads."""
    half = tf.T5GemmaModuleConfig
    wide: dict[str, Any] = _t5gemma | {"hidden_size": 48, "num_key_value_heads": 4}
    return tf.T5GemmaConfig(encoder=half(**wide), decoder=half(**_t5gemma), vocab_size=VOCAB, tie_word_embeddings=False)


CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "bart": lambda: tf.BartConfig(**_bart),
    "marian": lambda: tf.MarianConfig(**_bart, scale_embedding=True),
    "pegasus": lambda: tf.PegasusConfig(**_bart, scale_embedding=True),
    "t5gemma": _t5gemma_config,
    "longt5": lambda: tf.LongT5Config(**_longt5),
    # Chooses its attention by the text's length.
    "bigbird_pegasus": lambda: tf.BigBirdPegasusConfig(**_bigbird),
}
FAMILIES = ("bart", "marian", "pegasus", "t5gemma", "longt5")


def tiny_encoder_decoder_model(family: str) -> tf.PreTrainedModel:
    """A random float32 model whose weights and biases are large enough to matter."""
    torch.manual_seed(0)
    model = tf.AutoModelForSeq2SeqLM.from_config(CONFIGS[family]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.0 if "relative_attention_bias" in name else 0.3)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.normal_(0.0, 0.5)
    return model


def tiny_bart_tokenizer() -> tf.PreTrainedTokenizerBase:
    """One token per byte, with <s> before every text and the end token after it."""
    tokenizer: Any = tiny_tokenizer(bos=True)
    ends = [("<s>", 3), ("<|im_end|>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A <|im_end|>", special_tokens=ends)
    tokenizer.chat_template = None
    return tokenizer


@functools.cache
def tiny_encoder_decoder(family: str) -> FrozenLM:
    """A frozen tiny encoder–decoder; shared between tests, as `tiny_lm`."""
    return FrozenLM(tiny_encoder_decoder_model(family), tiny_tokenizer(closing=True), f"tiny-{family}")
