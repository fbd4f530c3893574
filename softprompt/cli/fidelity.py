"""`softprompt fidelity`: how much of the texts that it was distilled from a soft prompt holds, composed ones too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import (
    AsJson,
    BaseAdapter,
    Device,
    DeviceSplit,
    LoadIn,
    Metrics,
    Model,
    TrustRemoteCode,
    complete_names,
    parse_names,
)

if TYPE_CHECKING:
    from softprompt.distillation.composed_fidelity import ComposedFidelity


def fidelity_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A distilled or composed soft prompt.", autocompletion=complete_names)
    ],
    on: Annotated[
        str | None, typer.Option(help="On the held-out messages of these: a,b. What it was composed of, if not given.")
    ] = None,
    metric: Metrics = None,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="That of the distillation, if not given.")] = None,
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure a soft prompt on the held-out messages of the texts it was distilled from.

    softprompt compose "a | b" --name both && softprompt fidelity both

    Beside it: no text, the soft prompt of that text alone, all texts joined, the full text. It needs the
    runs of the distillations (in .runs beside the prompts), and their texts and rows unchanged.
    """
    from softprompt.cli.base_model import load_base
    from softprompt.distillation.composed_fidelity import composed_sources, load_source, measure_composed
    from softprompt.evaluation.custom_metrics import load_custom_metrics
    from softprompt.prompts import store

    own = load_custom_metrics(metric or [])
    card = store.load_card(store.find(name))
    names = composed_sources(name, card, parse_names(on) if on else ())
    sources = {source: load_source(source, trust_remote_code=trust_remote_code) for source in names}
    first = next(iter(sources.values())).settings
    dtype, load_in = dtype or first.dtype, load_in or first.load_in
    lm = load_base(model, [name, *names], dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    measured = measure_composed(lm, name, sources, own)
    if as_json:
        reports = [
            {
                "source": composed.source,
                "lost": composed.lost,
                "lost_by_texts": composed.lost_by_texts,
                **composed.report.to_dict(),
            }
            for composed in measured
        ]
        typer.echo(json.dumps({"name": name, "on": reports}))
        return
    _show(measured, Console(soft_wrap=True))


def _show(measured: list[ComposedFidelity], console: Console) -> None:
    """A table for each text, and whether composing cost something."""
    from softprompt.cli.fidelity_table import print_fidelity

    for composed in measured:
        console.print(Text(escaped(f"held-out messages of {composed.source}"), style="bold"))
        print_fidelity(composed.report, {}, console)
        if composed.source != composed.name:
            console.print(_verdict(composed))
        console.print()


def _verdict(composed: ComposedFidelity) -> Text:
    """Whether the soft prompt in question holds less of the text than the one of this text alone."""
    from softprompt.distillation.composed_fidelity import NOTABLE_LOSS

    by_texts = (
        "" if composed.lost_by_texts is None else f"; all texts together lose {max(0.0, composed.lost_by_texts):.1%}"
    )
    if composed.lost > NOTABLE_LOSS:
        return Text(
            escaped(f"degrades    {composed.name} lacks {composed.lost:.1%} that {composed.source} has{by_texts}"),
            "yellow",
        )
    return Text(
        escaped(f"holds       {composed.name} is within {NOTABLE_LOSS:.0%} of {composed.source}{by_texts}"), "green"
    )
