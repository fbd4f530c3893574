"""`softprompt data`: look at training data before a run spends time on it.

check     are the files usable, what is in them, and would the model learn to stop
preview   the rows as the model sees them, with what is learned marked
convert   the rows in our own writing, whatever shape they have
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from softprompt.cli.data_rows import LEARNED, ObjectiveOption, encode_for, shown_row
from softprompt.cli.escape import escaped
from softprompt.cli.options import BaseAdapter
from softprompt.data.convert import described, write_rows
from softprompt.data.default_template import default_template, default_text
from softprompt.data.objective_rows import encode_pairs
from softprompt.data.read_options import ReadOptions, parse_columns
from softprompt.data.records import Record
from softprompt.data.row_shapes.preferences import REMARK
from softprompt.data.row_shapes.registry import shape_of
from softprompt.data.splits import data_digest, inputs_of, load_rows, load_splits, remarks
from softprompt.data.targets import end_id
from softprompt.data.template import Template, answered_apart, check_fit, fill, unused_fields
from softprompt.data.template_notes import row_notes
from softprompt.data.tokenizer import Tokenizer, decode
from softprompt.data.vocabulary import check_vocabulary
from softprompt.errors import DataError
from softprompt.models.sources import adapted_name
from softprompt.settings import unescaped
from softprompt.training.config import Config

__all__ = ["data_app"]

data_app = typer.Typer(no_args_is_help=True, help="Check, preview and convert training data.")

DataPath = Annotated[str, typer.Argument(help="A data file, a folder with train.*, or a Hub dataset.")]
TemplateText = Annotated[str | None, typer.Option("--template", help=r"A prompt such as 'Review: {text}\nSentiment:'.")]
Chat = Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat template or not.")]
Columns = Annotated[str | None, typer.Option("--columns", help="Other names: prompt=question,completion=answer.")]
Pieces = Annotated[int | None, typer.Option("--pieces", min=1, help="Cut long texts into pieces of so many bytes.")]
LearnEnd = Annotated[
    bool | None, typer.Option("--learn-end/--no-learn-end", help="Learn the end token behind texts without answers.")
]
_Model = Annotated[str | None, typer.Option("--model", help="A base model, to see its tokens.")]

RowsObjective = Annotated[
    ObjectiveOption,
    typer.Option("--objective", help="What the rows are for: dpo has pairs of answers, grpo prompts alone."),
]


@data_app.command()
def check(
    path: DataPath,
    template: TemplateText = None,
    chat: Chat = None,
    model: _Model = None,
    base_adapter: BaseAdapter = None,
    columns: Columns = None,
    pieces: Pieces = None,
    learn_end: LearnEnd = None,
    objective: RowsObjective = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check every row, and show what the data is: rows, labels, lengths, overlap, the end of an answer."""
    splits = load_splits(path, options=_read_options(objective, columns, pieces, learn_end))
    model = adapted_name(model, base_adapter) if model else base_adapter
    tokenizer = _tokenizer(model)
    chosen = _template(splits.train, template, chat, model, tokenizer)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    report: dict[str, object] = {
        "path": path,
        "objective": objective,
        "kind": splits.train[0].kind,
        "shape": described(splits.train[0]),
        "template": chosen.to_dict(),
        "splits": {name: _describe(rows, chosen, tokenizer, objective) for name, rows in parts.items() if rows},
        "duplicates": _duplicates(splits.train, {"validation": splits.validation, "test": splits.test}),
        "end": _end(chosen, tokenizer),
        "notes": [
            *_objective_notes(objective, [*splits.train, *splits.validation, *splits.test]),
            *splits.notes,
            *_notes(parts, chosen, tokenizer, model, objective),
        ],
        "ok": True,
    }
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print_report(report, Console())


