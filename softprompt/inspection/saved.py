"""A saved soft prompt with everything that an inspection can use of its run: held-out rows, its start, its text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from softprompt.data.records import Message, Record
from softprompt.data.splits import data_digest, load_splits
from softprompt.data.tokenizer import decode
from softprompt.distillation.build import cached_dataset
from softprompt.distillation.composed_fidelity import load_source
from softprompt.distillation.dataset import DistillationExample
from softprompt.distillation.teacher import Teacher
from softprompt.errors import SoftpromptError
from softprompt.evaluation.held_out import HeldOutRows, read_options_of, selection_rows
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.training.config import resolve
from softprompt.training.prepare import RUNS
from softprompt.training.starts import find_start


@dataclass(frozen=True)
class SavedPrompt:
    """A saved soft prompt and what is left of its run.

    Attributes:
        card: its card.
        formatted: the prompt with its template and layout.
        rows: held-out rows with answers; None if they are not found.
        start: the prompt that training began from, if it is known.
        text: that it was distilled from; "" if it was not, or if the text is gone.
        notes: where the rows come from, or why they are missing, a sentence each.
    """

    card: Card
    formatted: FormattedPrompt
    rows: tuple[Record, ...] | None
    start: SoftPrompt | None
    text: str
    notes: tuple[str, ...]


def load_saved(
    lm: FrozenLM, name: str, *, data: str | HeldOutRows | None = None, text: str = "", limit: int = 64
) -> SavedPrompt:
    """A saved soft prompt with the rows to inspect it on.

    Without `data` they are the held-out rows of its own run, if the run is beside it and the digests in its card match:
    validation rows of training, held-out messages of a distillation.

    Args:
        name: as `store.find` takes it.
        data: a file, or a folder whose validation rows are taken, or rows that `selection_rows` has read.
        text: that it was trained on, if it is not to be looked for.
        limit: most rows.

    Raises StoreError, WrongBaseError as `store.load`, DataError for rows of `data` that cannot be read.
    """
    folder = store.find(name)
    prompt, card = store.load(folder, lm.geometry)
    formatted = from_card(prompt, card)
    rows, notes = list[Record](), tuple[str, ...]()
    found_text = ""
    if data is not None:
        selected = selection_rows(data, card) if isinstance(data, str) else data
        rows, notes = selected.rows, selected.notes
    try:
        if "text_sha256" in card.data:
            own, found_text = _of_distillation(lm, str(folder), formatted, with_rows=not rows)
        else:
            own = [] if rows else _of_training(folder, card)
        if not rows and own:
            rows, notes = own, (f"measured on {min(limit, len(own))} rows held out in its own run",)
    except (SoftpromptError, OSError) as error:
        reason = error.what if isinstance(error, SoftpromptError) else str(error)
        notes = notes or (f"its own held-out rows are not found: {reason}",)
    start = find_start(folder, card)
    kept = tuple(rows[:limit]) if rows else None
    return SavedPrompt(card, formatted, kept, start, text or found_text, notes)


def _of_training(folder: Path, card: Card) -> list[Record]:
    """The validation rows of the run, if its training rows are those that the card names; else none."""
    run, part = _run_of(folder)
    if run is None:
        return []
    config = resolve({}, run / "config.yaml")
    source = config.data.get(part) if isinstance(config.data, dict) else config.data
    trained_on = {place["sha256"] for place in card.trained_on}
    if source is None or not trained_on:
        return []
    splits = load_splits(source, seed=config.train.seed, options=read_options_of([card]))
    return splits.validation if data_digest(splits.train) in trained_on else []


def _run_of(folder: Path) -> tuple[Path | None, str]:
    """The run's folder and the part of the run's result that the soft prompt is: NAME.sst2 is part "sst2" of NAME."""
    runs = folder.parent / RUNS
    name, part = folder.name, ""
    while name:
        if (runs / name / "config.yaml").is_file():
            return runs / name, part
        name, _, last = name.rpartition(".")
        part = f"{last}.{part}" if part else last
    return None, ""


def _of_distillation(
    lm: FrozenLM, name: str, formatted: FormattedPrompt, *, with_rows: bool
) -> tuple[list[Record], str]:
    """The held-out messages of a distillation with the teacher's answers, and its text."""
    prepared = load_source(name)
    if not with_rows:
        return [], prepared.text
    teacher = Teacher(lm, prepared.chunks, prepared.template)
    splits = cached_dataset(prepared, teacher)
    return [_answered(example, lm) for example in splits.held_out if example.answer], prepared.text


def _answered(example: DistillationExample, lm: FrozenLM) -> Record:
    ends = frozenset(lm.end_ids)
    text = decode([token for token in example.answer if token not in ends], lm.tokenizer)
    record = example.record
    turns = (*record.messages, Message("assistant", text)) if record.messages else ()
    return replace(record, target=text, references=(text,), messages=turns)
