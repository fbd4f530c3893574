"""One soft prompt in training: its learner, rows, optimiser and schedule, and the best state so far.

A run trains one candidate, or many in the same forward passes (`train`). What a candidate does depends on nothing but
itself, so it learns the same alone and among others. Knows nothing of forward passes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from softprompt.data.sampler import sample
from softprompt.data.task_mixture import TaskMixture
from softprompt.data.tokenize import Example
from softprompt.errors import NonFiniteLossError
from softprompt.objectives.schedule import Budget, default_steps, rate
from softprompt.prefix.kv import Prefix
from softprompt.prompts.forms import Prompt
from softprompt.training.config import TrainConfig

NOT_FINITE = "start anew (--overwrite) with a lower --lr, or with --dtype float32"


class Learner(Protocol):
    """What can be trained: an nn.Module that gives live prompts for rows. `methods.Method` is one."""

    def assign(self, rows: Sequence[Example]) -> tuple[Sequence[Prompt], Sequence[int]]: ...
    def freeze(self) -> tuple[Prompt, ...]: ...


@dataclass(frozen=True)
class Task:
    """The rows of a task and the constant text around the prompt.

    Attributes:
        train, validation: tokenised rows; validation may be empty, then the last prompt is kept.
        lead, follow: token ids before and behind the virtual tokens.
        digest: of whatever else a resumed run must share: data, template, method.
        name: where several tasks are learned together.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    lead: tuple[int, ...] = ()
    follow: tuple[int, ...] = ()
    digest: str = ""
    name: str = ""


@dataclass
class TrialState:
    """How far a candidate is, and what its validations said: all of it that JSON can hold.

    Attributes:
        stopped: why it ended: "steps", "minutes", "patience", "halving", "not finite" or a signal's name; or "".
        stale: validations since the best one.
        next_eval: the progress at which the next validation is due.
        judged: the share of its validation rows that it is judged by.
        before: seconds that its start took; its schedule has so much less time, resumed too.
    """

    step: int = 0
    stopped: str = ""
    stale: int = 0
    next_eval: float = 0.0
    judged: float = 1.0
    before: float = 0.0
    best_loss: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)