@data_app.command()
def preview(
    path: DataPath,
    template: TemplateText = None,
    chat: Chat = None,
    model: _Model = None,
    base_adapter: BaseAdapter = None,
    columns: Columns = None,
    pieces: Pieces = None,
    learn_end: LearnEnd = None,
    objective: RowsObjective = None,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 3,
) -> None:
    """Show rows as the model sees them: the constant head, the body, and in «» what is learned."""
    options = _read_options(objective, columns, pieces, learn_end)
    is_file = Path(path).is_file()
    records = load_rows(path, options=options) if is_file else load_splits(path, options=options).train
    model = adapted_name(model, base_adapter) if model else base_adapter
    tokenizer = _tokenizer(model)
    chosen = _template(records, template, chat, model, tokenizer)
    console = Console()
    console.print(Text(f"{described(records[0])}, {shape_of(records[0]).description}", style="dim"))
    shown_rows = records[:rows]
    for record in shown_rows:
        console.print(Rule(Text(record.where, style="dim"), align="left", style="dim"))
        for text in shown_row(record, chosen, tokenizer, objective):
            console.print(text, soft_wrap=True)
        if record.rejected is not None:
            console.print(Text("rejected:", style="dim"))
            for text in shown_row(record.rejected, chosen, tokenizer):
                console.print(text, soft_wrap=True)
    console.print(Text.assemble(("head", "dim"), " · body · ", ("«learned»", LEARNED)))
    if tokenizer is None:
        console.print(Text("Add --model to see tokens and the end of the answer.", style="dim"))
        return
    made = encode_for(objective, shown_rows, chosen, tokenizer)
    for note in row_notes(shown_rows, chosen, tokenizer, len(made)):
        console.print(Text(f"note: {note}", style="yellow"))


@data_app.command("convert")
def convert_rows(
    path: Annotated[str, typer.Argument(help="A data file of any shape.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new file, .jsonl.")],
    columns: Columns = None,
    pieces: Pieces = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
) -> None:
    """Write rows of any shape in our own writing, one JSON object a line; a run learns the same from both files."""
    records = load_rows(path, options=ReadOptions(parse_columns(columns), pieces, pairs=True))
    write_rows(out, records, overwrite=overwrite)
    for note in remarks(records):
        typer.echo(f"note: {note}", err=True)
    rows = f"{len(records)} row{'s' * (len(records) != 1)}"
    typer.echo(f"{rows}: {described(records[0])}, written as {shape_of(records[0]).example}")
    typer.echo(f"softprompt data check {shlex.quote(str(out))}")


def _read_options(
    objective: ObjectiveOption, columns: str | None, pieces: int | None, learn_end: bool | None
) -> ReadOptions:
    """How a run with this objective reads rows; without one, pairs of answers are read, too."""
    prompts = objective == "grpo"
    return ReadOptions(parse_columns(columns), pieces, learn_end, pairs=not prompts, prompts=prompts)


def _objective_notes(objective: ObjectiveOption, records: Sequence[Record]) -> list[str]:
    """What is learned of preferences and of prompts. Raises DataError for rows that dpo cannot learn from."""
    if objective == "grpo":
        return ["prompts alone are read: the answers are generated, and a reward decides what is learned"]
    pairs = sum(record.rejected is not None for record in records)
    if objective == "dpo":
        alone = [record for record in records if record.rejected is None]
        if alone:
            expected = '{"prompt": …, "chosen": …, "rejected": …}'
            raise DataError("the row has no rejected answer", where=alone[0].where, expected=expected)
        return []
    return [f"{pairs} of {len(records)} rows: {REMARK}"] if pairs and objective is None else []


def _tokenizer(model: str | None) -> Tokenizer | None:
    """The tokenizer of a named base model."""
    if model is None:
        return None
    # Importing the model code takes seconds, and most checks do without it.
    from softprompt.models.loading import load_tokenizer

    return load_tokenizer(model)


def _template(
    records: Sequence[Record], text: str | None, chat: bool | None, model: str | None, tokenizer: Tokenizer | None
) -> Template:
    """The template of these rows; without a tokenizer, as much of it as can be known."""
    # A shell passes \n as two characters, and nobody means those in a prompt.
    text = None if text is None else unescaped(text)
    if tokenizer is not None and model is not None:
        from softprompt.models.loading import is_encoder_decoder

        chosen = default_template(records, tokenizer, text, chat)
        return answered_apart(chosen) if is_encoder_decoder(model) else chosen
    if chat:
        raise DataError("the chat template is the model's", hint="add --model NAME to --chat")
    conversations = records[0].is_conversation
    if conversations and text is not None:
        raise DataError("rows of messages take no template: they bring their own text", hint="leave --template out")
    chosen = Template("chat") if conversations else Template("text", text or default_text(records[0]))
    for record in records:
        check_fit(record, chosen)
        fill(chosen, record)
    return chosen


