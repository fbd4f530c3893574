"""`softprompt distil`: a long text into virtual tokens; progress of study, answers and training; a fidelity report."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.fidelity_table import print_fidelity
from softprompt.cli.options import AsJson, Metrics, TrustRemoteCode, unescaped
from softprompt.cli.overrides import parse_overrides

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from softprompt.distillation.fidelity import Fidelity
    from softprompt.distillation.prepare import PreparedDistillation
    from softprompt.distillation.run import DistillationResult
    from softprompt.evaluation.custom_metrics import Metric
    from softprompt.training.events import Event

FLAGS = {
    "model": "model",
    "text": "text",
    "document": "document",
    "demonstrations": "demonstrations",
    "shots": "shots",
    "data": "data",
    "name": "name",
    "template": "template",
    "chat": "chat",
    "keep_text": "keep_text",
    "method": "method.name",
    "init": "method.init",
    "inputs": "study.inputs",
    "fit_steps": "fit_steps",
    "steps": "train.steps",
    "minutes": "train.minutes",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "seed": "train.seed",
    "dtype": "dtype",
    "device": "device",
}
PHASES = {"study": "writing inputs", "answers": "answers of the teacher", "fit": "fitting the start"}
EVERY_S = 5.0
DEGRADED = 0.9  # of the effect of the text; below it more tokens are proposed


def distill_command(
    context: typer.Context,
    config: Annotated[str | None, typer.Argument(help="Settings in YAML; flags win over it.")] = None,
    text: Annotated[str | None, typer.Option(help="File with the text, e.g. a system prompt.")] = None,
    document: Annotated[str | None, typer.Option(help="File with a text of any length, read in pieces.")] = None,
    demonstrations: Annotated[str | None, typer.Option(help="Rows with answers, as examples in the context.")] = None,
    shots: Annotated[int | None, typer.Option(help="How many of them.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Base model: Hub id, folder, GGUF, smollm2-135m.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Inputs to distil on; the model writes its own if not given.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the soft prompt.")] = None,
    n_tokens: Annotated[str | None, typer.Option(help="Virtual tokens; several sizes at once: 4,8,16,32.")] = None,
    template: Annotated[str | None, typer.Option(help=r"Row to text, e.g. 'Question: {prompt}\nAnswer:'.")] = None,
    chat: Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat template.")] = None,
    method: Annotated[str | None, typer.Option(help="prefix-tuning (default), prompt-tuning, …")] = None,
    init: Annotated[str | None, typer.Option(help="Where tokens start: attended (default), text, …")] = None,
    inputs: Annotated[int | None, typer.Option(help="Messages to distil on, held-out ones with them.")] = None,
    fit_steps: Annotated[int | None, typer.Option(help="Steps that fit the start before training; 0: none.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Training time; the schedule fits itself to it.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    keep_text: Annotated[bool | None, typer.Option("--keep-text", help="Put the text itself into the card.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prompt or run of that name.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was stopped.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings and stop.")] = False,
    metric: Metrics = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Distil a long text into a few virtual tokens.

    softprompt distil --text policy.md --name policy --n-tokens 32

    The model with the text in front teaches the model with the soft prompt. A text alone is enough: the model writes
    questions and requests about it (--data gives your own instead). What comes out is compared, on messages that were
    held out, with no text and with the full text. A distilled prompt holds its source: treat it with the same care.
    """
    given = locals()
    from softprompt.distillation.config import DistillConfig
    from softprompt.distillation.prepare import prepare_distillation
    from softprompt.evaluation.custom_metrics import load_custom_metrics
    from softprompt.settings import resolve_settings, to_yaml

    extra, yaml_path = parse_overrides([config, *context.args] if config else context.args)
    given["template"] = None if template is None else unescaped(template)
    several = n_tokens is not None and "," in n_tokens
    flags = {setting: given[flag] for flag, setting in FLAGS.items()} | extra
    flags |= {"sizes" if several else "method.n_tokens": n_tokens}
    settings = resolve_settings(DistillConfig, flags, yaml_path, dict(os.environ))
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        return
    own = load_custom_metrics(metric or [])
    prepared = prepare_distillation(settings, overwrite=overwrite, resume=resume, trust_remote_code=trust_remote_code)
    sys.exit(_run(prepared, own, overwrite=overwrite, resume=resume, as_json=as_json, trust=trust_remote_code))


