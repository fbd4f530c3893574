"""A text that says what a soft prompt does, judged by the share of its effect that the text has as a text prompt.

Free-standing soft prompts need not be sayable: an optimum of the loss is near any text (Khashabi et al. 2022,
https://arxiv.org/abs/2112.08348), and self-descriptions may be invented. So candidates (`descriptions`) are put in the
prompt's place as texts, the best is chosen on one half of the rows, and its share is measured on the other half. The
same search on the untrained start and on a random prompt says what the search finds by itself.

Of the sentences of all candidates a text is put together greedily, as long as each sentence adds to the share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from softprompt.data.records import Record
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.inspection.controls import random_like
from softprompt.inspection.descriptions import Description, descriptions, sentences
from softprompt.inspection.effect import PromptEffect
from softprompt.inspection.rows import neutral_rows, with_own_answers
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt

LITTLE = 0.25  # share of the effect below which no text is called a description
_MEASURING = 384  # tokens of rows that the share is measured on
_JUDGING = 256  # tokens of rows that candidates are judged on
_CHOOSING = 96  # tokens of rows that sentences are chosen on, which are many
_SENTENCES = 24  # of the best candidates that a text is put together of
_ROUNDS = 4  # sentences of that text


@dataclass(frozen=True)
class JudgedText:
    """A text in the place of a soft prompt.

    Attributes:
        text: an instruction.
        source: where it comes from, as in `Description`, or "sentences" of several candidates.
        recovered: share of the soft prompt's effect on the rows that candidates are judged on.
    """

    text: str
    source: str
    recovered: float


@dataclass(frozen=True)
class Verbalization:
    """The best text for a soft prompt.

    Attributes:
        best: chosen among `candidates`.
        recovered: its share of the effect on other rows than it was chosen on.
        controls: the same share of the best texts found for "start", if it is known, and for "random".
        candidates: all, best first.
        rows: how many rows there were.
    """

    best: JudgedText
    recovered: float
    controls: dict[str, float]
    candidates: tuple[JudgedText, ...]
    rows: int

    @property
    def says_it(self) -> bool:
        """Whether the text holds a notable part of the effect, and more than the controls' texts."""
        return self.recovered >= max(LITTLE, *(share + 0.05 for share in self.controls.values()))

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        return {**asdict(self), "says_it": self.says_it}


def verbalize(
    lm: FrozenLM,
    formatted: FormattedPrompt,
    records: Sequence[Record] | None = None,
    *,
    start: SoftPrompt | None = None,
    on_section: Callable[[str], None] = lambda section: None,
) -> Verbalization:
    """Search a text that says what a soft prompt does.

        prompts = softprompt.load_prompts(lm, ["tone"])
        found = softprompt.verbalize(lm, prompts["tone"])
        print(found.best.text, found.recovered, found.controls)

    Args:
        formatted: the soft prompt with its template and layout.
        records: rows with answers that it was not trained on, at least four; without any a few neutral texts with its
            own answers.
        start: the prompt that training began from.
        on_section: called with the name of each step.

    Raises:
        PromptError: there is no soft prompt.
        DataError: the rows cannot be used.
    """
    rows = with_own_answers(lm, formatted, neutral_rows(formatted) if records is None else records)
    return search_text(PromptEffect(lm, formatted, rows), start, on_section)


def search_text(effect: PromptEffect, start: SoftPrompt | None, on_section: Callable[[str], None]) -> Verbalization:
    """The same for a measured effect. Raises DataError for less than four rows."""
    judge, test = effect.halves(_MEASURING)
    judge = judge.first(_JUDGING)
    controls = {"start": start, "random": random_like(effect.prompt)}
    on_section("candidates")
    candidates = _search(judge, descriptions(effect), on_section)
    shares: dict[str, float] = {}
    for label, prompt in controls.items():
        if prompt is not None:
            on_section(f"candidates of the {label} prompt")
            other = _search(judge, descriptions(judge.of_other(prompt)), on_section)
            shares[label] = test.recovered_by_text(other[0].text) if other else 0.0
    best = candidates[0] if candidates else JudgedText("", "none", 0.0)
    return Verbalization(best, test.recovered_by_text(best.text), shares, tuple(candidates), len(effect.examples))


def _search(judge: PromptEffect, found: Sequence[Description], on_section: Callable[[str], None]) -> list[JudgedText]:
    """All candidates and the text of their best sentences, best first."""
    on_section(f"judging {len(found)} candidates")
    judged = [JudgedText(each.text, each.source, judge.recovered_by_text(each.text)) for each in found]
    judged.sort(key=lambda text: -text.recovered)
    pool = list(dict.fromkeys(sentence for text in judged for sentence in sentences(text.text)))[:_SENTENCES]
    on_section(f"putting a text together of {len(pool)} sentences")
    if together := _joined(judge.first(_CHOOSING), pool):
        judged.append(JudgedText(together, "sentences", judge.recovered_by_text(together)))
    return sorted(judged, key=lambda text: -text.recovered)


def _joined(chooser: PromptEffect, pool: Sequence[str]) -> str:
    """Greedily the sentences that add to the share; "" if none has one."""
    alone = {sentence: chooser.recovered_by_text(sentence) for sentence in pool}
    ranked = sorted(pool, key=lambda sentence: -alone[sentence])[: 2 * _ROUNDS]
    chosen, share = list[str](), 0.0
    for _ in range(_ROUNDS):
        tried = {
            sentence: alone[sentence] if not chosen else chooser.recovered_by_text("\n".join([*chosen, sentence]))
            for sentence in ranked
            if sentence not in chosen
        }
        best = max(tried, key=tried.__getitem__, default="")
        if not best or tried[best] <= share:
            break
        chosen, share = [*chosen, best], tried[best]
    return "\n".join(chosen)
