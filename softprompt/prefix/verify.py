"""Proves on the loaded model, before anything relies on it, that prefix + rows equals concatenation."""

from __future__ import annotations

import torch

from softprompt.errors import FOREIGN_ERRORS, UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.causal_trial import CausalTrial, logit_difference, probe_ids
from softprompt.prefix.kv import Prefix
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.seq2seq import answer_hidden_states, gather_prefixes, record_text_kv
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt


@torch.no_grad()
def verify(lm: FrozenLM) -> None:
    """Compare prefixes + rows with the model's own forward pass on six tokens, once per model.

    Raises UnsupportedModelError with the reason if they differ on every path: a model that is not causal, that takes no
    embeddings, or whose head cannot be run alone.
    """
    runtime = PrefixRuntime.of(lm)
    if runtime.exact:
        return
    with runtime.verifying:
        if runtime.exact:
            return
        reason = _try_encoder_decoder(lm) if lm.is_encoder_decoder else CausalTrial(lm).run()
        if reason:
            raise UnsupportedModelError(
                f"{lm.geometry.architecture} models cannot take a prefix exactly", where=lm.name, got=reason
            )
        runtime.exact = True


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
    except FOREIGN_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    return logit_difference(lm, ours, torch.cat([whole, last]))
