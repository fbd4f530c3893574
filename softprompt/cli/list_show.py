"""`softprompt list` and `softprompt show`: the saved soft prompts, and the card of one."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.card_page import print_card
from softprompt.cli.escape import escaped
from softprompt.cli.options import AsJson, SavedName


def list_command(as_json: AsJson = False) -> None:
    """List the soft prompts in $SOFTPROMPT_HOME (./prompts)."""
    from softprompt.prompts import store
    from softprompt.prompts.card import Card

    cards = store.list_cards(store.home())
    if as_json:
        rows = [
            (card.model_dump(mode="json") if isinstance(card, Card) else {"error": str(card)}) | {"name": path.name}
            for path, card in cards
        ]
        typer.echo(json.dumps(rows))
        return
    console = Console()
    if not cards:
        console.print(Text(f"no soft prompts in {store.home()}; softprompt train makes one"))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "form", "tokens", "base model", "method", "created"):
        align = "right" if column == "tokens" else "left"
        whole = max(len(path.name) for path, _ in cards) if column == "name" else None  # grep and loops read it
        table.add_column(column, justify=align, no_wrap=True, min_width=whole)
    for path, card in cards:
        if isinstance(card, Card):
            method = str(card.method.get("name", ""))
            cells = (path.name, card.form, str(card.n_tokens), card.geometry.base, method, card.created[:16])
            table.add_row(*(Text(escaped(cell)) for cell in cells))  # a stranger's card holds no markup of ours
        else:
            table.add_row(Text(escaped(path.name)), Text(escaped(f"damaged: {card.what}"), style="red"))
    console.print(table)


def show_command(
    name: SavedName,
    as_json: AsJson = False,
) -> None:
    """Show what a soft prompt is and how it was made, after checking its tensors."""
    from softprompt.prompts import store
    from softprompt.prompts.forms import size_of

    folder = store.find(name)
    prompt, card = store.load(folder)
    if as_json:
        typer.echo(json.dumps(card.model_dump(mode="json") | {"bytes": size_of(prompt)}))
        return
    print_card(prompt, card, folder, name)
