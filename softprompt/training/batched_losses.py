"""Forward passes of candidates: losses of many on their own rows at once, and of one on its validation rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softprompt.data.tokenize import Example
from softprompt.errors import TrainError, is_out_of_memory
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.cuda_graphs import GraphCache
from softprompt.objectives.next_token import distilled_losses, learned_tokens, token_losses
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.training.trial import Trial

EVAL_TOKENS = 4096  # text tokens of validation rows run at once


def trial_losses(
    lm: FrozenLM, shares: Sequence[tuple[Trial, Sequence[Example]]], graphs: GraphCache | None = None
) -> list[Tensor]:
    """Of each candidate, the losses of the learned tokens of its rows, all in one forward pass.

    Args:
        replays: passes that are recorded, if passes with gradient are to be replayed.
    """
    taught = [i for i, (trial, _) in enumerate(shares) if trial.teachers and torch.is_grad_enabled()]
    if taught and len(shares) > 1:  # teachers take a pass of their own
        return [loss for share in shares for loss in trial_losses(lm, [share], graphs)]
    prefixes, prefix_ids, rows = [], [], []
    for trial, own in shares:
        found, numbers = trial.prefixes(own)
        prefix_ids += [len(prefixes) + number for number in numbers]
        prefixes += found
        rows += own
    if taught:
        trial = shares[0][0]
        teachers, weight = prepare_prefixes(lm, trial.teachers), trial.settings.distil
        by_task = [row.task for row in rows]
        return [distilled_losses(lm, prepare_prefixes(lm, prefixes), teachers, rows, prefix_ids, by_task, weight)]
    if graphs is None:
        values = token_losses(lm, prepare_prefixes(lm, prefixes), rows, prefix_ids)
    else:
        values = graphs.token_losses(prefixes, rows, prefix_ids)
    return list(values.split([learned_tokens(own) for _, own in shares]))


@torch.no_grad()
def validation_losses(lm: FrozenLM, trial: Trial, share: float | None = None) -> list[float]:
    """Of each task that has validation rows, the mean loss over their learned tokens; of a share of them, if given."""
    trial.learner.eval()
    means = []
    for rows in filter(None, trial.judges(share)):
        total = 0.0
        for part in by_tokens([len(row.ids) for row in rows], EVAL_TOKENS):
            (values,) = trial_losses(lm, [(trial, [rows[i] for i in part])])
            total += values.sum().item()
        means.append(total / learned_tokens(rows))
    trial.learner.train()
    return means


@contextlib.contextmanager
def memory_advice(where: str) -> Iterator[None]:
    """Turn running out of memory, on any device, into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        hint = "--train.accumulate 2 halves what a step holds, --train.gradient-checkpointing true saves more"
        raise TrainError("out of memory", where=where, got=str(error).splitlines()[0], hint=hint) from error
