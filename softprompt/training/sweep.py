"""Hyperparameter sweeps: all trials train in the same forward passes, with successive halving.

    trials = grid(["train.lr=1e-2,3e-2", "method.n_tokens=16,32"])         # four of them
    result = sweep(prepared, configs, lm)                                  # the best is saved as prompts/NAME

The base model runs once for the rows of all trials, each row after its trial's prefix. A trial learns the same as it
would alone, up to the order of floating-point sums.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState

from softprompt.errors import ConfigError
from softprompt.files import write_json, writing
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.card import Card
from softprompt.training import auto
from softprompt.training.config import Config
from softprompt.training.events import Event
from softprompt.training.loop import train
from softprompt.training.prepare import PreparedTraining, check_outputs_free
from softprompt.training.recorder import record_events
from softprompt.training.result import Result
from softprompt.training.resume import explained_refusal
from softprompt.training.run import build_trial, recording, save_run

RUNGS = (0.25, 0.5)  # shares of the run after which the worse half stops
SHARED_SETTINGS = ("train.minutes", "train.save_every", "train.track", "train.gradient_checkpointing", "train.graphs")
MAX_TRIALS = 256


@dataclass(frozen=True)
class SweepResult:
    """The results of a sweep.

    Attributes:
        results: of every trial by name, the best first.
        saved: folders and cards of the best trial; empty if a signal ended the sweep (`--resume` continues it).
    """

    results: dict[str, Result]
    saved: tuple[tuple[Path, Card], ...]

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the sweep."""
        return any(result.interrupted for result in self.results.values())


def grid(axes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Every combination of the values of all axes: settings by the trial's name.

    Args:
        axes: "train.lr=1e-2,3e-2"; one setting each, its values between commas.

    Raises ConfigError for an axis without values, one given twice, a setting that all trials must share, or over
    256 combinations.
    """
    values: dict[str, list[str]] = {}
    for axis in axes:
        name = axis.partition("=")[0]
        options = [value.strip() for value in axis.partition("=")[2].split(",") if value.strip()]
        if not options or len(set(options)) < len(options):
            raise ConfigError("an axis needs different values", expected="train.lr=1e-2,3e-2", got=axis)
        if name in values:
            raise ConfigError("an axis is given twice", got=name, hint=f"{name}={','.join([*values[name], *options])}")
        if name.partition(".")[0] not in {"method", "train"} or name in SHARED_SETTINGS:
            what = "trials of one sweep share this setting"
            raise ConfigError(what, got=name, expected="method.… or train.…", hint=f"--{name} sets it for all")
        values[name] = options
    combinations = list(itertools.product(*values.values()))
    if len(combinations) > MAX_TRIALS:
        raise ConfigError("too many trials", expected=f"<= {MAX_TRIALS}", got=len(combinations))
    cells = [dict(zip(values, chosen, strict=True)) for chosen in combinations]
    return {" ".join(f"{name.partition('.')[2]}={value}" for name, value in cell.items()): cell for cell in cells}


def sweep(
    prepared: PreparedTraining,
    configs: Mapping[str, Config],
    lm: FrozenLM,
    *,
    rungs: Sequence[float] = RUNGS,
    overwrite: bool = False,
    resume: bool = False,
    report: Callable[[Event], None] = lambda event: None,
) -> SweepResult:
    """Train a trial for every config and save the one with the lowest validation loss.

    Args:
        prepared: the rows, and where the artifact goes.
        configs: settings by the trial's name; they differ in method and training only.
        rungs: shares of the run after which the worse half stops; none for no halving.

    Raises what `fit` raises.
    """
    cells = dict[str, PreparedTraining]()
    for name, config in configs.items():
        chosen, choices = auto.choose(config, prepared.facts)
        cells[name] = replace(prepared, config=chosen, choices=choices)
    for cell in cells.values():
        check_outputs_free(cell, overwrite)
    begin = time.monotonic()
    built = {name: build_trial(cell, lm, name) for name, cell in cells.items()}
    trials = [each.trial for each in built.values()]
    for trial in trials:
        trial.state.init_seconds = time.monotonic() - begin
    processes = PartialState(cpu=lm.device.type == "cpu")
    recorded = record_events(recording(prepared), processes.is_main_process, resume, report)
    with explained_refusal(prepared.run, prepared.config), recorded as record:
        results = train(lm, trials, prepared.run, rungs=rungs, resume=resume, report=record)
    ranked = dict(sorted(zip(cells, results, strict=True), key=lambda pair: _loss(pair[1])))
    if any(result.interrupted for result in results):
        return SweepResult(ranked, ())
    best, saved = next(iter(ranked)), list[tuple[Path, Card]]()
    if processes.is_main_process:
        saved = save_run(built[best].prepared, lm, built[best].trial, ranked[best], overwrite=overwrite)
        with writing(prepared.run):
            write_json(prepared.run / "sweep.json", [row(name, result) for name, result in ranked.items()])
    processes.wait_for_everyone()
    return SweepResult(ranked, tuple(saved))


def row(name: str, result: Result) -> dict[str, str | float | None]:
    """A trial's row in the table of results. "candidate" is the old name of "trial"; release 0.3 drops it."""
    return {
        "trial": name,
        "candidate": name,
        "steps": result.step,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 1),
        "validation_loss": result.validation_loss,
    }


def _loss(result: Result) -> tuple[bool, float]:
    """Sort key: by validation loss, results without one last."""
    return result.validation_loss is None, result.validation_loss or 0.0
