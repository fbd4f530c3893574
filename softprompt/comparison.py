"""A soft prompt beside what it must beat: the base model alone and a text prompt, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt import store
from softprompt.data.formats import Record
from softprompt.data.load import load_rows, load_splits
from softprompt.decode import Sampling
from softprompt.evaluation import Evaluation, evaluate
from softprompt.framing import base_subject, card_subject, text_subject
from softprompt.model import FrozenLM
from softprompt.recipe import instruction_for


@dataclass(frozen=True)
class Comparison:
    """Evaluations on the same rows."""

    base: Evaluation
    text_prompt: Evaluation
    soft_prompt: Evaluation

    def to_dict(self) -> dict[str, dict[str, object]]:
        """{"base": …, "text_prompt": …, "soft_prompt": …}, each as `Evaluation.to_dict`."""
        return {
            "base": self.base.to_dict(),
            "text_prompt": self.text_prompt.to_dict(),
            "soft_prompt": self.soft_prompt.to_dict(),
        }


def evaluation_rows(data: str, shots: int, shots_data: str | None) -> tuple[list[Record], list[Record]]:
    """The rows to evaluate and the examples of the text prompt.

    A folder gives its test rows (validation if it has none) and examples from train; a file gives its rows.
    """
    if Path(data).is_file():
        rows, source = load_rows(data), []
    else:
        splits = load_splits(data)
        rows, source = splits.test or splits.validation, splits.train
    if shots_data:
        source = load_rows(shots_data) if Path(shots_data).is_file() else load_splits(shots_data).train
    return rows, pick_shots(source, shots)


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
    subjects = (base_subject(lm, soft.template), text_subject(lm, soft.template, instruction, shots), soft)
    return Comparison(*(evaluate(lm, s, rows, labels=card.labels, sampling=sampling) for s in subjects))
