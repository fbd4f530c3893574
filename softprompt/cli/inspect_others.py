"""The saved soft prompts that `softprompt inspect` compares one with, and how it prints that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.similar import comparable

if TYPE_CHECKING:
    from softprompt.inspection.inspection import Inspection
    from softprompt.inspection.likeness import Likeness
    from softprompt.prompts.base import SoftPrompt
    from softprompt.prompts.card import Card


def other_prompts(own: Path, card: Card, notes: Console) -> Iterator[tuple[str, SoftPrompt]]:
    """Names and prompts of the same base model and form, loaded one at a time; a damaged one is noted and left out."""
    from softprompt.errors import StoreError
    from softprompt.prompts import store

    for path in comparable(own, card):
        try:
            yield path.name, store.load(path)[0]
        except StoreError as error:
            notes.print(Text(f"note: {escaped(path.name)} is not compared, {escaped(error.what)}", style="yellow"))


def print_likeness(out: Console, likeness: Likeness) -> None:
    """Similarities to the inspected prompt, the most similar first, controls last."""
    out.print(Text("\nlikeness: cosine of the average virtual tokens, and mean of all pairs", "bold"))
    table = Table(box=None, pad_edge=False)
    for column in ("prompt", "average", "pairs"):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for name, average, per_token in list(zip(likeness.names, likeness.average[0], likeness.per_token[0], strict=True))[
        1:
    ]:
        table.add_row(Text(escaped(name)), f"{average:.3f}", f"{per_token:.3f}")
    out.print(table)
    rest = f" {likeness.left_out} others are not shown." if likeness.left_out else ""
    out.print(f"Unlike vectors may do the same. Controls stand in parentheses.{rest}")


def print_inspections(out: Console, inspected: Sequence[tuple[str, Inspection]]) -> None:
    """The readings' main numbers, a column for each soft prompt."""
    from softprompt.inspection.summary import compare_inspections

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name, _ in inspected:
        table.add_column(Text(escaped(name)), justify="right", overflow="fold")
    section = ""
    for row in compare_inspections([inspection for _, inspection in inspected]):
        if row.section != section:
            section = row.section
            table.add_row(Text(section, "bold"))
        table.add_row(row.label, *(Text(escaped(_shown(value, row.unit))) for value in row.values))
    out.print(table)


def _shown(value: float | int | str | None, unit: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if unit == "share":
        return f"{value:.0%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
