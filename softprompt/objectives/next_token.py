"""Next-token loss of tokenized rows after prefixes: prefix once, rows packed, LM head at learned tokens only.

Rows are laid out on the host first (`Batch`); `batch_losses` then runs on the device alone.

Shapes: N learned tokens, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.chunked import SoftLabelBatch, cross_entropies, divergences, soft_label_losses
from softprompt.prefix.kv import CausalPrefixKV, PrefixKV, PrefixLayout, require_causal
from softprompt.prefix.packed import pack_rows, run_packed
from softprompt.prefix.packing import Bins, Row
from softprompt.prefix.seq2seq import Seq2SeqPrefixKV, answer_hidden_states
from softprompt.prefix.state import StatePrefixes, state_hidden_states


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one forward pass of a causal model, with their targets.

    Attributes:
        bins: the rows, packed.
        where: [N] index in the flattened bins of the token before each learned one.
        targets: [N] the learned ids.
        soft_labels: a teacher's distributions at the learned tokens, or None to learn the ids themselves.
    """

    bins: Bins
    where: Tensor
    targets: Tensor
    soft_labels: SoftLabelBatch | None

    def to(self, device: torch.device) -> Batch:
        """The batch on this device."""
        soft_labels = None if self.soft_labels is None else self.soft_labels.to(device)
        return Batch(self.bins.to(device), self.where.to(device), self.targets.to(device), soft_labels)


def batch_of(
    lm: FrozenLM,
    prefix_kv: CausalPrefixKV | PrefixLayout,
    examples: Sequence[Example],
    prefix_ids: Sequence[int] | None = None,
) -> Batch:
    """A batch of these rows on the host, to run after prefixes that are prepared or only laid out.

    Raises DataError for an empty row, or one that does not fit in the model's context.
    """
    bins = pack_rows(lm, prefix_kv, _rows(examples, prefix_ids))
    where, targets = learned_positions(examples)
    return Batch(bins, bins.flat[where], targets, _soft_labels(examples))


def batch_losses(lm: FrozenLM, prefix_kv: CausalPrefixKV, batch: Batch) -> Tensor:
    """`token_losses` of a batch on the device, without copies from the host or synchronization with the device."""
    states = _predicting_states(lm, prefix_kv, batch)
    if batch.soft_labels is None:
        return cross_entropies(states, batch.targets, lm.logits)
    return soft_label_losses(states, batch.targets, batch.soft_labels, lm.logits)


def token_losses(
    lm: FrozenLM, prefix_kv: PrefixKV, examples: Sequence[Example], prefix_ids: Sequence[int] | None = None
) -> Tensor:
    """Loss [N] of every learned token, example after example, in float32, with gradient into the prefixes.

    The loss is -log p, or the divergence from the teacher if all examples have soft labels.

    Args:
        prefix_ids: of each example the number of its prefix in `prefix_kv`; the first prefix for all if None.
    """
    if isinstance(prefix_kv, CausalPrefixKV):
        return batch_losses(lm, prefix_kv, batch_of(lm, prefix_kv, examples, prefix_ids).to(lm.device))
    states, targets = supervised(lm, prefix_kv, examples, prefix_ids)
    soft_labels = _soft_labels(examples)
    if soft_labels is None:
        return cross_entropies(states, targets, lm.logits)
    return soft_label_losses(states, targets, soft_labels.to(lm.device), lm.logits)


def distilled_losses(
    lm: FrozenLM,
    prefix_kv: PrefixKV,
    teachers: PrefixKV,
    examples: Sequence[Example],
    prefix_ids: Sequence[int],
    teacher_ids: Sequence[int],
    weight: float,
) -> Tensor:
    """-log p + weight · KL(teacher ‖ student) of the next token, at every learned token [N].

    Args:
        teachers: prefixes that are not trained.
        teacher_ids: of each example the number of its prefix in `teachers`.
    """
    states, targets = supervised(lm, prefix_kv, examples, prefix_ids)
    with torch.no_grad():
        teacher_states, _ = supervised(lm, teachers, examples, teacher_ids)
    return cross_entropies(states, targets, lm.logits) + weight * divergences(states, teacher_states, lm.logits)


def _rows(examples: Sequence[Example], prefix_ids: Sequence[int] | None) -> list[Row]:
    return [Row(e.ids, 0 if prefix_ids is None else prefix_ids[i]) for i, e in enumerate(examples)]


def learned_tokens(examples: Sequence[Example]) -> int:
    """The number of learned tokens of these rows."""
    return sum(sum(example.mask) for example in examples)


def supervised(
    lm: FrozenLM, prefix_kv: PrefixKV, examples: Sequence[Example], prefix_ids: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] at the token before each learned one, and the learned ids [N]."""
    if isinstance(prefix_kv, Seq2SeqPrefixKV):
        return _supervised_seq2seq(lm, prefix_kv, examples, prefix_ids)
    if isinstance(prefix_kv, StatePrefixes):
        where, targets = learned_positions(examples)
        states = state_hidden_states(lm, prefix_kv, _rows(examples, prefix_ids))
        return states[where.to(lm.device)], targets.to(lm.device)
    batch = batch_of(lm, require_causal(prefix_kv), examples, prefix_ids).to(lm.device)
    return _predicting_states(lm, require_causal(prefix_kv), batch), batch.targets


def _predicting_states(lm: FrozenLM, prefix_kv: CausalPrefixKV, batch: Batch) -> Tensor:
    """Hidden states [N, H] at the token before each learned one."""
    return run_packed(lm, prefix_kv, batch.bins).flatten(0, 1)[batch.where]


def _soft_labels(examples: Sequence[Example]) -> SoftLabelBatch | None:
    """The soft labels of all rows, or None if the rows have none."""
    labels = [example.lesson for example in examples if example.lesson is not None]
    assert not labels or len(labels) == len(examples), "all rows have soft labels, or none has"
    return SoftLabelBatch.of(labels) if labels else None


def learned_positions(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Index [N] of the token before each learned one, among the tokens of all examples, and the learned ids [N]."""
    where, targets = list[int](), list[int]()
    offset = 0
    for example in examples:
        learned = [t for t, on in enumerate(example.mask) if on]
        where += [offset + t - 1 for t in learned]
        targets += [example.ids[t] for t in learned]
        offset += len(example.ids)
    return torch.tensor(where, dtype=torch.long), torch.tensor(targets, dtype=torch.long)


def _supervised_seq2seq(
    lm: FrozenLM, prefix_kv: Seq2SeqPrefixKV, examples: Sequence[Example], prefix_ids: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """`supervised` of an encoder–decoder, which encodes a row up to its first learned token and decodes the rest."""
    kept = [i for i, example in enumerate(examples) if any(example.mask)]
    cuts = [examples[i].mask.index(True) for i in kept]
    texts = [examples[i].ids[:cut] for i, cut in zip(kept, cuts, strict=True)]
    answers = [examples[i].ids[cut:] for i, cut in zip(kept, cuts, strict=True)]
    learned = [on for i, cut in zip(kept, cuts, strict=True) for on in examples[i].mask[cut:]]
    states = answer_hidden_states(
        lm, prefix_kv, texts, answers, [0 if prefix_ids is None else prefix_ids[i] for i in kept]
    )
    mask = torch.tensor(learned, dtype=torch.bool, device=lm.device)
    targets = torch.tensor([token for answer in answers for token in answer], device=lm.device)
    return states[mask], targets[mask]
