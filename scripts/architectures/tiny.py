"""Random models of tiny configs, a byte tokenizer, and random texts and prompts."""

from __future__ import annotations

import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt


def tiny_model(config, auto: str):
    """A random float32 model with weights large enough that every part of it matters."""

    torch.manual_seed(0)
    model = getattr(tf, auto).from_config(config, dtype=torch.float32).eval()
    randomize(model)
    return model


def randomize(model) -> None:

    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 1.0 if "relative_attention_bias" in name else 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.normal_(0.0, 0.3)


def tokenizer(*, bos: bool = False, closing: bool = False):
    """One token per byte plus ChatML's special tokens."""

    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")
    vocab = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    if bos:
        core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    if closing:
        core.post_processor = TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", bos_token=None if closing else "<s>", pad_token="<|endoftext|>"
    )


def text_ids(n: int, seed: int) -> list[int]:

    return torch.randint(4, 260, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def random_prompt(lm, form: str, n: int, seed: int, grad: bool = False):

    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int):
        return torch.randn(shape, generator=draw).to(lm.dtype).requires_grad_(grad)

    if form == "embedding":
        return EmbeddingPrompt(noise(n, lm.geometry.hidden))
    layers = lm.geometry.layers
    return KVPrompt(
        tuple(
            None if s is None else (noise(s.kv_heads, n, s.key_dim), noise(s.kv_heads, n, s.value_dim)) for s in layers
        )
    )
