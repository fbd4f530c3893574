"""Verified prefixes, and the start of decoding, for either kind of model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.cache import KV
from softprompt.prefix.cascade import shared_layers
from softprompt.prefix.decoding import DecodingSession
from softprompt.prefix.kv import CausalPrefixKV, Prefix, PrefixKV, run_prefixes
from softprompt.prefix.seq2seq import Seq2SeqPrefixKV, gather_prefixes, record_text_kv
from softprompt.prefix.seq2seq_decoding import Seq2SeqDecodingSession
from softprompt.prefix.verify import verify


def start_decoding(
    lm: FrozenLM, prefix_kv: PrefixKV, rows: Sequence[Sequence[int]], prefix_ids: Sequence[int], room: int
) -> DecodingSession | Seq2SeqDecodingSession:
    """Rows ready to grow: their continuations (causal models) or answers (encoder–decoders); see these classes."""
    if isinstance(prefix_kv, Seq2SeqPrefixKV):
        return Seq2SeqDecodingSession(lm, prefix_kv, rows, prefix_ids, room)
    return DecodingSession(lm, prefix_kv, rows, prefix_ids, room)


def copies_prefix(lm: FrozenLM, prefix_kv: PrefixKV) -> bool:
    """Whether each row of a session has a copy of its prefix; if not, all rows share one."""
    return not isinstance(prefix_kv, CausalPrefixKV) or shared_layers(lm, prefix_kv) is None


def prepare_prefixes(lm: FrozenLM, prefixes: Sequence[Prefix]) -> PrefixKV:
    """Make every prefix ready, with gradient where its prompt has one: run once, or gathered for an encoder–decoder.

    Raises:
        GeometryError: a KV prompt after a lead (its keys start at position 0).
        UnsupportedModelError: the model is not exact with a prefix.
    """
    verify(lm)
    return gather_prefixes(lm, prefixes) if lm.is_encoder_decoder else run_prefixes(lm, prefixes)


@torch.no_grad()
def compute_keys_values(lm: FrozenLM, prefix: Prefix) -> tuple[KV, ...]:
    """The keys and values [1, K, T, D] that the model computes for a prefix, for every layer of `geometry.layers`.

    An encoder–decoder reads the text in its encoder, and its decoder gets the same ids after its start token, as many
    tokens in all. Unlike a causal model's, these keys and values cannot replace the text: in the encoder a text also
    attends to later tokens. Raises UnsupportedModelError for an encoder–decoder's prefix with a soft prompt.
    """
    verify(lm)
    if not lm.is_encoder_decoder:
        return run_prefixes(lm, [prefix]).layers
    if prefix.prompt is not None:
        raise UnsupportedModelError("an encoder-decoder has keys and values for a text only", where=lm.name)
    ids = [*prefix.lead, *prefix.follow]
    return record_text_kv(lm, ids, [lm.start_id, *ids[:-1]])
