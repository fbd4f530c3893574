"""Progress of a run: a bar on a terminal, plain lines elsewhere, JSON lines with --json."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from softprompt.cli.escape import escaped

if TYPE_CHECKING:
    from softprompt.training.config import Config, TrainConfig
    from softprompt.training.events import Event

PLAIN_EVERY = 10  # steps between plain lines
PLAIN_EVERY_S = 10.0  # seconds between plain lines of an evaluation


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
            if event.kind == "fit":
                bar.update(task, completed=event.numbers["progress"], description="fitting the start")
                return
            if event.kind == "step":
                state["loss"] = f"loss {event.numbers['loss']:.3f}"
            elif event.kind == "validation":
                state["validation"] = (
                    f"val {event.numbers['validation_loss']:.3f}{_further(event.numbers, 'validation_')}"
                )
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
    elif event.kind == "fit" and n["progress"] >= 1:
        console.print("start       fitted", highlight=False)
    elif event.kind == "step" and not of and event.step % PLAIN_EVERY == 0:
        console.print(
            f"step {event.step}  loss {n['loss']:.4f}{_further(n)}  lr {n['lr']:.2e}  {n['elapsed']:.0f} s",
            highlight=False,
        )
    elif event.kind == "validation":
        rows = f"{n['rows']:.0f} row{'s' * (n['rows'] != 1)}"
        loss = f"validation loss {n['validation_loss']:.4f}{_further(n, 'validation_')}"
        console.print(f"step {event.step}  {loss} of {rows}{of}", highlight=False)


def _further(numbers: Mapping[str, float], before: str = "") -> str:
    """The main numbers of a preference or reward objective."""
    shown = ("reward", "kl", "accuracy", "margin")
    return "".join(f"  {name} {numbers[before + name]:.3f}" for name in shown if before + name in numbers)


@contextlib.contextmanager
def evaluation_progress(console: Console, count: int) -> Iterator[Callable[[str, float], None]]:
    """A function that shows how much of each evaluation is done, as `compare` calls it.

    Args:
        count: number of evaluations.
    """
    seen = list[str]()

    def words(name: str) -> str:
        if name not in seen:
            seen.append(name)
        return f"evaluating {escaped(name)} ({len(seen)}/{count})"

    if console.is_terminal:
        label = TextColumn("{task.description}", markup=False)
        columns = (label, BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"))
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
            task = bar.add_task("evaluating", total=1.0)
            yield lambda name, share: bar.update(task, completed=share, description=words(name))
        return
    told = 0.0

    def tell(name: str, share: float) -> None:
        nonlocal told
        new, now = name not in seen, time.monotonic()
        if new or now - told > PLAIN_EVERY_S:
            told = now
            done = "" if new else f", {share:.0%}"
            console.print(Text(f"{words(name)}{done}"))

    yield tell


def print_next(settings: Config) -> None:
    """The commands that follow a finished run."""
    from softprompt.prompts import store

    console = Console(soft_wrap=True)
    label = "next"
    places = settings.data if isinstance(settings.data, dict) else {"": settings.data}
    for task, place in places.items():
        name = f"{settings.name}.{task}" if task else str(settings.name)
        if store.locate(name).exists():
            if not settings.objective.generates:  # its rows may have no answers to compare with
                console.print(Text(f"{label:<12}softprompt eval {name} --data {shlex.quote(str(place))}"))
                label = ""
            console.print(Text(f'{label:<12}softprompt generate {name} "your text"'))
            label = ""
