"""Random tiny models of every supported family and a byte tokenizer: no downloads, milliseconds a forward.

They are float32 on the CPU, or of the dtype and on the device in SOFTPROMPT_TEST_DTYPE and SOFTPROMPT_TEST_DEVICE
(`scripts/test-gpu`; its report sorts the tests that are not written for another one).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from softprompt.models.frozen_lm import FrozenLM

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")
DEVICE = os.environ.get("SOFTPROMPT_TEST_DEVICE", "cpu")
DTYPE: torch.dtype = getattr(torch, os.environ.get("SOFTPROMPT_TEST_DTYPE", "float32"))
VOCAB = 300  # 4 special + 256 bytes + some never used

_common: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
_gqa: dict[str, Any] = _common | {"num_key_value_heads": 2, "head_dim": 8}

CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**_gqa),
    "mistral": lambda: tf.MistralConfig(**_gqa, sliding_window=11),
    "qwen2": lambda: tf.Qwen2Config(**_common, num_key_value_heads=2),
    "qwen3": lambda: tf.Qwen3Config(
        **_gqa,
        use_sliding_window=True,
        sliding_window=11,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma2": lambda: tf.Gemma2Config(
        **_gqa,
        sliding_window=11,
        attn_logit_softcapping=2.0,  # low enough that a small random model feels it
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=8,
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **_gqa,
        sliding_window=11,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    ),
    "gpt2": lambda: tf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_common),
    "opt": lambda: tf.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        word_embed_proj_dim=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=256,
    ),
    "phi3": lambda: tf.Phi3Config(**_gqa, sliding_window=11, pad_token_id=0),
    "olmo2": lambda: tf.Olmo2Config(**_gqa),
}
FAMILIES = tuple(CONFIGS)

_t5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 6,  # four heads of it are not the model's width
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "eos_token_id": 2,
}
_t5_1_1: dict[str, Any] = _t5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SEQ2SEQ_CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "t5": lambda: tf.T5Config(**_t5),
    "t5-1.1": lambda: tf.T5Config(**_t5_1_1),
    "mt5": lambda: tf.MT5Config(**_t5),
    "umt5": lambda: tf.UMT5Config(**_t5),
}
SEQ2SEQ_FAMILIES = tuple(SEQ2SEQ_CONFIGS)


def tiny_tokenizer(*, bos: bool = False, closing: bool = False) -> tf.PreTrainedTokenizerBase:
    """One token per byte plus ChatML's special tokens; `bos` makes it put <s> first, as Llama's does, and `closing`
    makes it put the end token after every text, as T5's does, which has no BOS and no chat template either."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {token: i for i, token in enumerate([*SPECIAL, *sorted(alphabet)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if bos:
        core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    if closing:
        end = [("<|im_end|>", vocab["<|im_end|>"])]
        core.post_processor = TemplateProcessing(single="$A <|im_end|>", special_tokens=end)
        return tf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        bos_token="<s>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


@functools.cache
def tiny_model(family: str, seed: int = 0) -> tf.PreTrainedModel:
    """A random model with weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    config._attn_implementation = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
    return model.to(DEVICE, DTYPE)  # type: ignore[arg-type]


@functools.cache
def tiny_lm(family: str = "llama", *, bos: bool = False) -> FrozenLM:
    """A frozen tiny model; shared between tests, which is safe because nothing may change it."""
    return FrozenLM(tiny_model(family), tiny_tokenizer(bos=bos), f"tiny-{family}")


@functools.cache
def tiny_seq2seq_model(family: str = "t5", seed: int = 0) -> tf.PreTrainedModel:
    """A random encoder–decoder; its biases of relative positions are large enough to matter."""
    torch.manual_seed(seed)
    model = tf.AutoModelForSeq2SeqLM.from_config(SEQ2SEQ_CONFIGS[family]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.0 if "relative_attention_bias" in name else 0.3)
    return model.to(DEVICE, DTYPE)  # type: ignore[arg-type]


@functools.cache
def tiny_seq2seq(family: str = "t5") -> FrozenLM:
    """A frozen tiny encoder–decoder; shared, as `tiny_lm`."""
    return FrozenLM(tiny_seq2seq_model(family), tiny_tokenizer(closing=True), f"tiny-{family}")
