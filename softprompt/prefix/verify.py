"""Proof on the loaded model, before anything relies on it, that prefix + rows is what concatenation would be."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.forward import MaskStyle, mask_styles
from softprompt.prefix.kv import Prefix, run_prefixes
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.seq2seq import answer_hidden_states, gather_prefixes, record_text_kv
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt

TOLERANCE = {torch.float32: 1e-3}  # relative; half precision rounds in another order with other shapes
HALF_TOLERANCE = 0.1
FOREIGN = (TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError)  # what a model may raise

proven: weakref.WeakSet[FrozenLM] = weakref.WeakSet()  # encoder–decoders


@torch.no_grad()
def verify(lm: FrozenLM) -> None:
    """Compare prefixes + rows with the model's own forward on six tokens, once per model.

    Raises UnsupportedModelError with the reason if they differ: a cache that drops, shares or compresses keys,
    masks of its own, positions that cannot be given.
    """
    if lm in mask_styles or lm in proven:
        return
    reason = _try_encoder_decoder(lm) if lm.is_encoder_decoder else _try_causal(lm)
    if reason:
        raise UnsupportedModelError(
            f"{lm.geometry.architecture} models cannot take a prefix exactly", where=lm.name, got=reason
        )


def _try_causal(lm: FrozenLM) -> str:
    """Finds how the model takes masks; the reason why it cannot be exact, or ""."""
    ids = _some_ids(lm)
    truth = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0].float()
    wanted = torch.cat([truth[3:], truth[3:5]])
    styles: list[MaskStyle] = ["per layer type", "single"] if lm.layer_types else ["single"]
    reason = ""
    for style in styles:
        mask_styles[lm] = style
        try:
            prefixes = run_prefixes(lm, [Prefix(lead=tuple(ids[:3]))])
            ours = lm.logits(packed_hidden_states(lm, prefixes, [Row(ids[3:]), Row(ids[3:5])], capacity=8))
        except FOREIGN as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if not (reason := _off(lm, ours, wanted)):
            return ""
    del mask_styles[lm]
    return reason


def _try_encoder_decoder(lm: FrozenLM) -> str:
    """The keys and values of a text's first tokens, recorded with the whole text, stand in for these tokens at all
    three sites; and so does, in the encoder, an embedding prompt. The reason why they do not, or ""."""
    ids, written = _some_ids(lm), [*_some_ids(lm)[3:], lm.start_id, *_some_ids(lm)[:2]]
    text = [*ids, *lm.closing]
    try:
        whole, last = (
            lm.model(
                input_ids=torch.tensor([text], device=lm.device),
                decoder_input_ids=torch.tensor([answer], device=lm.device),
                use_cache=False,
            ).logits[0, -3:]
            for answer in (written, written[3:])
        )
        layers = [kv and (kv[0][0, :, :3], kv[1][0, :, :3]) for kv in record_text_kv(lm, text, written)]
        prefixes = [Prefix(KVPrompt(tuple(layers))), Prefix(EmbeddingPrompt(lm.embed(ids[:3])))]
        answers = [[*written[4:], 0]] * 2
        ours = lm.logits(answer_hidden_states(lm, gather_prefixes(lm, prefixes), [ids[3:]] * 2, answers, [0, 1]))
    except FOREIGN as error:
        return f"{type(error).__name__}: {error}"
    if not (reason := _off(lm, ours, torch.cat([whole, last]))):
        proven.add(lm)
    return reason


def _some_ids(lm: FrozenLM) -> list[int]:
    return [(7 * i + 3) % lm.geometry.vocab for i in range(6)]


def _off(lm: FrozenLM, ours: Tensor, wanted: Tensor) -> str:
    """How far the logits are off if they are, in words; "" if they agree."""
    off = ((ours.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-6)).item()
    return "" if off <= TOLERANCE.get(lm.dtype, HALF_TOLERANCE) else f"its logits behind a prefix are off by {off:.1%}"
