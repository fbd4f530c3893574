"""`softprompt sweep`: many settings at once, in the same forward passes; a table, and the best one saved."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.options import AsJson, TrustRemoteCode
from softprompt.cli.overrides import parse_overrides
from softprompt.cli.train import print_next

if TYPE_CHECKING:
    from softprompt.training.sweep import SweepResult


def sweep_command(
    context: typer.Context,
    given: Annotated[
        list[str], typer.Argument(help="Settings in YAML (optional), then axes: train.lr=1e-2,3e-2 and so on.")
    ],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the best soft prompt.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="File, folder or Hub data set.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time of all candidates together.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each candidate.")] = None,
    halving: Annotated[
        bool, typer.Option("--halving/--no-halving", help="Stop the worse half after 1/4 and 1/2 of the run.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prompt or run of that name.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Try many settings at once and keep the best.

    softprompt sweep cfg.yml "train.lr=1e-2,3e-2" "method.n_tokens=16,32" --name best

    All candidates train in the same forward passes, each on its own batches behind its own prompt. Settings that they
    share are flags, as in train: --template '…', --train.batch_size 4.
    """
    from softprompt.cli.progress import progress_for
    from softprompt.models.loading import load_model
    from softprompt.training.config import resolve
    from softprompt.training.prepare import prepare
    from softprompt.training.sweep import RUNGS, grid, sweep

    axes = [text for text in given if "=" in text]
    flags, yaml_path = parse_overrides([*(text for text in given if "=" not in text), *context.args])
    shared = {"name": name, "data": data, "train.minutes": minutes, "train.steps": steps} | flags
    cells = grid(axes)
    configs = {cell: resolve(shared | own, yaml_path, dict(os.environ)) for cell, own in cells.items()}
    base = resolve(shared, yaml_path, dict(os.environ))
    prepared = prepare(base, overwrite=overwrite, resume=resume, trust_remote_code=trust_remote_code)
    console = Console(stderr=as_json, soft_wrap=True)
    for task in prepared.tasks:
        for note in task.splits.notes:
            console.print(Text(f"note: {note}", style="yellow"))
    lm = load_model(base.model, dtype=base.dtype, device=base.device, trust_remote_code=trust_remote_code)
    console.print(Text(f"base model  {lm.name}, frozen ({lm.reason})\ncandidates  {len(configs)}"))
    count = sum(len(task.train) for task in prepared.tasks)
    with progress_for(prepared.config.train, count, console, as_json=as_json) as report:
        rungs = RUNGS if halving else ()
        found = sweep(prepared, configs, lm, rungs=rungs, overwrite=overwrite, resume=resume, report=report)
    _show(found, as_json)
    if found.interrupted:
        Console(stderr=True).print(Text("stopped; go on with the same command and --resume", style="yellow"))
        sys.exit(130)
    if not as_json:
        print_next(base)


def _show(found: SweepResult, as_json: bool) -> None:
    """The candidates, best first."""
    from softprompt.training.sweep import row

    rows = [row(name, result) for name, result in found.results.items()]
    if as_json:
        saved = [str(folder) for folder, _ in found.saved]
        typer.echo(json.dumps({"event": "swept", "saved": saved, "candidates": rows}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("candidate", "steps", "ended by", "validation loss"):
        table.add_column(column, justify="right" if column in {"steps", "validation loss"} else "left")
    for i, facts in enumerate(rows):
        loss = facts["validation_loss"]
        cells = (facts["candidate"], str(facts["steps"]), facts["stopped"], "" if loss is None else f"{loss:.4f}")
        table.add_row(*map(Text, cells), style="bold" if i == 0 and found.saved else "")
    console = Console(soft_wrap=True)
    console.print(table)
    if found.saved:
        console.print(Text(f"saved       {', '.join(str(folder) for folder, _ in found.saved)}", style="bold green"))
