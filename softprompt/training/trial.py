"""A trial: one soft prompt in training, with its rows, optimizer, schedule and best state so far.

A run trains one trial, or many in the same forward passes (`loop.train`). A trial's updates depend on nothing but the
trial, so it learns the same alone and among others. Forward passes are in `batched_losses`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, Protocol, TypedDict

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

from softprompt.data.sampler import sample
from softprompt.data.task_mixture import MixtureState, TaskMixture
from softprompt.data.tokenize import Example
from softprompt.errors import NonFiniteLossError
from softprompt.objectives.next_token import learned_tokens
from softprompt.objectives.schedule import Budget, rate
from softprompt.prefix.kv import Prefix
from softprompt.prompts.base import SoftPrompt
from softprompt.training.averaging import MovingAverage
from softprompt.training.config import TrainConfig
from softprompt.training.objective import Objective
from softprompt.training.token_dropout import TokenDropout

_NOT_FINITE_HINT = "start anew (--overwrite) with a lower --lr, or with --dtype float32"


class Learner(Protocol):
    """A trainable module that gives prompts for rows: `methods.base.Method`, and the parts of nn.Module used here."""

    def assign(self, rows: Sequence[Example]) -> tuple[Sequence[SoftPrompt], Sequence[int]]: ...
    def freeze(self) -> tuple[SoftPrompt, ...]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object: ...
    def train(self) -> object: ...
    def eval(self) -> object: ...
    def to(self, device: torch.device, /) -> object: ...


@dataclass(frozen=True)
class Task:
    """The rows of a task and the constant text around the prompt.

    Attributes:
        train: tokenized rows.
        validation: tokenized rows; if there are none, the last prompt is kept instead of the best.
        lead: token ids before the virtual tokens.
        follow: token ids after the virtual tokens.
        digest: of everything else that a resumed run must share: data, template, method.
        name: of the task, if several are learned together.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    lead: tuple[int, ...] = ()
    follow: tuple[int, ...] = ()
    digest: str = ""
    name: str = ""


@dataclass
class TrialState:
    """Progress and validation losses of a trial: the part of its state that is JSON.

    Attributes:
        step: finished optimizer steps.
        stopped: why it ended: "steps", "minutes", "patience", "halving", "not finite" or a signal's name; or "".
        stale: validations since the best one.
        next_eval: the progress at which the next validation is due.
        validation_share: share of the validation rows that are used.
        init_seconds: time that initialization took, subtracted from the schedule's time (of a resumed run, too).
        history: {"step": …, "validation_loss": …} of every validation, with the further numbers of its objective.
    """

    step: int = 0
    stopped: str = ""
    stale: int = 0
    next_eval: float = 0.0
    validation_share: float = 1.0
    init_seconds: float = 0.0
    best_loss: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    @staticmethod
    def of(saved: Mapping[str, object]) -> TrialState:
        """The state in a checkpoint, also in one of release 0.1."""
        renamed = {"judged": "validation_share", "before": "init_seconds"}
        return _STATE.validate_python({renamed.get(name, name): value for name, value in saved.items()})


_STATE = TypeAdapter(TrialState)


class TrialTree(TypedDict):
    """Everything of a trial that changes in training; a checkpoint has it."""

    learner: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: StateDict
    batches: MixtureState
    record: dict[str, object]  # a TrialState
    objective: NotRequired[dict[str, Tensor]]
    average: NotRequired[dict[str, Tensor]]


