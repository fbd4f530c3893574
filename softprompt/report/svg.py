"""Figures as inline SVG: colors are classes of the page's style sheet, so that they follow light and dark.

Every figure is about as wide as a telephone, so that its text is as large there as on a desk; text is escaped by
markupsafe. Units are SVG's user units, about one pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from markupsafe import Markup

from softprompt.report.blocks import Bars, Curves, Figure, HeatMap, PointMap, is_number, shown
from softprompt.report.heat_map_svg import heat_map
from softprompt.report.svg_parts import (
    DETAIL,
    WIDTH,
    Detail,
    clipped,
    frame,
    label_width,
    line,
    picture,
    text,
    thinned,
    ticks,
)

_HEIGHT = 190  # of a chart's plane
_ROW = 18  # of a horizontal bar


def svg(figure: Figure, detail: Detail = DETAIL) -> Markup:
    """A figure as an <svg> element."""
    if isinstance(figure, HeatMap):
        return heat_map(figure, detail)
    if isinstance(figure, Curves):
        return _curves(figure)
    if isinstance(figure, Bars):
        if max(map(len, figure.labels), default=0) > 7:
            return _rows(figure)
        return _columns(figure)
    return _point_map(figure)


def _curves(figure: Curves) -> Markup:
    count = max((len(curve.ys) for curve in figure.lines), default=0)
    xs = list(figure.xs) or [float(i) for i in range(count)]
    values = [y for curve in figure.lines for y in curve.ys if is_number(y)]
    plane = frame(values, (min(xs, default=0.0), max(xs, default=1.0)), figure.unit, _HEIGHT)
    parts = [*plane.grid(figure.unit), *plane.x_labels(ticks(plane.xs, 6), figure.x_name)]
    for number, curve in enumerate(figure.lines):
        drawn = [(x, y) for x, y in zip(xs, curve.ys, strict=False) if is_number(y)]
        points = " ".join(f"{plane.x(x):.1f},{plane.y(y):.1f}" for x, y in drawn)
        style = _line_style(figure, number)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(style, points))
    height = plane.bottom + 32
    for number, curve in enumerate(figure.lines):
        style = _line_style(figure, number)
        parts.append(line(plane.left, height, plane.left + 22, height, style))
        parts.append(text(plane.left + 28, height + 3.5, clipped(curve.name, 44)))
        height += 15
    ends = [f"{curve.name} ends at {shown(curve.ys[-1], figure.unit)}" for curve in figure.lines if curve.ys]
    return picture(WIDTH, height, f"{figure.title}: {'; '.join(ends)}", parts)


def _line_style(figure: Curves, number: int) -> str:
    """Colors for readings, dashes for controls."""
    before = sum(curve.control for curve in figure.lines[:number])
    return f"line control c{before % 2}" if figure.lines[number].control else f"line s{(number - before) % 6}"


def _columns(figure: Bars) -> Markup:
    """Upright bars, for labels that are short."""
    whiskers = [(v, e) for v, e in zip(figure.values, figure.errors, strict=False)]
    beside = [y for control in figure.controls for y in control.ys]
    every = [*figure.values, *beside, *(v + e for v, e in whiskers), *(v - e for v, e in whiskers)]
    count = max(len(figure.values), 1)
    plane = frame([v for v in every if is_number(v)], (-0.5, count - 0.5), figure.unit, _HEIGHT)
    wide = (plane.right - plane.left) / count
    parts = [*plane.grid(figure.unit), line(plane.left, plane.y(0), plane.right, plane.y(0), "axis")]
    for i, value in enumerate(figure.values):
        if is_number(value):
            top, end = sorted((plane.y(0), plane.y(value)))
            parts.append(_box(plane.x(i) - wide * 0.38, top, wide * 0.76, end - top, _about_bar(figure, i)))
    for i, (value, error) in enumerate(whiskers):
        parts.append(line(plane.x(i), plane.y(value - error), plane.x(i), plane.y(value + error), "whisker"))
    height = plane.bottom + 30
    for number, control in enumerate(figure.controls):
        style = f"mark c{number % 2}"
        for i, at in enumerate(control.ys):
            half = wide * (0.45 if number == 0 else 0.3)
            parts.append(line(plane.x(i) - half, plane.y(at), plane.x(i) + half, plane.y(at), style))
        parts.append(line(plane.left, height + 3, plane.left + 22, height + 3, style))
        parts.append(text(plane.left + 28, height + 6.5, control.name))
        height += 15
    step = thinned(figure.labels, plane.right - plane.left)
    labels = [(float(i), label) for i, label in enumerate(figure.labels) if i % step == 0]
    return picture(WIDTH, height, _extremes(figure), [*parts, *plane.x_texts(labels, figure.name)])


def _about_bar(figure: Bars, number: int) -> str:
    """The text that a pointer over a bar shows."""
    about = f"{figure.name} {figure.labels[number]}: {shown(figure.values[number], figure.unit)}"
    if figure.errors:
        about += f" ± {shown(figure.errors[number], figure.unit)}"
    return about + "".join(f", {control.name} {shown(control.ys[number], figure.unit)}" for control in figure.controls)


def _rows(figure: Bars) -> Markup:
    """Horizontal bars, for labels that are words."""
    left = label_width(figure.labels)
    values = [v for v in figure.values if is_number(v)]
    low, high = min([0.0, *values]), max([0.0, *values])
    before = 44 if low < 0 else 0  # room for the numbers of bars to the left
    span = (WIDTH - left - before - 52) / ((high - low) or 1.0)
    zero = left + before - low * span
    parts: list[Markup] = []
    for i, (label, value) in enumerate(zip(figure.labels, figure.values, strict=True)):
        top = 4 + i * _ROW
        parts.append(text(left - 6, top + 11, clipped(label, 26), "end"))
        if not is_number(value):
            continue
        begin, end = sorted((zero, zero + value * span))
        parts.append(_box(begin, top + 2, end - begin, _ROW - 6, f"{label}: {shown(value, figure.unit)}"))
        at, anchor = (begin - 4, "end") if value < 0 else (end + 4, "start")
        parts.append(text(at, top + 11, shown(value, figure.unit), anchor))
    bottom = 4 + len(figure.labels) * _ROW
    parts.append(line(zero, 2, zero, bottom, "axis"))
    return picture(WIDTH, bottom + 4, _extremes(figure), parts)


def _point_map(figure: PointMap) -> Markup:
    xs, ys = [x for x, _ in figure.places], [y for _, y in figure.places]
    size, top = WIDTH - 20.0, 10.0
    spread = max(max(xs) - min(xs), (max(ys) - min(ys)) * 1.3, 1e-9)
    scale = (size - 150) / spread
    height = (max(ys) - min(ys)) * scale + 40
    middle = (max(xs) + min(xs)) / 2
    spots = [(WIDTH / 2 + (x - middle) * scale, top + 20 + (max(ys) - y) * scale) for x, y in figure.places]
    labels = _label_heights(spots)
    height = max(height, *(at + 12 for at in labels)) + 6
    parts = [Markup('<rect class="plane" x="4" y="4" width="{}" height="{:.1f}"/>').format(WIDTH - 8, height - 4)]
    for number, (name, (x, y)) in enumerate(zip(figure.labels, spots, strict=True)):
        style = "own" if number == 0 else "control" if name.startswith("(") else "other"
        is_right = x <= WIDTH / 2 + 1
        at = x + 8 if is_right else x - 8
        if abs(labels[number] - y) > 6:
            parts.append(line(x, y, at, labels[number], "leader"))
        dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>')
        parts.append(dot.format(style, x, y, name))
        parts.append(text(at, labels[number] + 3.5, clipped(name, 22), "start" if is_right else "end", style))
    return picture(WIDTH, height + 6, f"{figure.title} of {len(figure.labels)} prompts", parts)


def _label_heights(spots: Sequence[tuple[float, float]]) -> list[float]:
    """A height for each label near its point, those of one side of the picture at least 12 units apart."""
    heights = [y for _, y in spots]
    for is_left in (True, False):
        side = sorted(
            (i for i, (x, _) in enumerate(spots) if (x <= WIDTH / 2 + 1) == is_left), key=lambda i: spots[i][1]
        )
        for above, below in itertools.pairwise(side):
            heights[below] = max(heights[below], heights[above] + 12)
    return heights


def _box(x: float, y: float, width: float, height: float, about: str) -> Markup:
    box = Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
    return box.format(x, y, max(width, 0.5), max(height, 0.5), about)


def _extremes(figure: Bars) -> str:
    """A sentence for those who do not see the picture."""
    known = [(v, label) for v, label in zip(figure.values, figure.labels, strict=True) if is_number(v)]
    if not known:
        return figure.title
    ends = [f"{shown(value, figure.unit)} ({label})" for value, label in (min(known), max(known))]
    return f"{figure.title}: from {' to '.join(ends)}"
