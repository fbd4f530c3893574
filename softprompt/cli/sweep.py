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

from softprompt.cli.options import AsJson, Flags, Overwrite, TrustRemoteCode, old_flags, with_settings
from softprompt.cli.overrides import parse_overrides
from softprompt.cli.progress import print_next, progress_for
from softprompt.cli.sources import check_data_places, parse_sources
from softprompt.training.config import Config, resolve

if TYPE_CHECKING:
    from softprompt.training.sweep import SweepResult


_HELP = {
    "name": "Name of the best soft prompt.",
    "data": "",
    "base_adapter": "",
    "load_in": "",
    "train.minutes": "Training time of all trials together.",
    "train.steps": "Optimizer steps of each trial.",
}


@with_settings(Config, only=_HELP, repeatable=["data"])
def sweep_command(
    context: typer.Context,
    flags: Flags,
    given: Annotated[
        list[str], typer.Argument(help="Settings in YAML (optional), then axes: train.lr=1e-2,3e-2 and so on.")
    ],
    halving: Annotated[
        bool, typer.Option("--halving/--no-halving", help="Stop the worse half after 1/4 and 1/2 of the run.")
    ] = True,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Try many settings at once and keep the best.

    softprompt sweep cfg.yml "train.lr=1e-2,3e-2" "method.n_tokens=16,32" --name best

    All trials train in the same forward passes, each with its own batches and its own prompt. Settings that they
    share are flags, as in train: --template '…', --train.batch_size 4.
    """
    check_data_places(parse_sources(flags["data"]))
    from softprompt.models.cores import limit_threads
    from softprompt.training.base_model import load_base_model
    from softprompt.training.prepare import prepare
    from softprompt.training.sweep import RUNGS, grid, sweep

    axes = [text for text in given if "=" in text]
    others = [text for text in given if "=" not in text]
    dotted, yaml_path = parse_overrides([*others, *context.args], old_flags(Config))
    shared: dict[str, object] = {**flags, "data": parse_sources(flags["data"]), **dotted}
    cells = grid(axes)
    configs = {cell: resolve(shared | values, yaml_path, dict(os.environ)) for cell, values in cells.items()}
    base = resolve(shared, yaml_path, dict(os.environ))
    prepared = prepare(base, overwrite=overwrite, resume=resume, trust_remote_code=trust_remote_code)
    console = Console(stderr=as_json, soft_wrap=True)
    for task in prepared.tasks:
        for note in task.splits.notes:
            console.print(Text(f"note: {note}", style="yellow"))
    limit_threads()
    lm = load_base_model(base, fsdp=base.fsdp, trust_remote_code=trust_remote_code)
    console.print(Text(f"base model  {lm.name}, frozen ({lm.reason})\ntrials      {len(configs)}"))
    count = sum(len(task.train) for task in prepared.tasks)
    with progress_for(prepared.config.train, count, console, as_json=as_json) as report:
        rungs = RUNGS if halving else ()
        result = sweep(prepared, configs, lm, rungs=rungs, overwrite=overwrite, resume=resume, report=report)
    _show(result, as_json)
    if result.interrupted:
        Console(stderr=True).print(Text("stopped; continue with the same command and --resume", style="yellow"))
        sys.exit(130)
    if not as_json:
        print_next(base)


def _show(result: SweepResult, as_json: bool) -> None:
    """Print the trials, best first."""
    from softprompt.training.sweep import row

    rows = [row(name, outcome) for name, outcome in result.results.items()]
    if as_json:
        saved = [str(folder) for folder, _ in result.saved]
        typer.echo(json.dumps({"event": "swept", "saved": saved, "trials": rows, "candidates": rows}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "steps", "ended by", "validation loss"):
        table.add_column(column, justify="right" if column in {"steps", "validation loss"} else "left")
    for i, values in enumerate(rows):
        loss = values["validation_loss"]
        cells = (
            str(values["trial"]),
            str(values["steps"]),
            str(values["stopped"]),
            "" if loss is None else f"{loss:.4f}",
        )
        table.add_row(*map(Text, cells), style="bold" if i == 0 and result.saved else "")
    console = Console(soft_wrap=True)
    console.print(table)
    if result.saved:
        console.print(Text(f"saved       {', '.join(str(folder) for folder, _ in result.saved)}", style="bold green"))
