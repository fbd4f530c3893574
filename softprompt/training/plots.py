"""Plots: learning curves, and fidelity by the number of virtual tokens. They need the extra `plot` (matplotlib)."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from softprompt.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def can_plot() -> bool:
    """Whether matplotlib is installed; if not, a warning says that plots are left out and how to install it."""
    if importlib.util.find_spec("matplotlib") is not None:
        return True
    warnings.warn(f"no plots: {missing_extra('matplotlib', 'plot').hint}", stacklevel=2)
    return False


def learning_curve(
    path: Path,
    name: str,
    train: Sequence[tuple[float, float]],
    validation: Sequence[tuple[float, float]],
    *,
    unit: str = "loss (nats per token)",
) -> None:
    """Write a PNG of (step, loss) pairs: training loss as a thin line, validation loss as marked points.

    Args:
        unit: what is drawn, in place of that loss.

    Raises MissingExtraError if matplotlib is not installed.
    """
    figure = _new_figure()
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train, strict=True), color="#9aa5b1", linewidth=1, label="training batch")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#d1495b", marker="o", label="validation")
    axes.set(
        xlabel="step",
        ylabel=unit,
    )
    axes.set_title(name, parse_math=False)
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def fidelity_by_size(path: Path, name: str, points: Sequence[tuple[int, float]]) -> None:
    """Write a PNG of (virtual tokens, share of the text's effect that they recover).

    Raises MissingExtraError if matplotlib is not installed.
    """
    figure = _new_figure()
    axes = figure.subplots()
    axes.plot(*zip(*sorted(points), strict=True), color="#d1495b", marker="o")
    axes.axhline(1.0, color="#9aa5b1", linewidth=1, linestyle="--", label="the full text")
    axes.set_xscale("log", base=2)
    sizes = sorted(size for size, _ in points)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(
        xlabel="virtual tokens",
        ylabel="recovered share of the text's effect",
        ylim=(min(0.0, *(y for _, y in points)), 1.05),
    )
    axes.set_title(name, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def observation_curves(path: Path, name: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Write a PNG of (step, value) pairs, a panel for each name.

    Raises MissingExtraError if matplotlib is not installed.
    """
    figure = _new_figure()
    panels = figure.subplots(1, len(series), squeeze=False)[0]
    for axes, (label, points) in zip(panels, series.items(), strict=True):
        axes.plot(*zip(*points, strict=True), color="#d1495b", marker="o")
        axes.set(xlabel="step", title=label.replace("_", " "))
        axes.grid(alpha=0.3)
    figure.suptitle(name, parse_math=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _new_figure() -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "plot") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
