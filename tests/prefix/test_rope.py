"""Keys moved to other positions are the keys that the model itself makes there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import DynamicCache

from softprompt.errors import GeometryError, UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.transformers_compat import CACHE_ARGUMENT
from softprompt.prefix.rope import shift_positions
from softprompt.prompts.forms import KVPrompt
from tests.support.cases import random_prompt, text_ids
from tests.support.tiny import CONFIGS, FAMILIES, VOCAB, tiny_lm, tiny_tokenizer

LEARNED = ("gpt2", "opt")  # learned absolute positions
_size: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
_half: dict[str, Any] = _size | {"head_dim": 8, "partial_rotary_factor": 0.5}
_rope: dict[str, Any] = {"rope_theta": 10000.0}
OTHERS: dict[str, tf.PreTrainedConfig] = {
    "pairs, written each twice": tf.CohereConfig(**_size, logit_scale=1.0),
    "pairs, half of a key": tf.GlmConfig(**_half),
    "half of a key": tf.PhiConfig(**_half),
    "a layer without positions": tf.SmolLM3Config(**_size, no_rope_layers=[1, 0]),
    "linear": tf.LlamaConfig(**_size, rope_parameters=_rope | {"rope_type": "linear", "factor": 4.0}),
    "dynamic": tf.LlamaConfig(**_size, rope_parameters=_rope | {"rope_type": "dynamic", "factor": 4.0}),
    "scaled size": tf.LlamaConfig(
        **_size,
        rope_parameters=_rope | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "two angles": tf.Gemma3TextConfig(
        **_size,
        head_dim=8,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
        },
    ),
    "longrope": tf.Phi3Config(
        **_size,
        original_max_position_embeddings=64,
        rope_parameters=_rope
        | {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.5, 2.0, 3.0],
            "long_factor": [4.0, 5.0, 6.0, 7.0],
            "factor": 2.0,
            "original_max_position_embeddings": 64,
        },
    ),
}


def other_lm(name: str, config: tf.PreTrainedConfig | None = None) -> FrozenLM:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config or OTHERS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
    return FrozenLM(model, tiny_tokenizer(), name)


@torch.no_grad()
def harvested(lm: FrozenLM, ids: Sequence[int], start: int) -> KVPrompt:
    """What Transformers' own cache holds of a text that stands at these positions."""
    cache: Any = DynamicCache()
    positions = torch.arange(start, start + len(ids), device=lm.device)[None]
    lm.hf_model(
        input_ids=torch.tensor([list(ids)], device=lm.device),
        position_ids=positions,
        **{CACHE_ARGUMENT: cache},
        use_cache=True,
    )
    return KVPrompt(tuple((layer.keys[0], layer.values[0]) for layer in cache.layers))


def check_same(one: KVPrompt, other: KVPrompt) -> None:
    for mine, theirs in zip(one.tensors().items(), other.tensors().items(), strict=True):
        assert mine[0] == theirs[0]
        assert_close(mine[1], theirs[1], rtol=1e-4, atol=1e-4)


def check_moves(lm: FrozenLM) -> None:
    ids = text_ids(7, 1)
    for start, end in ((0, 1), (0, 40), (40, 0), (9, 23)):
        wanted = harvested(lm, ids, end)
        assert not torch.allclose(wanted.tensors()["layers.0.k"], harvested(lm, ids, start).tensors()["layers.0.k"])
        check_same(shift_positions(lm, harvested(lm, ids, start), [end - start] * 7), wanted)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in LEARNED])
def test_moved_keys_are_the_keys_of_the_place(family: str) -> None:
    check_moves(tiny_lm(family))


@pytest.mark.parametrize("kind", OTHERS)
def test_every_kind_of_rotation(kind: str) -> None:
    check_moves(other_lm(kind))


