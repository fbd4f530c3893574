"""The training loop: a learner (anything that gives a live prompt and can be frozen) behind a frozen model.

One step: run the prefix once, run the rows packed behind it, take the loss at learned tokens, one gradient. The loop
runs on Accelerate, so one process and several share the code. It knows nothing of methods, files formats or
terminals: it reports events.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from softprompt import checkpoint
from softprompt.attach import Prefix, bank
from softprompt.checkpoint import Checkpoint
from softprompt.config import TrainConfig
from softprompt.data.batches import Batches, sample
from softprompt.data.tokenise import Example
from softprompt.errors import ConfigError, NonFiniteLossError, TrainError, is_out_of_memory
from softprompt.interrupt import Interrupt
from softprompt.model import FrozenLM
from softprompt.objective import learned_tokens, loss_sum, token_log_likelihoods
from softprompt.packing import by_tokens
from softprompt.prompt import Prompt
from softprompt.schedule import Horizon, rate

EVAL_TOKENS = 4096  # text tokens of validation rows run at once
NOT_FINITE = "start anew (--overwrite) with a lower --lr, or with --dtype float32"


class Learner(Protocol):
    """What can be trained: an nn.Module whose call gives the live prompt. `methods.Method` is one."""

    def __call__(self) -> tuple[Prompt, ...]: ...
    def freeze(self) -> tuple[Prompt, ...]: ...
    def parameters(self) -> Any: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: dict[str, Tensor]) -> Any: ...


@dataclass(frozen=True)
class Task:
    """The rows of a run and the constant text around the prompt.

    Attributes:
        train, validation: tokenised rows; validation may be empty, then the last prompt is kept.
        lead, follow: token ids before and behind the virtual tokens.
        digest: of whatever else a resumed run must share: data, template, method.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    lead: tuple[int, ...] = ()
    follow: tuple[int, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Event:
    """Something that happened, and its numbers. "start" comes first, of a resumed run with its checkpoint's step."""

    kind: Literal["start", "step", "validation", "checkpoint", "end"]
    step: int
    numbers: dict[str, float]


@dataclass(frozen=True)
class Result:
    """What a run leaves: the best prompt by validation loss, and how it got there.

    Attributes:
        stopped: why it ended: "steps", "minutes", "patience" or the name of a signal.
    """

    prompt: Prompt
    step: int
    seconds: float
    stopped: str
    validation_loss: float | None
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it before its time; a checkpoint is there to resume from."""
        return self.stopped in {s.name for s in (signal.SIGINT, signal.SIGTERM)}


def default_steps(rows: int, batch_size: int) -> int:
    """Steps when neither steps nor minutes are given: about ten epochs, between 100 and 600."""
    return max(100, min(600, math.ceil(10 * rows / batch_size)))


def train(
    lm: FrozenLM,
    learner: Learner,
    task: Task,
    settings: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    report: Callable[[Event], None] = lambda event: None,
) -> Result:
    """Train `learner` on `task` and return the best prompt.

    Args:
        folder: for checkpoints.
        resume: go on from the newest checkpoint in `folder`; on CPU the result is bitwise that of an
            uninterrupted run.
        report: is told of every step, validation and checkpoint.

    Raises:
        NonFiniteLossError: loss or gradient became NaN or infinite; names step and rows.
        CheckpointError: nothing to resume, or a checkpoint of another run.
        StoreError: a checkpoint cannot be written.
        TrainError: out of memory.
    """
    loop = _Loop(lm, learner, task, settings, folder, report)
    if resume:
        loop.restore()
    report(Event("start", loop.step, {"elapsed": loop.elapsed}))
    lm.checkpoint_layers(settings.gradient_checkpointing)
    try:
        with Interrupt() as interrupt:
            return loop.run(interrupt)
    finally:
        lm.checkpoint_layers(False)


class _Loop:
    """The state of a run between two steps, and one function for each stage."""

    def __init__(
        self,
        lm: FrozenLM,
        learner: Learner,
        task: Task,
        settings: TrainConfig,
        folder: Path,
        report: Callable[[Event], None],
    ) -> None:
        assert isinstance(learner, nn.Module)
        self.lm, self.task, self.settings, self.folder, self.report = lm, task, settings, folder, report
        self.accelerator = Accelerator(cpu=lm.device.type == "cpu")
        if (world := self.accelerator.num_processes) > settings.batch_size:
            hint = f"--batch-size {world} or more, or fewer processes"
            raise ConfigError("a step has fewer rows than there are processes", expected=world, hint=hint)
        self.learner: Any = learner.to(lm.device)
        self.optimizer = _optimizer(self.learner, settings)
        self.live: Any = self.learner  # the learner as wrapped for several processes
        if self.accelerator.num_processes > 1:
            self.live = self.accelerator.prepare(self.learner)
        lengths = [len(example.ids) for example in task.train]
        self.batches = Batches(lengths, settings.batch_size, settings.seed)
        judged = sample(len(task.validation), settings.eval_rows, settings.seed)
        self.judged = [task.validation[i] for i in judged]
        steps = settings.steps
        if steps is None and settings.minutes is None:
            steps = default_steps(len(lengths), settings.batch_size)
        self.horizon = Horizon(steps, settings.minutes * 60 if settings.minutes else None)
        self.step, self.elapsed, self.stale, self.next_eval = 0, 0.0, 0, 0.0
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        torch.manual_seed(settings.seed)

    def run(self, interrupt: Interrupt) -> Result:
        """Step until the horizon, an early stop or a signal."""
        mark = time.monotonic()
        stopped = ""
        while not stopped:
            progress = self.horizon.progress(self.step, self.elapsed)
            if progress >= self.next_eval and not interrupt.received:
                self.validate()
                self.next_eval = progress + (1.0 - 1e-9) / self.settings.evals
            now = time.monotonic()
            self.elapsed, mark = self.elapsed + now - mark, now
            self.agree(interrupt)
            progress = self.horizon.progress(self.step, self.elapsed)
            stopped = self.why_stop(interrupt, progress)
            if not stopped:
                with _memory_advice(f"step {self.step + 1}"):
                    self.one_step(progress)
            if interrupt.received if stopped else self.step % self.settings.save_every == 0:
                self.save()
        if self.history and self.history[-1]["step"] != self.step and not interrupt.received:
            self.validate()
            self.elapsed += time.monotonic() - mark
        return self.finish(stopped)

    def agree(self, interrupt: Interrupt) -> None:
        """Let all processes decide alike: by the clock of the first one, and by a signal that any of them got."""
        if self.accelerator.num_processes > 1:
            told: list[Any] = gather_object([(self.elapsed, interrupt.received)])
            self.elapsed = told[0][0]
            interrupt.received = next((received for _, received in told if received), None)

    def why_stop(self, interrupt: Interrupt, progress: float) -> str:
        """The reason to stop now, or ""."""
        if interrupt.received:
            return interrupt.received.name
        if progress >= 1.0:
            return "steps" if self.step == self.horizon.steps else "minutes"
        patience = self.settings.patience
        return "patience" if patience is not None and self.stale >= patience else ""

    def one_step(self, progress: float) -> None:
        """Forward, backward and update on the next batch."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        picked = self.batches.next_batch()
        rows = [self.task.train[i] for i in picked]
        total, count = learned_tokens(rows), 0.0
        parts = [part for part in _split(rows[rank::world], self.settings.accumulate) if part]
        for i, part in enumerate(parts):
            with self.accelerator.no_sync(self.live) if i + 1 < len(parts) else contextlib.nullcontext():
                prefix = Prefix(self.live()[0], self.task.lead, self.task.follow)
                # DDP averages gradients over processes, the loss is a mean over all tokens: hence `world`.
                loss = loss_sum(self.lm, bank(self.lm, [prefix]), part) * (world / total)
                loss.backward()
            count += loss.item() / world
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.clip).item()
        summed: Any = self.accelerator.reduce(torch.tensor(count, device=self.lm.device), "sum")
        loss_value = float(summed)
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise NonFiniteLossError(
                "loss or gradient is not finite; the prompt was not changed by this step",
                where=f"step {self.step + 1}",
                got=f"loss {loss_value}, gradient norm {norm}, rows {', '.join(row.where for row in rows)}",
                hint=NOT_FINITE,
            )
        lr = self.settings.lr * rate(self.settings.schedule, self.settings.warmup, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        tokens = float(sum(len(r.ids) for r in rows))
        numbers = {"loss": loss_value, "lr": lr, "grad_norm": norm, "tokens": tokens}
        numbers |= {"progress": progress, "elapsed": self.elapsed, "epoch": self.batches.epoch}
        self.report(Event("step", self.step, numbers))

    def validate(self) -> None:
        """Validation loss of the prompt as it is; the best one is kept."""
        rows = self.judged
        if not rows:
            return
        prefix = Prefix(self.learner.freeze()[0], self.task.lead, self.task.follow)
        total = 0.0
        with torch.no_grad(), _memory_advice(f"validation after step {self.step}"):
            prefixes = bank(self.lm, [prefix])
            for part in by_tokens([len(row.ids) for row in rows], EVAL_TOKENS):
                total -= token_log_likelihoods(self.lm, prefixes, [rows[i] for i in part]).sum().item()
        loss = total / learned_tokens(rows)
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                "validation loss is not finite",
                where=f"step {self.step}",
                got=f"loss {loss}",
                hint=NOT_FINITE,
            )
        better = loss < self.best_loss
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best_loss = loss
            self.best = {name: tensor.detach().clone() for name, tensor in self.learner.state_dict().items()}
        self.history.append({"step": float(self.step), "validation_loss": loss})
        self.report(Event("validation", self.step, {"validation_loss": loss, "best": self.best_loss}))

    def finish(self, stopped: str) -> Result:
        """The best prompt, or the last one if there is nothing to judge by."""
        if self.best:
            self.learner.load_state_dict(self.best)
        loss = self.best_loss if self.best else None
        result = Result(self.learner.freeze()[0], self.step, self.elapsed, stopped, loss, self.history)
        self.report(Event("end", self.step, {"elapsed": self.elapsed, "validation_loss": loss or 0.0}))
        return result

    def save(self) -> None:
        """Write a checkpoint from the first process."""
        if not self.accelerator.is_main_process:
            return
        parts = {
            "learner": dict(self.learner.state_dict()),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "random": checkpoint.random_state(self.lm.device),
        }
        tensors, tree = checkpoint.flatten(parts, "state")
        facts = {
            "tree": tree,
            "batches": self.batches.state(),
            "elapsed": self.elapsed,
            "stale": self.stale,
            "next_eval": self.next_eval,
            "best_loss": self.best_loss if self.best else None,
            "history": self.history,
        }
        checkpoint.save(self.folder, Checkpoint(self.identity(), self.step, tensors, facts))
        self.report(Event("checkpoint", self.step, {"elapsed": self.elapsed}))

    def restore(self) -> None:
        """Take up the state of the newest checkpoint."""
        found = checkpoint.latest(self.folder, self.identity())
        state, facts = checkpoint.unflatten(found.tensors, found.facts["tree"]), found.facts
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.restore(facts["batches"])
        checkpoint.restore_random_state(state["random"], self.lm.device)
        self.step, self.elapsed, self.best = found.step, facts["elapsed"], state["best"]
        self.stale, self.next_eval, self.history = facts["stale"], facts["next_eval"], facts["history"]
        self.best_loss = math.inf if facts["best_loss"] is None else facts["best_loss"]

    def identity(self) -> str:
        """A digest of all that must be the same for a resumed run to be the same run."""
        shapes = {name: list(tensor.shape) for name, tensor in self.learner.state_dict().items()}
        free = {"save_every", "accumulate", "track", "gradient_checkpointing"}
        facts = [
            self.lm.geometry.fingerprint,
            str(self.lm.dtype),
            self.task.digest,
            [self.task.lead, self.task.follow],
            shapes,
            self.settings.model_dump(exclude=free),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _optimizer(learner: nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(learner.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.Adafactor(learner.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)


@contextlib.contextmanager
def _memory_advice(where: str) -> Iterator[None]:
    """Turn running out of memory, on any device, into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        hint = "--train.accumulate 2 halves what a step holds, --train.gradient-checkpointing true saves more"
        raise TrainError("out of memory", where=where, got=str(error).splitlines()[0], hint=hint) from error


def _split(rows: list[Example], parts: int) -> list[list[Example]]:
    return [rows[i::parts] for i in range(parts)]
