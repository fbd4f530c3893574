"""Verified prefixes, and the start of decoding, for either kind of model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import KV
from softprompt.prefix.cascade import shared_layers
from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import CausalPrefixKV, Prefix, PrefixKV, run_prefixes
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.seq2seq import SITES, Seq2SeqPrefixKV, gather_prefixes, record_text_kv
from softprompt.prefix.seq2seq_decoding import Seq2SeqDecodingSession
from softprompt.prefix.state import StatePrefixes, run_states, state_hidden_states, state_keys_values
from softprompt.prefix.state_decoding import StateDecodingSession
from softprompt.prefix.verify import verify

AnySession = DecodingSession | Seq2SeqDecodingSession | StateDecodingSession


def start_decoding(
    lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Sequence[int]], prefix_ids: Sequence[int], room: int
) -> AnySession:
    """Rows ready to grow: their continuations (causal models) or answers (encoder–decoders); see these classes."""
    if isinstance(prefix_kv, Seq2SeqPrefixKV):
        return Seq2SeqDecodingSession(lm, prefix_kv, rows, prefix_ids, room)
    if isinstance(prefix_kv, StatePrefixes):
        return StateDecodingSession(lm, prefix_kv, rows, prefix_ids, room)
    return DecodingSession(lm, prefix_kv, rows, prefix_ids, room)


def packs_rows(lm: FrozenLM) -> bool:
    """Whether rows of this causal model are packed after shared keys and values. Raises UnsupportedModelError."""
    verify(lm)
    return PrefixRuntime.of(lm).path == "packed"


def exact_sites(lm: FrozenLM) -> tuple[str, ...]:
    """Where a soft prompt of keys and values is exact on this encoder–decoder, in the order of its layers; of a causal
    model nothing. Raises UnsupportedModelError."""
    verify(lm)
    return tuple(site for site in SITES if site in PrefixRuntime.of(lm).kv_sites)


def copies_prefix(lm: FrozenLM, prefix_kv: PrefixKV) -> bool:
    """Whether each row of a session has a copy of its prefix; if not, all rows share one."""
    return not isinstance(prefix_kv, CausalPrefixKV) or shared_layers(lm, prefix_kv) is None


def prepare_prefixes(lm: FrozenLM, prefixes: Sequence[Prefix]) -> PrefixKV:
    """Make every prefix ready, with gradient where its prompt has one, on the path that is exact on this model.

    It is run once. Only for a model whose cache allows no path it is embedded, and run again with each row. Prefixes of
    an encoder–decoder are gathered.

    Raises:
        GeometryError: a KV prompt after a lead (its keys start at position 0).
        UnsupportedModelError: the model is not exact with a prefix.
    """
    verify(lm)
    if lm.is_encoder_decoder:
        return gather_prefixes(lm, prefixes)
    if PrefixRuntime.of(lm).path != "packed":
        return run_states(lm, prefixes)
    return run_prefixes(lm, prefixes)


def hidden_states(lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Row], *, capacity: int | None = None) -> Tensor:
    """Final hidden states [T, H] of all tokens of all rows of a causal model, in the order of the rows.

    Args:
        capacity: as in `packed_hidden_states`; no meaning on other paths.
    """
    if isinstance(prefix_kv, StatePrefixes):
        return state_hidden_states(lm, prefix_kv, rows)
    return packed_hidden_states(lm, prefix_kv, rows, capacity=capacity)


@torch.no_grad()
def compute_keys_values(lm: FrozenLM, prefix: Prefix) -> tuple[KV, ...]:
    """The keys and values [1, K, T, D] that the model computes for a prefix, for every layer of `geometry.layers`.

    An encoder–decoder reads the text in its encoder, and its decoder gets the same ids after its start token, as many
    tokens in all. Unlike a causal model's, these keys and values cannot replace the text: in the encoder a text also
    attends to later tokens. Raises UnsupportedModelError for an encoder–decoder's prefix with a soft prompt.
    """
    verify(lm)
    if not lm.is_encoder_decoder:
        packs = PrefixRuntime.of(lm).path == "packed"
        layers = run_prefixes(lm, [prefix]).layers if packs else state_keys_values(lm, prefix)
        return tuple(kv and (kv[0].to(lm.device), kv[1].to(lm.device)) for kv in layers)
    if prefix.prompt is not None:
        raise UnsupportedModelError("an encoder-decoder has keys and values for a text only", where=lm.name)
    ids = [*prefix.lead, *prefix.follow]
    return record_text_kv(lm, ids, [lm.start_id, *ids[:-1]])
