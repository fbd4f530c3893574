"""What rows ask and get in each layer, and what they would get after other keys: against the model's own attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix import attention_trace
from softprompt.prefix.attention_trace import LayerTrace, record_attention
from softprompt.prefix.kv import Prefix, require_causal
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import compute_keys_values, prepare_prefixes
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prompts.forms import KVPrompt
from tests.support.cases import text_ids
from tests.support.tiny import FAMILIES, tiny_lm

TEXT, ROWS = tuple(text_ids(9, 1)), [text_ids(5, 2), text_ids(3, 3)]
PROJECTIONS = ("attn.o_proj", "attn.c_proj", "attn.out_proj", "attention.dense")


def nothing(states_TH: Tensor, numbers: Sequence[int]) -> Tensor:
    return states_TH.sum()


def traces(lm: FrozenLM, prefix: Prefix) -> list[LayerTrace]:
    found = record_attention(lm, prepare_prefixes(lm, [prefix]), [Row(row) for row in ROWS], nothing)
    return [layer for layer in found if layer is not None]


def handed_on(lm: FrozenLM, ids: Sequence[int]) -> list[Tensor]:
    """By layer what the projection after attention is given [tokens, heads · D]."""
    found: list[Tensor] = []
    hooks = [
        part.register_forward_pre_hook(lambda _, args: found.append(args[0][0]))
        for name, part in lm.hf_model.named_modules()
        if name.endswith(PROJECTIONS)
    ]
    with torch.no_grad():
        lm.hf_model(input_ids=torch.tensor([list(ids)], device=lm.device))
    for hook in hooks:
        hook.remove()
    return found


def by_token(heads_KRTD: Tensor) -> Tensor:
    """[T, heads · D]."""
    return heads_KRTD.flatten(0, 1).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("numbers", [1, 10**9])
def test_what_rows_get_is_what_the_model_hands_on(family: str, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time or all at once; and asking the text's own keys again gives the same."""
    monkeypatch.setattr(attention_trace, "_WEIGHTS", numbers)
    lm = tiny_lm(family)
    before = str(lm.hf_model.config._attn_implementation)
    found = traces(lm, Prefix(lead=TEXT))
    assert lm.hf_model.config._attn_implementation == before and len(found) == 2
    short_first = [handed_on(lm, [*TEXT, *row]) for row in sorted(ROWS, key=len)]
    for i, (layer, kv) in enumerate(
        zip(found, require_causal(prepare_prefixes(lm, [Prefix(lead=TEXT)])).layers, strict=True)
    ):
        wanted = torch.cat([row[i][len(TEXT) :] for row in short_first])
        assert_close(by_token(layer.output), wanted, rtol=1e-4, atol=1e-5)
        assert kv is not None
        assert_close(by_token(layer.attend_to(kv[0][0], kv[1][0])), wanted, rtol=1e-4, atol=1e-5)
        assert layer.positions.tolist() == [9, 10, 11, 9, 10, 11, 12, 13]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("gpt2", "opt")])
def test_moved_queries_ask_a_shorter_prompt_as_rows_behind_it_do(family: str) -> None:
    """In the first layer, where what rows are does not depend on what stands before them."""
    lm = tiny_lm(family)
    layers = compute_keys_values(lm, Prefix(lead=tuple(text_ids(4, 7))))
    prompt = KVPrompt(tuple(kv and (kv[0][0], kv[1][0]) for kv in layers))
    layer = traces(lm, Prefix(lead=TEXT))[0].moved(lm, 0, 4 - len(TEXT))
    assert prompt.layers[0] is not None
    wanted = traces(lm, Prefix(prompt))[0]
    assert_close(layer.attend_to(*prompt.layers[0]), wanted.output, rtol=1e-4, atol=1e-5)
    assert layer.positions.tolist() == wanted.positions.tolist()


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_where_positions_are_learned_queries_stay(family: str) -> None:
    layer = traces(tiny_lm(family), Prefix(lead=TEXT))[0]
    moved = layer.moved(tiny_lm(family), 0, -5)
    assert torch.equal(moved.queries, layer.queries) and torch.equal(moved.positions, layer.positions - 5)


