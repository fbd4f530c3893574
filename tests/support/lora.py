"""LoRA adapters of tiny base models, as PEFT makes and saves them, with weights large enough to matter."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as tf

TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "t5": ["q", "v"]}


def lora_model(model: tf.PreTrainedModel, seed: int = 0, **settings: Any) -> peft.PeftModel:
    """A PeftModel around a copy of the model, whose adapter's weights are drawn at random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, of tied embeddings and of GPT-2's transposed weights
        config = peft.LoraConfig(r=3, lora_alpha=5, **settings)
        made: Any = peft.get_peft_model(copy.deepcopy(model), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                weight.normal_(0.0, 0.3)
            elif "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    return made.eval()


def save_lora(folder: Path, base: Path, model: tf.PreTrainedModel, seed: int = 0, **settings: Any) -> Path:
    """The adapter in a folder, which names the base model in the folder `base`."""
    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    made = lora_model(model, seed, **{"task_type": task} | settings)
    made.peft_config["default"].base_model_name_or_path = str(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_pretrained(str(folder))
    return folder


def logits_of(model: Any, ids: list[int], **more: Any) -> torch.Tensor:
    """Logits [T, V] of one text."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(input_ids=torch.tensor([ids], device=model.device), **more).logits[0]
