"""What a section of a report is made of: sentences, tables and figures, as plain data.

A section says what to show (`sections`); `svg` and `pictures` draw every figure from the same data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

Cell: TypeAlias = str | int | float | None  # None: not known
Unit: TypeAlias = str  # "share" (1 is 100 %), "nats" or "" (a plain number)


@dataclass(frozen=True)
class VocabularyTokens:
    """A sentence's or cell's tokens of the vocabulary, each shown apart with its spaces."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class DataTable:
    """A table.

    Attributes:
        columns: their names.
        rows: cells; numbers stand at the right.
        units: of each column's numbers.
        title: above it.
        row_units: of each row's numbers, where rows have different ones.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | VocabularyTokens]]
    units: Sequence[Unit] = ()
    title: str = ""
    row_units: Sequence[Unit] = ()

    def unit(self, row: int, column: int) -> Unit:
        """The unit of one cell's number."""
        units, place = (self.row_units, row) if self.row_units else (self.units, column)
        return units[place] if units else ""

    def is_numeric(self, column: int) -> bool:
        """Whether a column's first known cell is a number."""
        return is_number(next((row[column] for row in self.rows if row[column] is not None), None))


@dataclass(frozen=True)
class HeatMap:
    """A matrix as colors.

    Attributes:
        values: [rows][columns]; None is shown as a gap.
        row_name, column_name: of the axes.
        row_labels, column_labels: empty: numbers from 0.
        signed: colors on both sides of 0.
        unit: of the values.
    """

    title: str
    values: Sequence[Sequence[float | None]]
    row_name: str
    column_name: str
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    signed: bool = False
    unit: Unit = ""

    @property
    def limit(self) -> float:
        """The largest distance of a value from 0, where the colors end."""
        return max((abs(value) for row in self.values for value in row if is_number(value)), default=0.0) or 1.0


@dataclass(frozen=True)
class CurveLine:
    """One line of a chart; a control is drawn in gray and dashed."""

    name: str
    ys: Sequence[float]
    control: bool = False


@dataclass(frozen=True)
class Curves:
    """Lines over 0, 1, 2, … or over `xs`."""

    title: str
    x_name: str
    y_name: str
    lines: Sequence[CurveLine]
    xs: Sequence[float] = ()
    unit: Unit = "share"


@dataclass(frozen=True)
class Bars:
    """One bar for each label.

    Attributes:
        labels: of the bars.
        values: their lengths, also below 0.
        errors: half the length of each whisker; empty for none.
        controls: of each control a value beside every bar.
        name: of the labels' axis.
    """

    title: str
    name: str
    labels: Sequence[str]
    values: Sequence[float]
    errors: Sequence[float] = ()
    controls: Sequence[CurveLine] = ()
    unit: Unit = "share"


@dataclass(frozen=True)
class PointMap:
    """Named places in a plane; those with a name in parentheses are controls."""

    title: str
    labels: Sequence[str]
    places: Sequence[tuple[float, float]]


Figure: TypeAlias = HeatMap | Curves | Bars | PointMap
ReportBlock: TypeAlias = str | DataTable | Figure


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value can be drawn: a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: object, unit: Unit = "") -> str:
    """A value as people read it: 0.613 with the unit "share" is 61.3%."""
    if value is None:
        return "–"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if unit == "share":
        return f"{value:.1%}" if abs(value) >= 0.001 or value == 0 else f"{value * 100:.2g}%"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def filled(rows: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """A matrix with gaps in the rows that are empty."""
    width = max(map(len, rows), default=0)
    return [list(row) if row else [None] * width for row in rows]


def visible(text: str) -> str:
    """A token's text with its white space visible."""
    return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍") or "∅"


def numbers_of(figure: Figure) -> DataTable:
    """A figure's numbers as a table."""
    if isinstance(figure, HeatMap):
        columns = labels_of(figure.column_labels, len(figure.values[0]) if figure.values else 0)
        rows = labels_of(figure.row_labels, len(figure.values))
        cells = [[row, *values] for row, values in zip(rows, figure.values, strict=True)]
        return DataTable([figure.row_name, *columns], cells, [figure.unit] * (len(columns) + 1))
    if isinstance(figure, Curves):
        xs = figure.xs or range(max((len(line.ys) for line in figure.lines), default=0))
        cells = [[x, *(line.ys[i] if i < len(line.ys) else None for line in figure.lines)] for i, x in enumerate(xs)]
        names = [line.name for line in figure.lines]
        return DataTable([figure.x_name, *names], cells, ["", *([figure.unit] * len(names))])
    if isinstance(figure, Bars):
        extra = [("±", figure.errors)] if figure.errors else []
        extra += [(control.name, control.ys) for control in figure.controls]
        columns = [figure.name, "value", *(name for name, _ in extra)]
        cells = [[label, figure.values[i], *(more[i] for _, more in extra)] for i, label in enumerate(figure.labels)]
        return DataTable(columns, cells, ["", *([figure.unit] * (len(columns) - 1))])
    cells = [[label, *place] for label, place in zip(figure.labels, figure.places, strict=True)]
    return DataTable(["prompt", "first axis", "second axis"], cells)


def labels_of(labels: Sequence[str], count: int) -> Sequence[str]:
    """The labels, or numbers from 0."""
    return labels or [str(i) for i in range(count)]
