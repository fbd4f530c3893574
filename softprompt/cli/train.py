"""`softprompt train`: settings from file, environment and flags; a progress bar; what came out and what to do next."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.options import (
    ConfigFile,
    Flags,
    Overwrite,
    PrintConfig,
    TrustRemoteCode,
    old_flags,
    with_settings,
)
from softprompt.cli.overrides import parse_overrides
from softprompt.cli.progress import print_next, progress_for
from softprompt.cli.sources import check_data_places, parse_sources
from softprompt.errors import CheckpointError, NonFiniteLossError, StoreError, TrainError
from softprompt.settings import to_yaml, unescaped
from softprompt.training.config import Config, resolve

if TYPE_CHECKING:
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.training.prepare import PreparedTraining
    from softprompt.training.run import FitResult

_START_WORDS = {"selected": "the most attended tokens", "best": "the best of several starts"}


@with_settings(Config, repeatable=["data"])
def train_command(
    context: typer.Context,
    flags: Flags,
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
    print_config: PrintConfig = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train a soft prompt.

    softprompt train --model smollm2-135m --data examples/helpdesk --name helpdesk

    Every setting has a dotted flag too, such as --train.warmup 0.1 or --train.patience null; --print-config shows
    and explains them all.
    """
    if not print_config:
        check_data_places(parse_sources(flags["data"]))
    settings = resolve(*train_flags(flags, config, context.args), dict(os.environ))
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        return
    code = run_training(
        settings,
        overwrite=overwrite,
        resume=resume,
        quiet=quiet,
        as_json=as_json,
        trust_remote_code=trust_remote_code,
    )
    if code == 0 and not as_json and os.environ.get("RANK", "0") == "0":
        print_next(settings)
    sys.exit(code)


def train_flags(flags: Flags, config: str | None, rest: list[str]) -> tuple[dict[str, object], Path | None]:
    """Dotted settings as typed, and the YAML file.

    Args:
        flags: values of the options that have names of their own.
        config: the first argument that is no option.
        rest: the arguments after it, dotted flags among them.
    """
    dotted, yaml_path = parse_overrides([config, *rest] if config else rest, old_flags(Config))
    text = flags["method.init_text"]
    changes: dict[str, object] = {"data": parse_sources(flags["data"])}
    if isinstance(text, str):
        changes["method.init_text"] = unescaped(text)
    if flags["method.init_from"] is not None and flags["method.init"] is None:
        changes["method.init"] = "prompt"
    return {**flags, **changes, **dotted}, yaml_path


def run_training(
    settings: Config, *, overwrite: bool, resume: bool, quiet: bool, as_json: bool, trust_remote_code: bool
) -> int:
    """Prepare, load, train, report; returns the exit code (130 after Ctrl-C, 0 after SIGTERM)."""
    from softprompt.models.cores import limit_threads
    from softprompt.training.base_model import load_base_model
    from softprompt.training.checkpoint import latest_step
    from softprompt.training.run import fit, prepare
    from softprompt.training.signals import Terminated, terminable
    from softprompt.training.speed import on_this_machine

    first = os.environ.get("RANK", "0") == "0"  # of several processes, one talks
    quiet, as_json = quiet or not first, as_json and first
    console = Console(stderr=as_json, quiet=quiet, soft_wrap=True)
    prepared = prepare(settings, overwrite=overwrite, resume=resume, trust_remote_code=trust_remote_code)
    for note in _notes(prepared):
        console.print(Text(f"note: {note}", style="yellow"))
    limit_threads()
    lm = load_base_model(settings, fsdp=settings.fsdp, trust_remote_code=trust_remote_code)
    if settings.train.minutes is not None:
        prepared = on_this_machine(prepared, lm, resume=resume)
    settings = prepared.config
    console.print(Text(f"base model  {lm.name}, frozen ({lm.reason})"))
    _print_plan(prepared, console)
    count = sum(len(task.train) for task in prepared.tasks)
    with progress_for(settings.train, count, console, as_json=as_json) as report:
        try:
            with terminable():
                outcome = fit(
                    prepared,
                    lm,
                    overwrite=overwrite,
                    resume=resume,
                    trust_remote_code=trust_remote_code,
                    report=report,
                )
        except Terminated:
            return _stopped(prepared.run, signal.SIGTERM)
        except KeyboardInterrupt:  # before training, or twice
            return _stopped(prepared.run, signal.SIGINT)
        except (StoreError, TrainError) as error:
            lasting = isinstance(error, (NonFiniteLossError, CheckpointError))  # would only come again
            if not lasting and latest_step(prepared.run) is not None:
                error.hint = "; ".join(filter(None, [error.hint, "--resume goes on from the last checkpoint"]))
            raise
    seen = outcome.result.step * settings.train.batch_size / count
    return _ended(outcome, seen, lm, first=first, as_json=as_json)


