"""Prefix tuning: keys and values as parameters, directly or through an MLP."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.errors import ConfigError
from softprompt.methods.base import Method, Start
from softprompt.methods.initializers import harvest, initial_keys_values
from softprompt.methods.registry import build_method
from softprompt.prompts.forms import KVPrompt
from tests.support.cases import pairs, same_kv
from tests.support.tasks import context_of, run
from tests.support.tiny import FAMILIES, tiny_lm

TEXT = (70, 71, 72, 73, 74)
NAMES = ("prefix-tuning", "prefix-tuning-mlp")


def made(name: str, family: str = "llama", *, frozen_tokens: int = 0, n_tokens: int = 5) -> Method:
    context = context_of(name, frozen_tokens=frozen_tokens)
    return build_method(name, tiny_lm(family), Start(n_tokens, "text", TEXT), context)


def layers(prompts: tuple[object, ...]) -> list[tuple[Tensor, Tensor]]:
    (prompt,) = prompts
    assert isinstance(prompt, KVPrompt)
    return pairs(prompt.layers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_starts_exactly_at_the_harvested_keys_and_values(name: str, family: str) -> None:
    """The MLP too: its last matrix is zero."""
    assert same_kv(layers(made(name, family)()), harvest(tiny_lm(family), TEXT).layers)


@pytest.mark.parametrize("frozen_tokens", [0, 1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_frozen_tokens_stay_and_the_others_move(name: str, frozen_tokens: int, tmp_path: Path) -> None:
    """Through real optimiser steps, weight decay included."""
    method = made(name, frozen_tokens=frozen_tokens)
    before = [(k.clone(), v.clone()) for k, v in layers(method.freeze())]
    run(tiny_lm("llama"), method, tmp_path, steps=6, weight_decay=0.5, evals=1, schedule="constant", warmup=0.0)
    moved = []
    for old, new in zip(before, layers(method.freeze()), strict=True):
        for one, other in zip(old, new, strict=True):
            assert torch.equal(one[:, :frozen_tokens], other[:, :frozen_tokens])
            moved.append((one != other).any(dim=2).all(dim=0).tolist())
    assert moved == [[False] * frozen_tokens + [True] * (5 - frozen_tokens)] * len(moved)


@pytest.mark.parametrize("frozen_tokens", [5, 6])
@pytest.mark.parametrize("name", NAMES)
def test_something_must_be_left_to_train(name: str, frozen_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"(?s)frozen tokens must leave.*0 to 4.*{frozen_tokens}"):
        made(name, frozen_tokens=frozen_tokens)


def test_the_direct_parameters_are_the_tokens_that_move() -> None:
    method = made("prefix-tuning", frozen_tokens=2)
    shape = tiny_lm("llama").geometry.layers[0]
    assert shape is not None
    assert {tuple(p.shape) for p in method.parameters()} == {(shape.kv_heads, 3, shape.key_dim)}
    assert len(list(method.parameters())) == 2 * len(tiny_lm("llama").geometry.layers)


def test_the_mlp_is_the_papers() -> None:
    """P' = P_0 + tanh(E W1) W2, heads and layers laid out one after the other."""
    method = made("prefix-tuning-mlp", frozen_tokens=1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(0.0, 0.5)
    state = dict(method.named_parameters())
    change = torch.tanh(state["tokens"] @ state["inner"]) @ state["outer"]
    change = torch.cat([torch.zeros_like(change[:1]), change[1:]])
    begin = layers((initial_keys_values(tiny_lm("llama"), Start(5, "text", TEXT)),))
    column = 0
    for ours, start in zip(layers(method()), begin, strict=True):
        for one, first in zip(ours, start, strict=True):
            for head in range(len(one)):
                width = one.shape[2]
                assert_close(one[head], first[head] + change[:, column : column + width])
                column += width
    assert column == change.shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_state_carries_all_that_the_prompt_is_made_of(name: str) -> None:
    """A resumed run starts from another text; loading the state must bring back everything."""
    one = made(name, frozen_tokens=1)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.3)
    two = build_method(name, tiny_lm("llama"), Start(5, "vocab", seed=9), context_of(name, frozen_tokens=1))
    two.load_state_dict(one.state_dict())
    assert same_kv(layers(two()), layers(one()))