def _run(
    prepared: PreparedDistillation,
    own: Mapping[str, Metric],
    *,
    overwrite: bool,
    resume: bool,
    as_json: bool,
    trust: bool,
) -> int:
    """Load, distil, report; the exit code."""
    from softprompt.distillation.run import distill
    from softprompt.models.loading import load_model
    from softprompt.training.signals import Terminated, terminable

    settings = prepared.settings
    console = Console(stderr=as_json, soft_wrap=True)
    lm = load_model(settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=trust)
    console.print(Text(f"base model  {lm.name}, frozen ({lm.reason})"))
    pieces = f"in {len(prepared.chunks)} pieces" if len(prepared.chunks) > 1 else "as a whole"
    console.print(Text(f"text        {prepared.where}, {len(lm.encode(prepared.text))} tokens, read {pieces}"))
    source = f"{len(prepared.rows)} of {settings.data or settings.demonstrations}" if prepared.rows else "self-study"
    console.print(Text(f"inputs      {source}"))
    try:
        report = _progress(console, as_json)
        with terminable():
            found = distill(prepared, lm, overwrite=overwrite, resume=resume, own=own, report=report)
    except Terminated:
        return _stopped(signal.SIGTERM.name)
    except KeyboardInterrupt:
        return _stopped(signal.SIGINT.name)
    if found.fidelity is None:
        return _stopped(found.stopped)
    if as_json:
        folders = [str(folder) for folder, _ in found.saved]
        typer.echo(json.dumps({"event": "saved", "folders": folders, "fidelity": found.fidelity.to_dict()}))
        return 0
    _show(found, found.fidelity, prepared, Console(soft_wrap=True))
    return 0


def _stopped(reason: str) -> int:
    loud = Console(stderr=True, soft_wrap=True)
    loud.print(Text(f"stopped by {reason}; saved.\ngo on with the same command and --resume", style="yellow"))
    return 130 if reason == signal.SIGINT.name else 0


def _progress(console: Console, as_json: bool) -> Callable[[Event], None]:
    """A function that shows events: of the phases before training and of steps a line every few seconds."""
    if as_json:
        from softprompt.training.recorder import line_of

        return lambda event: typer.echo(json.dumps(line_of(event)))
    opened: dict[str, tuple[float, float]] = {}  # share and time of the first event of each kind
    shown: dict[str, float] = {}

    def show(event: Event) -> None:
        done, now, loss = event.numbers.get("progress", 0.0), time.monotonic(), event.numbers.get("loss", 0.0)
        if event.kind == "validation":
            of = f" ({event.trial} tokens)" if event.trial else ""
            line = f"step {event.step}  divergence {event.numbers['validation_loss']:.4f} on validation{of}"
            console.print(Text(line))
        elif event.kind in (*PHASES, "step") and (done >= 1 or now - shown.get(event.kind, 0.0) > EVERY_S):
            first, since = opened.setdefault(event.kind, (done, now))
            shown[event.kind] = now
            left = f", {(now - since) * (1 - done) / (done - first):.0f} s to go" if first < done < 1 else ""
            what = PHASES.get(event.kind, f"step {event.step}  loss {loss:.4f}")
            console.print(Text(f"{what:<28}{done:>5.0%}{left}"))

    return show


def _show(found: DistillationResult, measured: Fidelity, prepared: PreparedDistillation, console: Console) -> None:
    """The fidelity report and what to do next."""
    print_fidelity(measured, dict.fromkeys(measured.soft, "soft prompt"), console)
    folders = ", ".join(str(folder) for folder, _ in found.saved)
    console.print(Text(f"saved       {folders}", style="bold green"))
    best = max(measured.soft, key=measured.recovered)
    if measured.recovered(best) < DEGRADED:
        size = 2 * int(best)
        hint = f"recovers {measured.recovered(best):.1%} of the text's effect: try --n-tokens {size}, more --steps"
        console.print(Text(f"note        {hint}, or more --inputs", style="yellow"))
    name = prepared.folder_of(int(best)).name
    console.print(Text(f'next        softprompt generate {name} "your text"'))
