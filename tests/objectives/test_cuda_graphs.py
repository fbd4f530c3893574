"""Recorded passes against the plain concatenation: the shape of one batch, the numbers of another.

On the CPU work is done again where a GPU replays its graph; with SOFTPROMPT_TEST_DEVICE=cuda graphs are what is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import softprompt.training.loop as train_module
from softprompt.data.soft_labels import SoftLabels
from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.cuda_graphs import GraphCache, GraphWork, Recorder, round_up
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from tests.laws.test_law2_step import OWNERS, plain_loss
from tests.support.cases import examples, gradient_tensors, mixed_prefixes, random_prompt
from tests.support.tasks import learner, run, settings
from tests.support.tiny import DEVICE, FAMILIES, tiny_lm

LENGTHS = (9, 2, 15, 3, 5, 7, 12, 4, 2)


def again(work: GraphWork) -> GraphWork:
    """What a GPU's recorder is on the CPU."""
    work()
    return work


def recorder() -> Recorder | None:
    return again if DEVICE == "cpu" else None


def same(
    lm: FrozenLM, graphs: GraphCache, prefixes: Sequence[Prefix], rows: Sequence[Example], prefix_ids: list[int]
) -> None:
    """Loss and gradient are those of the plain concatenation."""
    leaves = gradient_tensors(prefixes)
    losses = graphs.token_losses(prefixes, rows, prefix_ids)
    weights = torch.linspace(0.5, 1.5, len(losses), device=lm.device)
    ours = torch.autograd.grad((losses * weights).sum(), leaves)
    plain = token_losses(lm, prepare_prefixes(lm, prefixes), rows, prefix_ids)
    assert_close(losses, plain, rtol=1e-4, atol=1e-5)
    assert_close(losses.sum(), plain_loss(lm, prefixes, rows, prefix_ids), rtol=1e-5, atol=0)
    for mine, wanted in zip(ours, torch.autograd.grad((plain * weights).sum(), leaves), strict=True):
        assert (mine - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_new_prompts_and_rows_in_a_recorded_pass(family: str) -> None:
    lm = tiny_lm(family)
    graphs, shift = GraphCache(lm, recorder()), 0.0
    for seed in range(4):
        prefixes = mixed_prefixes(lm, grad=True)
        with torch.no_grad():
            for tensor in gradient_tensors(prefixes):
                tensor += shift
        same(lm, graphs, prefixes, examples(LENGTHS, seed=0 if seed < 2 else 50), list(OWNERS))
        shift += 0.1
    assert not graphs.failed
    assert len(graphs._recorded) in (1, 2), "the second pass was recorded, then it was replayed"


@pytest.mark.parametrize("form", ["embedding", "kv"])
def test_fewer_rows_in_the_same_shape(form: str) -> None:
    """What another batch left in the padding is learned by none."""
    lm = tiny_lm("llama")
    graphs = GraphCache(lm, recorder())
    prefix = Prefix(random_prompt(lm, form, 7, 5, grad=True), (), (50, 51))
    lengths = [31, 30, 29, 32]
    for seed in range(3):
        same(lm, graphs, [prefix], examples(lengths, seed=seed), [0] * 4)
    for shorter in ([29, 30, 31, 30], [32, 29, 29, 29]):
        same(lm, graphs, [prefix], examples(shorter, seed=9), [0] * 4)


def test_other_texts_around_prompts_of_the_same_shape() -> None:
    lm = tiny_lm("llama")
    graphs = GraphCache(lm, recorder())
    for lead, follow in (((3,), (50, 51)), ((3,), (60, 61)), ((9,), (60, 61))):
        prefix = Prefix(random_prompt(lm, "embedding", 7, 5, grad=True), lead, follow)
        for _ in range(3):
            same(lm, graphs, [prefix], examples(LENGTHS), [0] * len(LENGTHS))


def test_lessons() -> None:
    lm = tiny_lm("llama")
    graphs, prefix = GraphCache(lm, recorder()), Prefix(random_prompt(lm, "kv", 7, 5, grad=True))
    leaves = gradient_tensors([prefix])
    for seed in range(3):
        draw, rows = torch.Generator().manual_seed(seed), []
        for row in examples([9, 12, 15], seed=seed):
            ids = torch.stack([torch.randperm(300, generator=draw)[:5] for _ in range(sum(row.mask))]).int()
            logprobs = torch.log_softmax(torch.randn(len(ids), 6, generator=draw), -1)[:, :5]
            rows.append(replace(row, lesson=SoftLabels(ids, logprobs, 1.0 + seed, hard=0.5)))
        losses = graphs.token_losses([prefix], rows, [0] * 3)
        plain = token_losses(lm, prepare_prefixes(lm, [prefix]), rows)
        assert_close(losses, plain, rtol=1e-4, atol=1e-5)
        for mine, wanted in zip(
            torch.autograd.grad(losses.sum(), leaves), torch.autograd.grad(plain.sum(), leaves), strict=True
        ):
            assert (mine - wanted).norm() <= 1e-4 * wanted.norm()


def test_a_model_that_cannot_be_recorded_runs_as_ever() -> None:
    def refuses(work: GraphWork) -> GraphWork:
        raise RuntimeError("operation not permitted when stream is capturing")

    lm = tiny_lm("llama")
    graphs, prefixes = GraphCache(lm, refuses), mixed_prefixes(lm, grad=True)
    for _ in range(3):
        same(lm, graphs, prefixes, examples(LENGTHS), list(OWNERS))
    assert "not permitted" in graphs.failed


def test_running_out_of_memory_is_told() -> None:
    def refuses(work: GraphWork) -> GraphWork:
        raise torch.OutOfMemoryError("CUDA out of memory")

    lm = tiny_lm("llama")
    graphs, prefixes = GraphCache(lm, refuses), mixed_prefixes(lm, grad=True)
    graphs.token_losses(prefixes, examples(LENGTHS), OWNERS)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.token_losses(prefixes, examples(LENGTHS), OWNERS)


def test_the_least_used_passes_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.objectives.cuda_graphs.MAX_GRAPHS", 2)
    lm = tiny_lm("llama")
    graphs, prefix = GraphCache(lm, recorder()), Prefix(random_prompt(lm, "kv", 3, 5, grad=True))
    for lengths in ([5, 5], [9, 9], [5, 5], [17, 17]):
        for _ in range(2):
            same(lm, graphs, [prefix], examples(lengths), [0] * 2)
    assert len(graphs._recorded) == 2


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "p-tuning"])
def test_training_learns_the_same(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with and without; the second one takes recorded passes."""
    lm, made = tiny_lm("llama"), list[GraphCache]()

    def recording(*_: object) -> GraphCache:
        made.append(GraphCache(lm, recorder()))
        return made[-1]

    changes = {"steps": 12, "patience": None}
    monkeypatch.setattr(train_module, "graph_cache_for", lambda *_: None)
    plain = run(lm, learner(lm, method), tmp_path / "plain", **changes)
    monkeypatch.setattr(train_module, "graph_cache_for", recording)
    replayed = run(lm, learner(lm, method), tmp_path / "replayed", **changes)
    assert made and made[0]._recorded and not made[0].failed
    for mine, wanted in zip(replayed.history, plain.history, strict=True):
        assert mine["validation_loss"] == pytest.approx(wanted["validation_loss"], rel=1e-3)


def test_passes_are_replayed_on_gpus_only() -> None:
    assert (train_module.graph_cache_for(tiny_lm(), settings()) is None) == (DEVICE == "cpu")
    assert train_module.graph_cache_for(tiny_lm(), settings(graphs=False)) is None


@pytest.mark.parametrize("size", [*range(1, 70), 1000, 4097])
def test_sizes_are_rounded_up_by_a_quarter_at_most(size: int) -> None:
    assert size <= round_up(size) <= max(size + 1, 1.25 * size)
    assert round_up(round_up(size)) == round_up(size)
