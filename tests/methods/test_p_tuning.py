"""P-tuning: P' = P_0 + f(E), the encoders as PEFT has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PromptEncoder, PromptEncoderConfig
from torch import Tensor
from torch.testing import assert_close

from softprompt.methods.initializers import initial_embeddings
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.learning import stir
from tests.support.tasks import learner, start_of
from tests.support.tiny import tiny_lm

LAYERS = {  # PEFT's name of each of ours
    "MLP": {"first": "mlp_head.0", "second": "mlp_head.2", "last": "mlp_head.4"},
    "LSTM": {"lstm": "lstm_head", "first": "mlp_head.0", "last": "mlp_head.2"},
}


def of_peft(kind: str, state: dict[str, Tensor]) -> Tensor:
    """What PEFT's own encoder makes of the same weights."""
    options: dict[str, Any] = {"encoder_reparameterization_type": kind, "encoder_hidden_size": 8}
    config = PromptEncoderConfig(
        num_virtual_tokens=6, token_dim=32, num_transformer_submodules=1, encoder_dropout=0.0, **options
    )
    encoder = PromptEncoder(config)
    names = LAYERS[kind]
    renamed = {"embedding.weight": state["tokens"]}
    for name, tensor in state.items():
        if name.startswith("encoder."):
            _, layer, part = name.split(".")
            renamed[f"{names[layer]}.{part}"] = tensor
    encoder.load_state_dict(renamed)
    return encoder(torch.arange(6)[None])[0]


@pytest.mark.parametrize(("name", "kind"), [("p-tuning", "MLP"), ("p-tuning-lstm", "LSTM")])
def test_the_change_is_what_pefts_encoder_gives(name: str, kind: str) -> None:
    lm = tiny_lm("llama")
    method = learner(lm, name)
    state = stir(method)
    (prompt,) = method()
    assert isinstance(prompt, EmbeddingPrompt)
    wanted = of_peft(kind, state)
    assert wanted.abs().max() > 0.1
    assert_close(prompt.embeddings - initial_embeddings(lm, start_of(lm)), wanted, rtol=1e-4, atol=1e-5)
