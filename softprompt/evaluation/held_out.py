"""Held-out rows: the rows to evaluate on, without those that the soft prompts were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from softprompt.data.memory_rows import RowSource
from softprompt.data.read_options import ReadOptions, parse_columns
from softprompt.data.records import Record
from softprompt.data.splits import carve, data_digest, load_rows, load_splits, remarks
from softprompt.errors import DataError
from softprompt.prompts.card import Card


@dataclass(frozen=True)
class HeldOutRows:
    """Rows for an evaluation.

    Attributes:
        rows: the rows to score.
        shots: worked examples for the text prompt.
        notes: where the rows come from, a sentence each.
    """

    rows: list[Record]
    shots: list[Record]
    notes: tuple[str, ...] = ()


def held_out_rows(
    data: RowSource, shots: int = 3, shots_data: str | None = None, *cards: Card, columns: str | None = None
) -> HeldOutRows:
    """Select the rows to evaluate and the examples of the text prompt.

    From a folder: its test rows (validation rows if it has none), and examples from its training rows. From a file:
    all rows, or only the held-out ones if a soft prompt was trained on the rest.

    Args:
        data: a file, a folder, a Hub dataset, or rows in memory.
        shots: how many examples.
        shots_data: file or folder of the examples, if not the training rows of `data`.
        cards: of the soft prompts to be scored; rows that one of them was trained on are left out, or noted. Rows are
            read as those of the first card were: with its names of columns, if they have them, and its pieces.
        columns: other names of columns, as in `train --columns`.

    Raises DataError as `load_splits`, and if every row is a training row of some soft prompt.
    """
    options = read_options_of(cards, columns)
    in_one_piece = not isinstance(data, Mapping) if not isinstance(data, str | Path) else Path(data).is_file()
    if in_one_piece:
        rows = load_rows(data, options=options)
        selected = without_training_rows(rows, cards)
        selected = replace(selected, notes=(*remarks(rows), *selected.notes))
    else:
        selected = _from_folder(data, cards, options)
    source = selected.shots
    if shots_data:
        is_file = Path(shots_data).is_file()
        source = load_rows(shots_data, options=options) if is_file else load_splits(shots_data, options=options).train
    return replace(selected, shots=pick_shots(source, shots))


def selection_rows(data: str, card: Card) -> HeldOutRows:
    """Rows for choosing between variants: the validation rows of a folder, never its test rows.

    From a file, the rows that `held_out_rows` gives.
    """
    if Path(data).is_file():
        return held_out_rows(data, 0, None, card)
    splits = load_splits(data, seed=_seeds([card])[0], options=read_options_of([card]))
    return HeldOutRows(splits.validation, [], ("chosen by the validation rows",))


def read_options_of(cards: Sequence[Card], columns: str | None = None) -> ReadOptions:
    """How to read rows for these soft prompts: as the rows of the first one were read, but for `columns`."""
    options = ReadOptions.of_card(cards[0].data.get("reading")) if cards else ReadOptions()
    return options if columns is None else replace(options, columns=parse_columns(columns), lenient=False)


def _seeds(cards: Sequence[Card]) -> list[int]:
    """The seeds that the training rows were split with, sorted."""
    return sorted({place["seed"] for card in cards for place in card.trained_on}) or [0]


def _from_folder(data: RowSource, cards: Sequence[Card], options: ReadOptions) -> HeldOutRows:
    """Rows of a folder or Hub dataset, split as in training; `shots` are all training rows."""
    first, *others = [load_splits(data, seed=seed, options=options) for seed in _seeds(cards)]
    held_out = [splits.test or splits.validation for splits in (first, *others)]
    rows = _in_all(held_out[0], held_out)
    kind = "test" if first.test else "validation"
    which = f"the {kind} rows" if len(rows) == len(held_out[0]) else f"the {len(rows)} rows that all had for {kind}"
    return HeldOutRows(rows, first.train, (*first.notes, f"scored on {which}"))


def without_training_rows(rows: Sequence[Record], cards: Sequence[Card]) -> HeldOutRows:
    """The rows of one file without those that a soft prompt was trained on, by the digests in the cards.

    `shots` are the training rows of the first soft prompt that was trained on the file. Rows that are exactly the
    training rows stay, with a note.

    Raises DataError if every row was trained on by one of several soft prompts.
    """
    digest, notes = data_digest(rows), list[str]()
    held_out, source = list[list[Record]](), list[Record]()
    for card in cards:
        for place in card.trained_on:
            if place["sha256"] == digest:
                notes.append(f"{'the soft prompt' if len(cards) == 1 else card.name} was trained on these very rows")
                continue
            try:
                rest, spared = carve(rows, seed=place["seed"])
            except DataError:  # too few rows to hold any out
                continue
            if data_digest(rest) == place["sha256"]:
                held_out.append(spared)
                source = source or rest
    if not held_out:
        return HeldOutRows(list(rows), source, tuple(dict.fromkeys(notes)))
    kept = _in_all(rows, held_out)
    note = f"scored on the {len(kept)} rows held out in training; the other {len(rows) - len(kept)} were trained on"
    return HeldOutRows(kept, source, (*dict.fromkeys(notes), note))


def _in_all(rows: Sequence[Record], parts: Sequence[Sequence[Record]]) -> list[Record]:
    """The rows that are in every part. Raises DataError if there are none."""
    places = [{row.where for row in part} for part in parts]
    kept = [row for row in rows if all(row.where in part for part in places)]
    if not kept:
        hint = "give rows that none of them has seen, or evaluate one at a time"
        raise DataError("every row was trained on by one of these soft prompts", where=rows[0].where, hint=hint)
    return kept


def pick_shots(rows: Sequence[Record], count: int) -> list[Record]:
    """The first rows with different answers, then the first of the rest."""
    first: dict[str | None, int] = {}
    for i, row in enumerate(rows):
        first.setdefault(row.target, i)
    varied = set(first.values())
    return [*(rows[i] for i in first.values()), *(row for i, row in enumerate(rows) if i not in varied)][:count]
