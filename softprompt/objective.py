"""The next-token loss of tokenised rows behind prefixes: prefix once, rows packed, LM head at learned tokens only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.attach import Bank, EncoderDecoderBank, answer_states, hidden
from softprompt.data.tokenise import Example
from softprompt.losses import cross_entropies, divergences, lesson_losses
from softprompt.model import FrozenLM
from softprompt.packing import Row


def token_losses(lm: FrozenLM, bank: Bank, examples: Sequence[Example], owners: Sequence[int] | None = None) -> Tensor:
    """-log p of every learned token [N], example after example, in float32, with gradient into the bank; the
    divergence from the teacher instead, where all examples have a lesson.

    Args:
        owners: the prefix of each example by its number in the bank; the first for all if None.
    """
    states, targets = supervised(lm, bank, examples, owners)
    lessons = [example.lesson for example in examples if example.lesson is not None]
    if not lessons:
        return cross_entropies(states, targets, lm.logits)
    assert len(lessons) == len(examples), "all rows have a lesson, or none has"
    return lesson_losses(states, targets, lessons, lm.logits)


def distilled_losses(
    lm: FrozenLM,
    bank: Bank,
    teachers: Bank,
    examples: Sequence[Example],
    owners: Sequence[int],
    taught_by: Sequence[int],
    weight: float,
) -> Tensor:
    """`token_losses` + weight · KL(teacher ‖ student) of the next token, at every learned token [N].

    Args:
        teachers: prefixes that are not trained.
        taught_by: the teacher of each example by its number.
    """
    states, targets = supervised(lm, bank, examples, owners)
    with torch.no_grad():
        taught, _ = supervised(lm, teachers, examples, taught_by)
    return cross_entropies(states, targets, lm.logits) + weight * divergences(states, taught, lm.logits)


def learned_tokens(examples: Sequence[Example]) -> int:
    """How many tokens of these rows are learned."""
    return sum(sum(example.mask) for example in examples)


def supervised(
    lm: FrozenLM, bank: Bank, examples: Sequence[Example], owners: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] at the tokens before each learned one, and the learned ids [N]."""
    if isinstance(bank, EncoderDecoderBank):
        return _answered(lm, bank, examples, owners)
    rows = [Row(e.ids, 0 if owners is None else owners[i]) for i, e in enumerate(examples)]
    where, targets = learned_places(examples)
    return hidden(lm, bank, rows)[where.to(lm.device)], targets.to(lm.device)


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
    lm: FrozenLM, bank: EncoderDecoderBank, examples: Sequence[Example], owners: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """The same for an encoder–decoder: what stands before the first learned token is read, the rest is written."""
    kept = [i for i, example in enumerate(examples) if any(example.mask)]
    cuts = [examples[i].mask.index(True) for i in kept]
    texts = [examples[i].ids[:cut] for i, cut in zip(kept, cuts, strict=True)]
    answers = [examples[i].ids[cut:] for i, cut in zip(kept, cuts, strict=True)]
    learned = [on for i, cut in zip(kept, cuts, strict=True) for on in examples[i].mask[cut:]]
    states = answer_states(lm, bank, texts, answers, [0 if owners is None else owners[i] for i in kept])
    mask = torch.tensor(learned, dtype=torch.bool, device=lm.device)
    targets = torch.tensor([token for answer in answers for token in answer], device=lm.device)
    return states[mask], targets[mask]
