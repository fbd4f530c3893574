"""The cache that `SoftPromptModel` gives to Transformers' generation loops.

It holds what the caller wrote and sampled, column by column, and continues it by a decoding session, in which the
prefix is stored once. Beams reorder the session. Dropped columns (assisted decoding) end it, and the next step starts
another one from the tokens that are left.

Shapes: B batch rows, C columns so far, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final

import torch
from torch import Tensor
from transformers import Cache

from softprompt.modeling.rows import opening_length
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import PrefixKV
from softprompt.prefix.prepare import start_decoding

_FIRST_ROOM = 128  # tokens that a session has room for; the next one has twice as much


class _Session(Protocol):
    """What is used of a decoding session."""

    hidden: Tensor

    def step(self, ids_B: Tensor) -> Tensor: ...

    def keep(self, index: Tensor) -> None: ...


@final
class GenerationCache(Cache):
    """The tokens of a batch so far, without keys and values of its own.

    Attributes:
        ids: [B, C] token ids of all columns, padding included.
        visible: [B, C] False for padding.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.ids = torch.zeros(0, 0, dtype=torch.long)
        self.visible = torch.zeros(0, 0, dtype=torch.bool)
        self._session: _Session | None = None
        self._room = _FIRST_ROOM
        self._steps = 0  # that the session has room for
        self._unknown = 0  # columns at the end that the session does not know

    def append(self, ids_BL: Tensor, visible_BL: Tensor) -> None:
        """Add columns, which the session does not know yet."""
        first = not self.ids.shape[1]
        self.ids = ids_BL if first else torch.cat([self.ids, ids_BL], 1)
        self.visible = visible_BL if first else torch.cat([self.visible, visible_BL], 1)
        self._unknown += ids_BL.shape[1]

    def rows(self, opening: Sequence[int]) -> list[list[int]]:
        """The token ids of each row after its opening, without padding."""
        rows = [ids[on].tolist() for ids, on in zip(self.ids, self.visible, strict=True)]
        return [row[opening_length(row, opening) :] for row in rows]

    def last_state(self, lm: FrozenLM, prefix_kv: PrefixKV, opening: Sequence[int]) -> Tensor | None:
        """Hidden states [B, H] of each row's last token, or None if some row has none after its opening."""
        known, self._unknown = self._unknown == 1 and self._steps > 0, 0
        if self._session is not None and known and bool(self.visible[:, -1].all()):
            self._steps -= 1
            return self._session.step(self.ids[:, -1])
        rows = self.rows(opening)
        if not all(rows):
            self._session = None
            return None
        left = lm.geometry.max_positions - prefix_kv.lengths[0] - max(map(len, rows))
        self._steps = min(self._room, max(left, 0))
        self._room *= 2
        self._session = start_decoding(lm, prefix_kv, rows, [0] * len(rows), self._steps)
        return self._session.hidden

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """C: virtual tokens are not counted."""
        return self.ids.shape[1]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows, in this order; a row that is named twice goes on as two."""
        index = beam_idx.to(self.ids.device)
        self.ids, self.visible = self.ids[index], self.visible[index]
        if self._session is not None:
            self._session.keep(index)

    def batch_select_indices(self, indices: Tensor) -> None:
        """As `reorder_cache`."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        self.reorder_cache(torch.arange(len(self.ids), device=self.ids.device).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last columns, as many as the number says, which Transformers gives with a minus."""
        if tokens_to_remove:
            kept = self.ids.shape[1] - abs(tokens_to_remove)
            self.ids, self.visible = self.ids[:, :kept], self.visible[:, :kept]
            self._session = None

    def reset(self) -> None:
        """Forget all columns."""
        self.ids, self.visible = self.ids[:, :0], self.visible[:, :0]
        self._session = None

    def activate_past_recording(self) -> None:
        """Nothing: any column can be dropped."""

    @property
    def is_croppable(self) -> bool:
        """Whether columns can be dropped."""
        return True

    @property
    def is_linear(self) -> list[bool]:
        """Whether layers hold states instead of columns: no, all columns are here."""
        return [False]
