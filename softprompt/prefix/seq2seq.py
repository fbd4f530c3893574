"""Encoder–decoders: each row's text in the encoder and its answer in the decoder, after the row's own prefix.

Sites and positions of a soft prompt:

    encoder           lead · virtual tokens · follow · opening · text · closing. Opening and closing are what the
                      tokenizer puts around every text (T5: </s> after it; NLLB: the language before it). An embedding
                      prompt is P tokens of this row, at the positions from the lead on, as PEFT concatenates it. A KV
                      prompt is P keys and values per layer at positions 0…P-1, which every token attends to and which
                      attend to nothing; what follows starts at P.
    decoder           P keys and values per layer at positions 0…P-1; the decoder's start token is at P.
    cross-attention   P keys and values per layer before those of the encoder's states, all without a position.

The encoder attends both ways, so virtual tokens that are run attend to the text: an embedding prompt belongs to each
row and cannot be run once for all of them. It is concatenated to each, in padded groups of like length.

Shapes: N prefixes, B rows, E encoder tokens, T decoder tokens, S slots, K key/value heads, D head size, H width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import KV
from softprompt.prefix.forward import check_fits_context, check_not_empty
from softprompt.prefix.kv import Prefix, PrefixKV, embedded
from softprompt.prefix.packing import by_tokens
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.seq2seq_forward import DecoderRun, EncodedText, Past, run_encoder

SITES = ("encoder", "decoder", "cross")
_TOKENS = 8192  # of rows of like length, run at once


@final
@dataclass(frozen=True, eq=False)
class Seq2SeqPrefixKV(PrefixKV):
    """N prefixes of an encoder–decoder.

    Attributes:
        fronts: for each prefix the embeddings [n, H] before the text in the encoder.
        pasts: for each site the keys and values of the KV prompts.
        slots: for each prefix the number of its keys and values at each site.
        lengths: encoder positions before the text.
    """

    fronts: tuple[Tensor, ...]
    pasts: dict[str, Past]
    slots: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]


def gather_prefixes(lm: FrozenLM, prefixes: Sequence[Prefix]) -> Seq2SeqPrefixKV:
    """These prefixes, ready for rows, with gradient where a prompt has one.

    Raises:
        GeometryError: as `kv.embedded`.
        UnsupportedModelError: virtual tokens hidden from rows, or keys and values at a site where they are not exact.
    """
    if any(last > first for first, last in (prefix.masked_span for prefix in prefixes)):
        hint = "leave train.token_dropout at 0"
        raise UnsupportedModelError("an encoder-decoder cannot hide virtual tokens", where=lm.name, hint=hint)
    fronts = tuple(embedded(lm, prefix) for prefix in prefixes)
    slots = tuple(_slots(lm, prefix) for prefix in prefixes)
    pasts = {site: _past(lm, prefixes, site) for site in SITES}
    lengths = tuple(len(front) + held[0] for front, held in zip(fronts, slots, strict=True))
    return Seq2SeqPrefixKV(fronts, pasts, slots, lengths)


def encode_text(
    lm: FrozenLM, prefix_kv: Seq2SeqPrefixKV, texts: Sequence[Sequence[int]], prefix_ids: Sequence[int]
) -> EncodedText:
    """Run the encoder over texts (token ids) of one of `row_groups`, each after its own prefix.

    Raises DataError for an empty text, or one that does not fit in the model's context.
    """
    check_not_empty(texts)
    around = len(lm.opening) + len(lm.closing)
    longest = max(prefix_kv.lengths[i] + len(text) for text, i in zip(texts, prefix_ids, strict=True))
    check_fits_context(lm, longest + around)
    ids = [[*lm.opening, *text, *lm.closing] for text in texts]
    embedded_texts = lm.embed([token for text in ids for token in text]).split([len(text) for text in ids])
    pairs = zip(prefix_ids, embedded_texts, strict=True)
    rows = [torch.cat([prefix_kv.fronts[number], text]) for number, text in pairs]
    embeds_BEH = pad_sequence(rows, batch_first=True)
    lengths_B = torch.tensor([len(row) for row in rows], device=lm.device)
    visible_BE = torch.arange(embeds_BEH.shape[1], device=lm.device) < lengths_B[:, None]
    encoded = run_encoder(lm, embeds_BEH, visible_BE, _past_of(lm, prefix_kv, "encoder", prefix_ids))
    return EncodedText(encoded.states, visible_BE)


def decoder_run(
    lm: FrozenLM,
    prefix_kv: Seq2SeqPrefixKV,
    text: EncodedText,
    prefix_ids: Sequence[int],
    room: int | None = None,
) -> DecoderRun:
    """The decoder behind these texts and prefixes; `room` as for `DecoderRun`."""
    own, cross = (_past_of(lm, prefix_kv, site, prefix_ids) for site in ("decoder", "cross"))
    return DecoderRun(lm, text, own, cross, room)


def row_groups(
    lm: FrozenLM, prefix_kv: Seq2SeqPrefixKV, prefix_ids: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> Iterator[list[int]]:
    """Numbers of the rows that can run together.

    Args:
        sizes: tokens of each row's text and of its answer.
    """
    runtime = PrefixRuntime.of(lm)
    if runtime.path == "masked":
        yield list(range(len(prefix_ids)))
        return
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, (number, size) in enumerate(zip(prefix_ids, sizes, strict=True)):
        length = prefix_kv.lengths[number] + size[0], size[1]
        company = {"padded": None, "equal": length, "alone": i}[runtime.company]
        groups.setdefault((*prefix_kv.slots[number], company), []).append(i)
    yield from groups.values()


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

    Raises DataError for a row that does not fit in the model's context.
    """
    check_answers_fit(lm, prefix_kv, prefix_ids, max(map(len, answers)))
    states: list[Tensor] = [torch.empty(0)] * len(texts)
    lengths = [(len(text), len(answer)) for text, answer in zip(texts, answers, strict=True)]
    sizes = [prefix_kv.lengths[i] + sum(length) for i, length in zip(prefix_ids, lengths, strict=True)]
    for group in row_groups(lm, prefix_kv, prefix_ids, lengths):
        for places in by_tokens([sizes[i] for i in group], _TOKENS):
            part = [group[i] for i in places]
            ids = [prefix_ids[i] for i in part]
            encoded = encode_text(lm, prefix_kv, [texts[i] for i in part], ids)
            inputs = [torch.tensor([*lm.start_ids, *answers[i][:-1]], device=lm.device) for i in part]
            written = decoder_run(lm, prefix_kv, encoded, ids).run(pad_sequence(inputs, batch_first=True))
            for row, i in enumerate(part):
                states[i] = written[row, len(lm.start_ids) - 1 :][: len(answers[i])]
    return torch.cat(states)


