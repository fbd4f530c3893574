"""Models that cannot take a prefix exactly are refused by name, with the reason."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
import transformers as tf

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.verify import verify
from tests.support.tiny import CONFIGS, VOCAB, tiny_lm, tiny_tokenizer

SMALL: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 256}


def random_lm(config: tf.PreTrainedConfig) -> FrozenLM:
    """A model of its own, with weights large enough that a mistake shows."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
    return FrozenLM(model, tiny_tokenizer(), "odd-one")


def gpt_neo(window: int, kinds: list[str]) -> tf.PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 64,
    }
    return tf.GPTNeoConfig(**sizes, attention_types=[[kinds, 1]], window_size=window, max_position_embeddings=256)


def test_a_state_space_model_keeps_nothing_to_extend() -> None:
    with pytest.raises(UnsupportedModelError, match=r"(?s)odd-one: mamba models keep no keys and values"):
        random_lm(tf.MambaConfig(**SMALL))


@pytest.mark.parametrize("window", [4, 20, 256])
def test_windows_of_its_own(window: int) -> None:
    """GPT-Neo's local attention counts slots of the cache; six tokens would not show a window of 256."""
    with pytest.raises(UnsupportedModelError, match=r"(?s)odd-one: gpt_neo models limit attention.*local"):
        random_lm(gpt_neo(window, ["global", "local"]))


def test_gpt_neo_without_local_layers_is_fine() -> None:
    verify(random_lm(gpt_neo(256, ["global", "global"])))


@pytest.mark.parametrize(
    "config",
    [
        tf.MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=256),  # ALiBi counts slots
        tf.RecurrentGemmaConfig(
            **SMALL, **HEADS, lru_width=32, attention_window_size=11, block_types=["recurrent", "attention"]
        ),
        tf.CohereConfig(**SMALL, **HEADS, logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    ],
    ids=lambda config: config.model_type,
)
def test_other_arithmetic(config: tf.PreTrainedConfig) -> None:
    lm = random_lm(config)
    reason = rf"(?s)odd-one: {config.model_type} models cannot take a prefix exactly.*off by \d"
    with pytest.raises(UnsupportedModelError, match=reason):
        verify(lm)
    with pytest.raises(UnsupportedModelError, match=reason):
        prepare_prefixes(lm, [Prefix(lead=(5,))])  # and again: nothing was remembered as verified
    assert not PrefixRuntime.of(lm).exact and PrefixRuntime.of(lm).mask_style is None


def changed(drop: str) -> FrozenLM:
    """A llama that ignores one of the arguments that a prefix needs."""
    lm = random_lm(CONFIGS["llama"]())
    inner = lm.hf_model.base_model
    forward = inner.forward

    def without(self: object, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop(drop, None)
        return forward(*args, **kwargs)

    inner.forward = MethodType(without, inner)
    return lm


@pytest.mark.parametrize("argument", ["position_ids", "attention_mask", "past_key_values"])
def test_an_argument_that_is_dropped(argument: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"(?s)odd-one: llama models"):
        verify(changed(argument))


def test_bloom_takes_no_such_mask() -> None:
    """An error inside the model is a reason too, not a crash."""
    lm = random_lm(tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(UnsupportedModelError, match=r"(?s)odd-one: bloom models.*ValueError: too many values"):
        verify(lm)
    assert not PrefixRuntime.of(lm).exact and PrefixRuntime.of(lm).mask_style is None


def test_a_model_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    PrefixRuntime.of(lm).exact = False
    verify(lm)
    monkeypatch.setattr(lm, "_model", None)  # touching the model again would raise
    verify(lm)


def test_half_precision_is_verified_with_its_own_tolerance() -> None:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS["llama"](), dtype=torch.bfloat16)
    verify(FrozenLM(model, tiny_tokenizer(), "half"))
