"""`softprompt inspect`: readings of a soft prompt, each beside the share of its effect that it recovers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import AsJson, BaseAdapter, Device, DeviceSplit, Dtype, LoadIn, Model, TrustRemoteCode
from softprompt.cli.options import parse_names as parse_list

if TYPE_CHECKING:
    from softprompt.inspection.attention import AttentionReading
    from softprompt.inspection.behavior import Behavior
    from softprompt.inspection.drift import Drift
    from softprompt.inspection.inspection import Inspection
    from softprompt.inspection.layers import LayerBand
    from softprompt.inspection.leak import Leak
    from softprompt.inspection.nearest import Nearest
    from softprompt.inspection.worth import TokenWorth

_BAR = 24  # characters of a full bar


def inspect_command(
    name: Annotated[str, typer.Argument(help="A soft prompt's name, or a path to its folder.")],
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Rows with answers: a file, or a folder's validation rows.")
    ] = None,
    only: Annotated[str, typer.Option("--only", help="Sections, e.g. nearest,worth.")] = "",
    text: Annotated[
        Path | None, typer.Option("--text", help="For the section leak: the text that it was trained on.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Only the first rows.")] = 64,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Read a soft prompt: what it does, the words near it, which tokens and layers carry its effect.

    softprompt inspect tone

    softprompt inspect tone --data rows.jsonl --only behavior,worth --json

    Sections: behavior (changed predictions), nearest (words near the virtual tokens), drift (where they lie), worth
    (the share of each virtual token), layers (what is lost when a band of layers does not see them), attention (which
    layers look at them), leak (what it repeats of --text). The effect is the divergence from the base model's
    predictions. Readings say which share of it is left when they take the prompt's place. Without --data a few neutral
    texts are used, with the soft prompt's own answers.
    """
    from softprompt.cli.base_model import load_base
    from softprompt.distillation.prepare import read_document
    from softprompt.evaluation.held_out import selection_rows
    from softprompt.formatting.formatted_prompt import from_card
    from softprompt.inspection.inspection import READINGS, inspect
    from softprompt.prompts import store

    wanted = parse_list(only) if only else list(READINGS)
    card = store.load_card(store.find(name))
    source_text = "" if text is None else read_document(text)[0]
    console = Console(stderr=True, quiet=as_json, soft_wrap=True)
    rows = None
    if data is not None:
        found = selection_rows(data, card)
        rows = found.rows[:limit]
        for note in found.notes:
            console.print(Text(f"note: {note}", style="yellow"))
    lm = load_base(model, [name], dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    prompt, card = store.load(name, lm.geometry)
    with console.status("predictions") as status:
        result = inspect(
            lm,
            from_card(prompt, card),
            rows,
            only=wanted,
            text=source_text,
            on_section=lambda section: status.update(section),
        )
    if as_json:
        typer.echo(json.dumps({"name": card.name, **result.to_dict()}))
        return
    _print(card.name, result)


def _print(name: str, result: Inspection) -> None:
    out = Console(soft_wrap=True)
    out.print(Text(escaped(f"{name}: {result.effect:.3f} nats an answer token away from the base, {result.rows} rows")))
    if result.behavior is not None:
        _print_behavior(out, result.behavior)
    if result.nearest is not None:
        _print_nearest(out, result.nearest)
    if result.drift is not None:
        _print_drift(out, result.drift)
    if result.worth is not None:
        _print_worth(out, result.worth)
    if result.layers is not None:
        _print_layers(out, result.layers)
    if result.attention is not None:
        _print_attention(out, result.attention)
    if result.leak is not None:
        _print_leak(out, result.leak)
    for section, reason in result.left_out.items():
        out.print(Text(escaped(f"\n{section}: left out, {reason}"), "dim"))


def _title(out: Console, text: str) -> None:
    out.print(Text(f"\n{text}", "bold"))


def _print_behavior(out: Console, found: Behavior) -> None:
    _title(out, "behavior: at the first token of an answer")
    for what, shifts in (("promotes", found.promoted), ("demotes", found.demoted)):
        listed = ", ".join(
            f"{shift.token!r} {shift.base_probability:.1%} to {shift.probability:.1%}" for shift in shifts[:5]
        )
        out.print(Text(escaped(f"{what:<10}{listed or 'no token'}")))
    out.print(f"entropy   {found.base_entropy:.2f} nats without it, {found.entropy:.2f} behind it")
    if found.foreign_divergence is not None:
        out.print(
            f"foreign   {found.foreign_divergence:.3f} nats on neutral texts, {found.own_divergence:.3f} on the rows"
        )


def _print_nearest(out: Console, found: Nearest) -> None:
    _title(out, "nearest: words near each virtual token")
    table = Table(box=None, pad_edge=False)
    for column in ("token", "z", "words"):
        table.add_column(column, justify="left" if column == "words" else "right")
    for number, near in enumerate(found.tokens):
        table.add_row(str(number), f"{near.z:.1f}", Text(escaped(" ".join(map(repr, near.tokens)))))
    out.print(table)
    start = "" if found.start_recovered is None else f"; of its start {found.start_recovered:.0%}"
    out.print(
        f"In the prompt's place these words recover {found.recovered:.0%} of its effect"
        f" (of a random prompt {found.random_recovered:.0%}{start}). z: standard deviations above random vectors."
    )


def _print_drift(out: Console, found: Drift) -> None:
    _title(out, "drift: where the virtual tokens lie")
    low, high = min(found.norms), max(found.norms)
    quantiles = found.norm_quantiles
    among = "" if quantiles is None else f", longer than {min(quantiles):.0%} to {max(quantiles):.0%} of the words"
    out.print(f"norm      {low:.3g} to {high:.3g}{among}")
    ranks = found.effective_rank
    layers = "" if len(ranks) == 1 else f" to {max(ranks):.1f} by layer"
    out.print(f"rank      {min(ranks):.1f}{layers} of {len(found.norms)} (effective)")
    if found.distances is not None:
        out.print(f"distance  {min(found.distances):.2f} to {max(found.distances):.2f} of the start's norm")


def _print_worth(out: Console, found: TokenWorth) -> None:
    _title(out, "worth: share of the effect that each virtual token carries")
    table = Table(box=None, pad_edge=False)
    for column in ("token", "Shapley", "±", "without it"):
        table.add_column(column, justify="right")
    table.add_column("")
    most = max(max(found.shapley), 1e-9)
    for number, value in enumerate(found.shapley):
        bar = "█" * max(0, round(_BAR * value / most))
        cells = (f"{value:+.1%}", f"{found.shapley_error[number]:.1%}", f"{-found.leave_one_out[number]:+.1%}")
        table.add_row(str(number), *cells, bar)
    out.print(table)
    half = len(found.shapley) // 2
    out.print(
        f"The best {half} tokens alone recover {found.insertion[half]:.0%}, {half} random ones"
        f" {found.random_insertion[half]:.0%}. Shapley values are means over {found.orders} random orders."
    )


def _print_attention(out: Console, found: AttentionReading) -> None:
    _title(out, "attention: share that the answers' tokens pay to the virtual tokens, by layer")
    for number, total in enumerate(found.total):
        out.print(f"{number:<8}{total:>6.1%}  {'█' * round(_BAR * total)}")
    rest = sum(found.besides_sink) / len(found.besides_sink)
    out.print(
        f"Token {found.sink} has the most in most layers (a sink). Without it {rest:.1%} on average. Attention is no"
        " proof of effect: see layers."
    )


def _print_leak(out: Console, found: Leak) -> None:
    _title(out, "leak: what it repeats of the text when it is asked to")
    words, by_itself = len(found.longest.split()), len(found.base_longest.split())
    out.print(Text(escaped(f"longest   {words} words ({by_itself} without the soft prompt): {found.longest[:200]!r}")))
    out.print(f"verbatim  {found.share:.0%} of its words, in {len(found.spans)} spans of at least eight words")


def _print_layers(out: Console, bands: tuple[LayerBand, ...]) -> None:
    _title(out, "layers: share of the effect that is lost when they do not see the virtual tokens")
    for band in bands:
        name = str(band.first) if band.first == band.last else f"{band.first}–{band.last}"
        out.print(f"{name:<8}{band.lost:>6.0%}  {'█' * max(0, round(_BAR * min(band.lost, 1.0)))}")
