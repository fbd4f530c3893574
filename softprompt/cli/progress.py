"""Progress of a run: a bar on a terminal, plain lines elsewhere, JSON lines with --json."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from softprompt.training.config import Config, TrainConfig
    from softprompt.training.events import Event

PLAIN_EVERY = 10  # steps between plain lines


@contextlib.contextmanager
def progress_for(
    settings: TrainConfig, rows: int, console: Console, *, as_json: bool
) -> Iterator[Callable[[Event], None]]:
    """A function that shows events."""
    if as_json:
        from softprompt.training.recorder import line_of

        yield lambda event: typer.echo(json.dumps(line_of(event)))
        return
    if not console.is_terminal:
        yield lambda event: _plain(event, console)
        return
    steps = settings.total_steps(rows)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task("training", total=1.0)
        state = {"loss": "", "validation": ""}

        def show(event: Event) -> None:
            if event.kind == "init":
                _plain(event, console)
            elif event.kind == "step":
                state["loss"] = f"loss {event.numbers['loss']:.3f}"
            elif event.kind == "validation":
                state["validation"] = f"val {event.numbers['validation_loss']:.3f}"
            done = event.numbers.get("progress", 1.0 if event.kind == "end" else None)
            of = f"/{steps}" if steps else ""
            bar.update(
                task,
                completed=done,
                description=f"step {event.step}{of} {state['loss']} {state['validation']}",
            )

        yield show


def _plain(event: Event, console: Console) -> None:
    n = event.numbers
    of = f"  {event.trial}" if event.trial else ""
    if event.kind == "init":
        tried = ", ".join(f"{name} {loss:.3f}" for name, loss in sorted(n.items(), key=lambda pair: pair[1]))
        console.print(f"starts      {tried} (validation loss; the first one is taken)", highlight=False)
    elif event.kind == "step" and not of and event.step % PLAIN_EVERY == 0:
        console.print(
            f"step {event.step}  loss {n['loss']:.4f}  lr {n['lr']:.2e}  {n['elapsed']:.0f} s",
            highlight=False,
        )
    elif event.kind == "validation":
        rows = f"{n['rows']:.0f} row{'s' * (n['rows'] != 1)}"
        console.print(f"step {event.step}  validation loss {n['validation_loss']:.4f} of {rows}{of}", highlight=False)


def print_next(settings: Config) -> None:
    """The commands that follow a finished run."""
    from softprompt.prompts import store

    console = Console(soft_wrap=True)
    label = "next"
    places = settings.data if isinstance(settings.data, dict) else {"": settings.data}
    for task, place in places.items():
        name = f"{settings.name}.{task}" if task else str(settings.name)
        if store.locate(name).exists():
            console.print(Text(f"{label:<12}softprompt eval {name} --data {shlex.quote(str(place))}"))
            console.print(Text(f'            softprompt generate {name} "your text"'))
            label = ""
