"""Lines, texts, axes: what the figures are drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from softprompt.report.blocks import Unit, shown

WIDTH = 360  # of every figure
_CHARACTER = 5.4  # width of one, at the style sheet's size


@dataclass(frozen=True)
class Detail:
    """How much a report shows of what is large.

    Attributes:
        cells: most rows or columns of a heat map; larger ones show means of blocks.
        titled: most cells of a heat map whose values a pointer shows.
        numbers: most cells of the table of numbers under a figure.
        rows: most rows of a table.
    """

    cells: int = 96
    titled: int = 1600
    numbers: int = 1200
    rows: int = 1000


DETAIL = Detail()


@dataclass(frozen=True)
class Frame:
    """The plane of a chart: data ranges, and where its edges lie in the picture."""

    xs: tuple[float, float]
    ys: tuple[float, float]
    left: float
    right: float
    top: float
    bottom: float

    def x(self, value: float) -> float:
        """Place of a value on the horizontal axis."""
        low, high = self.xs
        return self.left + (value - low) / ((high - low) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Place of a value on the vertical axis."""
        low, high = self.ys
        return self.bottom - (value - low) / ((high - low) or 1.0) * (self.bottom - self.top)

    def grid(self, unit: Unit) -> list[Markup]:
        """Horizontal lines with their values."""
        parts: list[Markup] = []
        for value in ticks(self.ys, 5):
            parts.append(line(self.left, self.y(value), self.right, self.y(value), "grid"))
            parts.append(text(self.left - 5, self.y(value) + 3.5, tick_label(value, unit), "end"))
        return parts

    def x_labels(self, values: Sequence[float], name: str) -> list[Markup]:
        """Numbers under the horizontal axis, and its name."""
        return self.x_texts([(value, tick_label(value, "")) for value in values], name)

    def x_texts(self, labels: Sequence[tuple[float, str]], name: str) -> list[Markup]:
        """Texts under the horizontal axis, and its name."""
        parts = [text(self.x(at), self.bottom + 12, label, "middle") for at, label in labels]
        return [*parts, text((self.left + self.right) / 2, self.bottom + 25, name, "middle", "name")]


def frame(values: Sequence[float], xs: tuple[float, float], unit: Unit, height: float) -> Frame:
    """A plane that holds these values and 0."""
    low, high = min([0.0, *values]), max([0.0, *values])
    steps = ticks((low, high or low + 1.0), 5)
    step = steps[1] - steps[0] if len(steps) > 1 else 1.0
    low, high = math.floor(low / step + 1e-9) * step, math.ceil((high or low + 1.0) / step - 1e-9) * step
    widest = max(len(tick_label(value, unit)) for value in ticks((low, high), 5))
    return Frame(xs, (low, high), 10 + widest * _CHARACTER + 2, WIDTH - 8, 8, 8 + height)


def ticks(span: tuple[float, float], count: int) -> list[float]:
    """Round numbers in a range, at most about `count`."""
    low, high = span
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.8)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, unit: Unit) -> str:
    """A round number, short."""
    value = 0.0 if abs(value) < 1e-12 else value
    return f"{value * 100:g}%".replace("e+0", "e") if unit == "share" else f"{round(value, 10):g}"


def picture(width: float, height: float, about: str, parts: Sequence[Markup]) -> Markup:
    """The <svg> element; `about` is for those who do not see it."""
    opening = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {:.0f} {:.0f}">')
    return opening.format(about, width, height) + Markup("").join(parts) + Markup("</svg>")


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight line."""
    shape = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return shape.format(style, x1, y1, x2, y2)


def text(x: float, y: float, content: str, anchor: str = "start", style: str = "") -> Markup:
    """A text at a place."""
    shape = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return shape.format(style, x, y, anchor, content)


def clipped(content: str, most: int) -> str:
    """A label, shortened if it is long."""
    return content if len(content) <= most else content[: most - 1] + "…"


def label_width(labels: Sequence[str]) -> float:
    """Room for labels at the left of a picture."""
    return 12 + _CHARACTER * min(26, max(map(len, labels), default=0))


def thinned(labels: Sequence[str], room: float) -> int:
    """Every how many labels one is written, so that they do not touch."""
    if not labels:
        return 1
    widest = max(map(len, labels)) * _CHARACTER + 6
    rough = math.ceil(widest * len(labels) / max(room, 1.0))
    return next((step for step in (1, 2, 5, 10, 20, 50, 100) if step >= rough), rough)


def about_value(name: str, value: float | None, unit: Unit) -> str:
    """The text that a pointer over a cell or bar shows."""
    return f"{name}: {shown(value, unit)}"
