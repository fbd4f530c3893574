"""How `softprompt inspect` prints a soft prompt's readings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.inspect_others import print_likeness
from softprompt.cli.verbalize import print_verbalization

if TYPE_CHECKING:
    from softprompt.inspection.attention import AttentionReading
    from softprompt.inspection.behavior import Behavior
    from softprompt.inspection.drift import Drift
    from softprompt.inspection.inspection import Inspection
    from softprompt.inspection.layers import HeadLoss, LayerBand
    from softprompt.inspection.leak import Leak
    from softprompt.inspection.lens import LensLayer
    from softprompt.inspection.nearest import Nearest
    from softprompt.inspection.worth import TokenWorth

_BAR = 24  # characters of a full bar
_CONTROLS = {"start": "untrained start", "random": "random prompt of equal norms"}


def print_inspection(name: str, result: Inspection) -> None:
    """Every section that there is, and why others are left out."""
    out = Console(soft_wrap=True)
    out.print(Text(escaped(f"{name}: {result.effect:.3f} nats an answer token away from the base, {result.rows} rows")))
    for label, control in result.controls.items():
        out.print(f"In its place the {_CONTROLS[label]} recovers {control.recovered:.0%} of that effect.")
    if result.behavior is not None:
        _print_behavior(out, result.behavior)
    if result.nearest is not None:
        _print_nearest(out, result.nearest)
    if result.drift is not None:
        _print_drift(out, result.drift, {label: control.drift for label, control in result.controls.items()})
    if result.worth is not None:
        _print_worth(out, result.worth)
    if result.layers is not None:
        _print_layers(out, result.layers, {label: control.layers for label, control in result.controls.items()})
    if result.heads is not None:
        _print_heads(out, result.heads)
    if result.attention is not None:
        _print_attention(out, result.attention, {label: c.attention for label, c in result.controls.items()})
    if result.lens is not None:
        _print_lens(out, result.lens)
    if result.leak is not None:
        _print_leak(out, result.leak)
    if result.likeness is not None:
        print_likeness(out, result.likeness)
    if result.words is not None:
        _title(out, "words: the text that comes nearest")
        print_verbalization(name, result.words, out)
    for section, reason in result.left_out.items():
        out.print(Text(escaped(f"\n{section}: left out, {reason}"), "dim"))


def _title(out: Console, text: str) -> None:
    out.print(Text(f"\n{text}", "bold"))


def _print_behavior(out: Console, found: Behavior) -> None:
    _title(out, "behavior: at the first token of an answer")
    for what, shifts in (("promotes", found.promoted), ("demotes", found.demoted)):
        listed = ", ".join(
            f"{shift.token!r} {_percent(shift.base_probability)} to {_percent(shift.probability)}"
            for shift in shifts[:5]
        )
        out.print(Text(escaped(f"{what:<10}{listed or 'no token'}")))
    out.print(f"entropy   {found.base_entropy:.2f} nats without it, {found.entropy:.2f} after it")
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


def _print_drift(out: Console, found: Drift, controls: Mapping[str, Drift | None]) -> None:
    _title(out, "drift: where the virtual tokens lie")
    low, high = min(found.norms), max(found.norms)
    quantiles = found.norm_quantiles
    among = "" if quantiles is None else f", longer than {min(quantiles):.0%} to {max(quantiles):.0%} of real ones"
    out.print(f"norm      {low:.3g} to {high:.3g}{among}")
    ranks = found.effective_rank
    layers = "" if len(ranks) == 1 else f" to {max(ranks):.1f} by layer"
    others = [f"{label} {_mean(control.effective_rank):.1f}" for label, control in controls.items() if control]
    beside = f"; mean {_mean(ranks):.1f}, {', '.join(others)}" if others else ""
    out.print(f"rank      {min(ranks):.1f}{layers} of {len(found.norms)} (effective){beside}")
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
    best, random = found.half
    half = len(found.shapley) // 2
    out.print(
        f"The best {half} tokens alone recover {best:.0%}, {half} random ones {random:.0%}."
        f" {found.orders} random orders were drawn."
    )


def _print_attention(out: Console, found: AttentionReading, controls: Mapping[str, AttentionReading | None]) -> None:
    _title(out, "attention: share that the answers' tokens pay to the virtual tokens, by layer")
    beside = {label: control.total for label, control in controls.items() if control}
    out.print(_control_heads(beside), end="\n" if beside else "")
    for number, total in enumerate(found.total):
        out.print(f"{number:<8}{total:>6.1%}{_control_cells(beside, number)}  {'█' * round(_BAR * total)}")
    if found.by_position:
        out.print("by place in the answer: " + " ".join(f"{share:.0%}" for share in found.by_position))
    written = [layer for layer in found.added if layer]
    if written:
        mean = [_mean([layer[i] for layer in written]) for i in range(len(written[0]))]
        order = sorted(range(len(mean)), key=lambda i: -mean[i])[:5]
        listed = ", ".join(f"{i} ({mean[i]:.0%})" for i in order)
        out.print(
            f"Of what the virtual tokens add to the answers' states, most is from {listed}: attention by the norm"
            " of what it brings."
        )
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


def _print_layers(out: Console, bands: Sequence[LayerBand], controls: Mapping[str, Sequence[LayerBand] | None]) -> None:
    _title(out, "layers: share of the effect that is lost when they do not see the virtual tokens")
    beside = {label: [band.lost for band in control] for label, control in controls.items() if control}
    out.print(_control_heads(beside), end="\n" if beside else "")
    for number, band in enumerate(bands):
        name = str(band.first) if band.first == band.last else f"{band.first}–{band.last}"
        bar = "█" * max(0, round(_BAR * min(band.lost, 1.0)))
        out.print(f"{name:<8}{band.lost:>6.0%}{_control_cells(beside, number)}  {bar}")


def _print_heads(out: Console, heads: Sequence[HeadLoss]) -> None:
    _title(out, "heads: the same for single heads of the most read layers")
    for layer in sorted({head.layer for head in heads}):
        cells = " ".join(f"{head.lost:>5.0%}" for head in heads if head.layer == layer)
        out.print(f"{layer:<8}{cells}")


def _print_lens(out: Console, layers: Sequence[LensLayer]) -> None:
    _title(out, "lens: the word that the model would predict from each virtual token (weak evidence)")
    for layer in layers:
        words = " ".join(map(repr, layer.tokens[:8]))
        shares = f"recover {layer.recovered:.0%}, of a random prompt {layer.random_recovered:.0%}"
        out.print(Text(escaped(f"{layer.layer:<4}{words}{' …' if len(layer.tokens) > 8 else ''}  ({shares})")))


def _control_heads(beside: Mapping[str, Sequence[float]]) -> str:
    """The names of the columns that controls have."""
    return " " * 14 + "".join(f"{label:>8}" for label in beside) if beside else ""


def _control_cells(beside: Mapping[str, Sequence[float]], number: int) -> str:
    return "".join(f"{values[number]:>8.0%}" for values in beside.values())


def _percent(share: float) -> str:
    """Two digits of a small share, one after the point of others."""
    return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.2g}%"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
