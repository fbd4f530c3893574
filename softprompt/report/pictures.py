"""The figures of a report as PNG files for papers. They need the extra `plot` (matplotlib)."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from softprompt.errors import missing_extra
from softprompt.report.blocks import Bars, Curves, Figure, HeatMap, is_number
from softprompt.report.page import InspectedPrompt
from softprompt.report.sections import views_of
from softprompt.report.svg_parts import clipped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_COLORS = ("#1f66b0", "#b8502f", "#2b7f62", "#7a4fa3", "#94701a", "#5b6672")
_CONTROL = "#7a8590"
_LABELS = 16  # at most on an axis
_CLIPPED = 24  # characters of a label


def check_drawing() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    _canvas()


def named_figures(prompts: Sequence[InspectedPrompt]) -> dict[str, Figure]:
    """Every figure of a report by its file name: PROMPT.SECTION.TITLE.png."""
    named: dict[str, Figure] = {}
    for prompt in prompts:
        for view in views_of([prompt.inspection]):
            for block in view.blocks(prompt.inspection):
                if isinstance(block, Figure):
                    name = f"{_slug(prompt.name)}.{view.name}.{_slug(block.title)}"
                    taken = sum(other == f"{name}.png" or other.startswith(f"{name}~") for other in named)
                    named[f"{name}~{taken + 1}.png" if taken else f"{name}.png"] = block
    return named


def png(figure: Figure) -> bytes:
    """One figure as a PNG of 200 dots an inch.

    Raises MissingExtraError if matplotlib is not installed.
    """
    canvas = _canvas()
    axes = canvas.subplots()
    if isinstance(figure, HeatMap):
        _draw_heat_map(figure, axes, canvas)
    elif isinstance(figure, Curves):
        _draw_curves(figure, axes)
    elif isinstance(figure, Bars):
        _draw_bars(figure, axes)
    else:
        for number, (label, (x, y)) in enumerate(zip(figure.labels, figure.places, strict=True)):
            color = _COLORS[1] if number == 0 else _CONTROL if label.startswith("(") else _COLORS[0]
            axes.plot([x], [y], "o", color=color)
            axes.annotate(clipped(label, _CLIPPED), (x, y), (5, 3), textcoords="offset points", parse_math=False)
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.2)
    axes.set_title(figure.title, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font does not have
        buffer = io.BytesIO()
        canvas.savefig(buffer, dpi=200, metadata={"Software": None}, format="png")
    return buffer.getvalue()


def _draw_heat_map(figure: HeatMap, axes: Axes, canvas: Canvas) -> None:
    gap = float("nan")
    values = [[float(value) if is_number(value) else gap for value in row] for row in figure.values]
    limit = figure.limit
    low = -limit if figure.signed else 0.0
    image = axes.imshow(values, cmap="RdBu" if figure.signed else "Blues", vmin=low, vmax=limit, aspect="auto")
    canvas.colorbar(image, format="{x:.0%}" if figure.unit == "share" else None)
    axes.set(xlabel=figure.column_name, ylabel=figure.row_name)
    if figure.column_labels:
        axes.set_xticks(*_few(figure.column_labels), rotation=60, ha="right", parse_math=False)
    if figure.row_labels:
        axes.set_yticks(*_few(figure.row_labels), parse_math=False)


def _draw_curves(figure: Curves, axes: Axes) -> None:
    for number, curve in enumerate(figure.lines):
        xs = list(figure.xs) or list(range(len(curve.ys)))
        color, dashes = (_CONTROL, ("--", ":")[number % 2]) if curve.control else (_COLORS[number % len(_COLORS)], "-")
        axes.plot(xs[: len(curve.ys)], curve.ys, dashes, color=color, label=curve.name)
    axes.set(xlabel=figure.x_name, ylabel=figure.y_name)
    _share_axis(axes, figure.unit)
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_bars(figure: Bars, axes: Axes) -> None:
    axes.bar(range(len(figure.values)), figure.values, color=_COLORS[0], yerr=figure.errors or None)
    for control, color in zip(figure.controls, (_COLORS[1], _CONTROL), strict=False):
        axes.plot(range(len(control.ys)), control.ys, "_", color=color, markersize=9, label=control.name)
    if figure.controls:
        axes.legend()
    wide = max(map(len, figure.labels), default=0) > 7
    axes.set_xticks(
        *_few(figure.labels), rotation=20 if wide else 0, ha="right" if wide else "center", parse_math=False
    )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel=figure.name)
    _share_axis(axes, figure.unit)
    axes.grid(axis="y", alpha=0.3)


def _share_axis(axes: Axes, unit: str) -> None:
    if unit == "share":
        axes.yaxis.set_major_formatter("{x:.0%}")


def _few(labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """Places and labels, not more than fit."""
    step = -(-len(labels) // _LABELS)
    places = list(range(0, len(labels), step or 1))
    return places, [clipped(labels[i], _CLIPPED) for i in places]


def _slug(text: str) -> str:
    """A part of a file's name."""
    return re.sub(r"[^\w-]+", "-", text).strip("-").lower()[:60] or "prompt"


def _canvas() -> Canvas:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise missing_extra("matplotlib", "plot") from error
    canvas = Canvas(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas
