"""The page of `softprompt show`: a card in sections, wrapped and bold on a terminal, a line a value elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.escape import escaped

if TYPE_CHECKING:
    from softprompt.prompts.base import SoftPrompt
    from softprompt.prompts.card import Card

_LONGEST = 300  # characters of one value; --json prints it whole
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN = ("steps", "seconds", "stopped")  # metrics of the run itself: they score nothing


def print_card(prompt: SoftPrompt, card: Card, folder: Path, name: str) -> None:
    """Print what the soft prompt is, its base model, size, rows, training and scores, and what to type next.

    Args:
        folder: where it is saved.
        name: as typed, for the commands that come next.
    """
    console = Console()
    method = str(card.method.get("name", "another tool"))
    created = f" on {card.created[:16].replace('T', ' ')}" if card.created else ""
    _print(console, card.name, "bold")
    _print(
        console, f"A soft prompt of {card.n_tokens:,} virtual tokens in {card.form} form, made by {method}{created}."
    )
    sections = {
        "Base model": _base(card),
        "Size": _size(prompt, card),
        "Rows": _rows(card),
        "Training": _training(card),
        "Scores": dict(_scores(card)) or {"none": "the command below measures some"},
        "Files": {"folder": str(folder), "license": card.license or ""},
    }
    width = max(len(key) for rows in sections.values() for key, value in rows.items() if value)
    for title, rows in sections.items():
        kept = {key.ljust(width): value for key, value in rows.items() if value}
        if kept:
            _print(console, f"\n{title}", "bold cyan")
            _print_rows(console, kept)
    distilled = "text_sha256" in card.data
    measure = f"fidelity {name}" if distilled else f"eval {name} --data test.jsonl"
    _print(console, f'\nnext  softprompt generate {name} "your text"\n      softprompt {measure}', "dim")


def _base(card: Card) -> dict[str, str]:
    base = card.geometry
    shape = f"{base.architecture}, {len(base.layers)} layers, width {base.hidden:,}"
    return {
        "name": base.base,
        "shape": f"{shape}, context of {base.max_positions:,} tokens",
        "fingerprint": base.fingerprint,
        "quantized": base.quantization,
    }


def _size(prompt: SoftPrompt, card: Card) -> dict[str, str]:
    from softprompt.prompts.forms import size_of

    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in prompt.tensors().values()}
    kibibytes = size_of(prompt) / 1024
    return {
        "tensors": f"{kibibytes:,.{0 if kibibytes >= 10 else 1}f} KiB of {' and '.join(sorted(dtypes))}",
        "sha256": card.sha256,
    }


def _rows(card: Card) -> dict[str, str]:
    """How a row of text becomes tokens around the virtual ones."""
    layout = card.layout
    parts = (
        "[BOS]" if layout.bos else "",
        _quoted(layout.lead),
        f"{card.n_tokens:,} virtual tokens",
        "[BOS]" if layout.follow_bos else "",
        _quoted(layout.follow),
        "row",
    )
    chat_template = f"the soft prompt's own, {len(card.chat_template):,} characters" if card.chat_template else ""
    return {
        "template": _words(card.template),
        "chat template": chat_template,
        "labels": ", ".join(card.labels),
        "layout": " · ".join(filter(None, parts)),
    }


def _training(card: Card) -> dict[str, str]:
    run = {name: _words(card.metrics.get(name)) for name in _RUN}
    ended = f"{run['stopped']} after {run['steps']} steps, {run['seconds']} s" if all(run.values()) else ""
    return {
        "method": _words(card.method),
        "settings": _words(card.recipe),
        "data": _words(card.data),
        "ended by": ended,
        "versions": _words(card.versions),
    }


def _scores(card: Card) -> Iterator[tuple[str, str]]:
    """Every metric except those of the run, a group as one row."""
    for name, value in card.metrics.items():
        words = "" if name in _RUN else _words(value)
        if words:
            yield name.replace("_", " "), words


def _words(value: object) -> str:
    """A value of a card in one line; absent and empty parts are left out, digests and long texts are cut."""
    if isinstance(value, dict):
        return ", ".join(_pairs(cast("Mapping[str, object]", value)))
    if isinstance(value, list | tuple):
        return "; ".join(filter(None, map(_words, cast("list[object]", value))))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value) if isinstance(value, int) else _one_line(str(value))
    if _DIGEST.fullmatch(text):
        return f"{text[:16]}…"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"


def _pairs(values: Mapping[str, object]) -> Iterator[str]:
    """Names with their values; a group has its own in brackets."""
    for name, value in values.items():
        words = _words(value)
        if words:
            yield f"{name} ({words})" if isinstance(value, dict) else f"{name} {words}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")


def _print_rows(console: Console, rows: Mapping[str, str]) -> None:
    """Names and values: on a terminal values wrap in a column of their own, in a pipe each is one line."""
    if not console.is_terminal:
        for key, value in rows.items():
            _print(console, f"  {key}  {_one_line(value)}")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(Text(escaped(f"  {key}")), Text(escaped(_one_line(value))))
    console.print(table)


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(escaped(text), style), soft_wrap=True)
