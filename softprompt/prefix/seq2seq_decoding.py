"""Decoding with an encoder–decoder: each text is encoded once, answers grow by one token a step.

Shapes: B rows, S prefix slots, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import CrossCache, DecoderCache, GrowingCache
from softprompt.prefix.seq2seq import EncodedText, Seq2SeqPrefixKV, encode_text
from softprompt.prefix.seq2seq_forward import run_decoder


@final
class Seq2SeqDecodingSession:
    """B answers in the middle of decoding, each to its own text. Without gradient.

    The counterpart of `DecodingSession`.

    Args:
        texts: token ids of each text, at least one each.
        prefix_ids: the number of each text's prefix.
        room: the most steps that will be taken.

    Attributes:
        hidden: [B, H] final hidden state of each answer's last token; at first of the decoder's start token.

    Raises:
        DataError: an empty text, or one that does not fit in the model's context.
    """

    @torch.no_grad()
    def __init__(
        self,
        lm: FrozenLM,
        prefix_kv: Seq2SeqPrefixKV,
        texts: Sequence[Sequence[int]],
        prefix_ids: Sequence[int],
        room: int,
    ) -> None:
        self.lm = lm
        prefix_id_B = torch.tensor(prefix_ids, device=lm.device)
        self._encoded = encode_text(lm, prefix_kv, texts, prefix_id_B)
        past, cross = prefix_kv.pasts["decoder"].of(prefix_id_B), prefix_kv.pasts["cross"].of(prefix_id_B)
        self._visible = past.visible
        self._crossing = torch.cat([cross.visible, self._encoded.visible], 1)
        self._self_attention = GrowingCache(past.layers, past.slots, room + 1)
        self._cross = CrossCache(cross.layers)
        self._cache = DecoderCache(self._self_attention, self._cross)
        self.hidden = self._run(torch.full((len(texts),), lm.start_id, device=lm.device))

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Append one token to each answer; returns the new `hidden` [B, H]."""
        self.hidden = self._run(ids_B)
        return self.hidden

    def keep(self, index: Tensor) -> None:
        """Go on with the rows in `index` [B'] only; a row that is named twice goes on as two."""
        self._visible = self._visible[index]
        self._crossing = self._crossing[index]
        self.hidden = self.hidden[index]
        self._encoded = EncodedText(self._encoded.states[index], self._encoded.visible[index])
        self._self_attention.keep(index)
        self._cross.keep(index)

    def _run(self, ids_B: Tensor) -> Tensor:
        self._visible = torch.cat([self._visible, torch.ones_like(ids_B, dtype=torch.bool)[:, None]], 1)
        visible = self._visible[:, None]
        return run_decoder(self.lm, ids_B[:, None], visible, self._encoded.states, self._crossing, self._cache)[:, -1]
