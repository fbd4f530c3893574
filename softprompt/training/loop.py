"""The training loop: one candidate, or many in the same forward passes, behind a frozen model.

One step: run every prefix once, run all rows packed behind them, take the loss at learned tokens, one gradient for each
candidate. The loop runs on Accelerate, so one process and several share the code. It knows nothing of methods, file
formats or terminals: it reports events.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from softprompt.errors import ConfigError, NonFiniteLossError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.cuda_graphs import GraphCache
from softprompt.objectives.next_token import learned_tokens
from softprompt.prefix.packing import by_tokens
from softprompt.prompts.forms import Prompt
from softprompt.training import checkpoint
from softprompt.training.batched_losses import memory_advice, trial_losses, validation_losses
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.config import TrainConfig
from softprompt.training.events import Event
from softprompt.training.signals import Interrupt
from softprompt.training.trial import Trial, active_trials

VALIDATION_SHARE = 0.1  # share of a run bounded by minutes that validations may have taken before the next one starts
PROBED = 8  # validation rows, about, whose time says how many there is time for
STEP_TOKENS = 16384  # text tokens of many candidates' rows run at once
SYNC_SIGNALS = {number.name for number in (signal.SIGINT, signal.SIGTERM)}


@dataclass(frozen=True)
class Result:
    """What a candidate leaves: the best prompts by validation loss, and how it got there.

    Attributes:
        prompts: one, or one for each task of a method that learns several.
        seconds: of the run until the candidate's end.
        stopped: why it ended: "steps", "minutes", "patience", "halving", "not finite" or the name of a signal.
    """

    prompts: tuple[Prompt, ...]
    step: int
    seconds: float
    stopped: str
    validation_loss: float | None
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def prompt(self) -> Prompt:
        """The first one."""
        return self.prompts[0]

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it before its time; a checkpoint is there to resume from."""
        return self.stopped in SYNC_SIGNALS


def train(
    lm: FrozenLM,
    trials: Sequence[Trial],
    folder: Path,
    *,
    rungs: Sequence[float] = (),
    resume: bool = False,
    report: Callable[[Event], None] = lambda event: None,
) -> list[Result]:
    """Train all candidates, each on its own rows with its own settings; the best prompts of each.

    Alone or among others, a candidate takes the same steps, up to the order of floating-point sums.

    Args:
        folder: for checkpoints.
        rungs: successive halving (Jamieson, Talwalkar 2016, https://arxiv.org/abs/1502.07943): whenever the run has
            got so far, in [0, 1], the half with the higher validation loss stops.
        resume: go on from the newest checkpoint in `folder`; on CPU the result is bitwise that of an
            uninterrupted run.
        report: is told of every step, validation and checkpoint.

    Raises:
        NonFiniteLossError: loss or gradient of the only candidate became NaN or infinite; names step and rows. One of
            several stops instead.
        CheckpointError: nothing to resume, or a checkpoint of another run.
        StoreError: a checkpoint cannot be written.
        TrainError: out of memory.
    """
    loop = _Loop(lm, trials, folder, rungs, report)
    if resume:
        loop.restore()
    report(Event("start", loop.step, {"elapsed": loop.elapsed}))
    settings = trials[0].settings
    with lm.checkpoint_layers(settings.gradient_checkpointing), Interrupt() as interrupt:
        return loop.run(interrupt)


