"""Proves on the loaded model, before anything relies on it, that prefix + rows equals concatenation."""

from __future__ import annotations

import torch

from softprompt.errors import UnsupportedModelError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.causal_trial import CausalTrial
from softprompt.prefix.runtime import PrefixRuntime
from softprompt.prefix.seq2seq_trial import Seq2SeqTrial


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
        reason = Seq2SeqTrial(lm).run() if lm.is_encoder_decoder else CausalTrial(lm).run()
        if reason:
            raise UnsupportedModelError(
                f"{lm.geometry.architecture} models cannot take a prefix exactly", where=lm.name, got=reason
            )
        runtime.exact = True
