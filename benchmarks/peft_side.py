"""PEFT's side of the benchmarks: its methods trained as its documentation does it, on our rows, for a given time.

Recipes: prompt, prefix and P-tuning from the guide "Prompt-based methods" (AdamW, 3e-2, linear decay; a text start for
prompt tuning; P-tuning with encoder_hidden_size 128), LoRA of rank 8 on all linear layers from the quicktour (AdamW,
1e-3), also rank-stabilized (`rslora`) and of rank 1 (`lora-r1`), IA3 from its guide (8e-3), VeRA of rank 256 at 4e-3.
What was trained goes into our two forms and is evaluated by the same code as ours, layers in the model itself. `gap`
says how far the two losses of one batch are apart. `train_rates` tries three rates and keeps the one with the lowest
loss on validation rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
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

Kind = Literal["prompt-tuning", "prefix-tuning", "p-tuning", "lora", "rslora", "lora-r1", "ia3", "vera"]
RATES: dict[Kind, float] = {
    "prompt-tuning": 3e-2,
    "prefix-tuning": 3e-2,
    "p-tuning": 3e-2,
    "lora": 1e-3,
    "rslora": 1e-3,
    "lora-r1": 1e-3,
    "ia3": 8e-3,
    "vera": 4e-3,
}
LAYERED: tuple[Kind, ...] = ("lora", "rslora", "lora-r1", "ia3", "vera")  # they change the model's own layers
TRIED = (0.3, 1.0, 3.0)  # times the recipe's rate


@dataclass(frozen=True)
class PeftTask:
    """What is learned from, and how the rows are laid out.

    Attributes:
        rows, validation: to train on, and to choose a rate by.
        lead: token ids before every row.
        tokens: virtual tokens of the methods that have some.
        text: that prompt tuning starts from, read with the tokenizer in folder `tokenizer`.
    """

    lm: FrozenLM
    rows: Sequence[Example]
    validation: Sequence[Example]
    lead: Sequence[int]
    tokens: int
    text: str
    tokenizer: str
    batch_size: int
    seed: int

    def loss(self, prompt: SoftPrompt | None, rows: Sequence[Example]) -> float:
        """Our loss of these rows after a prompt, with whatever is in the model's layers; nats per learned token."""
        prefixes = prepare_prefixes(self.lm, [Prefix(prompt, (), tuple(self.lead))])
        parts = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return sum(token_losses(self.lm, prefixes, part).sum().item() for part in parts) / learned_tokens(rows)


@dataclass(frozen=True)
class Trained:
    """What a PEFT run left.

    Attributes:
        prompt: in our form; None if the model's layers were changed, until `undo` is called.
        gap: |PEFT's loss - ours| on the last batch.
        parameters: numbers that were trained, of a prompt those that are kept.
        disk_bytes: of the weights that PEFT saves.
        weights: of changed layers, as PEFT saves them.
        losses: on the validation rows, by rate, if several were tried.
    """

    prompt: SoftPrompt | None
    steps: int
    seconds: float
    gap: float
    undo: Callable[[], object]
    rate: float
    parameters: int
    disk_bytes: int
    weights: dict[str, Tensor]
    losses: dict[str, float] = field(default_factory=dict)


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


def wrap(task: PeftTask, kind: Kind) -> Any:
    """The base model as a PEFT model of this kind."""
    import peft

    causal, tokens = peft.TaskType.CAUSAL_LM, task.tokens
    if kind in ("lora", "rslora", "lora-r1"):
        config: peft.PeftConfig = peft.LoraConfig(
            task_type=causal,
            r=1 if kind == "lora-r1" else 8,
            target_modules="all-linear",
            use_rslora=kind == "rslora",
        )
    elif kind == "ia3":
        config = peft.IA3Config(task_type=causal)
    elif kind == "vera":
        config = peft.VeraConfig(task_type=causal, target_modules="all-linear")
    elif kind == "prefix-tuning":
        config = peft.PrefixTuningConfig(task_type=causal, num_virtual_tokens=tokens)
    elif kind == "p-tuning":
        config = peft.PromptEncoderConfig(task_type=causal, num_virtual_tokens=tokens, encoder_hidden_size=128)
    else:
        config = peft.PromptTuningConfig(
            task_type=causal,
            num_virtual_tokens=tokens,
            prompt_tuning_init=peft.PromptTuningInit.TEXT,
            prompt_tuning_init_text=task.text,
            tokenizer_name_or_path=task.tokenizer,
        )
    return peft.get_peft_model(task.lm.hf_model, config)  # type: ignore[arg-type]


def train_peft(task: PeftTask, kind: Kind, seconds: float, rate: float | None = None) -> Trained:
    """Train for `seconds` of wall time, at the recipe's rate if none is given."""
    torch.manual_seed(task.seed)
    lm, peak = task.lm, RATES[kind] if rate is None else rate
    model = wrap(task, kind)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=peak)
    batches = Batches([len(row.ids) for row in task.rows], task.batch_size, task.seed)
    begin, steps, picked = time.monotonic(), 0, []
    while (elapsed := time.monotonic() - begin) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = peak * (1 - elapsed / seconds)
        picked = [task.rows[i] for i in batches.next_batch()]
        model(**collate(picked, task.lead, lm.device)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as Transformers' Trainer does
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    model.eval()
    with torch.no_grad():
        theirs = model(**collate(picked, task.lead, lm.device)).loss.item()
        prompt = to_prompt(lm, kind, model)
        gap = abs(theirs - task.loss(prompt, picked))
    undo = model.unload if kind in LAYERED else lambda: None
    return Trained(prompt, steps, elapsed, gap, undo, peak, *_size(model, kind, prompt))


@torch.no_grad()
def train_rates(task: PeftTask, kind: Kind, seconds: float) -> Trained:
    """Train at three rates, for `seconds` each, and keep the one with the lowest loss on the validation rows.

    The time of validation is not counted.
    """
    tried: dict[str, Trained] = {}
    losses: dict[str, float] = {}
    for factor in TRIED:
        with torch.enable_grad():
            trained = train_peft(task, kind, seconds, RATES[kind] * factor)
        name = f"{trained.rate:.3g}"
        losses[name] = task.loss(trained.prompt, task.validation)
        trained.undo()
        tried[name] = trained
    best = replace(tried[min(losses, key=lambda name: losses[name])], losses=losses)
    return best if kind not in LAYERED else replace(best, undo=_restore(task, kind, best.weights))


def _restore(task: PeftTask, kind: Kind, weights: dict[str, Tensor]) -> Callable[[], object]:
    """Put trained layers into the model again; what is returned takes them out."""
    import peft

    model = wrap(task, kind)
    peft.set_peft_model_state_dict(model, weights)
    model.eval()
    return model.unload  # type: ignore[no-any-return]


def _size(model: Any, kind: Kind, prompt: SoftPrompt | None) -> tuple[int, int, dict[str, Tensor]]:
    """The numbers trained, the bytes of the weights that PEFT saves, and changed layers' weights."""
    import peft

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = trained if prompt is None else sum(tensor.numel() for tensor in prompt.tensors().values())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    if kind not in LAYERED:
        return kept, saved, {}
    state: dict[str, Tensor] = peft.get_peft_model_state_dict(model)
    return kept, saved, {name: tensor.detach().clone() for name, tensor in state.items()}


def to_prompt(lm: FrozenLM, kind: Kind, model: Any) -> SoftPrompt | None:
    """What was trained, in our form."""
    if kind in LAYERED:
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
