"""Forward passes of trials: training losses of many trials at once, and validation losses of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from softprompt.data.tokenize import Example
from softprompt.errors import TrainError, is_out_of_memory
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.cuda_graphs import GraphCache
from softprompt.objectives.next_token import distilled_losses, learned_tokens, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.prepare import packs_rows, prepare_prefixes
from softprompt.training.config import TrainConfig
from softprompt.training.trial import Trial

EVAL_TOKENS = 4096  # text tokens of validation rows in one forward pass


def trial_losses(
    lm: FrozenLM, shares: Sequence[tuple[Trial, Sequence[Example]]], graphs: GraphCache | None = None
) -> list[Tensor]:
    """Losses of each trial at the learned tokens of its rows, all in one forward pass; those of another objective.

    Args:
        shares: trials, each with its rows.
        graphs: the cache of recorded forward and backward passes, if passes with gradient are to be replayed.
    """
    has_teachers = any(trial.teachers for trial, _ in shares) and torch.is_grad_enabled()
    objective = next((trial.objective for trial, _ in shares if trial.objective is not None), None)
    if (has_teachers or objective) and len(shares) > 1:  # teachers and objectives take forward passes of their own
        return [loss for share in shares for loss in trial_losses(lm, [share], graphs)]
    if objective is not None:
        return [objective.losses(lm, *shares[0])]
    prefixes, prefix_ids = list[Prefix](), list[int]()
    rows = [row for _, trial_rows in shares for row in trial_rows]
    for trial, trial_rows in shares:
        trial_prefixes, numbers = trial.prefixes(trial_rows)
        prefix_ids += [len(prefixes) + number for number in numbers]
        prefixes += trial_prefixes
    if has_teachers:
        trial = shares[0][0]
        teachers, weight = prepare_prefixes(lm, trial.teachers), trial.settings.distill
        by_task = [row.task for row in rows]
        return [distilled_losses(lm, prepare_prefixes(lm, prefixes), teachers, rows, prefix_ids, by_task, weight)]
    if graphs is None:
        values = token_losses(lm, prepare_prefixes(lm, prefixes), rows, prefix_ids)
    else:
        values = graphs.token_losses(prefixes, rows, prefix_ids)
    return list(values.split([learned_tokens(trial_rows) for _, trial_rows in shares]))


@torch.no_grad()
def validation_losses(lm: FrozenLM, trial: Trial, share: float | None = None) -> list[float]:
    """Mean loss at the learned tokens, or of rows by another objective, of each task that has validation rows.

    Args:
        share: of the validation rows, in [0, 1]; as many as the trial's state says if None.
    """
    trial.learner.eval()
    trial.noted()
    means = []
    for rows in filter(None, trial.sample_validation_rows(share)):
        total = 0.0
        for part in by_tokens([row.longest for row in rows], EVAL_TOKENS):
            (values,) = trial_losses(lm, [(trial, [rows[i] for i in part])])
            total += values.sum().item()
        means.append(total / trial.units(rows))
    trial.learner.train()
    return means


@contextlib.contextmanager
def memory_advice(where: str) -> Iterator[None]:
    """Turn running out of memory, on any device, into an error that names the settings to change."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        hint = "--train.accumulate 2 halves what a step holds, --train.gradient-checkpointing true saves more"
        raise TrainError("out of memory", where=where, got=str(error).splitlines()[0], hint=hint) from error


def graph_cache_for(lm: FrozenLM, settings: TrainConfig) -> GraphCache | None:
    """A cache of CUDA graphs, or None where replaying forward passes gains nothing or is not possible.

    It gains on a GPU only, where starting kernels takes longer than running them. It is not possible with gradient
    checkpointing, which runs layers again in the backward pass, or with an encoder–decoder or a model that is run in
    its own cache, which pad each batch anew. Neither is it on several devices or with sharded layers: what moves or
    gathers tensors between them is no part of a graph.
    """
    on_one = lm.device.type == "cuda" and not lm.is_split and not lm.is_sharded
    able = on_one and not lm.is_encoder_decoder and packs_rows(lm)
    return GraphCache(lm) if able and settings.graphs and not settings.gradient_checkpointing else None


def row_share(lm: FrozenLM, trials: Sequence[Trial], processes: Accelerator) -> tuple[int, int]:
    """Which rows of a batch this process runs, as (number, of how many): 0 of 1 is all rows.

    The processes of a sharded base model gather its layers together, so they must run passes of the same number. They
    do with a share of the rows each if a step has one pass over prefixes and one over rows. Otherwise each process
    runs all rows.
    """
    several = len(trials) > 1 or len(trials[0].tasks) > 1 or trials[0].objective is not None
    if lm.is_sharded and (several or lm.is_encoder_decoder or not packs_rows(lm)):
        return 0, 1
    return processes.process_index, processes.num_processes
