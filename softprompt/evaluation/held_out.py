"""Held-out rows: which rows to evaluate on, given what soft prompts were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.data.records import Record
from softprompt.data.splits import carve, data_digest, load_rows, load_splits
from softprompt.errors import DataError
from softprompt.prompts.card import Card


@dataclass(frozen=True)
class HeldOutRows:
    """What to evaluate on.

    Attributes:
        rows: the rows to score.
        shots: worked examples for the text prompt.
        notes: which rows these are, a sentence each.
    """

    rows: list[Record]
    shots: list[Record]
    notes: tuple[str, ...] = ()


def held_out_rows(data: str, shots: int = 3, shots_data: str | None = None, *cards: Card) -> HeldOutRows:
    """The rows to evaluate and the examples of the text prompt.

    A folder gives its test rows (validation if it has none) and examples from train; a file gives its rows, or those
    that were held out if a soft prompt was trained on the rest.

    Args:
        data: a file, a folder or a Hub dataset.
        shots: how many examples.
        shots_data: where they come from, if not from the training rows of `data`.
        cards: of the soft prompts that will be scored: what any of them was trained on is not scored unnoticed.

    Raises DataError as `load_splits`, and if every row was trained on by one soft prompt or another.
    """
    if Path(data).is_file():
        rows, source, notes = _of_file(load_rows(data), cards)
    else:
        rows, source, notes = _of_folder(data, cards)
    if shots_data:
        source = load_rows(shots_data) if Path(shots_data).is_file() else load_splits(shots_data).train
    return HeldOutRows(rows, pick_shots(source, shots), notes)


def selection_rows(data: str, card: Card) -> HeldOutRows:
    """The rows to choose something by: of a folder the validation rows, never its test rows; of a file as in
    `evaluation_rows`."""
    if Path(data).is_file():
        return held_out_rows(data, 0, None, card)
    return HeldOutRows(load_splits(data, seed=_seeds([card])[0]).validation, [], ("chosen by the validation rows",))


def _seeds(cards: Sequence[Card]) -> list[int]:
    """That the training rows were split with, sorted."""
    return sorted({place["seed"] for card in cards for place in card.trained_on}) or [0]


def _of_folder(data: str, cards: Sequence[Card]) -> tuple[list[Record], list[Record], tuple[str, ...]]:
    """(rows to score, rows for examples, notes) of a folder or Hub dataset, split as it was in training."""
    first, *others = [load_splits(data, seed=seed) for seed in _seeds(cards)]
    held_out = [splits.test or splits.validation for splits in (first, *others)]
    rows = _in_all(held_out[0], held_out)
    kind = "test" if first.test else "validation"
    which = f"the {kind} rows" if len(rows) == len(held_out[0]) else f"the {len(rows)} rows that all had for {kind}"
    return rows, first.train, (*first.notes, f"scored on {which}")


def _of_file(rows: list[Record], cards: Sequence[Card]) -> tuple[list[Record], list[Record], tuple[str, ...]]:
    """(rows to score, rows for examples, notes) of one file."""
    whole, held_out, source, notes = data_digest(rows), list[list[Record]](), list[Record](), list[str]()
    for card in cards:
        for place in card.trained_on:
            if place["sha256"] == whole:
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
        return rows, source, tuple(dict.fromkeys(notes))
    kept = _in_all(rows, held_out)
    note = f"scored on the {len(kept)} rows held out in training; the other {len(rows) - len(kept)} were trained on"
    return kept, source, (*dict.fromkeys(notes), note)


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
