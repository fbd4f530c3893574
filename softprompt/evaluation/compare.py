"""Soft prompts beside what they must beat: the base model alone and a text prompt, on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softprompt.data.records import Record
from softprompt.evaluation.custom_metrics import Metric
from softprompt.evaluation.evaluate import Evaluation, evaluate
from softprompt.formatting.formatted_prompt import from_card, no_prompt
from softprompt.formatting.text_prompt import as_turns, instruction_for, text_prompt
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store

EMPTY = "the text prompt is empty, so it is the base model again: --text-prompt or --shots-data gives it words"


@dataclass(frozen=True)
class Comparison:
    """Evaluations on the same rows.

    Attributes:
        soft_prompts: by name, at least one.
        notes: what a reader of the numbers should know, a sentence each.
    """

    base: Evaluation
    text_prompt: Evaluation
    soft_prompts: dict[str, Evaluation]
    notes: tuple[str, ...] = ()

    @property
    def soft_prompt(self) -> Evaluation:
        """The first one's."""
        return next(iter(self.soft_prompts.values()))

    def to_dict(self) -> dict[str, dict[str, object]]:
        """{"base": …, "text_prompt": …, "soft_prompt": …}, each as `Evaluation.to_dict`; of several soft prompts
        {"soft_prompts": {name: …}} instead."""
        baselines = {"base": self.base.to_dict(), "text_prompt": self.text_prompt.to_dict()}
        if len(self.soft_prompts) == 1:
            return baselines | {"soft_prompt": self.soft_prompt.to_dict()}
        each: dict[str, object] = {name: one.to_dict() for name, one in self.soft_prompts.items()}
        return baselines | {"soft_prompts": each}


def compare(
    lm: FrozenLM,
    names: str | Sequence[str],
    rows: Sequence[Record],
    *,
    instruction: str | None = None,
    shots: Sequence[Record] = (),
    sampling: Sampling | None = None,
    own: Mapping[str, Metric] | None = None,
) -> Comparison:
    """Evaluate base model, text prompt and the soft prompts `names` (one or several) on `rows`.

    Base model and text prompt are laid out as the first soft prompt is.

    Args:
        instruction: of the text prompt; the text the first soft prompt started from, or one made from the class
            labels, if None.
        shots: worked examples in the text prompt.
        own: further metrics, as in `evaluate`.

    Raises:
        StoreError, WrongBaseError: a soft prompt cannot be used.
        DataError: the rows cannot.
    """
    names = [names] if isinstance(names, str) else names
    loaded = {name: store.load(store.locate(name), lm.geometry) for name in names}
    soft = {name: from_card(prompt, card) for name, (prompt, card) in loaded.items()}
    card, template = loaded[names[0]][1], soft[names[0]].template
    if not template.text:  # conversations
        rows = [as_turns(row, template) for row in rows]
    if instruction is None:
        written = card.method.get("init_text")
        instruction = str(written) if written else (instruction_for(card.labels) if card.labels else "")
    base, text = no_prompt(lm, template), text_prompt(lm, template, instruction, shots)
    notes = [EMPTY] if text == base else []
    if any(formatted.template != template for formatted in soft.values()):
        notes.append(f"the soft prompts have different templates; base model and text prompt have that of {names[0]}")
    base_scores, text_scores = (
        evaluate(lm, s, rows, labels=card.labels, sampling=sampling, own=own) for s in (base, text)
    )
    scores = {
        name: evaluate(lm, formatted, rows, labels=loaded[name][1].labels, sampling=sampling, own=own)
        for name, formatted in soft.items()
    }
    return Comparison(base_scores, text_scores, scores, tuple(notes))
