"""PEFT's cartridge example recipe on our exercises, for a given processor time.

As `examples/cartridge_self_study/train_distill.py` of https://github.com/huggingface/peft does it: one row a step,
AdamW at 1e-3 with the Trainer's linear decay and clipping, one frozen token, the teacher's 20 likeliest tokens as soft
targets (sparse cross entropy, the rest left out) at every token of the row, the teacher run again in every step;
started from the first tokens of the text (`arxiv_train.py`). Rows, frame and what measures the result are ours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.peft_side import to_prompt
from softprompt.data.sampler import Batches
from softprompt.data.tokenize import Example
from softprompt.distillation.prepare import PreparedDistillation
from softprompt.distillation.teacher import Teacher
from softprompt.formatting.formatted_prompt import layout_for, layout_ids
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.base import SoftPrompt

RATE, TOP = 1e-3, 20


def train_cartridge(
    lm: FrozenLM, prepared: PreparedDistillation, rows: Sequence[Example], tokens: int, seconds: float, seed: int
) -> tuple[SoftPrompt, int]:
    """A KV prompt and the steps it took in so many seconds of processor time."""
    import peft

    torch.manual_seed(seed)
    config = peft.CartridgeConfig(task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=tokens, num_frozen_tokens=1)
    model = peft.get_peft_model(lm.hf_model, config)  # type: ignore[arg-type]
    peft.initialize_kv_prefix_from_text(model, lm.tokenizer, text=prepared.text)
    teacher = Teacher(lm, prepared.chunks, prepared.template)
    _, follow = layout_ids(lm, layout_for(lm, prepared.template, "kv"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    batches = Batches([len(row.ids) for row in rows], 1, seed)
    begin, steps = time.process_time(), 0
    while (elapsed := time.process_time() - begin) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - elapsed / seconds)
        row = rows[batches.next_batch()[0]]
        ids = torch.tensor([[*follow, *row.ids]], device=lm.device)
        wanted = _taught(lm, teacher, row)
        own = torch.log_softmax(model(input_ids=ids).logits[0, len(follow) : -1].float(), -1)
        (-(wanted.values.exp() * own.gather(-1, wanted.indices)).sum(-1).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as Transformers' Trainer does
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    prompt = to_prompt(lm, "prefix-tuning", model)  # the same layout
    assert prompt is not None
    return prompt, steps


@torch.no_grad()
def _taught(lm: FrozenLM, teacher: Teacher, row: Example) -> torch.return_types.topk:
    """The likeliest tokens behind each token of the row but the last, and their log-probabilities [L - 1, 20]."""
    prefix = teacher.prefix(0)
    states: Tensor = packed_hidden_states(
        lm, prepare_prefixes(lm, [Prefix(lead=(*prefix.lead, *prefix.follow))]), [Row(row.ids)]
    )[:-1]
    return torch.log_softmax(lm.logits(states).float(), -1).topk(TOP)
