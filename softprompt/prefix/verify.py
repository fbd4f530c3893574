"""Proves on the loaded model, before anything relies on it, that prefix + rows equals concatenation."""

from __future__ import annotations

import torch
from torch import Tensor

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix, run_prefixes
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.runtime import MaskStyle, PrefixRuntime
from softprompt.prefix.seq2seq import answer_hidden_states, gather_prefixes, record_text_kv
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt

TOLERANCE = {torch.float32: 1e-3}  # relative; half precision rounds in another order with other shapes
HALF_TOLERANCE = 0.1
FOREIGN = (TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError)  # errors that a model may raise

_PROBE_TOKENS = 6


@torch.no_grad()
def verify(lm: FrozenLM) -> None:
    """Compare prefixes + rows with the model's own forward pass on six tokens, once per model.

    Raises UnsupportedModelError with the reason if they differ: a cache that drops, shares or compresses keys,
    masks of the model's own, positions that cannot be passed.
    """
    runtime = PrefixRuntime.of(lm)
    if runtime.exact:
        return
    with runtime.verifying:
        if runtime.exact:
            return
        reason = _try_encoder_decoder(lm) if lm.is_encoder_decoder else _try_causal(lm, runtime)
        if reason:
            raise UnsupportedModelError(
                f"{lm.geometry.architecture} models cannot take a prefix exactly", where=lm.name, got=reason
            )
        runtime.exact = True


def probe_ids(lm: FrozenLM, count: int = _PROBE_TOKENS) -> list[int]:
    """Token ids for trial passes, the same in every process."""
    return [(7 * i + 3) % lm.geometry.vocab for i in range(count)]


def _try_causal(lm: FrozenLM, runtime: PrefixRuntime) -> str:
    """Find how the model takes masks. Returns the reason why it cannot be exact, or ""."""
    ids = probe_ids(lm)
    truth = lm.hf_model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0].float()
    wanted = torch.cat([truth[3:], truth[3:5]])
    styles: list[MaskStyle] = ["per layer type", "single"] if lm.layer_types else ["single"]
    reason = ""
    for style in styles:
        runtime.mask_style = style
        try:
            prefixes = run_prefixes(lm, [Prefix(lead=tuple(ids[:3]))])
            ours = lm.logits(packed_hidden_states(lm, prefixes, [Row(ids[3:]), Row(ids[3:5])], capacity=8))
        except FOREIGN as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if not (reason := _difference(lm, ours, wanted)):
            return ""
    runtime.mask_style = None
    return reason


def _try_encoder_decoder(lm: FrozenLM) -> str:
    """Replace a text's first tokens by their keys and values, recorded with the whole text, at all three sites, and by
    an embedding prompt in the encoder. Returns the reason why the logits differ, or ""."""
    ids = probe_ids(lm)
    written = [*ids[3:], lm.start_id, *ids[:2]]
    text = [*ids, *lm.closing]
    try:
        whole, last = (
            lm.hf_model(
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
    return _difference(lm, ours, torch.cat([whole, last]))


def _difference(lm: FrozenLM, ours: Tensor, wanted: Tensor) -> str:
    """The relative difference of the logits in words; "" if they agree."""
    off = ((ours.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-6)).item()
    return "" if off <= TOLERANCE.get(lm.dtype, HALF_TOLERANCE) else f"its logits after a prefix are off by {off:.1%}"
