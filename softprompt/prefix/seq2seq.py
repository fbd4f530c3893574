"""Encoder–decoders: each row's text in the encoder and its answer in the decoder, after the row's own prefix.

Sites and positions of a soft prompt:

    encoder           lead · virtual tokens · follow · text · end of text (the tokenizer's own, T5: </s>). An embedding
                      prompt is P tokens of this row. A KV prompt is P keys and values per layer at positions 0…P-1,
                      which every token attends to and which attend to nothing; what follows starts at P.
    decoder           P keys and values per layer at positions 0…P-1; the decoder's start token is at P.
    cross-attention   P keys and values per layer before those of the encoder's states, all without a position.

T5 uses distances only, never positions: a prefix shorter than the longest one is placed right before the text, after
empty slots. The encoder attends both ways, so virtual tokens that are run attend to the text: an embedding prompt
belongs to each row and cannot be run once for all of them. It is concatenated to each, in padded groups of like length.

Shapes: N prefixes, B rows, E encoder tokens, T decoder tokens, S slots, K key/value heads, D head size, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import KV, DecoderCache, PrefixCache
from softprompt.prefix.forward import check_fits_context, check_not_empty
from softprompt.prefix.kv import Prefix, PrefixKV, embedded
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.seq2seq_forward import run_decoder, run_encoder

SITES = ("encoder", "decoder", "cross")
_TOKENS = 8192  # of rows of like length, run at once


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

    def of(self, prefix_id_B: Tensor) -> Past:
        """The past of B rows with these prefixes."""
        layers = tuple(None if kv is None else (kv[0][prefix_id_B], kv[1][prefix_id_B]) for kv in self.layers)
        return Past(layers, self.visible[prefix_id_B])


@final
@dataclass(frozen=True, eq=False)
class Seq2SeqPrefixKV(PrefixKV):
    """N prefixes of an encoder–decoder.

    Attributes:
        fronts: for each prefix the embeddings [n, H] before the text in the encoder.
        pasts: for each site the keys and values of the KV prompts.
        lengths: encoder positions before the text.
    """

    fronts: tuple[Tensor, ...]
    pasts: dict[str, Past]
    lengths: tuple[int, ...]


@final
@dataclass(frozen=True, eq=False)
class EncodedText:
    """The encoder's final hidden states [B, E, H] of B texts, and True [B, E] for those of tokens."""

    states: Tensor
    visible: Tensor


def gather_prefixes(lm: FrozenLM, prefixes: Sequence[Prefix]) -> Seq2SeqPrefixKV:
    """These prefixes, ready for rows, with gradient where a prompt has one. Raises GeometryError as `kv.embedded`."""
    if any(last > first for first, last in (prefix.masked_span for prefix in prefixes)):
        raise UnsupportedModelError("an encoder-decoder cannot hide virtual tokens from single rows", where=lm.name)
    fronts = tuple(embedded(lm, prefix) for prefix in prefixes)
    pasts = {site: _past(lm, prefixes, site) for site in SITES}
    held = pasts["encoder"].visible.sum(1).tolist()
    return Seq2SeqPrefixKV(fronts, pasts, tuple(len(f) + n for f, n in zip(fronts, held, strict=True)))


def encode_text(
    lm: FrozenLM, prefix_kv: Seq2SeqPrefixKV, texts: Sequence[Sequence[int]], prefix_id_B: Tensor
) -> EncodedText:
    """Run the encoder over texts (token ids), each after its own prefix. Raises DataError for an empty text."""
    check_not_empty(texts)
    check_fits_context(lm, max(prefix_kv.lengths) + max(map(len, texts)) + len(lm.closing))
    ids = [[*text, *lm.closing] for text in texts]
    embedded_texts = lm.embed([token for text in ids for token in text]).split([len(text) for text in ids])
    pairs = zip(prefix_id_B.tolist(), embedded_texts, strict=True)
    rows = [torch.cat([prefix_kv.fronts[number], text]) for number, text in pairs]
    embeds_BEH = pad_sequence(rows, batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows], device=lm.device)
    visible_BE = torch.arange(embeds_BEH.shape[1], device=lm.device) < lengths_B[:, None]
    past = prefix_kv.pasts["encoder"].of(prefix_id_B)
    cache = PrefixCache(past.layers, past.slots)
    return EncodedText(run_encoder(lm, embeds_BEH, torch.cat([past.visible, visible_BE], 1), cache), visible_BE)


