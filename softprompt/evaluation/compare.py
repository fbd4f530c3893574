"""Compares soft prompts with the base model alone and with a text prompt, on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from softprompt.data.records import Record
from softprompt.data.row_shapes.registry import shape_of
from softprompt.deprecation import renamed_keywords
from softprompt.evaluation.custom_metrics import Metric
from softprompt.evaluation.evaluate import Evaluation, evaluate
from softprompt.evaluation.held_out import without_training_rows
from softprompt.evaluation.metrics import missing_scores
from softprompt.formatting.chat_template import ChatTemplateOf, use_chat_template
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, no_prompt
from softprompt.formatting.text_prompt import as_turns, instruction_for, text_prompt, without_shared_system
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store

EMPTY_TEXT_PROMPT = "the text prompt is empty, so it equals the base model: give --text-prompt or --shots-data"


@dataclass(frozen=True)
class Comparison:
    """Evaluations on the same rows.

    Attributes:
        soft_prompts: by name, at least one.
        notes: remarks on the numbers, a sentence each.
    """

    base: Evaluation
    text_prompt: Evaluation
    soft_prompts: dict[str, Evaluation]
    notes: tuple[str, ...] = ()

    @property
    def soft_prompt(self) -> Evaluation:
        """The first soft prompt's evaluation."""
        return next(iter(self.soft_prompts.values()))

    def to_dict(self) -> dict[str, dict[str, object]]:
        """{"base": …, "text_prompt": …, "soft_prompt": …}, each as `Evaluation.to_dict`; of several soft prompts
        {"soft_prompts": {name: …}} instead."""
        baselines = {"base": self.base.to_dict(), "text_prompt": self.text_prompt.to_dict()}
        if len(self.soft_prompts) == 1:
            return baselines | {"soft_prompt": self.soft_prompt.to_dict()}
        each: dict[str, object] = {name: scores.to_dict() for name, scores in self.soft_prompts.items()}
        return baselines | {"soft_prompts": each}


@renamed_keywords(own="extra_metrics")
def compare(
    lm: FrozenLM,
    names: str | Sequence[str],
    rows: Sequence[Record],
    *,
    instruction: str | None = None,
    shots: Sequence[Record] = (),
    sampling: Sampling | None = None,
    extra_metrics: Mapping[str, Metric] | None = None,
    training_rows: bool = False,
    chat_template: ChatTemplateOf = "",
    progress: Callable[[str, float], None] = lambda evaluated, share: None,
) -> Comparison:
    """Evaluate base model, text prompt and the soft prompts `names` (one or several) on `rows`.

    Base model and text prompt use the template of the first soft prompt. Of the rows of a file that a soft prompt was
    trained on, only those that training held out are scored, and a note says so.

    Args:
        instruction: of the text prompt. If None: the text that the first soft prompt started from, or one made from
            the class labels.
        shots: worked examples in the text prompt.
        extra_metrics: further metrics by name, as in `evaluate`.
        training_rows: score rows that a soft prompt was trained on, too.
        chat_template: whose to use if the model has another one than a soft prompt was trained with.
        progress: called with a name of what is evaluated, and the share of its rows that is done at least.

    Raises:
        StoreError, WrongBaseError: a soft prompt cannot be used.
        DataError: the rows cannot, or every one of them was trained on by one of several soft prompts.
    """
    names = [names] if isinstance(names, str) else names
    loaded = {name: store.load(store.find(name), lm.geometry) for name in names}
    soft = {name: use_chat_template(from_card(*pair), chat_template, lm) for name, pair in loaded.items()}
    card, template = loaded[names[0]][1], soft[names[0]].template
    notes = list[str]()
    if rows and not training_rows:
        held_out = without_training_rows(rows, [card for _, card in loaded.values()])
        rows, notes = (held_out.rows if len(held_out.rows) < len(rows) else rows), list(held_out.notes)
    if not template.text:  # conversations
        rows = [without_shared_system(as_turns(row, template), template) for row in rows]
    if instruction is None:
        init_text = card.method.get("init_text")
        instruction = str(init_text) if init_text else (instruction_for(card.labels) if card.labels else "")
    base, text = no_prompt(lm, template), text_prompt(lm, template, instruction, shots)
    notes += _notes(rows, text == base)
    if any(formatted.template != template for formatted in soft.values()):
        notes.append(f"the soft prompts have different templates; base model and text prompt have that of {names[0]}")

    def scores_for(name: str, formatted: FormattedPrompt, labels: Sequence[str]) -> Evaluation:
        tell = partial(progress, name)
        tell(0.0)
        own = evaluate(
            lm, formatted, rows, labels=labels, sampling=sampling, extra_metrics=extra_metrics, progress=tell
        )
        tell(1.0)
        return own

    base_scores = scores_for("base model", base, card.labels)
    text_scores = scores_for("text prompt", text, card.labels)
    scores = {name: scores_for(name, formatted, loaded[name][1].labels) for name, formatted in soft.items()}
    return Comparison(base_scores, text_scores, scores, tuple(notes))


def _notes(rows: Sequence[Record], empty_text_prompt: bool) -> Iterator[str]:
    if empty_text_prompt:
        yield EMPTY_TEXT_PROMPT
    missing = missing_scores() if rows and shape_of(rows[0]).scoring == "generation" else {}
    if missing:
        yield f"{' and '.join(missing)} left out: pip install 'softprompt[eval]'"
