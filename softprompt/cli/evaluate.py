"""`softprompt eval`: a soft prompt beside the base model and a text prompt, on the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.options import AsJson, Device, Dtype, Model, TrustRemoteCode, unescaped


def eval_command(
    name: Annotated[str, typer.Argument(help="A soft prompt's name, or a path to its folder.")],
    data: Annotated[
        str, typer.Option("--data", "-d", help="Rows with answers: a file, or a folder with train.* and test.*.")
    ],
    model: Model = None,
    text_prompt: Annotated[str | None, typer.Option(help="Instruction of the text prompt to compare with.")] = None,
    shots: Annotated[int, typer.Option(min=0, help="Worked examples in the text prompt.")] = 3,
    shots_data: Annotated[
        str | None, typer.Option(help="Where they come from; the folder's train.* if --data is one.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 64,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Evaluate a soft prompt beside the base model and a text prompt, with 95 % confidence intervals.

    Of a file that the soft prompt was trained on, only the rows held out in training are scored.
    """
    from softprompt import store
    from softprompt.cli.loading import load_base
    from softprompt.comparison import compare, evaluation_rows
    from softprompt.decode import Sampling

    found = evaluation_rows(data, shots, shots_data, store.load_card(store.locate(name)))
    console = Console(stderr=True, quiet=as_json, soft_wrap=True)
    for note in found.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    lm = load_base(model, [name], dtype, device, trust_remote_code)
    instruction = None if text_prompt is None else unescaped(text_prompt)
    with console.status("evaluating"):
        comparison = compare(
            lm, name, found.rows[:limit], instruction=instruction, shots=found.shots, sampling=Sampling(max_new_tokens)
        )
    if as_json:
        notes = [*found.notes, *comparison.notes]
        typer.echo(json.dumps({"name": Path(name).name, "data": data, **comparison.to_dict(), "notes": notes}))
        return
    print_comparison(comparison.to_dict(), Console(soft_wrap=True))
    for note in comparison.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    if not found.shots and shots and not comparison.notes:
        console.print(Text("the text prompt has no examples: --shots-data FILE gives it some", style="dim"))


def print_comparison(results: dict[str, dict[str, object]], console: Console) -> None:
    """A table: one row a subject, one column a metric, intervals behind the values."""
    first = next(iter(results.values()))
    names = [key for key in first if key not in {"rows", "confidence_interval"}]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for metric in names:
        table.add_column(metric.replace("_", " "), justify="right")
    for subject, values in results.items():
        intervals = values["confidence_interval"]
        assert isinstance(intervals, dict)
        cells = [_cell(m, values[m], *intervals[m]) for m in names]
        table.add_row(subject.replace("_", " "), *cells, style="bold" if subject == "soft_prompt" else "")
    console.print(table)
    console.print(Text(f"{first['rows']} rows; 95 % confidence intervals", style="dim"))


def _cell(metric: str, value: object, low: float, high: float) -> str:
    """Value and interval; BLEU and perplexity are large numbers."""
    if metric in {"bleu", "perplexity"}:
        return f"{value:.1f} [dim]{low:.1f}–{high:.1f}[/dim]"
    return f"{value:.3f} [dim]{low:.2f}–{high:.2f}[/dim]"
