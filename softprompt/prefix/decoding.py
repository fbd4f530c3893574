"""Decoding with a causal model: rows that grow by one token a step, each after its own prefix.

A prefix that all rows share is stored once; of several prefixes each row has a copy of its own.

Shapes: B rows, T tokens of all of them, L tokens of the longest, S prefix slots, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import GrowingCache
from softprompt.prefix.cascade import cascade, shared_layers
from softprompt.prefix.forward import check_fits_context, check_not_empty, forward
from softprompt.prefix.kv import PrefixKV, require_causal
from softprompt.prefix.packed import recorded_hidden_states
from softprompt.prefix.packing import Row


class DecodingSession:
    """B rows in the middle of decoding. Without gradient.

    Args:
        rows: token ids of each row, at least one each.
        prefix_ids: the number of each row's prefix.
        room: the most steps that will be taken.

    Attributes:
        hidden: [B, H] final hidden state of each row's last token.

    Raises:
        DataError: an empty row, or no room for it in the model's context.
        UnsupportedModelError: prefixes of an encoder–decoder: see `Seq2SeqDecodingSession`.
    """

    @torch.no_grad()
    def __init__(
        self, lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Sequence[int]], prefix_ids: Sequence[int], room: int
    ) -> None:
        prefix_kv = require_causal(prefix_kv)
        check_not_empty(rows)
        check_fits_context(
            lm, max(prefix_kv.lengths[i] + len(row) for row, i in zip(rows, prefix_ids, strict=True)) + room
        )
        self.lm = lm
        sizes_B = torch.tensor([len(row) for row in rows], device=lm.device)
        longest, prefix_id_B = int(sizes_B.max()), torch.tensor(prefix_ids, device=lm.device)
        starts_B1 = torch.tensor(prefix_kv.lengths, device=lm.device)[prefix_id_B][:, None]
        columns_BL = torch.arange(longest, device=lm.device) - (longest - sizes_B)[:, None]  # last tokens line up
        positions_BL = (columns_BL + starts_B1).where(columns_BL >= 0, -1)
        self._keys = torch.cat([prefix_kv.positions[prefix_id_B], positions_BL], dim=1)
        self._positions = positions_BL[:, -1:]
        self._shared = shared_layers(lm, prefix_kv)
        copied = (
            (prefix_kv.past(prefix_id_B), prefix_kv.slots)
            if self._shared is None
            else ((None,) * len(prefix_kv.layers), 0)
        )
        self._cache = GrowingCache(*copied, longest + room)
        whole = [Row(row, number) for row, number in zip(rows, prefix_ids, strict=True)]
        states_TH, layers = recorded_hidden_states(lm, prefix_kv, whole)
        self._cache.fill(layers, (columns_BL >= 0).nonzero(as_tuple=True), longest)
        self.hidden = states_TH[sizes_B.cumsum(0) - 1]

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Append one token to each row; returns the new `hidden` [B, H]."""
        self._positions = self._positions + 1
        self._keys = torch.cat([self._keys, self._positions], dim=1)
        with cascade(self.lm, self._shared):
            states_B1H = forward(
                self.lm,
                ids_GL=ids_B[:, None],
                positions_GL=self._positions,
                key_positions_GK=self._keys,
                visible_GQK=(self._keys >= 0)[:, None],
                cache=self._cache,
            )
        self.hidden = states_B1H[:, 0]
        return self.hidden

    def keep(self, index: Tensor) -> None:
        """Go on with the rows in `index` [B'] only, so that finished rows cost nothing."""
        self._keys, self._positions = self._keys[index], self._positions[index]
        self.hidden = self.hidden[index]
        self._cache.keep(index)
