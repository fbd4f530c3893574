"""Greedy answers of a Transformers model that stands for an engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from softprompt.export.base import EngineAnswer, EngineRow

N_TOP = 20  # likeliest tokens of a step that an engine lists


class Generated(Protocol):
    """What `generate` returns: ids [1, L], and logits [1, V] of each new token."""

    sequences: Tensor
    logits: tuple[Tensor, ...]


class Generates(Protocol):
    """A model with Transformers' `generate`."""

    def generate(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        do_sample: bool,
        eos_token_id: list[int] | None,
        pad_token_id: int,
        output_logits: bool,
        return_dict_in_generate: bool,
    ) -> Generated: ...


def greedy_answers(
    model: Generates, rows: Sequence[EngineRow], prefix: Sequence[int], end_ids: Collection[int], device: torch.device
) -> list[EngineAnswer]:
    """Answer each row by itself.

    Args:
        prefix: ids that stand for the soft prompt and the text around it, before rows that have it.
        end_ids: end an answer, as its last token. Ids that stand for virtual tokens do: read again, they would be
            virtual tokens.
    """
    answers: list[EngineAnswer] = []
    for row in rows:
        ids_1L = torch.tensor([[*(prefix if row.with_prompt else ()), *row.ids]], device=device)
        made = model.generate(
            input_ids=ids_1L,
            attention_mask=torch.ones_like(ids_1L),
            max_new_tokens=row.max_tokens,
            do_sample=False,
            eos_token_id=list(end_ids) or None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        steps: list[dict[int, float]] = []
        for logits_1V in made.logits:
            values, tokens = logits_1V[0].float().log_softmax(-1).topk(min(N_TOP, logits_1V.shape[1]))
            steps.append(dict(zip(tokens.tolist(), values.tolist(), strict=True)))
        answers.append(EngineAnswer(tuple(made.sequences[0, ids_1L.shape[1] :].tolist()), tuple(steps)))
    return answers
