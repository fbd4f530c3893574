"""The main numbers of each reading, to compare soft prompts by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from softprompt.inspection.inspection import Inspection
from softprompt.inspection.worth import TokenWorth

Value: TypeAlias = float | int | str | None
_Number: TypeAlias = tuple[str, str, str, Value]  # section, label, unit, value


@dataclass(frozen=True)
class MainNumber:
    """One row of a comparison.

    Attributes:
        section: of the inspection; "effect" for the whole.
        label: of the number.
        unit: "share" (1 is 100 %), "nats" or "".
        values: of each soft prompt, in their order; None where it is not known or has no meaning.
    """

    section: str
    label: str
    unit: str
    values: tuple[Value, ...]


def compare_inspections(inspections: Sequence[Inspection]) -> list[MainNumber]:
    """The main numbers of several inspections beside each other; those that none of them has are left out."""
    columns = [{(section, label): (unit, value) for section, label, unit, value in _numbers(i)} for i in inspections]
    units = {key: unit for column in columns for key, (unit, _) in column.items()}
    rows = [
        MainNumber(*key, unit, tuple(column[key][1] if key in column else None for column in columns))
        for key, unit in units.items()
    ]
    return [row for row in rows if any(value is not None for value in row.values)]


def _numbers(inspection: Inspection) -> Iterator[_Number]:
    yield "effect", "effect, a token", "nats", inspection.effect
    for label, control in inspection.controls.items():
        yield "effect", f"… of the {label} prompt in its place", "share", control.recovered
    yield "effect", "rows", "", inspection.rows
    for section in (_behavior, _nearest, _drift, _worth, _layers, _heads, _attention, _lens, _leak, _likeness, _words):
        yield from section(inspection)


def _behavior(inspection: Inspection) -> Iterator[_Number]:
    if (reading := inspection.behavior) is not None:
        yield "behavior", "promotes most", "", repr(reading.promoted[0].token) if reading.promoted else None
        yield "behavior", "demotes most", "", repr(reading.demoted[0].token) if reading.demoted else None
        yield "behavior", "entropy, change", "nats", reading.entropy - reading.base_entropy
        yield "behavior", "divergence on neutral texts", "nats", reading.foreign_divergence


def _nearest(inspection: Inspection) -> Iterator[_Number]:
    if (reading := inspection.nearest) is not None:
        yield "nearest", "nearest words recover", "share", reading.recovered
        yield "nearest", "… of a random prompt", "share", reading.random_recovered
        yield "nearest", "… of the start", "share", reading.start_recovered


def _drift(inspection: Inspection) -> Iterator[_Number]:
    if (reading := inspection.drift) is not None:
        yield "drift", "virtual tokens", "", len(reading.norms)
        yield "drift", "effective rank, mean", "", _mean(reading.effective_rank)
        for label, control in inspection.controls.items():
            if control.drift is not None:
                yield "drift", f"… of the {label} prompt", "", _mean(control.drift.effective_rank)
        yield "drift", "distance from the start, mean", "share", _mean(reading.distances or ())


def _worth(inspection: Inspection) -> Iterator[_Number]:
    if (reading := inspection.worth) is not None:
        yield "worth", "largest worth of one token", "share", max(reading.shapley)
        yield "worth", "tokens that reach half", "", _reach_half(reading, reading.insertion)
        yield "worth", "… in random order", "", _reach_half(reading, reading.random_insertion)


def _layers(inspection: Inspection) -> Iterator[_Number]:
    if inspection.layers:
        most = max(inspection.layers, key=lambda band: band.lost)
        yield "layers", "most lost without layers", "", f"{most.first}–{most.last}"
        yield "layers", "… lost there", "share", most.lost


def _heads(inspection: Inspection) -> Iterator[_Number]:
    if inspection.heads:
        most = max(inspection.heads, key=lambda head: head.lost)
        yield "heads", "most lost without head", "", f"layer {most.layer}, head {most.head}"
        yield "heads", "… lost there", "share", most.lost


def _lens(inspection: Inspection) -> Iterator[_Number]:
    if inspection.lens:
        best = max(inspection.lens, key=lambda layer: layer.recovered)
        yield "lens", "best layer's words recover", "share", best.recovered
        yield "lens", "… of a random prompt", "share", best.random_recovered


def _attention(inspection: Inspection) -> Iterator[_Number]:
    if (reading := inspection.attention) is not None:
        yield "attention", "attention, mean of layers", "share", _mean(reading.total)
        yield "attention", "… without the sink", "share", _mean(reading.besides_sink)


def _leak(inspection: Inspection) -> Iterator[_Number]:
    if (reading := inspection.leak) is not None:
        yield "leak", "longest run repeated, words", "", len(reading.longest.split())
        yield "leak", "… by the base alone", "", len(reading.base_longest.split())


def _likeness(inspection: Inspection) -> Iterator[_Number]:
    if (reading := inspection.likeness) is not None:
        yield "likeness", "most similar", "", reading.names[1]
        yield "likeness", "… cosine", "", reading.average[0][1]


def _words(inspection: Inspection) -> Iterator[_Number]:
    if (reading := inspection.words) is not None:
        yield "words", "best text recovers", "share", reading.recovered
        for label, share in reading.controls.items():
            yield "words", f"… of the {label} prompt", "share", share


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _reach_half(worth: TokenWorth, curve: Sequence[float]) -> int | None:
    """The first size at which a curve reaches half of the effect."""
    return next((size for size, share in zip(worth.sizes, curve, strict=True) if share >= 0.5), None)