def answer_hidden_states(
    lm: FrozenLM,
    prefix_kv: Seq2SeqPrefixKV,
    texts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    prefix_ids: Sequence[int],
) -> Tensor:
    """Final hidden states [A, H] that predict the A tokens of all answers, one answer after the other.

    Args:
        texts, answers: token ids of each row; at least one each.
        prefix_ids: the number of each row's prefix.
    """
    states: list[Tensor] = [torch.empty(0)] * len(texts)
    sizes = [prefix_kv.lengths[i] + len(text) + len(a) for text, a, i in zip(texts, answers, prefix_ids, strict=True)]
    for part in by_tokens(sizes, _TOKENS):
        prefix_id_B = torch.tensor([prefix_ids[i] for i in part], device=lm.device)
        encoded = encode_text(lm, prefix_kv, [texts[i] for i in part], prefix_id_B)
        inputs = [torch.tensor([lm.start_id, *answers[i][:-1]], device=lm.device) for i in part]
        ids_BT = pad_sequence(inputs, batch_first=True)
        written = _write(lm, prefix_kv, encoded, ids_BT, prefix_id_B)
        for row, i in enumerate(part):
            states[i] = written[row, : len(answers[i])]
    return torch.cat(states)


def record_text_kv(lm: FrozenLM, text: Sequence[int], written: Sequence[int]) -> tuple[KV, ...]:
    """Keys and values [1, K, n, D] that the model has for a text in its encoder, for ids in its decoder, and for the
    encoder's states in its cross-attention, in the order of `geometry.layers`."""
    layers = {site: (None,) * lm.geometry.sites.count(site) for site in SITES}
    caches = {site: PrefixCache(layers[site], 0, record=True) for site in SITES}
    seen = torch.ones(1, len(text), dtype=torch.bool, device=lm.device)
    states = run_encoder(lm, lm.embed(text)[None], seen, caches["encoder"])
    causal = torch.ones(1, len(written), len(written), dtype=torch.bool, device=lm.device).tril()
    ids = torch.tensor([list(written)], device=lm.device)
    run_decoder(lm, ids, causal, states, seen, DecoderCache(caches["decoder"], caches["cross"]))
    return tuple(caches[site].seen.get(i) for site in SITES for i in range(len(layers[site])))


def _write(
    lm: FrozenLM, prefix_kv: Seq2SeqPrefixKV, encoded: EncodedText, ids_BT: Tensor, prefix_id_B: Tensor
) -> Tensor:
    """Final hidden states [B, T, H] of the decoder."""
    past, cross = prefix_kv.pasts["decoder"].of(prefix_id_B), prefix_kv.pasts["cross"].of(prefix_id_B)
    rows, length = ids_BT.shape
    causal = torch.ones(length, length, dtype=torch.bool, device=lm.device).tril()
    visible = torch.cat([past.visible[:, None].expand(-1, length, -1), causal.expand(rows, -1, -1)], 2)
    crossing = torch.cat([cross.visible, encoded.visible], 1)
    cache = DecoderCache(PrefixCache(past.layers, past.slots), PrefixCache(cross.layers, cross.slots))
    return run_decoder(lm, ids_BT, visible, encoded.states, crossing, cache)


def _past(lm: FrozenLM, prefixes: Sequence[Prefix], site: str) -> Past:
    """The site's keys and values of every prefix, padded on the left to the longest; no slots if no prompt has any."""
    numbers = [i for i, layer_site in enumerate(lm.geometry.sites) if layer_site == site]
    prompts = [prefix.prompt.keys_values() if prefix.prompt else None for prefix in prefixes]
    firsts = [layers[numbers[0]] if layers is not None else None for layers in prompts]
    lengths = [first[0].shape[1] if first is not None else 0 for first in firsts]
    slots = max(lengths)
    missing = torch.tensor([slots - n for n in lengths], device=lm.device)
    visible = torch.arange(slots, device=lm.device) >= missing[:, None]
    if slots == 0:
        return Past((None,) * len(numbers), visible)
    layers = []
    for i in numbers:
        shape = lm.geometry.layers[i]
        assert shape is not None, "an encoder–decoder keeps keys and values in every layer"
        nothing = torch.zeros(shape.kv_heads, 0, shape.key_dim), torch.zeros(shape.kv_heads, 0, shape.value_dim)
        pairs = [(layers_of[i] if layers_of is not None else None) or nothing for layers_of in prompts]
        keys, values = zip(*pairs, strict=True)
        layers.append((_stacked(lm, keys, slots), _stacked(lm, values, slots)))
    return Past(tuple(layers), visible)


def _stacked(lm: FrozenLM, parts: Sequence[Tensor], slots: int) -> Tensor:
    """[N, K, S, D], padded on the left."""
    return torch.stack([pad(part.to(lm.device, lm.dtype), (0, 0, slots - part.shape[1], 0)) for part in parts])
