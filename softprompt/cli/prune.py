"""`softprompt prune`: the importance of each virtual token, and a soft prompt of the best ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import (
    NAME_HELP,
    AsJson,
    BaseAdapter,
    Device,
    DeviceSplit,
    Dtype,
    LoadIn,
    Model,
    TrustRemoteCode,
    complete_names,
)

if TYPE_CHECKING:
    from softprompt.editing.prune import PruneResult
    from softprompt.prompts.card import Card


def prune_command(
    source: Annotated[str, typer.Argument(metavar="NAME", help=NAME_HELP, autocompletion=complete_names)],
    data: Annotated[
        str, typer.Option("--data", "-d", help="Rows to choose by: a file, or a folder's validation rows.")
    ],
    keep: Annotated[int, typer.Option("--keep", min=1, help="How many virtual tokens to keep.")],
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the result.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a soft prompt of that name.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Only the first rows; each is run once for every token.")] = 64,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Leave out each virtual token in turn, keep those whose absence raises the loss most, and save them.

    The result is a shorter soft prompt, and an initialization to train further (XPrompt).
    """
    from softprompt.cli.base_model import load_base
    from softprompt.editing.prune import nearest_tokens, prune, score
    from softprompt.evaluation.held_out import selection_rows
    from softprompt.formatting.formatted_prompt import from_card
    from softprompt.prompts import store
    from softprompt.prompts.forms import size_of
    from softprompt.prompts.model_card import model_card

    folder = store.locate(name)
    store.check_free(folder, overwrite)
    card = store.load_card(store.find(source))
    check_keep(keep, card.n_tokens)
    found = selection_rows(data, card)
    rows = found.rows[:limit]
    console = Console(stderr=True, quiet=as_json, soft_wrap=True)
    for note in found.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    lm = load_base(model, [source], dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    prompt, card = store.load(source, lm.geometry)
    formatted = from_card(prompt, card)
    with console.status(f"{card.n_tokens} virtual tokens, {len(rows)} rows"):
        scores = score(lm, formatted, rows)
        pruned = prune(lm, formatted, rows, scores, keep)
    nearest = nearest_tokens(lm, prompt)
    made = pruned_card(card, pruned, folder.name, len(rows))
    size = size_of(pruned.prompt)
    readme = model_card(made, bytes_on_disk=size, curve=None)
    store.save(folder, pruned.prompt, made, readme=readme, overwrite=overwrite)
    if as_json:
        tokens = [
            {"token": i, "rise": rise, "kept": i in pruned.kept, "nearest": nearest[i]}
            for i, rise in enumerate(scores.rises)
        ]
        facts = {"name": made.name, "rows": len(rows), "loss": scores.loss, "pruned_loss": pruned.loss}
        typer.echo(json.dumps({**facts, "tokens": tokens, "notes": list(found.notes)}))
        return
    _print_table(scores.rises, nearest, pruned)
    out = Console(soft_wrap=True)
    out.print(Text(f"loss        {scores.loss:.4f} with all {prompt.n_tokens} tokens, {pruned.loss:.4f} with {keep}"))
    out.print(Text(escaped(f"saved       {folder}")))
    out.print(Text(escaped(f"next        softprompt train … --init-from {name}            train it further"), "dim"))
    kept = ",".join(map(str, pruned.kept))
    out.print(Text(f"            softprompt train … --method.kept {kept}    the same tokens from their start", "dim"))


def check_keep(keep: int, n_tokens: int) -> None:
    """Raise ConfigError, before a model is loaded, unless something is left out."""
    from softprompt.errors import ConfigError

    if keep >= n_tokens:
        raise ConfigError("nothing would be pruned", where="--keep", expected=f"1 to {n_tokens - 1}", got=keep)


def pruned_card(card: Card, pruned: PruneResult, name: str, rows: int) -> Card:
    """The card of what was kept of `card`'s soft prompt."""
    from softprompt.prompts.card import provenance

    method = {"name": "prune", "kept": list(pruned.kept), "init_text": card.method.get("init_text")}
    inputs = [{"name": card.name, "sha256": card.sha256}]
    changes = {
        "name": name,
        "method": method,
        "recipe": {},
        "data": {"inputs": inputs, "trained_on": card.trained_on, "validation_rows": rows},
        "metrics": {"validation_loss": pruned.loss},
        **provenance(),
    }
    return card.model_copy(update=changes)


def _print_table(rises: tuple[float, ...], nearest: list[str], pruned: PruneResult) -> None:
    """One row a virtual token, in their order."""
    table = Table(box=None, pad_edge=False)
    columns: list[tuple[str, Literal["left", "right"]]] = [
        ("token", "right"),
        ("loss without it", "right"),
        ("", "left"),
    ]
    if any(nearest):
        columns.append(("nearest", "left"))
    for column, justify in columns:
        table.add_column(column, justify=justify)
    for i, rise in enumerate(rises):
        kept = i in pruned.kept
        cells = [str(i), f"{rise:+.4f}", "kept" if kept else "left out", *([repr(nearest[i])] if any(nearest) else [])]
        table.add_row(*(Text(escaped(cell)) for cell in cells), style="" if kept else "dim")
    Console().print(table)
