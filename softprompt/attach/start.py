"""The start of decoding, for either kind of model."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.attach.answering import AnsweringSession
from softprompt.attach.bank import Bank, CausalBank
from softprompt.attach.encoder_decoder import EncoderDecoderBank
from softprompt.attach.session import Session
from softprompt.attach.shared import SharedSession
from softprompt.model import FrozenLM

LONG = 4  # own tokens of all rows for each token of a prefix that is still long: below it time was equal on a CPU


def session(
    lm: FrozenLM, bank: Bank, rows: Sequence[Sequence[int]], owners: Sequence[int], room: int
) -> Session | SharedSession | AnsweringSession:
    """Rows ready to grow: their continuations (causal models) or answers (encoder–decoders); see these classes."""
    if isinstance(bank, EncoderDecoderBank):
        return AnsweringSession(lm, bank, rows, owners, room)
    if isinstance(bank, CausalBank) and len(bank.lengths) == 1 and _is_long(bank, rows, room):
        return SharedSession(lm, bank, rows, room)
    return Session(lm, bank, rows, owners, room)


def _is_long(bank: CausalBank, rows: Sequence[Sequence[int]], room: int) -> bool:
    """Whether to copy the prefix for each row costs more than to look at all rows' tokens and mask those of others."""
    text = sum(map(len, rows))
    return len(rows) > 1 and text <= bank.slots and text + len(rows) * room <= LONG * bank.slots
