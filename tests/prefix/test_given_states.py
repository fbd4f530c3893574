"""Soft prompts of states: those of a text act as the text, and their gradient is that of concatenation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.errors import GeometryError, UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import hidden_states, prepare_prefixes, start_decoding
from softprompt.prefix.state import StatePrefixes, cached_states, compute_states
from softprompt.prefix.verify import verify
from softprompt.prompts.forms import EmbeddingPrompt, StatePrompt, check_fits
from tests.support.odd_models import STATE_CONFIGS, odd_lm
from tests.support.tiny import tiny_lm

FAMILIES = sorted(STATE_CONFIGS.keys() - {"mamba"})


def text(count: int, seed: int) -> list[int]:
    return torch.randint(4, 260, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_after(lm: FrozenLM, prefix: Prefix, rows: list[list[int]]) -> Tensor:
    return lm.logits(hidden_states(lm, prepare_prefixes(lm, [prefix]), [Row(row) for row in rows]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_of_a_text_are_the_text(family: str) -> None:
    lm = odd_lm(family)
    lead, rows = text(9, 1), [text(7, 2), text(1, 3)]
    with torch.no_grad():
        verify(lm)
        prompt = compute_states(lm, Prefix(lead=tuple(lead)))
        check_fits(prompt, lm.geometry)
        ours = logits_after(lm, Prefix(prompt, follow=(30, 31)), rows)
        wanted = [
            lm.hf_model(torch.tensor([[*lead, 30, 31, *row]], device=lm.device), use_cache=False).logits[0, 11:]
            for row in rows
        ]
        assert_close(ours, torch.cat(wanted), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_grow_after_given_states(family: str) -> None:
    lm, lead = odd_lm(family), text(9, 1)
    with torch.no_grad():
        verify(lm)
        prompt = compute_states(lm, Prefix(lead=tuple(lead)))
        row = text(3, 4)
        session = start_decoding(lm, prepare_prefixes(lm, [Prefix(prompt)]), [row], [0], 4)
        for token in (50, 60, 70):
            wanted = lm.hf_model(torch.tensor([[*lead, *row]], device=lm.device), use_cache=False).logits[0, -1:]
            assert_close(lm.logits(session.hidden), wanted, rtol=1e-3, atol=1e-3)
            session.step(torch.tensor([token], device=session.hidden.device))
            row.append(token)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_by_the_states_is_that_of_concatenation(family: str) -> None:
    """dL/dE by concatenation = dL/dS · dS/dE, with E a prefix's embeddings and S the states that it leaves."""
    lm, rows = odd_lm(family), [text(6, 5), text(3, 6)]
    soft = torch.randn(5, lm.geometry.hidden, generator=torch.Generator().manual_seed(7)).requires_grad_()
    whole = [
        lm.hf_model(inputs_embeds=torch.cat([soft, lm.embed(row)])[None], use_cache=False).logits[0, 5:] for row in rows
    ]
    (wanted,) = torch.autograd.grad(torch.cat(whole).square().mean(), soft)
    prefixes = prepare_prefixes(lm, [Prefix(EmbeddingPrompt(soft))])
    assert isinstance(prefixes, StatePrefixes)
    live = cached_states(lm, prefixes.states[0])
    given = live.freeze().map(lambda tensor: tensor.requires_grad_())
    by_states = torch.autograd.grad(
        logits_after(lm, Prefix(given), rows).square().mean(), list(given.tensors().values())
    )
    (ours,) = torch.autograd.grad(list(live.tensors().values()), soft, list(by_states))
    assert ((ours - wanted).norm() / wanted.norm()).item() < 1e-3


def test_a_model_that_starts_from_zero_says_so() -> None:
    lm = odd_lm("mamba")
    layers = tuple({name: torch.zeros(shape) for name, shape in states} for states in lm.geometry.states)
    with pytest.raises(UnsupportedModelError, match=r"(?s)cannot start from.*zero.*prompt-tuning"):
        prepare_prefixes(lm, [Prefix(StatePrompt(layers))])


def test_states_of_another_shape_do_not_fit() -> None:
    lm = odd_lm("granite4")
    verify(lm)
    prompt = compute_states(lm, Prefix(lead=(5, 6)))
    with pytest.raises(GeometryError, match="wrong shape"):
        check_fits(prompt.replace_tensors({n: t[..., :2] for n, t in prompt.tensors().items()}), lm.geometry)
    with pytest.raises(GeometryError, match="missing or too many"):
        check_fits(prompt, tiny_lm("llama").geometry)
