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
from softprompt.data.targets import end_id, target_text
from softprompt.data.template import Template, answered_apart, check_fit, fill, head, unused_fields
from softprompt.data.template_notes import row_notes
from softprompt.data.tokenize import Example, encode_rows
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

_LEARNED = "bold green"


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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check every row, and show what the data is: rows, labels, lengths, overlap, the end of an answer."""
    splits = load_splits(path, options=ReadOptions(parse_columns(columns), pieces, learn_end, pairs=True))
    model = adapted_name(model, base_adapter) if model else base_adapter
    tokenizer = _tokenizer(model)
    chosen = _template(splits.train, template, chat, model, tokenizer)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    report: dict[str, object] = {
        "path": path,
        "kind": splits.train[0].kind,
        "shape": described(splits.train[0]),
        "template": chosen.to_dict(),
        "splits": {name: _describe(rows, chosen, tokenizer) for name, rows in parts.items() if rows},
        "duplicates": _duplicates(splits.train, {"validation": splits.validation, "test": splits.test}),
        "end": _end(chosen, tokenizer),
        "notes": [
            *_pair_notes([*splits.train, *splits.validation, *splits.test]),
            *splits.notes,
            *_notes(parts, chosen, tokenizer, model),
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
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 3,
) -> None:
    """Show rows as the model sees them: the constant head, the body, and in «» what is learned."""
    options = ReadOptions(parse_columns(columns), pieces, learn_end, pairs=True)
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
        for text in _shown(record, chosen, tokenizer):
            console.print(text, soft_wrap=True)
        if record.rejected is not None:
            console.print(Text("rejected:", style="dim"))
            for text in _shown(record.rejected, chosen, tokenizer):
                console.print(text, soft_wrap=True)
    console.print(Text.assemble(("head", "dim"), " · body · ", ("«learned»", _LEARNED)))
    if tokenizer is None:
        console.print(Text("Add --model to see tokens and the end of the answer.", style="dim"))
        return
    made = encode_rows(shown_rows, chosen, tokenizer)
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


def _shown(record: Record, template: Template, tokenizer: Tokenizer | None) -> list[Text]:
    """A row, or the rows that a conversation becomes."""
    return [_as_text(record, template)] if tokenizer is None else _as_tokens(record, template, tokenizer)


def _pair_notes(records: Sequence[Record]) -> list[str]:
    """What is learned of preferences."""
    pairs = sum(record.rejected is not None for record in records)
    return [f"{pairs} of {len(records)} rows: {REMARK}"] if pairs else []


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


def _describe(rows: Sequence[Record], template: Template, tokenizer: Tokenizer | None) -> dict[str, object]:
    """Counts and lengths of one split."""
    info: dict[str, object] = {"rows": len(rows), "sha256": data_digest(rows)}
    if shape_of(rows[0]).has_classes:
        info["labels"] = dict(Counter(str(row.target) for row in rows).most_common())
    info["characters"] = _lengths([_characters(row, template) for row in rows])
    if tokenizer is not None:
        examples = encode_rows(rows, template, tokenizer)
        info["tokens"] = _lengths([len(example.ids) for example in examples])
        info["learned_tokens"] = _lengths([sum(example.mask) for example in examples])
        if rows[0].rejected is not None:
            pairs = encode_pairs(rows, template, tokenizer)
            info["rejected_tokens"] = _lengths([sum(p.rejected.mask) for p in pairs if p.rejected is not None])
    return info


def _notes(
    parts: dict[str, list[Record]], template: Template, tokenizer: Tokenizer | None, model: str | None
) -> list[str]:
    """What training would leave out or refuse."""
    unused = unused_fields(template, [row for rows in parts.values() for row in rows])
    notes = [f"the template does not use the fields {', '.join(unused)}"] if unused else []
    if tokenizer is not None and model is not None:
        from softprompt.models.loading import vocabulary_size

        learned = {name: encode_rows(rows, template, tokenizer) for name, rows in parts.items() if rows}
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
        console.print(Text(f"an answer ends with {end['token']!r} (id {end['id']}), and the model learns it"))
    else:
        console.print(Text("add --model to check that the end of an answer is learned", style="dim"))
    console.print(Text("ok", style="bold green"))


def _as_tokens(record: Record, template: Template, tokenizer: Tokenizer) -> list[Text]:
    """A row, or the rows that a conversation becomes, as they are tokenised, every learned token marked."""
    return [_marked(example, template, tokenizer) for example in encode_rows([record], template, tokenizer)]


def _marked(example: Example, template: Template, tokenizer: Tokenizer) -> Text:
    shown = Text(escaped(head(template, tokenizer)), style="dim")
    pending: list[int] = []
    for i, (token, learned) in enumerate(zip(example.ids, example.mask, strict=True)):
        pending.append(token)
        text = decode(pending, tokenizer)
        # Half a character decodes to U+FFFD: show it with the token that completes it.
        if text.endswith("\ufffd") and example.mask[i + 1 : i + 2] == (learned,) and len(pending) < 4:
            continue
        _append(shown, text, learned)
        pending = []
    return shown


def _as_text(record: Record, template: Template) -> Text:
    """One row without a tokenizer."""
    shown = Text()
    if record.is_conversation:
        for i, message in enumerate(record.messages):
            shown.append(f"{message.role}: ", style="dim")
            _append(shown, message.content, message.role == "assistant" and i >= record.context)
            shown.append("\n" if i + 1 < len(record.messages) else "")
    else:
        _append(shown, fill(template, record), not shape_of(record).has_answers)
        if record.target is not None:
            _append(shown, target_text(record.target, template), True)
    return shown


def _append(shown: Text, text: str, learned: bool) -> None:
    """Add text, in «» when it is learned: readable without color too."""
    shown_text = escaped(text)
    if learned:
        shown.append(f"«{shown_text.replace(chr(10), '↵')}»" + "\n" * text.count("\n"), style=_LEARNED)
    else:
        shown.append(shown_text, style="not dim")
