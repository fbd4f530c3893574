"""Decoding with an encoder–decoder: each text is encoded once, answers grow by one token a step.

Rows of the path "concatenated" are grouped as in training. A model whose decoder is not exact step by step gets its
whole answer again at every step.

Shapes: B rows, S prefix slots, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.seq2seq import Seq2SeqPrefixKV, check_answers_fit, decoder_run, encode_text, row_groups
from softprompt.prefix.seq2seq_forward import DecoderRun


@dataclass(eq=False)
class _Group:
    """Rows that run together.

    Attributes:
        members: [b] their numbers in the session.
        ids: [b, T] their answers so far, where no cache keeps them.
    """

    members: Tensor
    run: DecoderRun
    ids: Tensor | None


@final
class Seq2SeqDecodingSession:
    """B answers in the middle of decoding, each to its own text. Without gradient.

    The counterpart of `DecodingSession`.

    Args:
        texts: token ids of each text, at least one each.
        prefix_ids: the number of each text's prefix.
        room: the most steps that will be taken.

    Attributes:
        hidden: [B, H] final hidden state of each answer's last token; at first of the decoder's last start token.

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
        check_answers_fit(lm, prefix_kv, prefix_ids, room)
        self.hidden = torch.empty(0, device=lm.device)
        steps, sizes = PrefixRuntime.of(lm).steps, [(len(text), 0) for text in texts]
        start_T = torch.tensor(lm.start_ids, device=lm.device)
        self._groups = list[_Group]()
        for numbers in row_groups(lm, prefix_kv, prefix_ids, sizes):
            ids = [prefix_ids[i] for i in numbers]
            text = encode_text(lm, prefix_kv, [texts[i] for i in numbers], ids)
            run = decoder_run(lm, prefix_kv, text, ids, len(start_T) + room if steps else None)
            start_BT = start_T.expand(len(numbers), -1)
            self._groups.append(_Group(torch.tensor(numbers, device=lm.device), run, None if steps else start_BT))
            self._take(self._groups[-1].members, run.run(start_BT)[:, -1], len(texts))

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Append one token to each answer; returns the new `hidden` [B, H]."""
        self.hidden = self.hidden.clone()
        for group in self._groups:
            new = ids_B[group.members][:, None]
            if group.ids is not None:
                new = group.ids = torch.cat([group.ids, new], 1)
            self._take(group.members, group.run.run(new)[:, -1], len(ids_B))
        return self.hidden

    def keep(self, index: Tensor) -> None:
        """Go on with the rows in `index` [B'] only; a row that is named twice goes on as two."""
        self.hidden = self.hidden[index]
        kept = list[_Group]()
        for group in self._groups:
            numbers, places = (index[:, None] == group.members).nonzero(as_tuple=True)
            if len(numbers):
                group.run.keep(places)
                kept.append(_Group(numbers, group.run, None if group.ids is None else group.ids[places]))
        self._groups = kept

    def _take(self, members: Tensor, states_bH: Tensor, rows: int) -> None:
        """Put the states of these rows in their places."""
        if not len(self.hidden):
            self.hidden = states_bH.new_empty(rows, states_bH.shape[1])
        self.hidden[members] = states_bH
