"""`softprompt eval --tasks`: lm-evaluation-harness' tasks on soft prompts beside the base model.

The module needs the extra `eval`, so it is imported only when there are tasks.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.errors import ConfigError
from softprompt.lm_eval import evaluate_tasks
from softprompt.models.frozen_lm import FrozenLM


@dataclass(frozen=True)
class TaskOptions:
    """How tasks are run, see `softprompt.lm_eval.evaluate_tasks`."""

    num_fewshot: int | None
    limit: int | None
    apply_chat_template: bool
    batch_size: int


def eval_tasks(
    lm: FrozenLM,
    names: Sequence[str],
    tasks: str,
    options: TaskOptions,
    *,
    as_json: bool,
) -> None:
    """Run the tasks and print one table, or JSON.

    Raises ConfigError for an unknown task.
    """
    chosen = [task.strip() for task in tasks.split(",") if task.strip()]
    if not chosen:
        raise ConfigError("no task is named", where="--tasks", got=repr(tasks), hint="lm_eval ls tasks shows all")
    with contextlib.redirect_stdout(sys.stderr):  # what tasks print is no result
        comparison = evaluate_tasks(
            lm,
            names,
            chosen,
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.apply_chat_template,
            batch_size=options.batch_size,
        )
    if as_json:
        typer.echo(json.dumps({"tasks": chosen, **comparison.to_dict()}))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("task", "metric", *comparison.scores):
        table.add_column(escaped(title), justify="left" if title in ("task", "metric") else "right")
    models = list(comparison.scores.values())
    for task, metrics in models[0].items():
        for metric in metrics:
            cells = [_cell(*model[task][metric]) for model in models]
            table.add_row(Text(escaped(task)), Text(escaped(metric)), *cells)
    console = Console(soft_wrap=True)
    console.print(table)
    counts = ", ".join(f"{task}: {count}" for task, count in comparison.rows.items())
    console.print(Text(f"documents: {escaped(counts)}; ± standard error", style="dim"))


def _cell(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} [dim]± {error:.3f}[/dim]"
