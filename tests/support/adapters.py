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
    task = "SEQ_2_SEQ_LM" if lm.is_encoder_decoder else "CAUSAL_LM"
    config = make(**{"task_type": task} | settings | changes)
    if kind in EMBEDDINGS:
        config.token_dim = lm.geometry.hidden
        if lm.is_encoder_decoder:  # PEFT does not find them in every config, and does not use them
            config.num_layers, config.num_attention_heads = 1, 1
    elif lm.is_encoder_decoder and "token_dim" not in changes:  # PEFT takes the encoder's depth and the model's width
        shape = lm.geometry.layers[-1]  # of the decoder
        assert shape is not None
        config.num_layers = changes.get("num_layers", lm.geometry.sites.count("decoder"))
        config.num_attention_heads, config.token_dim = shape.kv_heads, shape.kv_heads * shape.key_dim
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


def peft_answer_logits(
    lm: FrozenLM,
    folder: Path,
    texts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    task: int | None = None,
) -> list[Tensor]:
    """Logits [A, V] at the tokens of each answer of an encoder–decoder: one batch, padded on the right."""
    tasks = {} if task is None else {"task_ids": torch.full((len(texts),), task)}
    read = [[*text, *lm.closing] for text in texts]
    ids, mask = _padded(read, 0), _padded([[1] * len(text) for text in read], 0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(lm.hf_model), folder).eval()
        labels = _padded(answers, -100)
        logits = model(input_ids=ids, attention_mask=mask, labels=labels, **tasks).logits
    return [logits[i, : len(answer)] for i, answer in enumerate(answers)]


def peft_answers(lm: FrozenLM, folder: Path, text: Sequence[int], n_tokens: int) -> list[int]:
    """Greedy token ids of one answer of an encoder–decoder, by PEFT's own `generate`."""
    ids = torch.tensor([[*text, *lm.closing]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = peft.PeftModel.from_pretrained(copy.deepcopy(lm.hf_model), folder).eval()
        options = {"do_sample": False, "max_new_tokens": n_tokens, "min_new_tokens": n_tokens}
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return made[0, 1:].tolist()


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def uniform(geometry: Geometry) -> bool:
    """Whether every layer has keys and values of one shape."""
    return len(set(geometry.layers)) == 1
