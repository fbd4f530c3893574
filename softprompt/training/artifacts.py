"""What a finished run leaves on disk: one soft prompt with its card, model card and learning curve for each task.

NAME                    one task
NAME.sst2, NAME.rte     several tasks, each with its own template, from one shared prompt or one of its own
NAME.shared             the prompt that multitask training shares, to adapt to another task
NAME.1 … NAME.4, NAME   the experts of a routed mixture, and their router
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.data.splits import data_digest
from softprompt.formatting.formatted_prompt import layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.card import Card, provenance
from softprompt.prompts.forms import Prompt, size_of
from softprompt.prompts.model_card import model_card
from softprompt.training.loop import Result
from softprompt.training.plots import learning_curve
from softprompt.training.prepare import PreparedTask, PreparedTraining
from softprompt.training.run_log import read_log

CURVE = "curve.png"


@dataclass(frozen=True)
class PromptPart:
    """One soft prompt of a run: the end of its name (empty for the only one), its task and tensors."""

    name: str
    task: PreparedTask
    prompt: Prompt


def prompt_parts(prepared: PreparedTraining, prompts: Sequence[Prompt]) -> list[PromptPart]:
    """The soft prompts that a run saves."""
    names, tasks = prepared.part_names, {task.name: task for task in prepared.tasks}
    own = prompts if len(prompts) > 1 else [prompts[0]] * len(names)
    return [PromptPart(name, tasks.get(name, prepared.tasks[0]), p) for name, p in zip(names, own, strict=True)]


def write_part(
    prepared: PreparedTraining, lm: FrozenLM, result: Result, *, trial: str = "", overwrite: bool
) -> list[tuple[Path, Card]]:
    """Write every soft prompt of a finished run; returns their folders and cards as written.

    Args:
        candidate: of a sweep: whose learning curve it is.

    Raises StoreError if a name is taken (without `overwrite`) or the disk refuses.
    """
    written = []
    for part in prompt_parts(prepared, result.prompts):
        folder = prepared.folder_of(part.name)
        card = describe(prepared, lm, part, result, folder.name)

        def extras(scratch: Path, name: str = card.name) -> None:
            learning_curve(scratch / CURVE, name, *curves(prepared.run / "metrics.jsonl", trial))

        readme = model_card(card, bytes_on_disk=size_of(part.prompt), curve=CURVE)
        card = store.save(folder, part.prompt, card, readme=readme, extras=extras, overwrite=overwrite)
        written.append((folder, card))
    return written


def curves(metrics: Path, trial: str = "") -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(step, loss) of training and validation from a metrics file, of one candidate of a sweep if it is named."""
    events = [event for event in read_log(metrics) if event.get("candidate", "") == trial]
    train_loss = [(e["step"], e["loss"]) for e in events if e["event"] == "step"]
    return train_loss, [(e["step"], e["validation_loss"]) for e in events if e["event"] == "validation"]


def describe(prepared: PreparedTraining, lm: FrozenLM, part: PromptPart, result: Result, name: str) -> Card:
    """The card of a part, before it is saved."""
    task, config = part.task, prepared.config
    metrics: dict[str, Any] = {
        "steps": result.step,
        "seconds": round(result.seconds, 1),
        "stopped": result.stopped,
    }
    if result.validation_loss is not None:
        metrics["validation_loss"] = result.validation_loss
    return Card(
        name=name,
        form=part.prompt.form,
        n_tokens=part.prompt.n_tokens,
        sha256="0" * 64,  # store.save fills it in
        base=lm.geometry.to_dict(),
        layout=layout_for(lm, task.template, part.prompt.form),
        template=task.template.to_dict(),
        labels=task.classes,
        method=config.method.model_dump(mode="json"),
        recipe=config.train.model_dump(mode="json"),
        data={
            "train_sha256": data_digest(task.splits.train),
            "train_rows": len(task.train),
            "validation_rows": len(task.validation),
        },
        metrics=metrics,
        **provenance(),
    )