def test_a_token_beyond_the_window_sees_its_own_row_alone() -> None:
    """And leaves the gradient of the others as it is."""
    layer = traces(tiny_lm("mistral"), Prefix(lead=TEXT))[0]
    assert layer.window == 11
    far = replace(layer, positions=torch.tensor([9, 10, 11, 9, 10, 11, 12, 90]))
    keys, values = (torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (0, 1))
    seen = far.attend_to(keys, values)
    assert torch.equal(seen[:, :, -1], layer.own[:, :, -1])
    near = torch.autograd.grad(layer.of(torch.arange(7)).attend_to(keys, values).sum(), [keys, values])
    assert_close(torch.autograd.grad(seen.sum(), [keys, values]), near)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_gradient_is_by_what_attention_gives(family: str) -> None:
    """Against finite differences: the score with one number of it changed."""
    lm, weights = tiny_lm(family), torch.randn(5, 32, generator=torch.Generator().manual_seed(0))

    def score(states_TH: Tensor, numbers: Sequence[int]) -> Tensor:
        return (states_TH * weights).sum()

    prefix, row, (token, place), step = prepare_prefixes(lm, [Prefix(lead=TEXT)]), [Row(ROWS[0])], (1, 3), 1e-2
    layer = record_attention(lm, prefix, row, score)[1]
    (part,) = [part for name, part in lm.hf_model.named_modules() if name.endswith("1.self_attn.o_proj")]
    values = []
    for change in (step, -step):

        def changed(_: object, args: tuple[Tensor], change: float = change) -> tuple[Tensor]:
            given = args[0].clone()
            given[0, token, place] += change
            return (given,)

        hook = part.register_forward_pre_hook(changed)
        with torch.no_grad():
            values.append(score(packed_hidden_states(lm, prefix, row), []))
        hook.remove()
    assert layer is not None
    assert_close(by_token(layer.gradient)[token, place], (values[0] - values[1]) / (2 * step), rtol=1e-2, atol=1e-3)


def test_tokens_and_parts() -> None:
    layer = traces(tiny_lm("llama"), Prefix(lead=TEXT))[0]
    parts = [layer.of(torch.tensor([0, 1])), layer.of(torch.arange(2, 8))]
    both = LayerTrace.joined(parts)
    for name in ("queries", "own", "mass", "output", "gradient", "positions"):
        assert torch.equal(getattr(both, name), getattr(layer, name)), name


def test_a_model_whose_attention_cannot_be_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    monkeypatch.setattr(PrefixRuntime, "can_switch_attention", property(lambda self: False))
    with pytest.raises(UnsupportedModelError, match="cannot be recorded"):
        traces(lm, Prefix(lead=TEXT))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("numbers", [1, 10**9])
def test_peaks_are_the_largest_weights_of_the_model(family: str, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all tokens of the rows and the heads that share keys, against the model's own attention weights."""
    lm = tiny_lm(family)
    found = traces(lm, Prefix(lead=TEXT))
    monkeypatch.setattr(attention_trace, "_WEIGHTS", numbers)
    kvs = require_causal(prepare_prefixes(lm, [Prefix(lead=TEXT)])).layers
    before = str(lm.hf_model.config._attn_implementation)
    lm.hf_model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            outs = [
                lm.hf_model(input_ids=torch.tensor([[*TEXT, *row]], device=lm.device), output_attentions=True)
                for row in ROWS
            ]
    finally:
        lm.hf_model.set_attn_implementation(before)
    for i, (layer, kv) in enumerate(zip(found, kvs, strict=True)):
        assert kv is not None
        weights = torch.cat([out.attentions[i][0][:, len(TEXT) :, : len(TEXT)] for out in outs], 1)
        wanted = weights.amax(1).view(kv[0].shape[1], -1, len(TEXT)).amax(1)
        assert_close(layer.peaks(kv[0][0]), wanted, rtol=1e-4, atol=1e-5)
