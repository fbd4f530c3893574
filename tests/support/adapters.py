"""PEFT adapters with random weights, as PEFT itself makes and saves them, and PEFT's own forward of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.geometry import Geometry

CONFIGS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "PROMPT_TUNING": (peft.PromptTuningConfig, {"num_virtual_tokens": 5}),
    "P_TUNING": (peft.PromptEncoderConfig, {"num_virtual_tokens": 5, "encoder_hidden_size": 12}),
    "PREFIX_TUNING": (peft.PrefixTuningConfig, {"num_virtual_tokens": 5}),
    "CARTRIDGE": (peft.CartridgeConfig, {"num_virtual_tokens": 5, "num_frozen_tokens": 2}),
    "MULTITASK_PROMPT_TUNING": (
        peft.MultitaskPromptTuningConfig,
        {"num_virtual_tokens": 5, "num_tasks": 3, "num_ranks": 2},
    ),
    "CPT": (peft.CPTConfig, {"cpt_token_ids": [20, 21, 22, 23, 24], "cpt_tokens_type_mask": [1, 2, 2, 3, 4]}),
}
# PEFT builds embedding prompts of `hidden_size`, which for a model with narrower embeddings (OPT-350m) must be said.
EMBEDDINGS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")


def saved_adapter(kind: str, lm: FrozenLM, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """An adapter of this type with weights like no initialisation, saved by PEFT."""
    make, settings = CONFIGS[kind]
    config = make(task_type="CAUSAL_LM", **settings | changes)
    if kind in EMBEDDINGS:
        config.token_dim = lm.geometry.hidden
    torch.manual_seed(seed)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of names that Transformers will drop
        model: Any = peft.get_peft_model(copy.deepcopy(lm.hf_model), config)
        model.eval()
        for name, parameter in model.prompt_encoder.named_parameters():
            if "embedding" in name or "prefix_task" in name:
                parameter.copy_(torch.randn(parameter.shape))
        model.save_pretrained(folder)
    return folder


def peft_logits(lm: FrozenLM, folder: Path, rows: Sequence[Sequence[int]], task: int | None = None) -> list[Tensor]:
    """Logits [T, V] at each row's own tokens: one batch, padded on the right, with its attention mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    tasks = {} if task is None else {"task_ids": torch.full((len(rows),), task)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(lm.hf_model), folder).eval()
        logits = model(input_ids=ids, attention_mask=mask, **tasks).logits
    logits = logits[:, -longest:]
    return [logits[i, : len(row)] for i, row in enumerate(rows)]


def uniform(geometry: Geometry) -> bool:
    """Whether every layer has keys and values of one shape."""
    return len(set(geometry.layers)) == 1
