"""The training loop: one trial, or many in the same forward passes, on a frozen model.

One step: run every prefix once, run all rows packed after their prefixes, take the loss at learned tokens, and one
gradient for each trial. The loop runs on Accelerate, so one process and several share the code. It depends on no
method, file format or terminal: it reports events.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from softprompt.data.tokenize import Example
from softprompt.errors import ConfigError, NonFiniteLossError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.packing import by_tokens
from softprompt.training import checkpoint
from softprompt.training.batched_losses import (
    graph_cache_for,
    memory_advice,
    row_share,
    trial_losses,
    validation_losses,
)
from softprompt.training.events import Event
from softprompt.training.observation import observe
from softprompt.training.pace import VALIDATION_SHARE
from softprompt.training.result import SIGNAL_NAMES, Result
from softprompt.training.signals import Interrupt
from softprompt.training.starts import Starts
from softprompt.training.trial import Trial, active_trials

PROBE_ROWS = 8  # validation rows, about, that are timed to find the number for which there is time
TOKENS_AT_ONCE = 16384  # text tokens in one forward pass of many trials


def train(
    lm: FrozenLM,
    trials: Sequence[Trial],
    folder: Path,
    *,
    rungs: Sequence[float] = (),
    resume: bool = False,
    report: Callable[[Event], None] = lambda event: None,
    on_validation: Callable[[Trial], None] = lambda trial: None,
) -> list[Result]:
    """Train all trials, each on its own rows with its own settings; returns the best prompts of each.

    Alone or among others, a trial takes the same steps, up to the order of floating-point sums.

    Args:
        folder: for checkpoints.
        rungs: successive halving (Jamieson, Talwalkar 2016, https://arxiv.org/abs/1502.07943): at each of these
            shares of the run, in [0, 1], the half of the trials with the higher validation loss stops.
        resume: continue from the newest checkpoint in `folder`; on CPU the result is bitwise that of an
            uninterrupted run.
        report: called with every step, validation and checkpoint.
        on_validation: called after a validation, with the trial as it was validated; it must not change the trial.

    Raises:
        NonFiniteLossError: loss or gradient of the only trial became NaN or infinite; names step and rows. One of
            several trials stops instead.
        CheckpointError: no checkpoint to resume from, or one of another run.
        StoreError: a checkpoint cannot be written.
        TrainError: out of memory.
    """
    loop = _Loop(lm, trials, folder, rungs, report, on_validation)
    if resume:
        loop.restore()
    report(Event("start", loop.step, {"elapsed": loop.elapsed}))
    if loop.accelerator.is_main_process and not resume:
        loop.starts.write({trial.name: trial.learner.freeze() for trial in trials})
    # Without checkpoints, autograd would hold all offloaded weights that it has seen.
    with lm.checkpoint_layers(trials[0].settings.gradient_checkpointing or lm.is_offloaded), Interrupt() as interrupt:
        return loop.run(interrupt)


class _Loop:
    """The state of a run between two steps, and one method for each stage."""

    def __init__(
        self,
        lm: FrozenLM,
        trials: Sequence[Trial],
        folder: Path,
        rungs: Sequence[float],
        report: Callable[[Event], None],
        on_validation: Callable[[Trial], None],
    ) -> None:
        self.lm, self.trials = lm, list(trials)
        self.folder, self.report = folder, report
        self.on_validation = on_validation
        self.accelerator = Accelerator(cpu=lm.device.type == "cpu")
        self.starts = Starts(folder)
        self.graphs = graph_cache_for(lm, trials[0].settings)
        self.rank, self.world = row_share(lm, trials, self.accelerator)
        if self.world > min(trial.settings.batch_size for trial in trials):
            hint = f"--batch-size {self.world} or more, or fewer processes"
            raise ConfigError("a step has fewer rows than there are processes", expected=self.world, hint=hint)
        self.rungs = sorted(rungs)
        self.elapsed, self.last_tick = 0.0, 0.0
        self.validation_seconds = 0.0  # part of `elapsed`
        self.seconds = [0.0] * len(self.trials)  # `elapsed` at the end of each trial
        torch.manual_seed(trials[0].settings.seed)

    @property
    def step(self) -> int:
        """Steps of the trials that still run, or of the last that did."""
        return max(trial.state.step for trial in self.trials)

    def tick(self) -> None:
        """Add the time since the last tick to `elapsed`."""
        now = time.monotonic()
        self.elapsed, self.last_tick = self.elapsed + now - self.last_tick, now

    def run(self, interrupt: Interrupt) -> list[Result]:
        """Step until every trial has stopped, or a signal arrives."""
        self.last_tick = time.monotonic()
        self.sync_init_seconds()
        self.limit_validation_rows()
        while active := active_trials(self.trials):
            if not self.sync_clock_and_signal(interrupt) and self.has_time_to_validate():
                self.validate([trial for trial in active if trial.is_due(self.elapsed)])
            self.tick()
            if received := self.sync_clock_and_signal(interrupt):
                for trial in active:
                    trial.state.stopped = received.name
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

    def sync_init_seconds(self) -> None:
        """Use the first process's time of initialization in all processes, so that all end at the same step."""
        if self.accelerator.num_processes > 1:
            gathered: list[float] = gather_object([trial.state.init_seconds for trial in self.trials])
            for trial, seconds in zip(self.trials, gathered, strict=False):  # the first process's come first
                trial.state.init_seconds = seconds

    def limit_validation_rows(self) -> None:
        """In a new timed run, use no more validation rows than there is time for at its start and at its end."""
        first = self.trials[0]
        minutes, n_rows = first.settings.minutes, sum(map(len, first.validation_rows))
        if minutes is None or n_rows <= PROBE_ROWS or first.state.history or first.state.validation_share < 1:
            return
        begin = time.monotonic()
        with memory_advice("validation"):
            validation_losses(self.lm, first, PROBE_ROWS / n_rows)
        estimate = (time.monotonic() - begin) * n_rows / PROBE_ROWS * len(self.trials)  # seconds of one with all rows
        share = min(1.0, max(PROBE_ROWS / n_rows, VALIDATION_SHARE / 2 * minutes * 60 / max(estimate, 1e-9)))
        if self.accelerator.num_processes > 1:
            share = gather_object([share])[0]
        for trial in self.trials:
            trial.state.validation_share = share

    def has_time_to_validate(self) -> bool:
        """Whether a validation may start: a timed run spends at most `VALIDATION_SHARE` of its time on validation."""
        timed = self.trials[0].settings.minutes is not None
        return not timed or self.validation_seconds <= VALIDATION_SHARE * self.elapsed

    def stop(self, trial: Trial, reason: str) -> None:
        """End a trial for this reason, after a last validation; does nothing if `reason` is empty."""
        if reason:
            if not trial.is_validated():
                self.validate([trial])
                self.tick()
            trial.state.stopped = trial.state.stopped or reason
            self.seconds[self.trials.index(trial)] = self.elapsed

    def halve(self) -> None:
        """At a rung, stop the worse half of the trials that still run."""
        active = active_trials(self.trials)
        if not self.rungs or not active or max(trial.progress(self.elapsed) for trial in active) < self.rungs[0]:
            return
        self.rungs.pop(0)
        self.validate([trial for trial in active if not trial.is_validated()])
        ranked = sorted(active_trials(active), key=lambda trial: trial.latest_loss)
        for trial in ranked[(len(ranked) + 1) // 2 :]:
            self.stop(trial, "halving")

    def sync_clock_and_signal(self, interrupt: Interrupt) -> signal.Signals | None:
        """Use the first process's clock in all of them; returns a signal that any received. So all decide alike."""
        if self.accelerator.num_processes == 1:
            return interrupt.received
        clocks: list[tuple[float, float]] = gather_object([(self.elapsed, self.validation_seconds)])
        self.elapsed, self.validation_seconds = clocks[0]
        signals: list[signal.Signals | None] = gather_object([interrupt.received])
        return next(filter(None, signals), None)

    def one_step(self, trials: Sequence[Trial]) -> None:
        """Forward and backward on the next batch of each trial, and one update of each."""
        batches = [trial.next_rows(self.elapsed) for trial in trials]
        if self.accelerator.num_processes > 1 and any(trial.rewrite for trial in trials):
            batches = gather_object([batches])[0]  # the same drawn answers in all processes
        losses = torch.zeros(len(trials), device=self.lm.device)
        for group in by_tokens([sum(len(row.ids) for row in rows) for rows in batches], TOKENS_AT_ONCE):
            n_parts = {i: trials[i].settings.accumulate for i in group}
            for part in range(max(n_parts.values())):
                mine = {i: batches[i][self.rank :: self.world] for i in group if part < n_parts[i]}
                self.backward(trials, batches, [(i, rows[part :: n_parts[i]]) for i, rows in mine.items()], losses)
        if self.accelerator.num_processes > 1:
            losses = self.sum_over_processes(trials, losses)
        for trial, rows, loss in zip(trials, batches, losses.tolist(), strict=True):
            with self.stop_if_not_finite(trial):
                numbers = trial.update(loss, rows, self.elapsed)
                self.report(Event("step", trial.state.step, numbers, trial.name))

    def backward(
        self,
        trials: Sequence[Trial],
        batches: Sequence[Sequence[Example]],
        shares: Sequence[tuple[int, Sequence[Example]]],
        losses: Tensor,
    ) -> None:
        """One forward and backward pass; adds each trial's loss to `losses` [trials].

        Args:
            batches: of each trial all rows of this step.
            shares: numbers of trials, each with the rows of its batch that this pass runs, if any.
        """
        first, shares = shares[0][0], [(i, rows) for i, rows in shares if rows]
        if not shares:
            if self.lm.is_sharded:  # other processes have rows, and need this one's part of the weights
                (trial_losses(self.lm, [(trials[first], batches[first][:1])])[0].sum() * 0.0).backward()
            return
        values = trial_losses(self.lm, [(trials[i], rows) for i, rows in shares], self.graphs)
        counts = [trials[i].units(batches[i]) for i, _ in shares]
        means = [losses_of.sum() / count for losses_of, count in zip(values, counts, strict=True)]
        torch.stack(means).sum().backward()  # gradients stay apart: no loss depends on another trial's parameters
        for (i, _), mean in zip(shares, means, strict=True):
            losses[i] += mean.detach()

    def sum_over_processes(self, trials: Sequence[Trial], losses: Tensor) -> Tensor:
        """Sum gradients and losses over all processes; average them if each process ran all rows."""
        how = "sum" if self.world > 1 else "mean"
        for trial in trials:
            for parameter in trial.learner.parameters():
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = cast(Tensor, self.accelerator.reduce(grad, how))
        return cast(Tensor, self.accelerator.reduce(losses, how))

    def validate(self, trials: Sequence[Trial]) -> None:
        """Validate these trials at their current step; the best state of each is kept."""
        if not trials:
            return
        begin = time.monotonic()
        for trial in trials:
            with self.stop_if_not_finite(trial), self.validated(trial) as means:
                numbers = trial.record_validation(means, self.elapsed)
                if trial.settings.inspect:
                    numbers |= observe(self.lm, trial, self.starts.of_trial(trial.name))
                self.report(Event("validation", trial.state.step, numbers, trial.name))
                self.on_validation(trial)
        self.validation_seconds += time.monotonic() - begin

    @contextlib.contextmanager
    def validated(self, trial: Trial) -> Iterator[list[float]]:
        """A context with the validation losses of a trial: of its prompt, or of the average of it if that is better."""
        if trial.average is None or not trial.state.step:
            yield self.losses_now(trial)
            return
        with trial.average.applied():
            averaged, notes = self.losses_now(trial), dict(trial.notes)
        means = self.losses_now(trial)
        if sum(means) <= sum(averaged):
            yield means
            return
        trial.notes = notes
        with trial.average.applied():
            yield averaged

    def losses_now(self, trial: Trial) -> list[float]:
        """The validation losses of a trial as it is, the same in all processes."""
        with memory_advice(f"validation after step {trial.state.step}"):
            means = validation_losses(self.lm, trial)
        if self.accelerator.num_processes > 1:  # all keep the same state as the best
            means = gather_object([means])[0]
        return means

    @contextlib.contextmanager
    def stop_if_not_finite(self, trial: Trial) -> Iterator[None]:
        """Stop one of several trials, not the whole run, when its loss or gradient is not finite."""
        try:
            yield
        except NonFiniteLossError:
            if len(self.trials) == 1:
                raise
            trial.state.stopped = "not finite"
            self.seconds[self.trials.index(trial)] = self.elapsed

    def result(self, number: int) -> Result:
        """The outcome of trial `number`."""
        trial = self.trials[number]
        state, prompts = trial.state, trial.finish()
        seconds = self.elapsed if state.stopped in SIGNAL_NAMES else self.seconds[number]
        numbers = {"elapsed": seconds, "validation_loss": state.best_loss or 0.0}
        self.report(Event("end", state.step, numbers, trial.name))
        return Result(prompts, state.step, seconds, state.stopped, state.best_loss, state.history)

    def save(self) -> None:
        """Write a checkpoint from the first process."""
        if not self.accelerator.is_main_process:
            return
        parts = {
            "trials": [trial.state_dict() for trial in self.trials],
            "random": checkpoint.random_state(self.lm.device),
        }
        tensors, tree = checkpoint.flatten(parts, "state")
        data = {"tree": tree, "elapsed": self.elapsed, "validation_seconds": self.validation_seconds}
        data |= {"seconds": self.seconds, "rungs": self.rungs}
        checkpoint.save_checkpoint(self.folder, checkpoint.Checkpoint(self.identity(), self.step, tensors, data))
        self.report(Event("checkpoint", self.step, {"elapsed": self.elapsed}))

    def restore(self) -> None:
        """Load the state of the newest checkpoint, which release 0.1 may have written."""
        saved = checkpoint.latest_checkpoint(self.folder, self.identity())
        tree = checkpoint.unflatten(saved.tensors, saved.data["tree"])
        trial_states = tree["trials"] if "trials" in tree else tree["candidates"]
        for trial, state in zip(self.trials, trial_states, strict=True):
            trial.load_state_dict(state)
            if trial.state.stopped in SIGNAL_NAMES:
                trial.state.stopped = ""
        checkpoint.restore_random_state(tree["random"], self.lm.device)
        self.elapsed = saved.data["elapsed"]
        seconds = saved.data.get("validation_seconds")
        self.validation_seconds = saved.data["judging"] if seconds is None else seconds
        self.seconds, self.rungs = saved.data["seconds"], saved.data["rungs"]

    def identity(self) -> str:
        """A digest of everything that must not change between a run and its resumption."""
        parts = [self.lm.geometry.fingerprint, str(self.lm.dtype), *(trial.identity() for trial in self.trials)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
