"""Writes the artifacts of a finished run: for each task a soft prompt with its card, README and learning curve.

NAME                    one task
NAME.sst2, NAME.rte     several tasks, each with its own template, from one shared prompt or one of its own
NAME.shared             the prompt that multitask training shares, to adapt to another task
NAME.1 … NAME.4, NAME   the experts of a routed mixture, and their router
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.data.splits import data_digest
from softprompt.formatting.chat_template import pinned_chat_template
from softprompt.formatting.formatted_prompt import framed_layout
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import size_of
from softprompt.prompts.model_card import model_card
from softprompt.training.events import trial_of
from softprompt.training.objective_config import ObjectiveName
from softprompt.training.observation import OBSERVATIONS
from softprompt.training.plots import can_plot, learning_curve, observation_curves
from softprompt.training.prepare import PreparedTask, PreparedTraining
from softprompt.training.result import Result
from softprompt.training.run_log import read_log
from softprompt.training.starts import Starts

CURVE = "curve.png"  # file name of the learning curve
OBSERVED = "inspect.png"  # of the curves of `train.inspect`
OBJECTIVE = "objective.png"  # of the numbers of a preference or reward objective
_UNITS: dict[ObjectiveName, str] = {
    "next-token": "loss (nats per token)",
    "dpo": "loss (nats per pair)",
    "grpo": "mean reward",
}


@dataclass(frozen=True)
class PromptPart:
    """One soft prompt of a run.

    Attributes:
        name: suffix of the artifact's name; empty if the run has one soft prompt.
    """

    name: str
    task: PreparedTask
    prompt: SoftPrompt


def prompt_parts(prepared: PreparedTraining, prompts: Sequence[SoftPrompt]) -> list[PromptPart]:
    """The soft prompts that a run saves."""
    names, tasks = prepared.part_names, {task.name: task for task in prepared.tasks}
    by_name = prompts if len(prompts) > 1 else [prompts[0]] * len(names)
    return [PromptPart(name, tasks.get(name, prepared.tasks[0]), p) for name, p in zip(names, by_name, strict=True)]


def write_part(
    prepared: PreparedTraining, lm: FrozenLM, result: Result, *, trial: str = "", overwrite: bool
) -> list[tuple[Path, Card]]:
    """Write every soft prompt of a finished run; returns their folders and cards as written.

    Args:
        trial: of a sweep the trial's name, for the learning curve.

    Raises StoreError if a name is taken (without `overwrite`) or the disk refuses.
    """
    written, has_curve = list[tuple[Path, Card]](), can_plot()
    for number, part in enumerate(prompt_parts(prepared, result.prompts)):
        folder = prepared.folder_of(part.name)
        card = describe(prepared, lm, part, result, folder.name)

        def extras(scratch: Path, name: str = card.name) -> None:
            if not has_curve:
                return
            metrics = prepared.run / "metrics.jsonl"
            learning_curve(scratch / CURVE, name, *curves(metrics, trial), unit=_UNITS[prepared.config.objective.name])
            if observed := observations(metrics, trial):
                observation_curves(scratch / OBSERVED, name, observed)
            if numbers := objective_curves(metrics, trial):
                observation_curves(scratch / OBJECTIVE, name, numbers)

        readme = model_card(card, bytes_on_disk=size_of(part.prompt), curve=CURVE if has_curve else None)
        card = store.save(folder, part.prompt, card, readme=readme, extras=extras, overwrite=overwrite)
        Starts(prepared.run).keep(trial, number if len(result.prompts) > 1 else 0, card)
        written.append((folder, card))
    Starts(prepared.run).forget_trials()
    return written


def objective_of(prepared: PreparedTraining) -> dict[str, object]:
    """The objective for the recipe of a card, which says nothing of the next-token objective.

    A reward is named without folders, with the digest of its file.
    """
    settings, reward = prepared.config.objective, prepared.reward
    if settings.name == "next-token":
        return {}
    named = {} if reward is None else {"reward": reward.label, "reward_sha256": reward.sha256}
    return {"objective": settings.used() | named}


def best_numbers(result: Result) -> dict[str, float]:
    """The further numbers of the best validation, such as accuracy and margin of pairs."""
    best = min(result.history, key=lambda numbers: numbers["validation_loss"], default={})
    return {name: value for name, value in best.items() if name not in ("step", "validation_loss")}


def curves(metrics: Path, trial: str = "") -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(step, loss) pairs of training and of validation from a metrics file, of a reward (step, reward) pairs.

    Args:
        trial: names one trial of a sweep.
    """
    lines = [line for line in read_log(metrics) if trial_of(line) == trial]
    if rewards := _points(lines, "step", "reward"):
        return rewards, _points(lines, "validation", "validation_reward")
    return _points(lines, "step", "loss"), _points(lines, "validation", "validation_loss")


def objective_curves(metrics: Path, trial: str = "") -> dict[str, list[tuple[float, float]]]:
    """(step, value) pairs of the numbers of a preference or reward objective, by their names; none of next tokens."""
    lines = [line for line in read_log(metrics) if trial_of(line) == trial]
    names = ("validation_accuracy", "validation_margin", "validation_reward")
    found = {name: _points(lines, "validation", name) for name in names}
    found |= {name: _points(lines, "step", name) for name in ("kl", "reward_std", "answer_tokens", "cut_off")}
    return {name: points for name, points in found.items() if points}


def observations(metrics: Path, trial: str = "") -> dict[str, list[tuple[float, float]]]:
    """(step, value) pairs of everything that `train.inspect` wrote into a metrics file, by its name."""
    lines = [line for line in read_log(metrics) if trial_of(line) == trial]
    found = {name: _points(lines, "validation", name) for name in OBSERVATIONS}
    return {name: points for name, points in found.items() if points}


def _points(lines: Sequence[Mapping[str, object]], event: str, number: str) -> list[tuple[float, float]]:
    """(step, number) of every event of one kind."""
    pairs = [(line.get("step"), line.get(number)) for line in lines if line.get("event") == event]
    return [(step, value) for step, value in pairs if isinstance(step, int | float) and isinstance(value, int | float)]


def describe(prepared: PreparedTraining, lm: FrozenLM, part: PromptPart, result: Result, name: str) -> Card:
    """The card of a soft prompt that is not saved yet."""
    task, config = part.task, prepared.config
    metrics: dict[str, str | float] = {
        "steps": result.step,
        "seconds": round(result.seconds, 1),
        "stopped": result.stopped,
    }
    if result.validation_loss is not None:
        metrics["validation_loss"] = result.validation_loss
        metrics |= best_numbers(result)
    return Card.draft(
        name,
        part.prompt,
        lm.geometry,
        layout=framed_layout(lm, task.template, part.prompt.form, task.frame),
        template=task.template.to_dict(),
        chat_template=pinned_chat_template(task.template, lm.tokenizer),
        labels=task.classes,
        method=config.method.model_dump(mode="json"),
        recipe=config.train.model_dump(mode="json") | objective_of(prepared),
        data={
            "train_sha256": data_digest(task.splits.train),
            "train_rows": len(task.train),
            "validation_rows": len(task.validation),
            **({"reading": reading} if (reading := task.reading.to_dict()) else {}),
        },
        metrics=metrics,
    )
