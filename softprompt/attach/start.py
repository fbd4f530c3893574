"""The start of decoding, for either kind of model."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.attach.answering import AnsweringSession
from softprompt.attach.bank import Bank
from softprompt.attach.encoder_decoder import EncoderDecoderBank
from softprompt.attach.session import Session
from softprompt.model import FrozenLM


def session(
    lm: FrozenLM, bank: Bank, rows: Sequence[Sequence[int]], owners: Sequence[int], room: int
) -> Session | AnsweringSession:
    """Rows ready to grow: their continuations (causal models) or answers (encoder–decoders); see these classes."""
    if isinstance(bank, EncoderDecoderBank):
        return AnsweringSession(lm, bank, rows, owners, room)
    return Session(lm, bank, rows, owners, room)
