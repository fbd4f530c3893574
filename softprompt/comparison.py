"""A soft prompt beside what it must beat: the base model alone and a text prompt, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt import store
from softprompt.card import Card
from softprompt.data.formats import Record
from softprompt.data.load import carve, digest, load_rows, load_splits
from softprompt.decode import Sampling
from softprompt.errors import DataError
from softprompt.evaluation import Evaluation, evaluate
from softprompt.framing import base_subject, card_subject, text_subject
from softprompt.model import FrozenLM
from softprompt.starts import instruction_for

EMPTY = "the text prompt is empty, so it is the base model again: --text-prompt or --shots-data gives it words"


@dataclass(frozen=True)
class Comparison:
    """Evaluations on the same rows.

    Attributes:
        notes: what a reader of the numbers should know, a sentence each.
    """

    base: Evaluation
    text_prompt: Evaluation
    soft_prompt: Evaluation
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, dict[str, object]]:
        """{"base": …, "text_prompt": …, "soft_prompt": …}, each as `Evaluation.to_dict`."""
        return {
            "base": self.base.to_dict(),
            "text_prompt": self.text_prompt.to_dict(),
            "soft_prompt": self.soft_prompt.to_dict(),
        }


@dataclass(frozen=True)
class EvaluationRows:
    """What to evaluate on.

    Attributes:
        rows: the rows to score.
        shots: worked examples for the text prompt.
        notes: which rows these are, a sentence each.
    """

    rows: list[Record]
    shots: list[Record]
    notes: tuple[str, ...] = ()


def evaluation_rows(
    data: str, shots: int = 3, shots_data: str | None = None, card: Card | None = None
) -> EvaluationRows:
    """The rows to evaluate and the examples of the text prompt.

    A folder gives its test rows (validation if it has none) and examples from train; a file gives its rows, or those
    that were held out if the soft prompt was trained on the rest.

    Args:
        data: a file, a folder or a Hub dataset.
        shots: how many examples.
        shots_data: where they come from, if not from the training rows of `data`.
        card: of the soft prompt that will be scored: what it was trained on is not scored unnoticed.
    """
    seed = card.recipe.get("seed") if card is not None else None
    seed = seed if isinstance(seed, int) and 0 <= seed < 2**63 else 0
    if Path(data).is_file():
        rows, source, notes = _of_file(load_rows(data), seed, card)
    else:
        splits = load_splits(data, seed=seed)
        rows, source, notes = splits.test or splits.validation, splits.train, splits.notes
        notes = (*notes, f"scored on the {'test' if splits.test else 'validation'} rows")
    if shots_data:
        source = load_rows(shots_data) if Path(shots_data).is_file() else load_splits(shots_data).train
    return EvaluationRows(rows, pick_shots(source, shots), notes)


def _of_file(rows: list[Record], seed: int, card: Card | None) -> tuple[list[Record], list[Record], tuple[str, ...]]:
    """(rows to score, rows for examples, notes) of one file."""
    trained = card.data.get("train_sha256") if card is not None else None
    if trained is None:
        return rows, [], ()
    if digest(rows) == trained:
        return rows, [], ("the soft prompt was trained on these very rows",)
    try:
        rest, held_out = carve(rows, seed=seed)
    except DataError:  # too few rows to hold any out
        return rows, [], ()
    if digest(rest) != trained:
        return rows, [], ()
    note = f"scored on the {len(held_out)} rows held out in training; the other {len(rest)} were trained on"
    return held_out, rest, (note,)


def pick_shots(rows: Sequence[Record], count: int) -> list[Record]:
    """The first rows with different answers, then the first of the rest."""
    first: dict[str | None, int] = {}
    for i, row in enumerate(rows):
        first.setdefault(row.target, i)
    varied = set(first.values())
    return [*(rows[i] for i in first.values()), *(row for i, row in enumerate(rows) if i not in varied)][:count]


def compare(
    lm: FrozenLM,
    name: str,
    rows: Sequence[Record],
    *,
    instruction: str | None = None,
    shots: Sequence[Record] = (),
    sampling: Sampling | None = None,
) -> Comparison:
    """Evaluate base model, text prompt and soft prompt `name` on `rows`.

    Args:
        instruction: of the text prompt; the text the soft prompt started from, or one made from the class labels,
            if None.
        shots: worked examples in the text prompt.

    Raises:
        StoreError, WrongBaseError: the soft prompt cannot be used.
        DataError: the rows cannot.
    """
    prompt, card = store.load(store.locate(name), lm.geometry)
    soft = card_subject(prompt, card)
    if instruction is None:
        written = card.method.get("init_text")
        instruction = str(written) if written else (instruction_for(card.labels) if card.labels else "")
    base, text = base_subject(lm, soft.template), text_subject(lm, soft.template, instruction, shots)
    notes = (EMPTY,) if text == base else ()
    scores = [evaluate(lm, s, rows, labels=card.labels, sampling=sampling) for s in (base, text, soft)]
    return Comparison(scores[0], scores[1], scores[2], notes)
