"""The next-token loss of tokenised rows behind prefixes: prefix once, rows packed, LM head at learned tokens only.

Rows are laid out on the host first (`Batch`); from there on all is the device's work (`batch_losses`).

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


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one pass of a causal model, and what they are judged by.

    Attributes:
        bins: the rows, packed.
        where: [N] place in the flattened bins of the token before each learned one.
        targets: [N] the learned ids.
        taught: what the learned tokens are judged by instead of themselves.
    """

    bins: Bins
    where: Tensor
    targets: Tensor
    taught: SoftLabelBatch | None

    def to(self, device: torch.device) -> Batch:
        """The same on this device."""
        taught = None if self.taught is None else self.taught.to(device)
        return Batch(self.bins.to(device), self.where.to(device), self.targets.to(device), taught)


def batch_of(
    lm: FrozenLM,
    prefix_kv: CausalPrefixKV | PrefixLayout,
    examples: Sequence[Example],
    prefix_ids: Sequence[int] | None = None,
) -> Batch:
    """These rows for a pass behind prefixes that are ready, or only laid out; on the host.

    Raises DataError for an empty row, or one that does not fit in the model's context.
    """
    bins = pack_rows(
        lm, prefix_kv, [Row(e.ids, 0 if prefix_ids is None else prefix_ids[i]) for i, e in enumerate(examples)]
    )
    where, targets = learned_places(examples)
    return Batch(bins, bins.flat[where], targets, _taught(examples))


def batch_losses(lm: FrozenLM, prefix_kv: CausalPrefixKV, batch: Batch) -> Tensor:
    """`token_losses` of rows that are on the device; nothing is copied from the host or awaited from the device."""
    states = _before(lm, prefix_kv, batch)
    if batch.taught is None:
        return cross_entropies(states, batch.targets, lm.logits)
    return soft_label_losses(states, batch.targets, batch.taught, lm.logits)


def token_losses(
    lm: FrozenLM, prefix_kv: PrefixKV, examples: Sequence[Example], prefix_ids: Sequence[int] | None = None
) -> Tensor:
    """-log p of every learned token [N], example after example, in float32, with gradient into the bank; the
    divergence from the teacher instead, where all examples have a lesson.

    Args:
        owners: the prefix of each example by its number in the bank; the first for all if None.
    """
    if isinstance(prefix_kv, CausalPrefixKV):
        return batch_losses(lm, prefix_kv, batch_of(lm, prefix_kv, examples, prefix_ids).to(lm.device))
    states, targets = supervised(lm, prefix_kv, examples, prefix_ids)
    taught = _taught(examples)
    if taught is None:
        return cross_entropies(states, targets, lm.logits)
    return soft_label_losses(states, targets, taught.to(lm.device), lm.logits)


def distilled_losses(
    lm: FrozenLM,
    prefix_kv: PrefixKV,
    teachers: PrefixKV,
    examples: Sequence[Example],
    prefix_ids: Sequence[int],
    taught_by: Sequence[int],
    weight: float,
) -> Tensor:
    """`token_losses` + weight · KL(teacher ‖ student) of the next token, at every learned token [N].

    Args:
        teachers: prefixes that are not trained.
        taught_by: the teacher of each example by its number.
    """
    states, targets = supervised(lm, prefix_kv, examples, prefix_ids)
    with torch.no_grad():
        taught, _ = supervised(lm, teachers, examples, taught_by)
    return cross_entropies(states, targets, lm.logits) + weight * divergences(states, taught, lm.logits)


def learned_tokens(examples: Sequence[Example]) -> int:
    """How many tokens of these rows are learned."""
    return sum(sum(example.mask) for example in examples)


def supervised(
    lm: FrozenLM, prefix_kv: PrefixKV, examples: Sequence[Example], prefix_ids: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] at the tokens before each learned one, and the learned ids [N]."""
    if isinstance(prefix_kv, Seq2SeqPrefixKV):
        return _answered(lm, prefix_kv, examples, prefix_ids)
    batch = batch_of(lm, require_causal(prefix_kv), examples, prefix_ids).to(lm.device)
    return _before(lm, require_causal(prefix_kv), batch), batch.targets


def _before(lm: FrozenLM, prefix_kv: CausalPrefixKV, batch: Batch) -> Tensor:
    """Hidden states [N, H] at the tokens before each learned one."""
    return run_packed(lm, prefix_kv, batch.bins).flatten(0, 1)[batch.where]


def _taught(examples: Sequence[Example]) -> SoftLabelBatch | None:
    """The lessons of all rows, or of none."""
    lessons = [example.lesson for example in examples if example.lesson is not None]
    assert not lessons or len(lessons) == len(examples), "all rows have a lesson, or none has"
    return SoftLabelBatch.of(lessons) if lessons else None


def learned_places(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Among the tokens of all examples the place [N] of the one before each learned one, and the learned ids [N]."""
    where, targets, offset = list[int](), list[int](), 0
    for example in examples:
        learned = [t for t, on in enumerate(example.mask) if on]
        where += [offset + t - 1 for t in learned]
        targets += [example.ids[t] for t in learned]
        offset += len(example.ids)
    return torch.tensor(where, dtype=torch.long), torch.tensor(targets, dtype=torch.long)


def _answered(
    lm: FrozenLM, prefix_kv: Seq2SeqPrefixKV, examples: Sequence[Example], prefix_ids: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """The same for an encoder–decoder: what stands before the first learned token is read, the rest is written."""
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