class Trial:
    """A learner with everything that its training needs.

    Args:
        learner: is moved to `device` and trained in place.
        tasks: rows of task t carry `task=t`.
        name: distinguishes the trials of a run.
        teachers: a finished prompt for each task to distill from, or none.
        objective: the loss of rows; that of their next tokens if None.
        rewrite: called with the trial, the rows of a step and the progress; returns the rows to learn from.
    """

    def __init__(
        self,
        learner: Learner,
        tasks: Sequence[Task],
        settings: TrainConfig,
        device: torch.device,
        name: str = "",
        teachers: Sequence[SoftPrompt] = (),
        objective: Objective | None = None,
        rewrite: Callable[[Trial, Sequence[Example], float], list[Example]] | None = None,
    ) -> None:
        learner.to(device)
        self.learner = learner
        self.tasks = tuple(tasks)
        self.settings, self.name = settings, name
        self.objective, self.rewrite = objective, rewrite
        self.notes: dict[str, tuple[float, int]] = {}  # sums of numbers, and how many
        self.teachers = [Prefix(p, t.lead, t.follow) for p, t in zip(teachers, tasks, strict=bool(teachers))]
        self.optimizer = _optimizer(self.learner, settings)
        self.average = MovingAverage(list(learner.parameters()), settings.average) if settings.average else None
        self.dropout = _dropout(learner, settings) if settings.token_dropout else None
        lengths = [[len(row.ids) for row in task.train] for task in tasks]
        self.batches = TaskMixture(lengths, settings.batch_size, settings.seed, settings.temperature)
        self.validation_rows = [
            [task.validation[i] for i in sample(len(task.validation), settings.eval_rows, settings.seed)]
            for task in tasks
        ]
        steps = settings.total_steps(sum(map(len, lengths)))
        self.budget = Budget(steps, settings.minutes * 60 if settings.minutes else None)
        self.state = TrialState()
        self.best: dict[str, Tensor] = {}

    def next_rows(self, elapsed: float) -> list[Example]:
        """The rows of the next step."""
        rows = [self.tasks[t].train[i] for t, i in self.batches.next_batch()]
        rows = rows if self.rewrite is None else self.rewrite(self, rows, self.progress(elapsed))
        return rows if self.dropout is None else self.dropout.hide(rows, self.state.step)

    def prefixes(self, rows: Sequence[Example]) -> tuple[list[Prefix], list[int]]:
        """The live prefixes of these rows, each once, and for each row the number of its prefix."""
        return prefixes_of(self.learner, self.tasks, rows)

    def units(self, rows: Sequence[Example]) -> int:
        """The number of losses that these rows have: of learned tokens, or of whole rows."""
        return learned_tokens(rows) if self.objective is None else len(rows)

    def note(self, name: str, values: Tensor) -> None:
        """Add numbers to the mean that the next step or validation reports under this name."""
        total, count = self.notes.get(name, (0.0, 0))
        self.notes[name] = total + values.sum().item(), count + values.numel()

    def noted(self, before: str = "") -> dict[str, float]:
        """The means of what was noted since the last call, with `before` in front of each name."""
        means = {f"{before}{name}": total / max(1, count) for name, (total, count) in self.notes.items()}
        self.notes.clear()
        return means

    def progress(self, elapsed: float) -> float:
        """0 at the start, 1 at the end of its schedule."""
        return self.budget.after(self.state.init_seconds).progress(self.state.step, elapsed)

    def update(self, loss: float, rows: Sequence[Example], elapsed: float) -> dict[str, float]:
        """Take one optimizer step with the current gradients; returns the step's numbers.

        Args:
            loss: mean over the learned tokens of `rows`, or over the rows of another objective.

        Raises NonFiniteLossError, and changes nothing, if loss or gradient is not finite.
        """
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLossError(
                "loss or gradient is not finite; the prompt was not changed by this step",
                where=f"step {self.state.step + 1}{self._of()}",
                got=f"loss {loss}, gradient norm {norm}, rows {', '.join(row.where for row in rows)}",
                hint=_NOT_FINITE_HINT,
            )
        progress = self.progress(elapsed)
        lr = self.settings.lr * rate(self.settings.schedule, self.settings.warmup, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        self.state.step += 1
        tokens = float(sum(len(row.ids) for row in rows))
        numbers = {"loss": loss, "lr": lr, "grad_norm": norm, "tokens": tokens} | self.noted()
        return numbers | {"progress": progress, "elapsed": elapsed, "epoch": self.batches.epoch}

    def record_validation(self, losses: Sequence[float], elapsed: float) -> dict[str, float]:
        """Record a validation and keep the state if it is the best so far; returns the validation's numbers.

        Args:
            losses: the mean loss of each task that has validation rows.

        Raises NonFiniteLossError if the loss is not finite.
        """
        loss, state = sum(losses) / len(losses), self.state
        if not math.isfinite(loss):
            where, got = f"step {state.step}{self._of()}", f"loss {loss}"
            raise NonFiniteLossError("validation loss is not finite", where=where, got=got, hint=_NOT_FINITE_HINT)
        better = state.best_loss is None or loss < state.best_loss
        state.stale = 0 if better else state.stale + 1
        if better:
            state.best_loss = loss
            self.best = {name: tensor.detach().clone() for name, tensor in self.learner.state_dict().items()}
        noted = self.noted("validation_")
        state.history.append({"step": float(state.step), "validation_loss": loss} | noted)
        state.next_eval = self.progress(elapsed) + (1.0 - 1e-9) / self.settings.evals
        names = [task.name for task, rows in zip(self.tasks, self.validation_rows, strict=True) if rows]
        by_task = {f"validation_loss/{name}": mean for name, mean in zip(names, losses, strict=True) if name}
        n_rows = float(sum(map(len, self.sample_validation_rows())))
        return {"validation_loss": loss, "best": state.best_loss or 0.0, "rows": n_rows} | noted | by_task

    def sample_validation_rows(self, share: float | None = None) -> list[list[Example]]:
        """Of each task a share of its validation rows, at least one if there are any.

        Args:
            share: in [0, 1]; that of the trial's state if None.
        """
        share = self.state.validation_share if share is None else share
        return [
            [rows[i] for i in sample(len(rows), math.ceil(len(rows) * share), self.settings.seed)]
            for rows in self.validation_rows
        ]

    def is_due(self, elapsed: float) -> bool:
        """Whether a validation is due."""
        return any(self.validation_rows) and self.progress(elapsed) >= self.state.next_eval

    @property
    def latest_loss(self) -> float:
        """Loss of the last validation; infinity before the first."""
        return self.state.history[-1]["validation_loss"] if self.state.history else math.inf

    def is_validated(self) -> bool:
        """Whether the current step was validated, or there are no validation rows."""
        history = self.state.history
        return not any(self.validation_rows) or bool(history and history[-1]["step"] == self.state.step)

    def why_stop(self, elapsed: float) -> str:
        """The reason to stop now, or ""."""
        if self.progress(elapsed) >= 1.0:
            return "steps" if self.state.step == self.budget.steps else "minutes"
        patience = self.settings.patience
        return "patience" if patience is not None and self.state.stale >= patience else ""

    def finish(self) -> tuple[SoftPrompt, ...]:
        """The best prompts; if there are no validation rows, their average or the last ones."""
        if self.best:
            self.learner.load_state_dict(self.best)
        elif self.average is not None:
            with self.average.applied():
                return self.learner.freeze()
        return self.learner.freeze()

    def state_dict(self) -> TrialTree:
        """Everything that changes in training; see `load_state_dict`."""
        tree: TrialTree = {
            "learner": dict(self.learner.state_dict()),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state(),
            "record": vars(self.state),
        }
        if self.objective is not None:
            tree["objective"] = dict(self.objective.state_dict())
        if self.average is not None:
            tree["average"] = self.average.state_dict()
        return tree

    def load_state_dict(self, state: TrialTree) -> None:
        """Continue from `state`. Raises DataError if it was taken with other rows or settings."""
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.restore(state["batches"])
        self.best, self.state = state["best"], TrialState.of(state["record"])
        if self.objective is not None:
            self.objective.load_state_dict(state.get("objective", {}))
        if self.average is not None and "average" in state:
            self.average.load_state_dict(state["average"])

    def identity(self) -> str:
        """A digest of everything but the base model that must not change between a trial and its resumption."""
        shapes = {name: list(tensor.shape) for name, tensor in self.learner.state_dict().items()}
        free = {"save_every", "accumulate", "track", "gradient_checkpointing", "graphs"}
        around = [[task.name, task.digest, task.lead, task.follow] for task in self.tasks]
        parts: list[object] = [self.name, around, shapes, self.settings.legacy_dump(exclude=free)]
        parts += [] if self.objective is None else [self.objective.identity()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _of(self) -> str:
        return f" of {self.name}" if self.name else ""


def prefixes_of(learner: Learner, tasks: Sequence[Task], rows: Sequence[Example]) -> tuple[list[Prefix], list[int]]:
    """A learner's prefixes of these rows, each once, and for each row the number of its prefix."""
    prompts, prompt_ids = learner.assign(rows)
    numbers: dict[tuple[int, int, tuple[int, int]], int] = {}
    for row, prompt_id in zip(rows, prompt_ids, strict=True):
        numbers.setdefault((prompt_id, row.task, row.masked_span), len(numbers))
    prefixes = [
        Prefix(prompts[prompt_id], tasks[task].lead, tasks[task].follow, masked_span)
        for prompt_id, task, masked_span in numbers
    ]
    return prefixes, [numbers[i, row.task, row.masked_span] for row, i in zip(rows, prompt_ids, strict=True)]


def active_trials(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that have not stopped."""
    return [trial for trial in trials if not trial.state.stopped]


def _optimizer(learner: Learner, settings: TrainConfig) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(learner.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.Adafactor(learner.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)


def _dropout(learner: Learner, settings: TrainConfig) -> TokenDropout:
    shortest = min(prompt.n_tokens for prompt in learner.freeze())
    return TokenDropout(settings.token_dropout, shortest, settings.seed)
