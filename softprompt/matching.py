"""The values of a KV prompt, fitted so that rows behind it get what they get behind the texts that it stands for.

    prompt = matched(lm, most_attended(lm, readings, 32), readings)

The keys of the prompt decide where each head looks. Given that, what the head puts out is linear in the values, so the
best ones are a least-squares problem for each key/value head, solved at once:

    min Σ_t ‖o_t − ô_t − w_t ΔV‖² + λ ‖ΔV‖²

with o_t what attention puts out for token t behind the text, ô_t behind the prompt, and w_t its weights on the virtual
tokens there. (The second step of Zweiger et al. 2026: Fast KV Compaction via Attention Matching,
https://arxiv.org/abs/2602.16284, with the queries of the model behind the prompt, and no bias, which no server knows.)

Shapes: T tokens of rows, H heads, K key/value heads, N = T · H/K equations, P virtual tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.attach import Prefix, attention_outputs, bank, rows_at_once
from softprompt.attended import Reading
from softprompt.model import FrozenLM
from softprompt.packing import Row
from softprompt.prompt import KVPrompt

RIDGE = 1e-2  # λ for each equation and virtual token (docs/log.md)


@torch.no_grad()
def matched(lm: FrozenLM, prompt: KVPrompt, readings: Sequence[Reading]) -> KVPrompt:
    """The prompt with values fitted on all tokens of the readings' rows; its keys stay.

    Args:
        readings: the texts that it stands for, each with rows that were or might be read behind it.

    Raises DataError for a row that does not fit in the model's context behind its text.
    """
    sums = [None if kv is None else _Sums(kv[1]) for kv in prompt.layers]
    for reading in readings:
        text = bank(lm, [Prefix(lead=reading.ids, follow=reading.follow)])
        own = bank(lm, [Prefix(prompt, follow=reading.follow)])
        rows = [Row(row.ids) for row in reading.rows]
        together = rows_at_once(lm, text, rows)
        for start in range(0, len(rows), together):
            part = rows[start : start + together]
            wanted, found = attention_outputs(lm, text, part), attention_outputs(lm, own, part)
            for of_layer, goal, now in zip(sums, wanted, found, strict=True):
                if of_layer is not None and goal is not None and now is not None:
                    of_layer.add(now[0][..., : prompt.n_tokens], goal[1] - now[1])
    layers = zip(prompt.layers, sums, strict=True)
    return KVPrompt(tuple(kv and own and (kv[0], kv[1] + own.change().to(kv[1])) for kv, own in layers))


class _Sums:
    """The normal equations of one layer."""

    def __init__(self, values_KPD: Tensor) -> None:
        groups, tokens, _ = values_KPD.shape
        self.products_KPP = torch.zeros(groups, tokens, tokens)
        self.sides_KPD = torch.zeros(values_KPD.shape)
        self.equations = 0

    def add(self, weights_THP: Tensor, missing_THD: Tensor) -> None:
        """Tokens with their weights on the virtual tokens, and what attention lacks for them."""
        weights_KNP, missing_KND = (self._by_group(tensor) for tensor in (weights_THP, missing_THD))
        self.products_KPP += weights_KNP.mT @ weights_KNP
        self.sides_KPD += weights_KNP.mT @ missing_KND
        self.equations += weights_KNP.shape[1]

    def change(self) -> Tensor:
        """What to add to the values [K, P, D]."""
        tokens = self.products_KPP.shape[1]
        ridge = RIDGE * self.equations / tokens * torch.eye(tokens)
        return torch.linalg.solve(self.products_KPP + ridge, self.sides_KPD)

    def _by_group(self, tensor_THX: Tensor) -> Tensor:
        """[K, N, X]: heads that share keys share values."""
        return tensor_THX.float().cpu().unflatten(1, (len(self.products_KPP), -1)).transpose(0, 1).flatten(1, 2)
