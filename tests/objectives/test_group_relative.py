"""GRPO's advantages, divergences and losses against the formulas of the paper, and a plain pass for each answer."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.objectives.group_relative import group_advantages, group_relative_losses, k3_divergences
from softprompt.objectives.preference import policy_and_reference, row_sums
from softprompt.prefix.kv import Prefix
from tests.laws.oracle import plain_logits
from tests.support.cases import examples, random_prompt
from tests.support.tiny import tiny_lm

BETA, HEAT = 0.3, 0.8


def test_advantages_are_standard_scores_of_a_group() -> None:
    rewards = [[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]]
    found = group_advantages(torch.tensor(rewards))
    for row, group in zip(found, rewards, strict=True):
        mean, std = statistics.mean(group), statistics.stdev(group)
        assert_close(row, torch.tensor([(reward - mean) / (std + 1e-4) for reward in group]))
    assert found[1].tolist() == [0.0] * 4, "a group that agrees teaches nothing"


def test_k3_is_unbiased_and_never_negative() -> None:
    policy, reference = (torch.randn(50, generator=torch.Generator().manual_seed(i)).log_softmax(-1) for i in (1, 2))
    divergence = (policy.exp() * (policy - reference)).sum()
    estimates = k3_divergences(policy, reference)
    assert (estimates >= 0).all()
    assert_close((policy.exp() * estimates).sum(), divergence, rtol=1e-4, atol=1e-5)  # the mean over the policy


def test_losses_and_gradients_are_those_of_plain_passes() -> None:
    lm = tiny_lm("llama")
    rows, prompt = examples([7, 12, 5, 9], 3), random_prompt(lm, "kv", 4, 1, grad=True)
    policy, reference = Prefix(prompt, (), (20, 21)), Prefix(random_prompt(lm, "kv", 4, 2), (), (20, 21))
    advantages = group_advantages(torch.tensor([[1.0, 0.0], [0.5, 0.25]])).flatten()
    own, other = policy_and_reference(lm, rows, ([policy], [0] * 4), ([reference], [0] * 4), temperature=HEAT)
    counts = torch.tensor([sum(row.mask) for row in rows])
    values = group_relative_losses(own, other, advantages.repeat_interleave(counts), beta=BETA)
    loss = (row_sums(values, rows) / counts).mean()
    leaves = list(prompt.tensors().values())
    grads = torch.autograd.grad(loss, leaves)

    plain = list[Tensor]()
    for row, advantage in zip(rows, advantages, strict=True):
        places = [t for t, on in enumerate(row.mask) if on]
        logprobs = (plain_logits(lm, policy, row.ids) / HEAT).log_softmax(-1)
        with torch.no_grad():
            bases = (plain_logits(lm, reference, row.ids) / HEAT).log_softmax(-1)
        tokens = []
        for t in places:
            new, base = logprobs[t - 1, row.ids[t]], bases[t - 1, row.ids[t]]
            ratio, apart = new.exp() / new.exp().detach(), base.exp() / new.exp()
            tokens.append(ratio * advantage - BETA * (apart - apart.log() - 1))
        plain.append(-torch.stack(tokens).mean())
    wanted = torch.stack(plain).mean()
    assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    for grad, plain_grad in zip(grads, torch.autograd.grad(wanted, leaves), strict=True):
        assert_close(grad, plain_grad, rtol=1e-4, atol=1e-5)
