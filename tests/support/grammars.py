"""Grammars tried token by token."""

from __future__ import annotations

from softprompt.data.tokenizer import decode
from softprompt.engine.constraint import GrammarCompiler
from softprompt.models.frozen_lm import FrozenLM


def kept(lm: FrozenLM, lark: str, text: str, end: int = 2) -> tuple[str, bool]:
    """How much of a text, special tokens in it too, a grammar lets through, and whether it may end there."""
    state, taken = GrammarCompiler(lm).compile(lark).begin(), list[int]()
    for token in lm.encode(text):
        if not state.allowed(lm.geometry.vocab, {end}, may_end=True)[token]:
            break
        state.accept(token)
        taken.append(token)
    may_end = bool(state.allowed(lm.geometry.vocab, {end}, may_end=True)[end])
    return (decode(taken, lm.tokenizer) if taken else ""), may_end
