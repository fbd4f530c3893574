"""A soft prompt fitted to what rows get after the text."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from softprompt.compaction import attention_matching
from softprompt.compaction.attention_matching import AttentionTargets, collect_targets, fit_to_attention
from softprompt.compaction.selection import SelectionInput, select_by_attention
from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix, require_causal
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt
from tests.compaction.test_selection import FOLLOW, rows, states
from tests.support.cases import text_ids
from tests.support.tiny import FAMILIES, tiny_lm

TEXT = tuple(text_ids(40, 1))


def embeddings(lm: FrozenLM, count: int) -> EmbeddingPrompt:
    return EmbeddingPrompt(lm.embed(torch.tensor(TEXT[:count])).float())


def losses(lm: FrozenLM, prompt: SoftPrompt, rows: AttentionTargets) -> list[float]:
    """By layer, of all tokens."""
    begin = prompt.n_tokens + len(FOLLOW)
    found = []
    for i, kv in enumerate(require_causal(prepare_prefixes(lm, [Prefix(prompt, follow=FOLLOW)])).layers):
        layer = attention_matching._Layer.of(lm, i, rows, begin)
        assert layer is not None and kv is not None
        found.append(layer.loss(kv[0][0], kv[1][0], torch.arange(len(layer.weights))).item())
    return found


@torch.no_grad()
@pytest.mark.parametrize("form", ["kv", "embedding"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_nearer_to_the_text(family: str, form: str) -> None:
    """What other rows are and get after it, than those that it was fitted on, in every layer."""
    lm, readings = tiny_lm(family), [SelectionInput(TEXT, FOLLOW, rows(60))]
    before: SoftPrompt = select_by_attention(lm, readings, 12) if form == "kv" else embeddings(lm, 12)
    after = fit_to_attention(lm, before, collect_targets(lm, readings), follow=FOLLOW)
    assert after.form == form and after.n_tokens == 12
    wanted = states(lm, None, TEXT)
    assert (states(lm, after) - wanted).norm() < 0.98 * (states(lm, before) - wanted).norm()
    others = collect_targets(lm, [SelectionInput(TEXT, FOLLOW, rows(20, 200))])
    for old, new in zip(losses(lm, before, others), losses(lm, after, others), strict=True):
        assert new < 0.85 * old


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_loss_is_what_the_first_layer_lacks(family: str) -> None:
    """Of all tokens, against the model's own attention after the prompt, written out."""
    lm, reading = tiny_lm(family), SelectionInput(TEXT, FOLLOW, rows(5))
    prompt = select_by_attention(lm, [reading], 12)
    behind_text = collect_targets(lm, [reading])
    behind_prompt = _heard_behind(lm, prompt, reading)
    layer = attention_matching._Layer.of(lm, 0, behind_text, 12 + len(FOLLOW))
    kv = require_causal(prepare_prefixes(lm, [Prefix(prompt, follow=FOLLOW)])).layers[0]
    assert layer is not None and kv is not None
    wanted, now = (rows.traces[0][1][0] for rows in (behind_text, behind_prompt))
    assert wanted is not None and now is not None
    missing = now.output - wanted.output
    if family == "gpt2":  # its rows know where they stand, in the first layer too
        missing = layer.trace.attend_to(kv[0][0], kv[1][0]) - layer.trace.output
    gradient = layer.trace.gradient.movedim(2, 0).flatten(1)
    fisher = gradient.T @ gradient / len(gradient)
    size = gradient.square().sum(1)
    weights = (size / size.mean()).clamp(*attention_matching._WEIGHT_RANGE)
    off = missing.movedim(2, 0).flatten(1)
    felt = (((off @ fisher) * off).sum(1) * weights).mean().sqrt()
    found = layer.loss(kv[0][0], kv[1][0], torch.arange(len(off)))
    assert_close(found, felt, rtol=2e-2, atol=1e-6)  # all directions are kept, as there are fewer than DIRECTIONS


