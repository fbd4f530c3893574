"""The two halves of an encoder–decoder behind prefixes: texts to encoder states, and answers to hidden states.

On the path "masked" (T5) keys and values stand before the tokens in slots, with masks of our own: prefixes of any
length run together, the shorter ones after empty slots. Else (path "concatenated") masks and positions are the model's
own, and rows that run together have as many keys and values before them at each site:

    encoder           as many tokens stand in for them, whose keys and values are replaced in every layer: the text's
                      positions are those behind P tokens, be they learned, sinusoidal, rotated or distances
    decoder           they fill the cache, and the model counts positions from its length, as for PEFT's prefix tuning
    cross-attention   as many encoder states stand in for them

Shapes: B rows, E encoder tokens, T decoder tokens, S slots of a prefix, H width of the embeddings, D of encoder states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import KV, CrossCache, DecoderCache, GrowingCache, PrefixCache
from softprompt.prefix.forward import additive
from softprompt.prefix.runtime import PrefixRuntime


@final
@dataclass(frozen=True, eq=False)
class Past:
    """The keys and values of N prefixes (or of B rows) at one site.

    Attributes:
        layers: per layer (keys [N, K, S, D], values [N, K, S, D']); None if S is 0.
        visible: [N, S] False for an empty slot; empty ones come first.
    """

    layers: tuple[KV, ...]
    visible: Tensor

    @property
    def slots(self) -> int:
        """S."""
        return self.visible.shape[1]

    def of(self, prefix_id_B: Tensor, slots: int) -> Past:
        """The past of B rows with these prefixes, which have no more than so many keys and values each."""
        first = self.slots - slots
        layers = tuple(
            None if kv is None or not slots else (kv[0][prefix_id_B, :, first:], kv[1][prefix_id_B, :, first:])
            for kv in self.layers
        )
        return Past(layers, self.visible[prefix_id_B, first:])


@final
@dataclass(frozen=True, eq=False)
class EncodedText:
    """The encoder's final hidden states [B, E, D] of B texts, and True [B, E] for those of tokens."""

    states: Tensor
    visible: Tensor

    def of(self, index: Tensor) -> EncodedText:
        """These rows."""
        return EncodedText(self.states[index], self.visible[index])


@final
@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoder states [B, E, D], and the cache with the keys and values that were seen on the way."""

    states: Tensor
    cache: PrefixCache


def run_encoder(lm: FrozenLM, embeds_BEH: Tensor, visible_BE: Tensor, past: Past, *, record: bool = False) -> Encoded:
    """Encoder states of embedded texts, each after its own keys and values.

    Args:
        visible_BE: True for tokens, False for padding.
        record: keep all keys and values of each layer.
    """
    halves, slots = lm.encoder_decoder, past.slots
    masked = PrefixRuntime.of(lm).path == "masked"
    cache = PrefixCache(past.layers, slots, record=record, stands_in=not masked)
    if masked:
        mask = additive(torch.cat([past.visible, visible_BE], 1)[:, None, :], lm.dtype)
        return Encoded(halves.encode(embeds_BEH, mask, cache), cache)
    places = embeds_BEH[:, :1].expand(-1, slots, -1)
    mask = pad(visible_BE.long(), (slots, 0), value=1)
    states = halves.encode(torch.cat([places, embeds_BEH], 1), mask, cache if slots or record else None)
    return Encoded(states[:, slots:], cache)


@final
class DecoderRun:
    """B answers, each after its own prefix and its own text.

    Args:
        text: the encoder's states.
        own: keys and values before the decoder's own.
        cross: keys and values before those of the encoder's states.
        room: the most decoder tokens in all, which are kept in a cache; None if `run` is called once.
        record: keep all keys and values of each layer.
    """

    def __init__(
        self, lm: FrozenLM, text: EncodedText, own: Past, cross: Past, room: int | None = None, *, record: bool = False
    ) -> None:
        self.lm, self._text = lm, text
        self._own, self._cross = own, cross
        self._masked = PrefixRuntime.of(lm).path == "masked"
        self._seen = 0
        places = 0 if self._masked else cross.slots
        if room is None:
            own_cache: Cache = PrefixCache(own.layers, own.slots, record=record)
            cross_cache: Cache = PrefixCache(cross.layers, cross.slots, record=record, stands_in=not self._masked)
        else:
            own_cache, cross_cache = GrowingCache(own.layers, own.slots, room), CrossCache(cross.layers, places)
        needed = self._masked or own.slots or cross.slots or record or room is not None
        self.cache = DecoderCache(own_cache, cross_cache) if needed else None

    def run(self, ids_BT: Tensor) -> Tensor:
        """Final hidden states [B, T, ·] of these ids, after those of earlier calls."""
        halves, text = self.lm.encoder_decoder, self._text
        if self._masked:
            crossing = additive(torch.cat([self._cross.visible, text.visible], 1)[:, None, :], self.lm.dtype)
            return halves.decode(ids_BT, text.states, crossing, self.cache, self._own_mask(ids_BT))
        slots = self._cross.slots
        states = pad(text.states, (0, 0, slots, 0))
        return halves.decode(ids_BT, states, pad(text.visible.long(), (slots, 0), value=1), self.cache)

    def keep(self, index: Tensor) -> None:
        """Go on with the rows in `index` [B'] only; a row that is named twice goes on as two."""
        self._text = self._text.of(index)
        self._own, self._cross = (Past(past.layers, past.visible[index]) for past in (self._own, self._cross))
        if self.cache is not None:
            for part in (self.cache.self_attention_cache, self.cache.cross_attention_cache):
                assert isinstance(part, PrefixCache | GrowingCache | CrossCache), "made here"
                part.keep(index)

    def _own_mask(self, ids_BT: Tensor) -> Tensor:
        """Additive mask [B, 1, T, keys]: a token attends to the prefix and to the tokens up to itself."""
        rows, length = ids_BT.shape
        causal = torch.ones(length, self._seen + length, dtype=torch.bool, device=self.lm.device).tril(self._seen)
        self._seen += length
        before = self._own.visible[:, None].expand(-1, length, -1)
        return additive(torch.cat([before, causal.expand(rows, -1, -1)], 2), self.lm.dtype)