class Trial:
    """A learner on its way.

    Args:
        learner: is moved to `device` and trained in place.
        tasks: rows of task t carry `task=t`.
        name: to tell it from others of its run.
        teachers: finished prompts of the tasks, one for each, that training is distilled from; or none.
    """

    def __init__(
        self,
        learner: Learner,
        tasks: Sequence[Task],
        settings: TrainConfig,
        device: torch.device,
        name: str = "",
        teachers: Sequence[Prompt] = (),
    ) -> None:
        assert isinstance(learner, nn.Module)
        self.learner: Any = learner.to(device)
        self.tasks, self.settings, self.name = tuple(tasks), settings, name
        self.teachers = [Prefix(p, t.lead, t.follow) for p, t in zip(teachers, tasks, strict=bool(teachers))]
        self.optimizer = _optimizer(self.learner, settings)
        lengths = [[len(row.ids) for row in task.train] for task in tasks]
        self.batches = TaskMixture(lengths, settings.batch_size, settings.seed, settings.temperature)
        self.judged = [
            [task.validation[i] for i in sample(len(task.validation), settings.eval_rows, settings.seed)]
            for task in tasks
        ]
        steps = settings.steps
        if steps is None and settings.minutes is None:
            steps = default_steps(sum(map(len, lengths)), settings.batch_size)
        self.budget = Budget(steps, settings.minutes * 60 if settings.minutes else None)
        self.record = TrialState()
        self.best: dict[str, Tensor] = {}

    def next_rows(self) -> list[Example]:
        """The rows of the next step."""
        return [self.tasks[t].train[i] for t, i in self.batches.next_batch()]

    def prefixes(self, rows: Sequence[Example]) -> tuple[list[Prefix], list[int]]:
        """The live prefixes that these rows stand behind, each once, and for each row its prefix's number."""
        prompts, prefix_ids = self.learner.assign(rows)
        numbers: dict[tuple[int, int, tuple[int, int]], int] = {}
        for row, owner in zip(rows, prefix_ids, strict=True):
            numbers.setdefault((owner, row.task, row.masked_span), len(numbers))
        found = [
            Prefix(prompts[owner], self.tasks[task].lead, self.tasks[task].follow, masked_span)
            for owner, task, masked_span in numbers
        ]
        return found, [numbers[owner, row.task, row.masked_span] for row, owner in zip(rows, prefix_ids, strict=True)]

    def progress(self, elapsed: float) -> float:
        """0 at the start, 1 at the end of its schedule."""
        return self.budget.after(self.record.before).progress(self.record.step, elapsed)

    def update(self, loss: float, rows: Sequence[Example], elapsed: float) -> dict[str, float]:
        """One optimiser step with the gradients as they are; returns the step's numbers.

        Args:
            loss: mean over the learned tokens of `rows`.

        Raises NonFiniteLossError, and changes nothing, if loss or gradient is not finite.
        """
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLossError(
                "loss or gradient is not finite; the prompt was not changed by this step",
                where=f"step {self.record.step + 1}{self._of()}",
                got=f"loss {loss}, gradient norm {norm}, rows {', '.join(row.where for row in rows)}",
                hint=NOT_FINITE,
            )
        progress = self.progress(elapsed)
        lr = self.settings.lr * rate(self.settings.schedule, self.settings.warmup, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.record.step += 1
        tokens = float(sum(len(row.ids) for row in rows))
        numbers = {"loss": loss, "lr": lr, "grad_norm": norm, "tokens": tokens}
        return numbers | {"progress": progress, "elapsed": elapsed, "epoch": self.batches.epoch}

    def judge(self, losses: Sequence[float], elapsed: float) -> dict[str, float]:
        """Take note of a validation, the mean loss of each task; keep the state if it is the best so far.

        Raises NonFiniteLossError if the loss is not finite.
        """
        loss, record = sum(losses) / len(losses), self.record
        if not math.isfinite(loss):
            where, got = f"step {record.step}{self._of()}", f"loss {loss}"
            raise NonFiniteLossError("validation loss is not finite", where=where, got=got, hint=NOT_FINITE)
        better = record.best_loss is None or loss < record.best_loss
        record.stale = 0 if better else record.stale + 1
        if better:
            record.best_loss = loss
            self.best = {name: tensor.detach().clone() for name, tensor in self.learner.state_dict().items()}
        record.history.append({"step": float(record.step), "validation_loss": loss})
        record.next_eval = self.progress(elapsed) + (1.0 - 1e-9) / self.settings.evals
        judged = [task for task, rows in zip(self.tasks, self.judged, strict=True) if rows]
        each = {f"validation_loss/{task.name}": own for task, own in zip(judged, losses, strict=True) if task.name}
        rows = float(sum(map(len, self.judges())))
        return {"validation_loss": loss, "best": record.best_loss or 0.0, "rows": rows} | each

    def judges(self, share: float | None = None) -> list[list[Example]]:
        """Of each task the rows that it is judged by, or this share of them; one at least, if there are any."""
        part = self.record.judged if share is None else share
        return [
            [rows[i] for i in sample(len(rows), math.ceil(len(rows) * part), self.settings.seed)]
            for rows in self.judged
        ]

    def is_due(self, elapsed: float) -> bool:
        """Whether a validation is due."""
        return any(self.judged) and self.progress(elapsed) >= self.record.next_eval

    @property
    def latest_loss(self) -> float:
        """Of the last validation; infinity before the first."""
        return self.record.history[-1]["validation_loss"] if self.record.history else math.inf

    def is_judged(self) -> bool:
        """Whether it was validated as it is, or never is."""
        history = self.record.history
        return not any(self.judged) or bool(history and history[-1]["step"] == self.record.step)

    def why_stop(self, elapsed: float) -> str:
        """The reason to stop now, or ""."""
        if self.progress(elapsed) >= 1.0:
            return "steps" if self.record.step == self.budget.steps else "minutes"
        patience = self.settings.patience
        return "patience" if patience is not None and self.record.stale >= patience else ""

    def finish(self) -> tuple[Prompt, ...]:
        """The best prompts, or the last ones if there was nothing to judge by."""
        if self.best:
            self.learner.load_state_dict(self.best)
        return self.learner.freeze()

    def state(self) -> dict[str, Any]:
        """Everything that changes, as a tree of tensors and JSON data; `restore` is the inverse."""
        return {
            "learner": dict(self.learner.state_dict()),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state(),
            "record": vars(self.record),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken. Raises DataError if that was with other rows or settings."""
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.restore(state["batches"])
        self.best, self.record = state["best"], TrialState(**state["record"])

    def identity(self) -> str:
        """A digest of all that must be the same for a resumed candidate to be the same, the base model aside."""
        shapes = {name: list(tensor.shape) for name, tensor in self.learner.state_dict().items()}
        free = {"save_every", "accumulate", "track", "gradient_checkpointing", "graphs"}
        around = [[task.name, task.digest, task.lead, task.follow] for task in self.tasks]
        facts = [self.name, around, shapes, self.settings.model_dump(exclude=free)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _of(self) -> str:
        return f" of {self.name}" if self.name else ""


def active_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Those that have not stopped."""
    return [trial for trial in trials if not trial.record.stopped]


def _optimizer(learner: nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(learner.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.Adafactor(learner.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
