"""PEFT's side of the benchmarks: its methods trained as its documentation does it, on our rows, for a given time.

Recipes: prompt, prefix and P-tuning from the guide "Prompt-based methods" (AdamW, 3e-2, linear decay; a text start for
prompt tuning; P-tuning with encoder_hidden_size 128), LoRA from the quicktour (AdamW, 1e-3). What was trained goes
into our two forms and is evaluated by the same code as ours; `gap` says how far the two losses of one batch are apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from softprompt.data.sampler import Batches
from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt

Kind = Literal["prompt-tuning", "prefix-tuning", "p-tuning", "lora"]
RATES: dict[Kind, float] = {"prompt-tuning": 3e-2, "prefix-tuning": 3e-2, "p-tuning": 3e-2, "lora": 1e-3}


@dataclass(frozen=True)
class Trained:
    """What a PEFT run left.

    Attributes:
        prompt: in our form; None for LoRA, whose layers are in the model until `undo` is called.
        gap: |PEFT's loss - ours| on the last batch.
    """

    prompt: SoftPrompt | None
    steps: int
    seconds: float
    gap: float
    undo: Callable[[], object]


def collate(rows: Sequence[Example], lead: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    """Rows behind `lead` as PEFT takes them, padded to the longest: ids, attention mask, labels [B, L]."""
    ids = [[*lead, *row.ids] for row in rows]
    learned = [[*[False] * len(lead), *row.mask] for row in rows]
    longest = max(map(len, ids))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    keep = torch.tensor([row + [False] * (longest - len(row)) for row in learned])
    tensors = {"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(~keep, -100)}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def wrap(lm: FrozenLM, kind: Kind, *, tokens: int, text: str, tokenizer: str) -> Any:
    """The base model as a PEFT model of this kind.

    Args:
        text: that prompt tuning starts from, read with the tokenizer in folder `tokenizer`.
    """
    import peft

    task = peft.TaskType.CAUSAL_LM
    if kind == "lora":
        config: peft.PeftConfig = peft.LoraConfig(task_type=task, r=8, target_modules="all-linear")
    elif kind == "prefix-tuning":
        config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=tokens)
    elif kind == "p-tuning":
        config = peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=tokens, encoder_hidden_size=128)
    else:
        config = peft.PromptTuningConfig(
            task_type=task,
            num_virtual_tokens=tokens,
            prompt_tuning_init=peft.PromptTuningInit.TEXT,
            prompt_tuning_init_text=text,
            tokenizer_name_or_path=tokenizer,
        )
    return peft.get_peft_model(lm.hf_model, config)  # type: ignore[arg-type]


def train_peft(
    lm: FrozenLM,
    kind: Kind,
    rows: Sequence[Example],
    lead: Sequence[int],
    *,
    tokens: int,
    text: str,
    tokenizer: str,
    batch_size: int,
    seconds: float,
    seed: int,
) -> Trained:
    """Train for `seconds` of wall time."""
    torch.manual_seed(seed)
    model = wrap(lm, kind, tokens=tokens, text=text, tokenizer=tokenizer)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATES[kind])
    batches = Batches([len(row.ids) for row in rows], batch_size, seed)
    begin, steps, picked = time.monotonic(), 0, []
    while (elapsed := time.monotonic() - begin) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = RATES[kind] * (1 - elapsed / seconds)
        picked = [rows[i] for i in batches.next_batch()]
        model(**collate(picked, lead, lm.device)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as Transformers' Trainer does
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    model.eval()
    with torch.no_grad():
        theirs = model(**collate(picked, lead, lm.device)).loss.item()
        prompt = to_prompt(lm, kind, model)
        prefixes = prepare_prefixes(lm, [Prefix(prompt, (), tuple(lead))])
        ours = token_losses(lm, prefixes, picked).sum().item() / learned_tokens(picked)
    undo = model.unload if kind == "lora" else lambda: None
    return Trained(prompt, steps, elapsed, abs(theirs - ours), undo)


def to_prompt(lm: FrozenLM, kind: Kind, model: Any) -> SoftPrompt | None:
    """What was trained, in our form."""
    if kind == "lora":
        return None
    if kind == "p-tuning":
        return EmbeddingPrompt(model.get_prompt(batch_size=1)[0].detach().float())
    weight: Tensor = model.prompt_encoder["default"].embedding.weight.detach().float()
    if kind == "prompt-tuning":
        return EmbeddingPrompt(weight)
    layers = len(lm.geometry.layers)
    heads = lm.hf_model.config.num_key_value_heads
    size = weight.shape[1] // (2 * layers * heads)
    parts = weight.view(len(weight), layers, 2, heads, size).permute(1, 2, 3, 0, 4)  # as PeftModel.get_prompt
    return KVPrompt(tuple((keys.contiguous(), values.contiguous()) for keys, values in parts))
