"""The picture of a learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def learning_curve(
    path: Path, name: str, train: Sequence[tuple[float, float]], validation: Sequence[tuple[float, float]]
) -> None:
    """Write a PNG of (step, loss) pairs: training loss as a thin line, validation loss as marked points."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train, strict=True), color="#9aa5b1", linewidth=1, label="training batch")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#d1495b", marker="o", label="validation")
    axes.set(
        xlabel="step",
        ylabel="loss (nats per token)",
    )
    axes.set_title(name, parse_math=False)
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
