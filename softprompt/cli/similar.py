"""`softprompt similar`: the saved soft prompts by similarity to one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import AsJson, SavedName

if TYPE_CHECKING:
    from softprompt.prompts.card import Card


def comparable(own: Path, card: Card) -> list[Path]:
    """The saved soft prompts of the same base model and form, without the one in the folder `own`."""
    from softprompt.prompts import store

    return [
        path
        for path, other in store.list_cards(store.home())
        if not isinstance(other, Exception)
        and path.resolve() != own.resolve()
        and other.form == card.form
        and card.geometry.differs(other.geometry) is None
    ]


def similar_command(
    name: SavedName,
    as_json: AsJson = False,
) -> None:
    """Rank the saved soft prompts of the same base model and form by similarity (cosine, as in SPoT).

    To initialize a new task: train briefly, find the most similar saved prompt, and start from it.
    """
    from softprompt.editing.similarity import rank_by_similarity
    from softprompt.prompts import store

    own = store.find(name)
    prompt, card = store.load(own)
    ranked = rank_by_similarity(prompt, {path.name: store.load(path)[0] for path in comparable(own, card)})
    if as_json:
        rows = [{"name": other, "average": s.average, "per_token": s.per_token} for other, s in ranked]
        typer.echo(json.dumps({"name": card.name, "similar": rows}))
        return
    console = Console(soft_wrap=True)
    if not ranked:
        console.print(Text(f"no other {card.form} prompt of {escaped(card.geometry.base)} in {store.home()}"))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "average token", "per token"):
        table.add_column(column, justify="left" if column == "name" else "right")
    for other, similarity in ranked:
        table.add_row(Text(escaped(other)), f"{similarity.average:.3f}", f"{similarity.per_token:.3f}")
    console.print(table)
    best = ranked[0][0]
    console.print(Text(escaped(f"next  softprompt train … --method.init prompt --method.init-from {best}"), "dim"))
