"""Chunks of Mamba-2 scans: shorter ones give the same states."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import transformers as tf

from softprompt.models.scan_chunks import MAX_CHUNK, shorten_chunks
from tests.support.odd_models import STATE_CONFIGS


def granite4() -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(STATE_CONFIGS["granite4"]())


def mixers(model: torch.nn.Module) -> list[Any]:
    found = [layer for layer in model.modules() if hasattr(layer, "ssm_state_size")]
    return cast("list[Any]", found)


def test_short_chunks_compute_the_same() -> None:
    model = granite4().eval()
    mixers = [layer for layer in model.modules() if hasattr(layer, "ssm_state_size")]
    for mixer in mixers:
        vars(mixer)["chunk_size"] = 256
    short = copy.deepcopy(model)
    shorten_chunks(short)
    assert mixers and [m.chunk_size for m in short.modules() if hasattr(m, "ssm_state_size")] == [MAX_CHUNK] * len(
        mixers
    )
    ids = torch.randint(5, 250, (2, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(short(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_chunks_that_are_short_already_stay() -> None:
    model = granite4()
    before = [mixer.chunk_size for mixer in mixers(model)]
    shorten_chunks(model)
    assert [mixer.chunk_size for mixer in mixers(model)] == [min(length, MAX_CHUNK) for length in before]