def check_answers_fit(lm: FrozenLM, prefix_kv: Seq2SeqPrefixKV, prefix_ids: Sequence[int], tokens: int) -> None:
    """Raise DataError if answers of so many tokens do not fit in the decoder's positions."""
    before = max(prefix_kv.slots[i][SITES.index("decoder")] for i in prefix_ids) + len(lm.start_ids)
    hint = "ask for fewer new tokens, or leave long answers out"
    check_fits_context(lm, before + tokens, "prefix and answer do not fit in the decoder", hint, lm.answer_positions)


def record_text_kv(lm: FrozenLM, text: Sequence[int], written: Sequence[int]) -> tuple[KV, ...]:
    """Keys and values [1, K, n, D] that the model has for a text in its encoder, for ids in its decoder, and for the
    encoder's states in its cross-attention, in the order of `geometry.layers`."""
    seen = torch.ones(1, len(text), dtype=torch.bool, device=lm.device)
    none = {site: Past((None,) * lm.geometry.sites.count(site), seen[:, :0]) for site in SITES}
    can_read = any(lm.geometry.layers[i] is not None for i, site in enumerate(lm.geometry.sites) if site == "encoder")
    encoded = run_encoder(lm, lm.embed(text)[None], seen, none["encoder"], record=can_read)
    run = DecoderRun(lm, EncodedText(encoded.states, seen), none["decoder"], none["cross"], record=True)
    run.run(torch.tensor([list(written)], device=lm.device))
    assert run.cache is not None, "it records"
    caches = {
        "encoder": encoded.cache,
        "decoder": run.cache.self_attention_cache,
        "cross": run.cache.cross_attention_cache,
    }
    found = {site: getattr(cache, "seen", {}) for site, cache in caches.items()}
    return tuple(found[site].get(i) for site in SITES for i in range(len(none[site].layers)))