class _Loop:
    """The state of a run between two steps, and one function for each stage."""

    def __init__(
        self,
        lm: FrozenLM,
        trials: Sequence[Trial],
        folder: Path,
        rungs: Sequence[float],
        report: Callable[[Event], None],
    ) -> None:
        self.lm, self.trials, self.folder, self.report = lm, list(trials), folder, report
        self.accelerator = Accelerator(cpu=lm.device.type == "cpu")
        self.graphs = replays_for(lm, trials[0].settings)
        world, fewest = self.accelerator.num_processes, min(c.settings.batch_size for c in trials)
        if world > fewest:
            hint = f"--batch-size {world} or more, or fewer processes"
            raise ConfigError("a step has fewer rows than there are processes", expected=world, hint=hint)
        self.rungs = sorted(rungs)
        self.elapsed, self.mark = 0.0, 0.0
        self.judging = 0.0  # seconds of `elapsed` that validations took
        self.seconds = [0.0] * len(self.trials)
        torch.manual_seed(trials[0].settings.seed)

    @property
    def step(self) -> int:
        """Steps of the candidates that still run, or of the last that did."""
        return max(trial.record.step for trial in self.trials)

    def tick(self) -> None:
        """Add the time since the last tick to the run's."""
        now = time.monotonic()
        self.elapsed, self.mark = self.elapsed + now - self.mark, now

    def run(self, interrupt: Interrupt) -> list[Result]:
        """Step until every candidate has stopped, or a signal came."""
        self.mark = time.monotonic()
        self.share_start()
        self.bound_judging()
        while active := active_trials(self.trials):
            if not interrupt.received and self.has_time_to_judge():
                self.validate([c for c in active if c.is_due(self.elapsed)])
            self.tick()
            self.agree(interrupt)
            if interrupt.received:
                for trial in active:
                    trial.record.stopped = interrupt.received.name
                self.save()
                break
            for trial in active:
                self.stop(trial, trial.why_stop(self.elapsed))
            self.halve()
            if active := active_trials(active):
                with memory_advice(f"step {self.step + 1}"):
                    self.one_step(active)
                if self.step % self.trials[0].settings.save_every == 0:
                    self.save()
        return [self.result(i) for i in range(len(self.trials))]

    def share_start(self) -> None:
        """Let the start count the same in all processes, or they would not end at the same step."""
        if self.accelerator.num_processes > 1:
            told: list[float] = gather_object([trial.record.before for trial in self.trials])
            for trial, before in zip(self.trials, told, strict=False):  # the first process's come first
                trial.record.before = before

    def bound_judging(self) -> None:
        """Where minutes bound a new run, judge by no more rows than there is time for at its start and at its end."""
        first = self.trials[0]
        minutes, rows = first.settings.minutes, sum(map(len, first.judged))
        if minutes is None or rows <= PROBED or first.record.history:
            return
        begin = time.monotonic()
        with memory_advice("validation"):
            validation_losses(self.lm, first, PROBED / rows)
        spent = (time.monotonic() - begin) * rows / PROBED * len(self.trials)
        share = min(1.0, max(PROBED / rows, VALIDATION_SHARE / 2 * minutes * 60 / max(spent, 1e-9)))
        if self.accelerator.num_processes > 1:
            share = gather_object([share])[0]
        for trial in self.trials:
            trial.record.judged = share

    def has_time_to_judge(self) -> bool:
        """Whether a validation may start: where minutes are short, steps teach more than it tells."""
        timed = self.trials[0].settings.minutes is not None
        return not timed or self.judging <= VALIDATION_SHARE * self.elapsed

    def stop(self, trial: Trial, reason: str) -> None:
        """Let a candidate end for this reason, judged as it is; nothing if there is none."""
        if reason:
            if not trial.is_judged():
                self.validate([trial])
                self.tick()
            trial.record.stopped = trial.record.stopped or reason
            self.seconds[self.trials.index(trial)] = self.elapsed

    def halve(self) -> None:
        """At a rung, stop the worse half of the candidates that still run."""
        active = active_trials(self.trials)
        if not self.rungs or not active or max(c.progress(self.elapsed) for c in active) < self.rungs[0]:
            return
        self.rungs.pop(0)
        self.validate([trial for trial in active if not trial.is_judged()])
        ranked = sorted(active_trials(active), key=lambda c: c.latest_loss)
        for trial in ranked[(len(ranked) + 1) // 2 :]:
            self.stop(trial, "halving")

    def agree(self, interrupt: Interrupt) -> None:
        """Let all processes decide alike: by the clock of the first one, and by a signal that any of them got."""
        if self.accelerator.num_processes > 1:
            told: list[Any] = gather_object([(self.elapsed, interrupt.received)])
            self.elapsed = told[0][0]
            interrupt.received = next((received for _, received in told if received), None)

    def one_step(self, trials: Sequence[Trial]) -> None:
        """Forward and backward on the next batch of each candidate, and an update of each."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        rows = [trial.next_rows() for trial in trials]
        losses = torch.zeros(len(trials), device=self.lm.device)
        for together in by_tokens([sum(len(row.ids) for row in own) for own in rows], STEP_TOKENS):
            parts = {i: trials[i].settings.accumulate for i in together}
            for part in range(max(parts.values())):
                shares = [(i, rows[i][rank::world][part :: parts[i]]) for i in together if part < parts[i]]
                shares = [(i, own) for i, own in shares if own]
                if shares:
                    found = trial_losses(self.lm, [(trials[i], own) for i, own in shares], self.graphs)
                    means = [own.sum() / learned_tokens(rows[i]) for (i, _), own in zip(shares, found, strict=True)]
                    torch.stack(means).sum().backward()  # apart: no candidate's loss depends on another's parameters
                    for (i, _), mean in zip(shares, means, strict=True):
                        losses[i] += mean.detach()
        if world > 1:
            losses = self.reduced(trials, losses)
        for trial, own, loss in zip(trials, rows, losses.tolist(), strict=True):
            with self.stopping(trial):
                numbers = trial.update(loss, own, self.elapsed)
                self.report(Event("step", trial.record.step, numbers, trial.name))

    def reduced(self, trials: Sequence[Trial], losses: Tensor) -> Tensor:
        """Sum gradients and losses over all processes."""
        for trial in trials:
            for parameter in trial.learner.parameters():
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                summed: Any = self.accelerator.reduce(grad, "sum")
                parameter.grad = summed
        total: Any = self.accelerator.reduce(losses, "sum")
        return total

    def validate(self, trials: Sequence[Trial]) -> None:
        """Validation losses of these candidates as they are; the best state of each is kept."""
        if not trials:
            return
        begin = time.monotonic()
        for trial in trials:
            with memory_advice(f"validation after step {trial.record.step}"):
                means = validation_losses(self.lm, trial)
            with self.stopping(trial):
                numbers = trial.judge(means, self.elapsed)
                self.report(Event("validation", trial.record.step, numbers, trial.name))
        self.judging += time.monotonic() - begin

    @contextlib.contextmanager
    def stopping(self, trial: Trial) -> Iterator[None]:
        """Let one of several candidates stop, and not the run, if its numbers are no longer finite."""
        try:
            yield
        except NonFiniteLossError:
            if len(self.trials) == 1:
                raise
            trial.record.stopped = "not finite"
            self.seconds[self.trials.index(trial)] = self.elapsed

    def result(self, number: int) -> Result:
        """What a candidate leaves."""
        trial = self.trials[number]
        record, prompts = trial.record, trial.finish()
        seconds = self.elapsed if record.stopped in SYNC_SIGNALS else self.seconds[number]
        numbers = {"elapsed": seconds, "validation_loss": record.best_loss or 0.0}
        self.report(Event("end", record.step, numbers, trial.name))
        return Result(prompts, record.step, seconds, record.stopped, record.best_loss, record.history)

    def save(self) -> None:
        """Write a checkpoint from the first process."""
        if not self.accelerator.is_main_process:
            return
        parts = {
            "candidates": [trial.state() for trial in self.trials],
            "random": checkpoint.random_state(self.lm.device),
        }
        tensors, tree = checkpoint.flatten(parts, "state")
        facts = {"tree": tree, "elapsed": self.elapsed, "judging": self.judging}
        facts |= {"seconds": self.seconds, "rungs": self.rungs}
        checkpoint.save_checkpoint(self.folder, Checkpoint(self.identity(), self.step, tensors, facts))
        self.report(Event("checkpoint", self.step, {"elapsed": self.elapsed}))

    def restore(self) -> None:
        """Take up the state of the newest checkpoint."""
        found = checkpoint.latest_checkpoint(self.folder, self.identity())
        state, facts = checkpoint.unflatten(found.tensors, found.facts["tree"]), found.facts
        for trial, own in zip(self.trials, state["candidates"], strict=True):
            trial.restore(own)
            if trial.record.stopped in SYNC_SIGNALS:
                trial.record.stopped = ""
        checkpoint.restore_random_state(state["random"], self.lm.device)
        self.elapsed, self.judging = facts["elapsed"], facts["judging"]
        self.seconds, self.rungs = facts["seconds"], facts["rungs"]

    def identity(self) -> str:
        """A digest of all that must be the same for a resumed run to be the same run."""
        facts = [self.lm.geometry.fingerprint, str(self.lm.dtype), *(c.identity() for c in self.trials)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def replays_for(lm: FrozenLM, settings: TrainConfig) -> GraphCache | None:
    """Passes are replayed on a GPU, where starting kernels takes longer than running them; elsewhere it gains nothing.

    A checkpointed layer runs again in the backward pass, an encoder-decoder's rows are padded anew for each batch:
    neither is recorded.
    """
    able = lm.device.type == "cuda" and not lm.is_encoder_decoder
    return GraphCache(lm) if able and settings.graphs and not settings.gradient_checkpointing else None
