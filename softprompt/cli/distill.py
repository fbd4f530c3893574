"""`softprompt distill`: a long text into virtual tokens; progress of study, answers and training; a fidelity report."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.fidelity_table import print_fidelity
from softprompt.cli.options import (
    AsJson,
    ConfigFile,
    Flags,
    Metrics,
    Overwrite,
    PrintConfig,
    TrustRemoteCode,
    old_flags,
    with_settings,
)
from softprompt.cli.overrides import parse_overrides
from softprompt.cli.sources import check_data_places
from softprompt.distillation.config import OWN, DistillConfig, resolve_distillation
from softprompt.settings import to_yaml, unescaped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from softprompt.distillation.fidelity import Fidelity
    from softprompt.distillation.prepare import PreparedDistillation
    from softprompt.distillation.run import DistillationResult
    from softprompt.evaluation.custom_metrics import Metric
    from softprompt.training.events import Event

PHASES = {"study": "writing queries", "answers": "answers of the teacher", "fit": "fitting the start"}
EVERY_S = 5.0
DEGRADED = 0.9  # of the effect of the text; below it more tokens are proposed


@with_settings(DistillConfig, defaults=OWN)
def distill_command(
    context: typer.Context,
    flags: Flags,
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    print_config: PrintConfig = False,
    metric: Metrics = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Distill a long text into a few virtual tokens.

    softprompt distill --text policy.md --name policy --n-tokens 32

    The model with the full text teaches the model with the soft prompt. A text alone is enough: the model writes
    questions and requests about it (--data gives your own instead). The result is compared, on held-out messages,
    with no text and with the full text. A distilled prompt holds its source: treat it with the same care.
    """
    for place in (flags["data"], flags["demonstrations"]):
        if isinstance(place, str) and not print_config:
            check_data_places(place)
    settings = resolve_distillation(*distill_flags(flags, config, context.args), dict(os.environ))
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        return
    from softprompt.distillation.prepare import prepare_distillation
    from softprompt.evaluation.custom_metrics import load_custom_metrics

    own = load_custom_metrics(metric or [])
    prepared = prepare_distillation(settings, overwrite=overwrite, resume=resume, trust_remote_code=trust_remote_code)
    sys.exit(_run(prepared, own, overwrite=overwrite, resume=resume, as_json=as_json, trust=trust_remote_code))


def distill_flags(flags: Flags, config: str | None, rest: list[str]) -> tuple[dict[str, object], Path | None]:
    """Dotted settings as typed, and the YAML file; `--n-tokens` with one number is `method.n_tokens`.

    Args:
        flags: values of the options that have names of their own.
        config: the first argument that is no option.
        rest: the arguments after it, dotted flags among them.
    """
    dotted, yaml_path = parse_overrides([config, *rest] if config else rest, old_flags(DistillConfig))
    changes: dict[str, object] = {}
    for setting in ("template", "method.init_text"):
        text = flags[setting]
        if isinstance(text, str):
            changes[setting] = unescaped(text)
    if flags["method.init_from"] is not None and flags["method.init"] is None:
        changes["method.init"] = "prompt"
    sizes = flags["sizes"]
    if isinstance(sizes, str) and "," not in sizes:
        changes |= {"sizes": None, "method.n_tokens": sizes}
    return {**flags, **changes, **dotted}, yaml_path


def _run(
    prepared: PreparedDistillation,
    own: Mapping[str, Metric],
    *,
    overwrite: bool,
    resume: bool,
    as_json: bool,
    trust: bool,
) -> int:
    """Load the model, distill and report; returns the exit code."""
    from softprompt.cli.base_model import memory_line, memory_use
    from softprompt.distillation.run import distill
    from softprompt.models.cores import limit_threads
    from softprompt.training.base_model import load_base_model
    from softprompt.training.signals import Terminated, terminable

    settings = prepared.settings
    console = Console(stderr=as_json, soft_wrap=True)
    limit_threads()
    lm = load_base_model(settings, trust_remote_code=trust)
    console.print(Text(f"base model  {lm.name}, frozen ({lm.reason})"))
    pieces = f"in {len(prepared.chunks)} pieces" if len(prepared.chunks) > 1 else "as a whole"
    console.print(Text(f"text        {prepared.where}, {len(lm.encode(prepared.text))} tokens, read {pieces}"))
    source = f"{len(prepared.rows)} of {settings.data or settings.demonstrations}" if prepared.rows else "self-study"
    console.print(Text(f"queries     {source}"))
    if settings.composable:
        console.print(Text(f"beside      {', '.join(settings.composable)}, in a third of the rows"))
    try:
        report = _progress(console, as_json)
        with terminable():
            found = distill(prepared, lm, overwrite=overwrite, resume=resume, extra_metrics=own, report=report)
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
    out = Console(soft_wrap=True)
    _show(found, found.fidelity, prepared, out)
    if line := memory_line(memory_use(lm), lm.device.type):
        out.print(Text(line))
    return 0


def _stopped(reason: str) -> int:
    loud = Console(stderr=True, soft_wrap=True)
    loud.print(Text(f"stopped by {reason}; saved.\ncontinue with the same command and --resume", style="yellow"))
    return 130 if reason == signal.SIGINT.name else 0


def _progress(console: Console, as_json: bool) -> Callable[[Event], None]:
    """A function that shows events: of the phases before training and of steps a line every few seconds."""
    if as_json:
        from softprompt.training.recorder import line_of

        return lambda event: typer.echo(json.dumps(line_of(event)))
    opened: dict[str, tuple[float, float]] = {}  # share and time of the first event of each kind
    shown: dict[str, float] = {}

    def show(event: Event) -> None:
        done = event.numbers.get("progress", 0.0)
        now = time.monotonic()
        loss = event.numbers.get("loss", 0.0)
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
        console.print(Text(f"note        {hint}, or more --queries", style="yellow"))
    name = prepared.folder_of(int(best)).name
    console.print(Text(f'next        softprompt generate {name} "your text"'))
