"""`softprompt verbalize`: a text that says what a soft prompt does, with the share of its effect that the text has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import (
    AsJson,
    BaseAdapter,
    Device,
    DeviceSplit,
    Dtype,
    LoadIn,
    Model,
    SavedName,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from softprompt.inspection.verbalize import Verbalization

_SHOWN = 5  # candidates


def verbalize_command(
    name: SavedName,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Rows with answers: a file, or a folder's validation rows.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=4, help="Only the first rows.")] = 64,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Search a text that says what a soft prompt does, and measure how much of its effect the text has.

    softprompt verbalize tone

    Candidates are the model's own words after the soft prompt, its words about the virtual tokens, the words nearest
    to them, and the best sentences of all together. The best is chosen on half of the rows and measured on the others,
    beside the best texts of the untrained start and of a random prompt. Small models often cannot say it.
    """
    from softprompt.cli.base_model import load_base
    from softprompt.evaluation.held_out import selection_rows
    from softprompt.inspection.saved import load_saved
    from softprompt.inspection.verbalize import verbalize
    from softprompt.prompts import store

    card = store.load_card(store.find(name))
    rows = None if data is None else selection_rows(data, card)  # before the model is loaded
    console = Console(stderr=True, quiet=as_json, soft_wrap=True)
    lm = load_base(model, [name], dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    saved = load_saved(lm, name, data=rows, limit=limit)
    for note in saved.notes:
        console.print(Text(f"note: {escaped(note)}", style="yellow"))
    with console.status("predictions") as status:
        found = verbalize(
            lm, saved.formatted, saved.rows, start=saved.start, on_section=lambda section: status.update(section)
        )
    if as_json:
        typer.echo(json.dumps({"name": saved.card.name, **found.to_dict()}))
        return
    print_verbalization(saved.card.name, found, Console(soft_wrap=True))


def print_verbalization(name: str, found: Verbalization, out: Console) -> None:
    """The best text with its share and its controls', or that there is none; then other candidates."""
    controls = "; ".join(f"{label} {share:.0%}" for label, share in found.controls.items())
    if found.says_it:
        out.print(Text(escaped(found.best.text), "bold"))
        out.print(f"\nAs a text prompt this recovers {found.recovered:.0%} of the effect ({controls}).")
    else:
        out.print(Text(f"No text was found that says what {escaped(name)} does.", "bold"))
        out.print(f"The best recovers {found.recovered:.0%} of the effect ({controls}):")
        out.print(Text(escaped(found.best.text)))
    out.print(f"Chosen on half of {found.rows} rows, measured on the others. Other candidates, on the first half:")
    for candidate in found.candidates[1 : _SHOWN + 1]:
        line = " ".join(candidate.text.split())
        shown = line if len(line) <= 100 else line[:99] + "…"
        out.print(Text(escaped(f"{candidate.recovered:>6.0%}  {candidate.source}: {shown}"), "dim"))
