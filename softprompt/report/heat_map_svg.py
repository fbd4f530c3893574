"""Heat maps as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from softprompt.report.blocks import HeatMap, is_number, labels_of, shown
from softprompt.report.svg_parts import WIDTH, Detail, about_value, clipped, label_width, picture, text, thinned

STEPS = 12  # colors of an unsigned map; a signed one has as many on each side

Matrix = Sequence[Sequence[float | None]]


def heat_map(figure: HeatMap, detail: Detail) -> Markup:
    """A heat map with its labels and a legend."""
    down, across = block_size(figure.values, detail.cells)
    values = reduced(figure.values, down, across)
    count = len(values[0]) if values else 0
    rows = labels_of(figure.row_labels, len(figure.values))[::down]
    columns = labels_of(figure.column_labels, len(figure.values[0]) if figure.values else 0)[::across]
    left = max(label_width([clipped(label, 18) for label in rows]) + 14, 34)
    is_tall = max(map(len, columns), default=0) > 4  # words: written upwards, under the map
    wide = min((WIDTH - left - 4) / max(count, 1), 34)
    high = max(min(wide, 16), 3.2) if not is_tall else min(wide, 18)
    bottom = 4 + high * len(values)
    limit = HeatMap("", values, "", "").limit
    names = (rows, columns) if len(rows) * len(columns) <= detail.titled else None
    parts = _cells(figure, values, names, (left, wide, high))
    step = max(1, thinned_rows(len(rows), high))
    parts += [
        text(left - 4, 4 + high * (i + 0.5) + 3.5, clipped(row, 18), "end")
        for i, row in enumerate(rows)
        if i % step == 0
    ]
    parts.append(
        Markup('<text class="name" text-anchor="middle" transform="translate(10 {:.1f}) rotate(-90)">{}</text>').format(
            (4 + bottom) / 2, figure.row_name
        )
    )
    under = bottom
    if is_tall:
        upright = Markup('<text text-anchor="end" transform="translate({:.1f} {:.1f}) rotate(-60)">{}</text>')
        parts += [
            upright.format(left + wide * (i + 0.5) + 3, bottom + 10, clipped(c, 18)) for i, c in enumerate(columns)
        ]
        under += 14 + 5 * min(18, max(map(len, columns)))
    else:
        step = thinned(columns, wide * count)
        parts += [
            text(left + wide * (i + 0.5), bottom + 12, column, "middle")
            for i, column in enumerate(columns)
            if i % step == 0
        ]
        parts.append(text(left + wide * count / 2, bottom + 25, figure.column_name, "middle", "name"))
        under += 30
    parts += _legend(figure, limit, left, under)
    note = f" Each cell is the mean of {down} × {across}." if down * across > 1 else ""
    return picture(WIDTH, under + 24, f"{_summary(figure)}{note}", parts)


def thinned_rows(count: int, high: float) -> int:
    """Every how many rows a label is written."""
    rough = math.ceil(11 / high)
    return next((step for step in (1, 2, 5, 10, 20, 50) if step >= rough), count)


def block_size(values: Matrix, most: int) -> tuple[int, int]:
    """Height and width of the blocks that make a matrix at most `most` by `most` large."""
    return -(-len(values) // most) or 1, -(-max(map(len, values), default=0) // most) or 1


def reduced(values: Matrix, down: int, across: int) -> list[list[float | None]]:
    """The means of blocks of `down` rows and `across` columns."""
    if down == across == 1:
        return [list(row) for row in values]
    means: list[list[float | None]] = []
    for top in range(0, len(values), down):
        band = values[top : top + down]
        means.append([_mean(band, begin, begin + across) for begin in range(0, len(values[0]), across)])
    return means


def color_class(value: float | None, limit: float, signed: bool) -> str:
    """The style sheet's class of a value."""
    if not is_number(value):
        return "gap"
    place = min(STEPS - 1, int(abs(value) / limit * STEPS))
    if signed and value < 0:
        return f"n{place}"
    return f"q{place}" if value >= 0 else "q0"


def _cells(
    figure: HeatMap,
    values: Matrix,
    names: tuple[Sequence[str], Sequence[str]] | None,
    place: tuple[float, float, float],
) -> list[Markup]:
    """With names of rows and columns one rectangle a cell that says its value; without them a path a color."""
    left = place[0]
    wide, high = place[1:]
    limit = HeatMap("", values, "", "").limit
    if names is not None:
        cell = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>')
        parts: list[Markup] = []
        for j, row in enumerate(values):
            for i, value in enumerate(row):
                where = f"{figure.row_name} {names[0][j]}, {figure.column_name} {names[1][i]}"
                style = color_class(value, limit, figure.signed)
                about = about_value(where, value, figure.unit)
                parts.append(cell.format(style, left + i * wide, 4 + j * high, wide, high, about))
        return parts
    paths: dict[str, list[str]] = {}
    for j, row in enumerate(values):
        for i, value in enumerate(row):
            paths.setdefault(color_class(value, limit, figure.signed), []).append(f"M{i} {j}h1v1h-1z")
    group = Markup('<g transform="translate({:.1f} 4) scale({:.3f} {:.3f})">').format(left, wide, high)
    shape = Markup('<path class="{}" d="{}"/>')
    return [group, *(shape.format(style, "".join(boxes)) for style, boxes in sorted(paths.items())), Markup("</g>")]


def _legend(figure: HeatMap, limit: float, left: float, top: float) -> list[Markup]:
    styles = [f"n{i}" for i in reversed(range(STEPS))] if figure.signed else []
    styles += [f"q{i}" for i in range(STEPS)]
    wide = 150 / len(styles)
    box = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.2f}" height="8"/>')
    begin = left + 34
    parts = [box.format(style, begin + i * wide, top + 6, wide + 0.3) for i, style in enumerate(styles)]
    low = shown(-limit if figure.signed else 0.0, figure.unit)
    return [*parts, text(begin - 4, top + 14, low, "end"), text(begin + 154, top + 14, shown(limit, figure.unit))]


def _summary(figure: HeatMap) -> str:
    """A sentence for those who do not see the picture."""
    known = [(value, i, j) for i, row in enumerate(figure.values) for j, value in enumerate(row) if is_number(value)]
    if not known:
        return figure.title
    high = max(known)[0]
    i, j = max(known)[1:]
    rows, columns = labels_of(figure.row_labels, i + 1), labels_of(figure.column_labels, j + 1)
    where = f"{figure.row_name} {rows[i]}, {figure.column_name} {columns[j]}"
    return f"{figure.title}: from {shown(min(known)[0], figure.unit)} to {shown(high, figure.unit)} at {where}."


def _mean(band: Matrix, begin: int, end: int) -> float | None:
    known = [value for row in band for value in row[begin:end] if is_number(value)]
    return sum(known) / len(known) if known else None
