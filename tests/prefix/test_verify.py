"""Models that cannot take a prefix exactly are refused by name, with the reason."""

from __future__ import annotations

from dataclasses import replace
from types import MethodType
from typing import Any

import pytest
import torch
import transformers as tf

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import CACHE_ARGUMENT
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.verify import verify
from tests.support.tiny import CONFIGS, VOCAB, tiny_lm, tiny_tokenizer

SMALL: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}


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


@pytest.mark.parametrize("window", [4, 20, 256])
def test_windows_of_its_own(window: int) -> None:
    """GPT-Neo's local attention counts slots of the cache; six tokens would not show a window of 256."""
    lm = random_lm(gpt_neo(window, ["global", "local"]))
    verify(lm)
    assert PrefixRuntime.of(lm).path == "state"


def test_gpt_neo_without_local_layers_is_fine() -> None:
    verify(random_lm(gpt_neo(256, ["global", "global"])))


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


@pytest.mark.parametrize(
    ("argument", "path"),
    [("position_ids", "state"), ("attention_mask", "state"), (CACHE_ARGUMENT, "concatenated")],
)
def test_an_argument_that_is_dropped(argument: str, path: str) -> None:
    """Without what packed rows need, the next path is taken."""
    lm = changed(argument)
    verify(lm)
    runtime = PrefixRuntime.of(lm)
    assert runtime.path == path and "packed" in runtime.reasons


def test_a_model_that_is_not_causal() -> None:
    """And again: nothing is remembered as verified."""
    sizes: dict[str, Any] = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 256}
    lm = random_lm(tf.BertConfig(**SMALL, **sizes, is_decoder=False))
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"(?s)odd-one: bert models cannot.*not causal"):
            prepare_prefixes(lm, [Prefix(lead=(5,))])
    assert not PrefixRuntime.of(lm).exact


def test_a_window_that_the_models_masks_do_not_have() -> None:
    """Six tokens do not show a window of 256; the trial shrinks it."""
    lm = random_lm(CONFIGS["llama"]())
    runtime = PrefixRuntime.of(lm)
    lm.backbone.config.sliding_window = 256  # a number that Llama's masks do not use
    lm.geometry = replace(lm.geometry, windows=(256, 256))
    runtime.windows = lm.geometry.windows
    verify(lm)
    assert runtime.path == "concatenated" and "past a limit of its attention" in runtime.reasons["packed"]
    assert lm.backbone.config.sliding_window == 256


def test_an_error_inside_the_model_is_a_reason() -> None:
    lm = random_lm(tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4))
    verify(lm)
    assert "ValueError" in PrefixRuntime.of(lm).reasons["packed"]


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
