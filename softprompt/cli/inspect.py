"""`softprompt inspect`: readings of a soft prompt, each beside the share of its effect that it recovers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.inspect_files import InspectFiles, labels_of_names
from softprompt.cli.inspect_others import other_prompts, print_inspections
from softprompt.cli.inspect_print import print_inspection
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
from softprompt.cli.options import parse_names as parse_list

if TYPE_CHECKING:
    from softprompt.inspection.saved import SavedPrompt
    from softprompt.models.frozen_lm import FrozenLM
    from softprompt.report.page import InspectedPrompt


def inspect_command(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help=NAME_HELP, autocompletion=complete_names)],
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Rows with answers: a file, or a folder's validation rows.")
    ] = None,
    only: Annotated[str, typer.Option("--only", help="Sections, e.g. nearest,worth.")] = "",
    verbalize: Annotated[
        bool, typer.Option("--verbalize", help="Search a text that says what it does, too: the section words.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="For the section leak: the text it was trained on, if not its run's."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Only the first rows.")] = 64,
    html: Annotated[
        str | None, typer.Option("--html", metavar="[FILE]", help="Write a page, and its numbers beside it as JSON.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write the figures to this folder.")] = None,
    projector: Annotated[
        Path | None, typer.Option("--projector", help="Write the virtual tokens for TensorBoard's projector.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", "--force", help="Replace files of these names.")] = False,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Read a soft prompt: what it does, the words near it, which tokens and layers carry its effect.

    softprompt inspect tone

    softprompt inspect tone --data rows.jsonl --only behavior,worth --json

    softprompt inspect tone --html

    softprompt inspect tone cold-tone --html compared.html

    Sections: behavior (changed predictions), nearest (words near the virtual tokens), drift (where they lie), worth
    (the share of each virtual token), layers and heads (what is lost when they do not see the virtual tokens),
    attention (which layers look at them), lens (what the model would predict from them), leak (what it repeats of its
    text), likeness (to the other saved prompts). The effect is the divergence from the base model's predictions.
    Readings say which share of it is left when they take the prompt's place; controls are the untrained start and a
    random prompt of equal norms. Without --data the rows held out in its own run are used where they are found, else a
    few neutral texts with the soft prompt's own answers. --verbalize adds the section words, the search of softprompt
    verbalize, which takes as long as all others. Ctrl-C shows what is done. Several soft prompts are compared
    by the main numbers of each reading. --html writes NAME.inspect.html unless a FILE.html is given.
    """
    from softprompt.cli.base_model import load_base
    from softprompt.distillation.prepare import read_document
    from softprompt.evaluation.held_out import selection_rows
    from softprompt.inspection.inspection import IN_WORDS, READINGS, check_sections
    from softprompt.inspection.saved import load_saved
    from softprompt.prompts import store
    from softprompt.report.page import numbers

    names = parse_list(",".join(names))
    wanted: Sequence[str] = [*(parse_list(only) if only else READINGS), *([IN_WORDS] if verbalize else [])]
    files = InspectFiles(html, png, projector, overwrite)
    check_sections(wanted)
    cards = [store.load_card(store.find(name)) for name in names]
    labels = labels_of_names(names, [card.name for card in cards])
    files.check(labels)
    source_text = "" if text is None else read_document(text)[0]
    given = [None if data is None else selection_rows(data, card) for card in cards]  # before the model is loaded
    console = Console(stderr=True, quiet=as_json, soft_wrap=True)
    lm = load_base(model, names, dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    every_saved = [
        load_saved(lm, name, data=rows, text=source_text, limit=limit) for name, rows in zip(names, given, strict=True)
    ]
    inspected: list[InspectedPrompt] = []
    for name, label, saved in zip(names, labels, every_saved, strict=True):
        inspected.append(_inspect(lm, name, label, saved, wanted, console))
        if "interrupted" in inspected[-1].inspection.left_out.values():
            break
    prompts = [prompt for saved in every_saved if (prompt := saved.formatted.prompt) is not None]
    written = files.write(inspected, prompts[: len(inspected)])
    if as_json:
        typer.echo(json.dumps(numbers(inspected)))
        return
    if len(inspected) == 1:
        print_inspection(inspected[0].name, inspected[0].inspection)
    else:
        print_inspections(Console(soft_wrap=True), [(shown.name, shown.inspection) for shown in inspected])
    for path in written:
        console.print(Text(f"written  {path}", "dim"))


def _inspect(
    lm: FrozenLM, name: str, label: str, saved: SavedPrompt, wanted: Sequence[str], console: Console
) -> InspectedPrompt:
    """The readings of one saved soft prompt."""
    from softprompt.inspection.inspection import inspect
    from softprompt.prompts import store
    from softprompt.report.page import InspectedPrompt
    from softprompt.report.saved_report import facts_of

    for note in saved.notes:
        console.print(Text(f"note: {escaped(note)}", style="yellow"))
    with console.status("predictions") as status:
        inspection = inspect(
            lm,
            saved.formatted,
            saved.rows,
            only=wanted,
            start=saved.start,
            text=saved.text,
            others=other_prompts(store.find(name), saved.card, console),
            name=label,
            keep_on_interrupt=True,
            on_section=lambda section: status.update(Text(escaped(f"{label}: {section}"))),
        )
    return InspectedPrompt(label, facts_of(saved), inspection)