def _describe(
    rows: Sequence[Record], template: Template, tokenizer: Tokenizer | None, objective: ObjectiveOption
) -> dict[str, object]:
    """Counts and lengths of one split."""
    info: dict[str, object] = {"rows": len(rows), "sha256": data_digest(rows)}
    if shape_of(rows[0]).has_classes and objective != "grpo":
        info["labels"] = dict(Counter(str(row.target) for row in rows).most_common())
    info["characters"] = _lengths([_characters(row, template) for row in rows])
    if tokenizer is not None:
        examples = encode_for(objective, rows, template, tokenizer)
        info["tokens"] = _lengths([len(example.ids) for example in examples])
        if objective != "grpo":
            info["learned_tokens"] = _lengths([sum(example.mask) for example in examples])
        if rows[0].rejected is not None:
            pairs = encode_pairs(rows, template, tokenizer)
            info["rejected_tokens"] = _lengths([sum(p.rejected.mask) for p in pairs if p.rejected is not None])
    return info


def _notes(
    parts: dict[str, list[Record]],
    template: Template,
    tokenizer: Tokenizer | None,
    model: str | None,
    objective: ObjectiveOption,
) -> list[str]:
    """What training would leave out or refuse."""
    unused = unused_fields(template, [row for rows in parts.values() for row in rows])
    notes = [f"the template does not use the fields {', '.join(unused)}"] if unused else []
    if tokenizer is not None and model is not None:
        from softprompt.models.loading import vocabulary_size

        learned = {name: encode_for(objective, rows, template, tokenizer) for name, rows in parts.items() if rows}
        notes += row_notes(parts["train"], template, tokenizer, len(learned["train"]))
        places = [(row.where, row.ids) for examples in learned.values() for row in examples]
        check_vocabulary(places, tokenizer, vocabulary_size(model))
        for name in ("train", "validation"):
            lengths = [len(example.ids) for example in learned[name]]
            if long := sum(length > Config().max_length for length in lengths):
                advice = f"training wants --max-length {max(lengths)} for them, or --drop-long"
                notes.append(f"{long} rows of {name} are longer than {Config().max_length} tokens: {advice}")
    return notes


def _characters(row: Record, template: Template) -> int:
    """Length of a row's text with its target, without what a chat template adds."""
    if row.is_conversation:
        return sum(len(message.content) for message in row.messages)
    return len(fill(template, row)) + len(row.target or "")


def _lengths(lengths: Sequence[int]) -> dict[str, float]:
    ordered = sorted(lengths)
    return {
        "min": ordered[0],
        "median": median(ordered),
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
        "max": ordered[-1],
    }


def _duplicates(train: Sequence[Record], others: dict[str, list[Record]]) -> dict[str, int]:
    """How many inputs occur again: inside the training rows, and from them in each other split."""
    seen = {inputs_of(record) for record in train}
    counts = {"train": len(train) - len(seen)}
    return counts | {name: sum(inputs_of(r) in seen for r in rows) for name, rows in others.items() if rows}


def _end(template: Template, tokenizer: Tokenizer | None) -> dict[str, object] | None:
    """The token that teaches the model to stop; None without a model."""
    if tokenizer is None:
        return None
    end = end_id(template, tokenizer)
    return {"id": end, "token": decode([end], tokenizer)}


def _print_report(report: dict[str, object], console: Console) -> None:
    """The report for people; its last word is ok."""
    splits, duplicates = report["splits"], report["duplicates"]
    assert isinstance(splits, dict)
    assert isinstance(duplicates, dict)
    console.print(Text(f"{report['path']}: rows of kind {report['kind']}, {report['shape']}"))
    table = Table(box=None, pad_edge=False)
    for column in ("split", "rows", "asked in train", "length", "min", "median", "95 %", "max"):
        table.add_column(column, justify="left" if column in ("split", "length") else "right")
    for name, info in splits.items():
        units = ("characters", "tokens", "learned_tokens", "rejected_tokens")
        for i, unit in enumerate(unit for unit in units if unit in info):
            first = [name, str(info["rows"]), str(duplicates[name])] if i == 0 else ["", "", ""]
            table.add_row(*first, unit.replace("_", " "), *(f"{value:g}" for value in info[unit].values()))
    console.print(table)
    for name, info in splits.items():
        if "labels" in info:
            counts = ", ".join(f"{escaped(label)!s} {count}" for label, count in info["labels"].items())
            console.print(Text(f"labels in {name}: {counts}"))
    for note in report["notes"] if isinstance(report["notes"], list) else []:
        console.print(Text(f"note: {note}", style="yellow"))
    if isinstance(end := report["end"], dict):
        learns = "" if report["objective"] == "grpo" else ", and the model learns it"
        console.print(Text(f"an answer ends with {end['token']!r} (id {end['id']}){learns}"))
    else:
        what = "see tokens" if report["objective"] == "grpo" else "check that the end of an answer is learned"
        console.print(Text(f"add --model to {what}", style="dim"))
    console.print(Text("ok", style="bold green"))
