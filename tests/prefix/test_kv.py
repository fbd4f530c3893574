"""A batch of prefixes: keys, values and positions of prefixes of any length."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.testing import assert_close

from softprompt.errors import DataError, GeometryError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import CausalPrefixKV, Prefix, require_causal
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.support.cases import (
    cached,
    check_close,
    gradient_tensors,
    mixed_prefixes,
    pairs,
    random_prompt,
    same_kv,
    text_ids,
)
from tests.support.tiny import FAMILIES, tiny_lm


def made(lm: FrozenLM, prefixes: Sequence[Prefix]) -> CausalPrefixKV:
    return require_causal(prepare_prefixes(lm, prefixes))


def test_a_lead_in_front_of_a_kv_prompt_is_refused() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(GeometryError, match=r"(?s)starts at position 0.*make the lead part of the prompt"):
        made(lm, [Prefix(random_prompt(lm, "kv", 3, 0), lead=(5,))])


def test_positions_and_lengths_of_a_mixed_bank() -> None:
    """KV prompts stand in the first slots, what is run after them; -1 marks an empty slot."""
    lm = tiny_lm("llama")
    own = made(lm, mixed_prefixes(lm))
    assert own.lengths == (13, 7, 10, 2, 3, 0)
    assert own.slots == 10 + 13
    for row, length in zip(own.positions.tolist(), own.lengths, strict=True):
        assert [p for p in row if p >= 0] == list(range(length))
    assert own.positions[1, :5].tolist() == [0, 1, 2, 3, 4]
    assert own.positions[1, 10:13].tolist() == [5, 6, -1]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_keys_and_values_are_the_models_own(family: str) -> None:
    """Of each prefix, as Transformers' cache has them."""
    lm = tiny_lm(family)
    prefixes = [Prefix(EmbeddingPrompt(lm.embed(text_ids(4, 1))), (3,), (9, 10)), Prefix(None, (5, 6)), Prefix()]
    own = made(lm, prefixes)
    texts = [[3, *text_ids(4, 1), 9, 10], [5, 6]]
    for number, text in enumerate(texts):
        held = own.positions[number] >= 0
        for ours, theirs in zip(pairs(own.layers), cached(lm, text), strict=True):
            for mine, wanted in zip(ours, theirs, strict=True):
                check_close(mine[number][:, held], wanted)


def test_a_kv_prompt_is_taken_as_it_is() -> None:
    lm = tiny_lm("llama")
    prompt = random_prompt(lm, "kv", 4, 7)
    assert isinstance(prompt, KVPrompt)
    own = made(lm, [Prefix(prompt)])
    assert same_kv([(keys[0], values[0]) for keys, values in pairs(own.layers)], prompt.layers)


def test_a_bank_of_nothing() -> None:
    own = made(tiny_lm("llama"), [Prefix(), Prefix()])
    assert (own.slots, own.lengths) == (0, (0, 0))


def test_past_is_shared_where_there_is_one_prefix() -> None:
    lm = tiny_lm("llama")
    own = made(lm, [Prefix(random_prompt(lm, "kv", 4, 7))])
    (keys, _), *_ = pairs(own.past(torch.tensor([0, 0, 0])))
    assert keys.shape[0] == 3
    assert keys.stride(0) == 0, "expanded, not copied"


def test_past_follows_the_owners() -> None:
    lm = tiny_lm("llama")
    own = made(lm, [Prefix(random_prompt(lm, "kv", 4, seed)) for seed in range(3)])
    wanted = [(keys[[2, 0, 2]], values[[2, 0, 2]]) for keys, values in pairs(own.layers)]
    assert same_kv(own.past(torch.tensor([2, 0, 2])), wanted)


def test_gradient_only_where_a_prompt_has_one() -> None:
    lm = tiny_lm("llama")
    live, still = mixed_prefixes(lm, grad=True), mixed_prefixes(lm)
    assert all(keys.requires_grad for keys, _ in pairs(made(lm, live).layers))
    assert not any(keys.requires_grad for keys, _ in pairs(made(lm, still).layers))
    mixed = [live[0], *still[1:]]
    states = packed_hidden_states(lm, made(lm, mixed), [Row([5, 6], n) for n in range(len(mixed))])
    grads = torch.autograd.grad(states.sum(), gradient_tensors(live[:1]))
    assert all(g.norm() > 0 for g in grads)


def test_prompts_in_another_dtype_are_moved() -> None:
    lm = tiny_lm("llama")
    for form in ("embedding", "kv"):
        prompt = random_prompt(lm, form, 3, 0)
        half = {name: t.bfloat16() for name, t in prompt.tensors().items()}
        low = (
            EmbeddingPrompt(half["embeddings"])
            if form == "embedding"
            else KVPrompt(tuple((half[f"layers.{i}.k"], half[f"layers.{i}.v"]) for i in range(2)))
        )
        own, wanted = made(lm, [Prefix(low)]), made(lm, [Prefix(prompt)])
        for kv, other in zip(pairs(own.layers), pairs(wanted.layers), strict=True):
            assert kv[0].dtype == torch.float32
            assert_close(kv[0], other[0], rtol=0.1, atol=0.1)


def test_rows_that_do_not_fit_are_refused() -> None:
    lm = tiny_lm("llama")
    size, own = lm.geometry.max_positions, made(lm, [mixed_prefixes(lm)[0], Prefix()])
    room = size - own.lengths[0]
    packed_hidden_states(lm, own, [Row(text_ids(room, 0))])
    with pytest.raises(DataError, match=f"(?s)do not fit.*{size + 1}"):
        packed_hidden_states(lm, own, [Row(text_ids(room + 1, 0))])
    packed_hidden_states(lm, own, [Row(text_ids(room + 1, 0), 1)])  # after the shorter prefix it does
    with pytest.raises(DataError, match="a row has no tokens"):
        packed_hidden_states(lm, own, [Row([5]), Row([])])


def test_many_rows_in_one_bin_may_be_longer_than_the_context() -> None:
    """Positions count within a row, so packing costs no context."""
    lm = tiny_lm("llama")
    rows = [Row(text_ids(20, n)) for n in range(30)]
    assert lm.geometry.max_positions < 30 * 20
    states = packed_hidden_states(lm, made(lm, [Prefix()]), rows, capacity=10_000)
    assert states.shape[0] == 600


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_prefix_longer_than_the_context_is_refused(family: str) -> None:
    """Before it is run: a table of learned positions has no row for it."""
    lm = tiny_lm(family)
    most = lm.geometry.max_positions
    assert made(lm, [Prefix(lead=(7,) * most)]).lengths == (most,)
    for long in (Prefix(lead=(7,) * (most + 1)), Prefix(random_prompt(lm, "kv", most, 0), follow=(7,))):
        with pytest.raises(DataError, match=rf"(?s)does not fit in the model's context.*<= {most}.*got: *{most + 1}"):
            made(lm, [Prefix(lead=(7,)), long])