def _heard_behind(lm: FrozenLM, prompt: KVPrompt, reading: SelectionInput) -> AttentionTargets:
    """The same of rows after a prompt in the text's place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            attention_matching,
            "prepare_prefixes",
            lambda lm, _: prepare_prefixes(lm, [Prefix(prompt, follow=reading.follow)]),
        )
        return collect_targets(lm, [reading])


def test_two_texts_are_fitted_together() -> None:
    """Each is nearer than before, on its own rows; the prompt is one."""
    lm = tiny_lm("llama")
    readings = [SelectionInput(TEXT, FOLLOW, rows(20)), SelectionInput(tuple(text_ids(20, 9)), FOLLOW, rows(20, 50))]
    before = select_by_attention(lm, readings, 12)
    both = collect_targets(lm, readings)
    assert [begin for begin, _ in both.traces] == [42, 22]
    after = fit_to_attention(lm, before, both, follow=FOLLOW)
    layer = attention_matching._Layer.of(lm, 0, both, 14)
    assert layer is not None and len(layer.weights) == 2 * 20 * 6
    for rows_of in (both, *(AttentionTargets((part,), both.directions) for part in both.traces)):
        assert losses(lm, after, rows_of)[0] < 0.9 * losses(lm, before, rows_of)[0]


def test_the_score_is_the_likelihood_of_what_is_learned() -> None:
    """Its gradient by the last layer's outputs, through a change of all of them in one direction."""
    lm, reading = tiny_lm("llama"), SelectionInput(TEXT, FOLLOW, rows(3))
    (last,) = [part for name, part in lm.hf_model.named_modules() if name.endswith("1.self_attn.o_proj")]
    found = collect_targets(lm, [reading]).traces[0][1][1]
    assert found is not None
    change = torch.randn(found.output.shape[0] * found.output.shape[1] * found.output.shape[3]) * 1e-2
    layout, values = prepare_prefixes(lm, [Prefix(lead=TEXT, follow=FOLLOW)]), []
    for sign in (1, -1):
        hook = last.register_forward_pre_hook(lambda _, args, sign=sign: (args[0] + sign * change,))
        with torch.no_grad():
            values.append(token_losses(lm, layout, reading.rows).sum())
        hook.remove()
    slope = (found.gradient.movedim(2, 0).flatten(1) @ change).sum()
    assert_close(slope, (values[0] - values[1]) / 2, rtol=2e-2, atol=1e-3)


def test_only_so_many_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fit in memory, and one at least."""
    lm, readings = tiny_lm("llama"), [SelectionInput(TEXT, FOLLOW, rows(5)), SelectionInput(TEXT, FOLLOW, rows(5))]
    per_token = 2 * 4 * (8 + 3 * 8 + 1)  # two layers of four heads of eight numbers
    for room, kept in ((0, 1), (2 * 13 * per_token, 2), (2 * 18 * per_token, 3), (10**9, 5)):
        monkeypatch.setattr(attention_matching, "_MAX_NUMBERS", room)
        first = [layers[0] for _, layers in collect_targets(lm, readings).traces]
        assert [layer and len(layer.positions) for layer in first] == [6 * kept] * 2


def test_the_directions_are_the_top_of_the_fisher_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_matching, "_DIRECTIONS", 3)
    gradient = torch.randn(2, 1, 50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3, 1, 0.1])
    gradient[0] *= 0.5
    found = attention_matching._top_directions(gradient).flatten(0, 2)
    rows = gradient.movedim(2, 0).flatten(1)
    sizes, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    wanted = (vectors[:, -3:] * sizes[-3:]) @ vectors[:, -3:].T
    assert_close(found @ found.T, wanted, rtol=1e-2, atol=1e-2 * wanted.norm().item())


def test_a_model_that_cannot_be_listened_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    monkeypatch.setattr(PrefixRuntime, "can_switch_attention", property(lambda self: False))
    with pytest.raises(UnsupportedModelError, match="cannot be recorded"):
        collect_targets(lm, [SelectionInput(TEXT, FOLLOW, rows(2))])
