"""The start of decoding, for either kind of model."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cascade import shared_layers
from softprompt.prefix.decoding import Session
from softprompt.prefix.kv import Bank, CausalBank
from softprompt.prefix.seq2seq import EncoderDecoderBank
from softprompt.prefix.seq2seq_decoding import AnsweringSession


def session(
    lm: FrozenLM, bank: Bank, rows: Sequence[Sequence[int]], owners: Sequence[int], room: int
) -> Session | AnsweringSession:
    """Rows ready to grow: their continuations (causal models) or answers (encoder–decoders); see these classes."""
    if isinstance(bank, EncoderDecoderBank):
        return AnsweringSession(lm, bank, rows, owners, room)
    return Session(lm, bank, rows, owners, room)


def copies_prefix(lm: FrozenLM, bank: Bank) -> bool:
    """Whether each row of a session has a copy of its prefix; if not, all rows share the one that the bank has."""
    return not isinstance(bank, CausalBank) or shared_layers(lm, bank) is None
