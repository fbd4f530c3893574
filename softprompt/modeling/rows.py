"""Padded batches as rows after a prefix, and the rows' hidden states as padded batches again.

A place of padding has the hidden state of the last token before it. So the last column predicts each row's next token,
whatever side was padded; places before the first token are zeros.

Shapes: B batch rows, L columns, T tokens that are not padding, R tokens that are run, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.errors import DataError


@dataclass(frozen=True, eq=False)
class RowPlan:
    """The tokens of a padded batch that are run after a prefix, and their places.

    A batch row holds several sequences where its positions begin at 0 again (padding-free batches). A sequence's
    opening, such as BOS, is left out if the prefix has it.

    Attributes:
        rows: token ids of each sequence after its opening, none of them empty.
        run: [R] number among the T tokens of each token of `rows`.
        opened: [Q, n] numbers of the tokens of the openings that were left out.
        sequences: their number, empty ones included.
        last: [B, L] number of the last token of the row up to this column, -1 if there is none.
        tokens: T.
    """

    rows: list[list[int]]
    run: Tensor
    opened: Tensor
    sequences: int
    last: Tensor
    tokens: int


def plan_rows(ids_BL: Tensor, visible_BL: Tensor, positions_BL: Tensor | None, opening: Sequence[int]) -> RowPlan:
    """The sequences of a padded batch.

    Args:
        visible_BL: True for tokens, False for padding, on any side.
        positions_BL: place of each token in its sequence, if a row may hold several sequences.
        opening: ids that are left out at the start of a sequence.

    Raises DataError for positions that do not count each sequence from 0.
    """
    counts_BL = visible_BL.cumsum(1)
    last_BL = (visible_BL.flatten().cumsum(0).view_as(ids_BL) - 1).where(counts_BL > 0, -1)
    begins_BL = first_tokens(visible_BL, positions_BL)
    if positions_BL is not None:
        _check_positions(positions_BL[visible_BL], begins_BL[visible_BL])
    tokens = ids_BL[visible_BL].tolist()
    starts = begins_BL[visible_BL].nonzero()[:, 0].tolist()
    rows, run = list[list[int]](), list[int]()
    opened = list[list[int]]()
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        first = start + opening_length(tokens[start : start + len(opening)], opening)
        if first > start:
            opened.append(list(range(start, first)))
        if first < end:
            rows.append(tokens[first:end])
            run += range(first, end)
    device = ids_BL.device
    opened_Qn = torch.tensor(opened, dtype=torch.long, device=device).view(len(opened), len(opening))
    return RowPlan(
        rows, torch.tensor(run, dtype=torch.long, device=device), opened_Qn, len(starts), last_BL, len(tokens)
    )


def first_tokens(visible_BL: Tensor, positions_BL: Tensor | None) -> Tensor:
    """[B, L] True where a sequence begins. No token of the batch predicts these."""
    begins_BL = visible_BL & (visible_BL.cumsum(1) == 1)
    return begins_BL if positions_BL is None else begins_BL | (visible_BL & (positions_BL == 0))


def opening_length(ids: Sequence[int], opening: Sequence[int]) -> int:
    """Number of ids at the start of a sequence that the prefix has already: all of the opening, or none."""
    return len(opening) if opening and list(ids[: len(opening)]) == list(opening) else 0


def padded_states(plan: RowPlan, states_RH: Tensor, opening_nH: Tensor | None) -> Tensor:
    """Hidden states [B, L, H] in the places of the batch.

    Args:
        states_RH: of the tokens of `plan.rows`.
        opening_nH: of the opening's tokens, if some sequence begins with it.
    """
    if len(plan.run) == plan.last.numel():  # neither padding nor openings
        return states_RH.view(*plan.last.shape, -1)
    states_TH = states_RH.new_zeros(plan.tokens + 1, states_RH.shape[1])  # the last one is that of places without token
    states_TH = states_TH.index_copy(0, plan.run, states_RH)
    if opening_nH is not None and len(plan.opened):
        repeated = opening_nH.to(states_TH).repeat(len(plan.opened), 1)
        states_TH = states_TH.index_copy(0, plan.opened.flatten(), repeated)
    return states_TH[plan.last]


def _check_positions(positions_T: Tensor, begins_T: Tensor) -> None:
    numbers_T = torch.arange(len(positions_T), device=positions_T.device)
    starts_T = numbers_T.where(begins_T, 0).cummax(0).values
    if not torch.equal(positions_T, numbers_T - starts_T):
        raise DataError(
            "positions must count the tokens of each sequence from 0",
            where="position_ids",
            got=positions_T[:12].tolist(),
            hint="leave position_ids out: padding is known from attention_mask",
        )