def check_sites(lm: FrozenLM, sites: Iterable[str]) -> None:
    """Raise UnsupportedModelError for a site at which keys and values are not exact on this model."""
    runtime = PrefixRuntime.of(lm)
    if odd := [site for site in sites if site not in runtime.kv_sites]:
        exact = [site for site in SITES if site in runtime.kv_sites]
        raise UnsupportedModelError(
            f"keys and values at the site {odd[0]!r} are not exact on {lm.geometry.architecture} models",
            where=lm.name,
            got=runtime.site_reasons.get(odd[0], "it keeps none there"),
            hint=f"--method.sites {','.join(exact)}" if exact else "--method prompt-tuning",
        )


def _slots(lm: FrozenLM, prefix: Prefix) -> tuple[int, ...]:
    """The number of keys and values at each site. Raises as `check_sites`."""
    layers = (prefix.prompt.keys_values() if prefix.prompt else None) or ()
    found: dict[str, int] = dict.fromkeys(SITES, 0)
    for kv, site in zip(layers, lm.geometry.sites, strict=False):
        if kv is not None:
            found[site] = kv[0].shape[1]
    check_sites(lm, (site for site, count in found.items() if count))
    return tuple(found.values())


def _past_of(lm: FrozenLM, prefix_kv: Seq2SeqPrefixKV, site: str, prefix_ids: Sequence[int]) -> Past:
    """The past of these rows at a site, with as many slots as the longest of them needs."""
    slots = max(prefix_kv.slots[i][SITES.index(site)] for i in prefix_ids)
    return prefix_kv.pasts[site].of(torch.tensor(prefix_ids, device=lm.device), slots)


def _past(lm: FrozenLM, prefixes: Sequence[Prefix], site: str) -> Past:
    """The site's keys and values of every prefix, padded on the left to the longest; no slots if no prompt has any."""
    numbers = [i for i, layer_site in enumerate(lm.geometry.sites) if layer_site == site]
    prompts = [prefix.prompt.keys_values() if prefix.prompt else None for prefix in prefixes]
    firsts = [layers[numbers[0]] if layers is not None and numbers else None for layers in prompts]
    lengths = [first[0].shape[1] if first is not None else 0 for first in firsts]
    slots = max(lengths)
    missing = torch.tensor([slots - n for n in lengths], device=lm.device)
    visible = torch.arange(slots, device=lm.device) >= missing[:, None]
    if slots == 0:
        return Past((None,) * len(numbers), visible)
    layers = list[KV]()
    for i in numbers:
        shape = lm.geometry.layers[i]
        if shape is None:
            layers.append(None)
            continue
        nothing = torch.zeros(shape.kv_heads, 0, shape.key_dim), torch.zeros(shape.kv_heads, 0, shape.value_dim)
        pairs = [(layers_of[i] if layers_of is not None else None) or nothing for layers_of in prompts]
        keys, values = zip(*pairs, strict=True)
        layers.append((_stacked(lm, keys, slots), _stacked(lm, values, slots)))
    return Past(tuple(layers), visible)


def _stacked(lm: FrozenLM, parts: Sequence[Tensor], slots: int) -> Tensor:
    """[N, K, S, D], padded on the left."""
    return torch.stack([pad(part.to(lm.device, lm.dtype), (0, 0, slots - part.shape[1], 0)) for part in parts])
