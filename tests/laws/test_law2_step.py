"""Law 2: the shared-prefix, packed step has the loss and the gradient of the plain concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import softprompt.models.frozen_lm as model_module
import softprompt.prefix.packed as rows_module
from softprompt.data.tokenize import Example
from softprompt.methods.base import Start
from softprompt.methods.registry import build_method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.training.config import TrainConfig
from softprompt.training.events import Event
from softprompt.training.loop import train
from softprompt.training.trial import Task, Trial
from tests.laws.oracle import plain_logits
from tests.support.cases import examples, gradient_tensors, mixed_prefixes, random_prompt, text_ids
from tests.support.tiny import FAMILIES, tiny_lm

LENGTHS = (9, 2, 15, 3, 1, 7, 12, 4, 2)  # some past the sliding window of 11; the row of one token learns nothing
OWNERS = (0, 1, 2, 3, 4, 5, 1, 3, 0)


def plain_loss(lm: FrozenLM, prefixes: Sequence[Prefix], rows: Sequence[Example], prefix_ids: Sequence[int]) -> Tensor:
    """The loss that concatenating libraries compute: logits everywhere, one row at a time."""
    total = torch.zeros((), device=lm.device)
    for row, owner in zip(rows, prefix_ids, strict=True):
        logits, ids = plain_logits(lm, prefixes[owner], row.ids), torch.tensor(row.ids, device=lm.device)
        mask = torch.tensor(row.mask[1:], dtype=torch.bool, device=lm.device)
        total = total + cross_entropy(logits[:-1][mask], ids[1:][mask], reduction="sum")
    return total


def check_step(lm: FrozenLM, prefixes: Sequence[Prefix], rows: Sequence[Example], prefix_ids: Sequence[int]) -> None:
    leaves = gradient_tensors(prefixes)
    ours = token_losses(lm, prepare_prefixes(lm, prefixes), rows, prefix_ids).sum()
    our_grads = torch.autograd.grad(ours, leaves)
    wanted = plain_loss(lm, prefixes, rows, prefix_ids)
    wanted_grads = torch.autograd.grad(wanted, leaves)
    assert_close(ours, wanted, rtol=1e-5, atol=0)
    for ours_one, wanted_one in zip(our_grads, wanted_grads, strict=True):
        assert wanted_one.norm() > 0, "the oracle has a gradient"
        assert (ours_one - wanted_one).norm() <= 1e-4 * wanted_one.norm()


@pytest.mark.parametrize("capacity", [1, 20, 10_000, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_prefixes(family: str, capacity: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm(family)
    if capacity is not None:
        monkeypatch.setattr(rows_module, "best_capacity", lambda *_: capacity)
    check_step(lm, mixed_prefixes(lm, grad=True), examples(LENGTHS), OWNERS)


@pytest.mark.parametrize("form", ["embedding", "kv"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_prompt(family: str, form: str) -> None:
    """The everyday case, where the prefix is not copied: `PrefixKV.past` expands it."""
    lm = tiny_lm(family)
    lead = () if form == "kv" else (3,)
    prefix = Prefix(random_prompt(lm, form, 7, 5, grad=True), lead, (50, 51))
    check_step(lm, [prefix], examples(LENGTHS), [0] * len(LENGTHS))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_gradient_checkpointing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, runs = tiny_lm(family), []
    real = model_module.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(model_module, "checkpoint", counted)
    prefixes, rows = mixed_prefixes(lm, grad=True), examples(LENGTHS)
    prepare_prefixes(lm, prefixes)  # the first call verifies the model, which would be counted too
    with lm.checkpoint_layers():
        leaves = gradient_tensors(prefixes)
        ours = torch.autograd.grad(token_losses(lm, prepare_prefixes(lm, prefixes), rows, OWNERS).sum(), leaves)
        assert len(runs) == 2 * len(lm.geometry.layers), "each layer, once for the prefixes and once for the rows"
    wanted = torch.autograd.grad(plain_loss(lm, prefixes, rows, OWNERS), leaves)
    assert len(runs) == 2 * len(lm.geometry.layers), "switched off again"
    for ours_one, wanted_one in zip(ours, wanted, strict=True):
        assert (ours_one - wanted_one).norm() <= 1e-4 * wanted_one.norm()


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize("accumulate", [1, 3, 50])
def test_the_training_step_in_parts(method: str, accumulate: int, tmp_path: Path) -> None:
    """Loss and gradient norm that `train` reports are those of the mean over all learned tokens of the batch."""
    lm, rows = tiny_lm("llama"), examples(LENGTHS)
    start = Start(n_tokens=4, text=tuple(text_ids(4, 9)))
    learner = build_method(method, lm, start)
    settings = TrainConfig(steps=1, batch_size=len(rows), accumulate=accumulate, clip=1e9)
    steps: list[dict[str, float]] = []

    def report(event: Event) -> None:
        if event.kind == "step":
            steps.append(event.numbers)

    oracle = build_method(method, lm, start)
    trial = Trial(learner, [Task(rows, [], (), (8,))], settings, lm.device)
    train(lm, [trial], tmp_path, report=report)
    wanted = plain_loss(lm, [Prefix(oracle()[0], (), (8,))], rows, [0] * len(rows)) / learned_tokens(rows)
    wanted.backward()
    norm = torch.stack([p.grad.norm() for p in oracle.parameters() if p.grad is not None]).norm()
    assert steps[0]["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    assert steps[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=steps[0]["lr"], weight_decay=0.0)
    optimizer.step()
    for ours, theirs in zip(learner.parameters(), oracle.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