def _notes(prepared: PreparedTraining) -> Iterator[str]:
    """Notes on the rows, before training."""
    from softprompt.data.template import unused_fields

    for task in prepared.tasks:
        notes = [*task.splits.notes, *task.notes]
        if unused := unused_fields(task.template, task.splits.train):
            notes.append(f"the template does not use the fields {', '.join(unused)}")
        if task.dropped:
            notes.append(f"{task.dropped} rows of over {task.longest} tokens left out")
        for note in notes:
            yield f"{task.name}{': ' * bool(task.name)}{note}"


def _print_plan(prepared: PreparedTraining, console: Console) -> None:
    """Print the plan, and the steps that a timed run will have."""
    from softprompt.training.expectation import expectation

    for line in _plan(prepared):
        console.print(Text(line))
    if expected := expectation(prepared.config, prepared.facts):
        console.print(Text(f"expected    {expected.sentence()}"))
        if warning := expected.warning():
            console.print(Text(f"note: {warning}", style="yellow"))


def _plan(prepared: PreparedTraining) -> Iterator[str]:
    """The chosen settings, the method and the data, one line each."""
    from softprompt.data.row_shapes.registry import shape_of

    for choice in prepared.choices:
        yield f"auto        {choice.setting} = {choice.value}: {choice.why}"
    method, objective = prepared.config.method, prepared.config.objective
    if objective.name != "next-token":
        shown = {name: value for name, value in objective.used().items() if name != "name"}
        words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
        yield f"objective   {objective.name}: {words}"
    start = _START_WORDS.get(method.init, method.init_from or method.init)
    yield f"method      {method.name}, {method.n_tokens} tokens from {start}"
    for task in prepared.tasks:
        name, kind = f"{task.name}: " if task.name else "", shape_of(task.splits.train[0]).description
        yield f"data        {name}{len(task.train)} rows to train, {len(task.validation)} to validate ({kind})"


def _ended(outcome: FitResult, seen: float, lm: FrozenLM, *, first: bool, as_json: bool) -> int:
    """Print the results of a run and the share of rows it has seen; the exit code."""
    from softprompt.cli.base_model import memory_line, memory_use
    from softprompt.training.artifacts import CURVE

    result = outcome.result
    if outcome.folder is None:
        loud = Console(stderr=True, quiet=not first, soft_wrap=True)  # even with --quiet
        stopped = f"stopped by {result.stopped} after step {result.step}; saved."
        loud.print(Text(f"{stopped}\ncontinue with the same command and --resume", style="yellow"))
        return 130 if result.stopped == signal.SIGINT.name else 0
    folders, memory = [str(folder) for folder, _ in outcome.saved], memory_use(lm)
    if as_json:
        where = {"event": "saved", "folder": str(outcome.folder), "folders": folders}
        numbers = {"step": result.step, "seconds": result.seconds, "bytes": outcome.bytes, **memory}
        typer.echo(json.dumps(where | numbers | {"validation_loss": result.validation_loss}))
    loss = "" if result.validation_loss is None else f", validation loss {result.validation_loss:.4f}"
    out = Console(quiet=as_json or not first, soft_wrap=True)
    out.print(Text(f"saved       {', '.join(folders)} ({outcome.bytes / 1024:,.0f} KiB){loss}", style="bold green"))
    out.print(Text(f"ended by    {result.stopped} after {result.step} steps, {result.seconds:.0f} s"))
    if line := memory_line(memory, lm.device.type):
        out.print(Text(line))
    curve = outcome.folder / CURVE
    if curve.exists():  # not without matplotlib
        out.print(Text(f"curve       {curve}"))
    if result.stopped == "minutes" and seen < 1:
        line = f"note: it had time for {seen:.0%} of the training rows; with more --minutes it would learn more"
        out.print(Text(line, style="yellow"))
    return 0


def _stopped(run: Path, by: signal.Signals) -> int:
    """Print how to continue a run that was stopped outside of its steps; the exit code, by the shells' convention."""
    from softprompt.training.checkpoint import latest_step

    saved = latest_step(run) is not None
    then = (
        "continue with the same command and --resume"
        if saved
        else "nothing was saved yet; the same command starts anew"
    )
    Console(stderr=True, soft_wrap=True).print(Text(f"stopped by {by.name}\n{then}", style="yellow"))
    return 128 + by
