"""Greedy answers of an engine that gives the logits of a sequence of token ids.

Shapes: L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from softprompt.export.base import EngineAnswer, EngineRow

N_TOP = 20  # likeliest tokens of a step that an engine lists


def greedy_answers(
    rows: Sequence[EngineRow],
    prefix: Sequence[int],
    logits_of: Callable[[list[int]], Tensor],
    end_ids: Collection[int] = (),
) -> list[EngineAnswer]:
    """Answer each row token by token; everything is run again at every step, as an oracle without a cache.

    Args:
        prefix: ids that stand for the soft prompt and the text around it, before rows that have it.
        logits_of: logits [L, V] of a sequence of L ids.
        end_ids: end an answer, as its last token. Ids that stand for virtual tokens do: read again, they would be
            virtual tokens.
    """
    answers: list[EngineAnswer] = []
    for row in rows:
        ids = [*(prefix if row.with_prompt else ()), *row.ids]
        written: list[int] = []
        steps: list[dict[int, float]] = []
        for _ in range(row.max_tokens):
            logprobs_V = logits_of([*ids, *written])[-1].float().log_softmax(-1)
            values, tokens = logprobs_V.topk(min(N_TOP, len(logprobs_V)))
            steps.append(dict(zip(tokens.tolist(), values.tolist(), strict=True)))
            written.append(int(tokens[0]))
            if written[-1] in end_ids:
                break
        answers.append(EngineAnswer(tuple(written), tuple(steps)))
    return answers


def ids_tensor(ids: Sequence[int], like: Tensor | torch.device) -> Tensor:
    """Ids [1, L] on a device."""
    return torch.tensor([list(ids)], device=like if isinstance(like, torch.device) else like.device)
