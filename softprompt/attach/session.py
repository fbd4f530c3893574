"""Decoding: rows that grow by one token a step, each behind its own prefix.

Shapes: B rows, L tokens of the longest, S prefix slots, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.attach.bank import Bank, causal
from softprompt.attach.cache import GrowingCache
from softprompt.attach.forward import check_not_empty, check_room, forward
from softprompt.model import FrozenLM


class Session:
    """B rows in the middle of decoding. Without gradient.

    Args:
        rows: token ids of each row, at least one each.
        owners: the prefix of each row, by its number in the bank.
        room: how many steps will be taken at most.

    Attributes:
        hidden: [B, H] final hidden state of each row's last token.

    Raises:
        DataError: an empty row, or no room for it in the model's context.
        UnsupportedModelError: the bank of an encoder–decoder: see `AnsweringSession`.
    """

    @torch.no_grad()
    def __init__(
        self, lm: FrozenLM, bank: Bank, rows: Sequence[Sequence[int]], owners: Sequence[int], room: int
    ) -> None:
        bank = causal(bank)
        check_not_empty(rows)
        check_room(lm, max(bank.lengths[o] + len(row) for row, o in zip(rows, owners, strict=True)) + room)
        self.lm = lm
        longest, owner = max(map(len, rows)), torch.tensor(owners, device=lm.device)
        starts_B1 = torch.tensor(bank.lengths, device=lm.device)[owner][:, None]
        lengths_B1 = torch.tensor([len(row) for row in rows], device=lm.device)[:, None]
        columns_BL = torch.arange(longest, device=lm.device) - (
            longest - lengths_B1
        )  # padded left: last tokens line up
        self._positions = (columns_BL + starts_B1).where(columns_BL >= 0, -1)
        self._keys = torch.cat([bank.positions[owner], self._positions], dim=1)
        self._cache = GrowingCache(bank.past(owner), bank.slots, longest + room)
        padded = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=lm.device)
        self.hidden = self._run(padded)

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Append one token to each row; returns the new `hidden` [B, H]."""
        self._positions = self._positions[:, -1:] + 1
        self._keys = torch.cat([self._keys, self._positions], dim=1)
        self.hidden = self._run(ids_B[:, None])
        return self.hidden

    def keep(self, index: Tensor) -> None:
        """Go on with the rows in `index` [B'] only, so that finished rows cost nothing."""
        self._keys, self._positions = self._keys[index], self._positions[index]
        self.hidden = self.hidden[index]
        self._cache.keep(index)

    def _run(self, ids_BL: Tensor) -> Tensor:
        states_BLH = forward(
            self.lm,
            ids_GL=ids_BL,
            positions_GL=self._positions.clamp_min(0),
            key_positions_GK=self._keys,
            visible_GQK=(self._keys >= 0)[:, None, :] & (self._keys[:, None, :] <= self._positions[:, :, None]),
            cache=self._cache,
        )
        return states_BLH[:, -1]
