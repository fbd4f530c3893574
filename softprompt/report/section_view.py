"""One section of a report: its title, how it is read, and its sentences, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from softprompt.inspection.inspection import Inspection
from softprompt.report.blocks import CurveLine, ReportBlock


@dataclass(frozen=True)
class SectionView:
    """How a section of an `Inspection` is shown.

    Args:
        name: of the section, as in `inspect --only`.
        title: heading.
        read: a sentence on how to read it.
        misread: a sentence on how not to.
        blocks: its content; empty if the inspection does not have the section.
    """

    name: str
    title: str
    read: str
    misread: str
    blocks: Callable[[Inspection], Sequence[ReportBlock]]


def control_lines(pairs: Sequence[tuple[str, float | None]], what: str) -> str:
    """A sentence such as "Recovered share: 61.0% (start 12.0%, random 3.0%)."; the first pair is the prompt's."""
    known = [(name, value) for name, value in pairs[1:] if value is not None]
    first = pairs[0][1]
    controls = ", ".join(f"{name} {value:.1%}" for name, value in known)
    return f"{what}: {'–' if first is None else f'{first:.1%}'}{f' ({controls})' if controls else ''}."


def control_curves(inspection: Inspection, read: Callable[[Inspection], Sequence[float] | None]) -> list[CurveLine]:
    """The same numbers of each control that has them, as lines or marks."""
    numbers = [(label, read(control)) for label, control in inspection.controls.items()]
    return [CurveLine(label, ys, control=True) for label, ys in numbers if ys]


def in_parentheses(pairs: Sequence[tuple[str, str]]) -> str:
    """Values of controls behind a value: " (start 12.0, random 3.0)"."""
    return f" ({', '.join(f'{name} {value}' for name, value in pairs)})" if pairs else ""