@pytest.mark.parametrize("family", LEARNED)
def test_learned_positions_are_refused(family: str) -> None:
    lm = tiny_lm(family)
    prompt = harvested(lm, text_ids(4, 1), 0)
    with pytest.raises(UnsupportedModelError, match=rf"(?s)keys of {family} models cannot be moved.*embedding prompts"):
        shift_positions(lm, prompt, [3] * 4)
    assert shift_positions(lm, prompt, [0] * 4) is prompt, "not moving is always possible"


def test_a_model_whose_keys_say_more_than_a_turn_is_refused() -> None:
    """Rotary as the name says, but positions are in the last layer's values too."""
    lm = other_lm("llama", CONFIGS["llama"]())
    base: Any = lm.hf_model.base_model
    rotary = base.rotary_emb
    places: list[torch.Tensor] = []

    def turned(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        places[:] = [position_ids]
        return type(rotary).forward(rotary, x, position_ids)

    rotary.forward = turned
    base.layers[-1].self_attn.v_proj.register_forward_hook(lambda module, args, out: out + 0.1 * places[0][..., None])
    with pytest.raises(UnsupportedModelError, match="cannot be moved"):
        shift_positions(lm, harvested(lm, text_ids(4, 1), 0), [3] * 4)


def test_beyond_the_context_nothing_is_exact() -> None:
    """A longrope model changes its angles beyond the original context, which is the geometry's."""
    lm = other_lm("longrope")
    assert lm.geometry.max_positions == 64
    prompt = harvested(lm, text_ids(2, 1), 0)
    check_same(shift_positions(lm, prompt, [62] * 2), harvested(lm, text_ids(2, 1), 62))
    with pytest.raises(GeometryError, match=r"(?s)leave the model's context.*less than 64.*64"):
        shift_positions(lm, prompt, [64, 0])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["llama", "gpt_neox", "gemma3"]),
    st.lists(st.tuples(st.integers(-100, 100), st.integers(-100, 100)), min_size=1, max_size=6),
    st.integers(0, 2**31),
)
def test_moves_add_up_and_keep_sizes(family: str, moves: list[tuple[int, int]], seed: int) -> None:
    """Any keys, not only those of texts: two moves are one, back is back, lengths and values stay."""
    lm = tiny_lm(family)
    prompt = random_prompt(lm, "kv", len(moves), seed)
    assert isinstance(prompt, KVPrompt)
    first, second = [a for a, _ in moves], [b for _, b in moves]
    once = shift_positions(lm, shift_positions(lm, prompt, first), second)
    check_same(once, shift_positions(lm, prompt, [a + b for a, b in moves]))
    check_same(shift_positions(lm, once, [-a - b for a, b in moves]), prompt)
    for before, after in zip(prompt.layers, once.layers, strict=True):
        assert before is not None and after is not None
        assert_close(before[0].norm(dim=-1), after[0].norm(dim=-1))
        assert torch.equal(before[1], after[1])


def test_each_token_has_its_own_move() -> None:
    """Leaving a token out and closing the gap: the first layer's keys are those of the shorter text."""
    lm, ids = tiny_lm("llama"), text_ids(6, 3)
    whole = harvested(lm, ids, 0)
    layers = tuple(None if kv is None else (kv[0][:, [0, 1, 3, 5]], kv[1][:, [0, 1, 3, 5]]) for kv in whole.layers)
    closed = shift_positions(lm, KVPrompt(layers), [0, 0, -1, -2])
    wanted = harvested(lm, [ids[i] for i in (0, 1, 3, 5)], 0)
    assert_close(closed.tensors()["layers.0.k"], wanted.tensors()["layers.0.k"], rtol=1e-4, atol=1e-4)


def test_half_precision_models_turn_in_full_precision() -> None:
    """Angles rounded to bfloat16 would change the keys by a part in 256."""
    full = tiny_lm("llama")
    half = other_lm("half", CONFIGS["llama"]())
    for parameter in half.hf_model.parameters():  # loading keeps the frequencies, a buffer, in float32
        parameter.data = parameter.data.bfloat16()
    prompt = harvested(full, text_ids(4, 1), 0)
    check_same(shift_positions(half, prompt, [100] * 4), shift_positions(full, prompt, [100] * 4))
