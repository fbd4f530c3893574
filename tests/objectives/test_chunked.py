"""The chunked loss has the value and the gradient of plain cross entropy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from softprompt.data.soft_labels import SoftLabels
from softprompt.objectives.chunked import Head, SoftLabelBatch, cross_entropies, soft_label_losses
from tests.support.tiny import tiny_lm

WIDTH, VOCAB = 6, 11


def head(softcap: float | None = None) -> Head:
    weight = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))

    def logits(states: Tensor) -> Tensor:
        out = states @ weight.T
        return out if softcap is None else softcap * torch.tanh(out / softcap)

    return logits


def states_and_targets(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=draw), torch.randint(0, VOCAB, (count,), generator=draw)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99), st.none() | st.floats(0.5, 5), st.floats(-3, 3))
@settings(deadline=None, max_examples=100)
def test_value_and_gradient(count: int, chunk: int, seed: int, softcap: float | None, scale: float) -> None:
    """Any chunk size, a capped head, and losses that are scaled afterwards."""
    states, targets = states_and_targets(count, seed)
    ours, plain = states.clone().requires_grad_(), states.clone().requires_grad_()
    value = cross_entropies(ours, targets, head(softcap), chunk=chunk)
    wanted = cross_entropy(head(softcap)(plain), targets, reduction="none")
    weights = torch.linspace(-scale, scale, count)  # every position's loss may be scaled by itself
    (value * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert value.dtype == torch.float32
    assert_close(value, wanted, rtol=1e-5, atol=1e-5)
    assert plain.grad is not None
    assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_models_own_head(family: str) -> None:
    """`FrozenLM.logits` with and without Gemma's cap, against the model's loss of its logits."""
    lm = tiny_lm(family)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    out = lm.hf_model(input_ids=ids, output_hidden_states=True)
    wanted = cross_entropy(out.logits[0, :-1], ids[0, 1:], reduction="none")
    states = lm.hf_model.base_model(input_ids=ids).last_hidden_state[0, :-1]
    assert_close(cross_entropies(states, ids[0, 1:], lm.logits, chunk=2), wanted)


@given(st.integers(0, 20), st.integers(1, 25))
@settings(deadline=None, max_examples=50)
def test_without_gradient_the_values_are_the_same(count: int, chunk: int) -> None:
    states, targets = states_and_targets(count, 3)
    ours = cross_entropies(states, targets, head(), chunk=chunk)
    assert not ours.requires_grad
    assert_close(ours, -torch.log_softmax(head()(states), -1)[range(count), targets])


def test_half_precision_is_summed_in_float32() -> None:
    """In bfloat16 a sum of 300 losses near 2.4 would be a multiple of four."""
    states, targets = states_and_targets(300, 5)
    low = states.bfloat16().requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    value = cross_entropies(low, targets, lambda x: x @ weight.T, chunk=7).sum()
    wanted = cross_entropy((low.detach() @ weight.T).float(), targets, reduction="sum")
    assert_close(value.detach(), wanted, rtol=1e-5, atol=1e-3)
    value.backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


def test_only_a_chunk_of_logits_is_held() -> None:
    """The head never sees more rows than a chunk."""
    seen: list[int] = []
    plain = head()

    def watched(states: Tensor) -> Tensor:
        seen.append(len(states))
        return plain(states)

    states, targets = states_and_targets(10, 6)
    cross_entropies(states.clone().requires_grad_(), targets, watched, chunk=4).sum().backward()
    assert seen == [4, 4, 2], "and not once more in the backward pass"


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 99), st.floats(0.5, 3), st.floats(0, 2))
@settings(deadline=None, max_examples=60)
def test_lessons(count: int, k: int, seed: int, temperature: float, hard: float) -> None:
    """Value and gradient against the divergence of the lumped distributions, written out."""
    states, targets = states_and_targets(count, seed)
    taught, _ = states_and_targets(count, seed + 1000)
    teacher = torch.log_softmax(head()(taught) / temperature, -1)
    top = teacher.topk(k)
    cut = count // 2  # two rows
    lessons = [
        SoftLabels(top.indices[part].int(), top.values[part], temperature, hard)
        for part in (slice(0, cut), slice(cut, count))
    ]
    ours, plain = states.clone().requires_grad_(), states.clone().requires_grad_()
    value = soft_label_losses(ours, targets, SoftLabelBatch.of(lessons), head(), chunk=3)
    logits = head()(plain)
    student = torch.log_softmax(logits / temperature, -1)
    rest = torch.ones_like(student).scatter(1, top.indices, 0.0)
    p = torch.cat([top.values.exp(), (teacher.exp() * rest).sum(-1, keepdim=True)], 1)
    q = torch.cat([student.gather(1, top.indices), (student.exp() * rest).sum(-1, keepdim=True).log()], 1)
    wanted = temperature**2 * (p * (p.log() - q)).sum(-1) + hard * cross_entropy(logits, targets, reduction="none")
    value.sum().backward()
    wanted.sum().backward()
    assert_close(value, wanted, rtol=1e-4, atol=1e-4)
    assert plain.grad is not None
    assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-4)
