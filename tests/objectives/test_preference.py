"""DPO from one bank of prefixes equals a plain implementation on separate passes, row by row: losses and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.preference import implied_rewards, policy_and_reference, preference_losses, row_sums
from softprompt.prefix.kv import Prefix
from softprompt.prompts.base import SoftPrompt
from tests.laws.oracle import plain_logits
from tests.support.cases import examples, random_prompt
from tests.support.tiny import tiny_lm

BETA, SMOOTHING = 0.7, 0.2


def rows_of(seed: int) -> tuple[list[Example], list[Example]]:
    """Chosen and rejected answers of three pairs, of different lengths."""
    return examples([7, 12, 5], seed), examples([9, 4, 8], seed + 50)


def prompts(lm: FrozenLM, form: str) -> tuple[SoftPrompt, SoftPrompt]:
    """Two policies with gradient, of different lengths."""
    return random_prompt(lm, form, 4, 1, grad=True), random_prompt(lm, form, 6, 2, grad=True)


def plain_logprob(lm: FrozenLM, prefix: Prefix, row: Example) -> Tensor:
    """The sum over one row's learned tokens, from the model's own pass."""
    logprobs = plain_logits(lm, prefix, row.ids).log_softmax(-1)
    return torch.stack([logprobs[t - 1, row.ids[t]] for t, on in enumerate(row.mask) if on]).sum()


@pytest.mark.parametrize("reference", ["start", "base"])
@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_one_bank_is_four_plain_passes(form: str, reference: str) -> None:
    lm = tiny_lm("llama")
    policy, (chosen, rejected) = prompts(lm, form), rows_of(3)
    start = [random_prompt(lm, form, n, seed) for n, seed in ((4, 8), (6, 9))]  # training has moved the policy since
    fixed = start if reference == "start" else [None, None]
    lead = (3,) if form == "embedding" else ()
    policies = [Prefix(prompt, lead, (20, 21)) for prompt in policy]
    references = [Prefix(prompt, lead if prompt else (3,), (20, 21)) for prompt in fixed]
    ids, rows = [0, 1, 0], [*chosen, *rejected]
    own, other = policy_and_reference(lm, rows, (policies, ids * 2), (references, ids * 2))
    sums = [row_sums(values, rows).view(2, -1) for values in (own, other)]
    losses = preference_losses(implied_rewards(sums[0], sums[1], beta=BETA), label_smoothing=SMOOTHING)
    leaves = [tensor for prompt in policy for tensor in prompt.tensors().values()]
    grads = torch.autograd.grad(losses.mean(), leaves)

    plain = list[Tensor]()
    for number, good, bad in zip(ids, chosen, rejected, strict=True):
        ratios = []
        for row in (good, bad):
            with torch.no_grad():
                base = plain_logprob(lm, references[number], row)
            ratios.append(plain_logprob(lm, policies[number], row) - base)
        margin = BETA * (ratios[0] - ratios[1])
        right, wrong = torch.sigmoid(margin).log(), torch.sigmoid(-margin).log()
        plain.append(-(1 - SMOOTHING) * right - SMOOTHING * wrong)
    wanted = torch.stack(plain)
    assert_close(losses, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # in one pass
        again = policy_and_reference(lm, rows, (policies, ids * 2), (references, ids * 2))
    assert_close(again, (own, other), rtol=1e-5, atol=1e-5)
    for grad, plain_grad in zip(grads, torch.autograd.grad(wanted.mean(), leaves), strict=True):
        assert plain_grad.abs().max() > 1e-4
        assert_close(grad, plain_grad, rtol=1e-4, atol=1e-5)


def test_where_policy_and_reference_are_one_nothing_is_preferred() -> None:
    lm = tiny_lm("llama")
    prompt, (chosen, rejected) = random_prompt(lm, "kv", 4, 1), rows_of(7)
    rows = [*chosen, *rejected]
    prefixes = [Prefix(prompt)]
    own, other = policy_and_reference(lm, rows, (prefixes, [0] * 6), (prefixes, [0] * 6))
    rewards = implied_rewards(row_sums(own, rows).view(2, -1), row_sums(other, rows).view(2, -1), beta=BETA)
    assert_close(preference_losses(rewards), torch.full((3,), 0.6931472), rtol=1e-5, atol=1e-5)


def test_sums_belong_to_their_rows() -> None:
    rows = examples([3, 6], 1)
    rows[1] = replace(rows[1], mask=(False, True, False, True, False, True))
    counts = [sum(row.mask) for row in rows]
    values = torch.arange(float(sum(counts)))
    assert row_sums(values, rows).tolist() == [values[: counts[0]].sum(), values[counts[0] :].sum()]
