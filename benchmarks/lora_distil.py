"""Context distillation into a LoRA: the same rows, soft labels and seconds as a soft prompt's training.

PEFT's LoRA of rank 8 on all linear layers, AdamW with linear decay and clipping. What is trained changes every request
that the layers see, so its effect without the text's prompt is measured too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from softprompt.data.sampler import Batches
from softprompt.data.tokenize import Example
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes

RANK = 8


def distill_lora(
    lm: FrozenLM, rows: Sequence[Example], prefix: Prefix, seconds: float, rate: float, batch_size: int, seed: int
) -> tuple[Callable[[], object], dict[str, float]]:
    """Put a LoRA into the model's layers, trained for so much processor time; what takes it out again, and its size.

    Args:
        rows: with a teacher's soft labels.
        prefix: before every row, without the text.
    """
    import peft

    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type=peft.TaskType.CAUSAL_LM, r=RANK, target_modules="all-linear")
    model = peft.get_peft_model(lm.hf_model, config)  # type: ignore[arg-type]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    batches = Batches([len(row.ids) for row in rows], batch_size, seed)
    begin, steps = time.process_time(), 0
    with torch.enable_grad():
        while (elapsed := time.process_time() - begin) < seconds:
            optimizer.param_groups[0]["lr"] = rate * (1 - elapsed / seconds)
            picked = [rows[i] for i in batches.next_batch()]
            token_losses(lm, prepare_prefixes(lm, [prefix]), picked).mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    model.eval()
    about = {"steps": steps, "seconds": elapsed, "parameters": sum(p.numel() for p in trained)}
    return model.unload, about
