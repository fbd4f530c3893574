"""Decoding behind one prefix that all rows share: its keys and values are there once, whatever the number of rows.

Shapes: B rows, N tokens of all rows, S prefix slots, C own tokens in the cache, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from softprompt.attach.bank import Bank, causal
from softprompt.attach.cache import GrowingCache
from softprompt.attach.forward import check_not_empty, check_room, forward
from softprompt.model import FrozenLM


@final
class SharedSession:
    """B rows in the middle of decoding, packed behind one prefix under a mask that keeps them apart. Without gradient.
    The counterpart of `Session`, which copies the prefix for every row.

    Args:
        bank: of one prefix.
        rows: token ids of each row, at least one each.
        room: how many steps will be taken at most.

    Attributes:
        hidden: [B, H] final hidden state of each row's last token.

    Raises:
        DataError: an empty row, or no room for it in the model's context.
        UnsupportedModelError: the bank of an encoder–decoder.
    """

    @torch.no_grad()
    def __init__(self, lm: FrozenLM, bank: Bank, rows: Sequence[Sequence[int]], room: int) -> None:
        bank = causal(bank)
        assert len(bank.lengths) == 1, "one prefix"
        check_not_empty(rows)
        check_room(lm, bank.lengths[0] + max(map(len, rows)) + room)
        self.lm = lm
        sizes = torch.tensor([len(row) for row in rows], device=lm.device)
        row_N = torch.arange(len(rows), device=lm.device).repeat_interleave(sizes)
        ends_B = sizes.cumsum(0)
        depth_N = torch.arange(len(row_N), device=lm.device) - (ends_B - sizes)[row_N]
        positions_N = depth_N + bank.lengths[0]
        self._positions = positions_N[ends_B - 1]
        self._keys = torch.cat([bank.positions[0], positions_N])
        self._prefix = bank.positions[0] >= 0
        past = bank.past(torch.zeros(1, dtype=torch.long, device=lm.device))
        self._cache = GrowingCache(past, bank.slots, len(row_N) + len(rows) * room)
        self._own = row_N == torch.arange(len(rows), device=lm.device)[:, None]  # [B, C] whose token each column is
        before_NN = self._own[row_N] & (depth_N <= depth_N[:, None])
        ids_N = torch.tensor([token for row in rows for token in row], device=lm.device)
        self.hidden = self._run(ids_N, positions_N, before_NN)[ends_B - 1]

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Append one token to each row; returns the new `hidden` [B, H]."""
        self._positions = self._positions + 1
        self._keys = torch.cat([self._keys, self._positions])
        self._own = torch.cat([self._own, torch.eye(len(ids_B), dtype=torch.bool, device=self.lm.device)], dim=1)
        self.hidden = self._run(ids_B, self._positions, self._own)
        return self.hidden

    def keep(self, index: Tensor) -> None:
        """Go on with the rows in `index` [B'] only; a row that is named twice goes on as two."""
        self._positions, self._own, self.hidden = self._positions[index], self._own[index], self.hidden[index]

    def _run(self, ids_N: Tensor, positions_N: Tensor, own_NC: Tensor) -> Tensor:
        """Hidden states [N, H] of new tokens that see the prefix and these of the rows' own tokens."""
        visible_NK = torch.cat([self._prefix.expand(len(ids_N), -1), own_NC], dim=1)
        return forward(
            self.lm,
            ids_GL=ids_N[None],
            positions_GL=positions_N[None],
            key_positions_GK=self._keys[None],
            visible_GQK=visible_NK[None],
            cache=self._cache,
        )[0]
