"""All sections of an inspection, as `softprompt inspect` prints them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

from softprompt.data.records import Record
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.inspection.attention import AttentionReading, attention_reading
from softprompt.inspection.behavior import Behavior, behavior
from softprompt.inspection.controls import random_like
from softprompt.inspection.drift import Drift, drift
from softprompt.inspection.effect import PromptEffect
from softprompt.inspection.layers import HeadLoss, LayerBand, head_losses, layer_bands
from softprompt.inspection.leak import Leak, leak
from softprompt.inspection.lens import LensLayer, lens
from softprompt.inspection.likeness import Likeness, likeness
from softprompt.inspection.nearest import Nearest, nearest
from softprompt.inspection.rows import neutral_rows, with_own_answers
from softprompt.inspection.verbalize import Verbalization, search_text
from softprompt.inspection.worth import TokenWorth, token_worth
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt

_Reading = TypeVar("_Reading")
READINGS = (
    "behavior",
    "nearest",
    "drift",
    "worth",
    "layers",
    "heads",
    "attention",
    "lens",
    "leak",
    "likeness",
)
IN_WORDS = "words"  # the section that takes longer than all others together, and is read only by its name
_SOME = 256  # tokens of rows for sections that run them a few times
_FEW = 48  # tokens of the shortest rows for sections that run them many times
_FEWEST = 32  # tokens of the shortest rows for the section that runs them a hundred times and more
_BANDS = 10  # of layers


@dataclass(frozen=True)
class Inspection:
    """The readings of a soft prompt. A section that was not wanted, or has no meaning for this prompt, is None.

    Attributes:
        rows: how many rows the effect was measured on.
        effect: E(P), nats an answer token.
        recovered: of a control the share of the inspected prompt's effect that it has in its place; else 1.
        left_out: reason for each section that has no meaning here, by its name.
        controls: the readings of "start", the untrained prompt, if it is known, and of "random", one of equal norms.
    """

    rows: int
    effect: float
    recovered: float
    behavior: Behavior | None
    nearest: Nearest | None
    drift: Drift | None
    worth: TokenWorth | None
    layers: tuple[LayerBand, ...] | None
    heads: tuple[HeadLoss, ...] | None
    attention: AttentionReading | None
    lens: tuple[LensLayer, ...] | None
    leak: Leak | None
    likeness: Likeness | None
    words: Verbalization | None
    left_out: dict[str, str]
    controls: Mapping[str, Inspection] = field(default_factory=dict[str, "Inspection"])

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def inspect(
    lm: FrozenLM,
    formatted: FormattedPrompt,
    records: Sequence[Record] | None = None,
    *,
    only: Collection[str] = READINGS,
    start: SoftPrompt | None = None,
    text: str = "",
    others: Iterable[tuple[str, SoftPrompt]] = (),
    name: str = "",
    keep_on_interrupt: bool = False,
    on_section: Callable[[str], None] = lambda section: None,
) -> Inspection:
    """Read a soft prompt.

        prompts = softprompt.load_prompts(lm, ["tone"])
        print(softprompt.inspect(lm, prompts["tone"]).nearest.recovered)

    Args:
        formatted: the soft prompt with its template and layout.
        records: rows with answers that it was not trained on; without any a few neutral texts with its own answers.
        only: names of sections; "words" is one more, the text of `softprompt.verbalize`.
        start: the prompt that training began from.
        text: that it was trained on or distilled from, for the section "leak".
        others: names and soft prompts of the same base model and form, for the section "likeness".
        name: of the soft prompt.
        keep_on_interrupt: return the sections that are done when Ctrl-C is pressed, instead of raising.
        on_section: called with the name of the section that begins.

    Raises:
        ConfigError: an unknown section.
        PromptError: there is no soft prompt.
        DataError: the rows cannot be used.
    """
    check_sections(only)
    neutral = neutral_rows(formatted)
    rows = with_own_answers(lm, formatted, neutral if records is None else records)
    effect = PromptEffect(lm, formatted, rows)
    sections = _Sections(only, on_section, keep_on_interrupt)
    foreign = None
    if records is not None and "behavior" in only:
        foreign = PromptEffect(lm, formatted, with_own_answers(lm, formatted, neutral))
    if not text:
        sections.leave_out("leak", "it needs the text that the soft prompt was trained on (--text FILE)")
    some, few = effect.first(_SOME), effect.shortest(_FEW)
    fewest = effect.shortest(_FEWEST)
    found = _shared_readings(effect, few, sections, foreign, start)
    found = replace(
        found,
        nearest=sections.read("nearest", lambda: nearest(some, start)),
        worth=sections.read("worth", lambda: token_worth(fewest)),
        heads=sections.read("heads", lambda: head_losses(few, found.layers or layer_bands(few, _band_size(lm)))),
        lens=sections.read("lens", lambda: lens(few)),
        leak=sections.read("leak", lambda: leak(lm, formatted, text)),
        likeness=sections.read("likeness", lambda: likeness(effect.prompt, others, name, start)),
    )
    controls = {"start": start, "random": random_like(effect.prompt)}
    read = {label: _control(some, prompt, sections, label) for label, prompt in controls.items() if prompt is not None}
    if found.likeness is None:
        sections.leave_out("likeness", "there is no other saved soft prompt of this base model and form")
    words = sections.read(IN_WORDS, lambda: search_text(effect, start, sections.on_section))
    done = {label: control for label, control in read.items() if control is not None}
    return replace(found, words=words, left_out=sections.left_out, controls=done)


def check_sections(only: Collection[str]) -> None:
    """Raise ConfigError for a section that does not exist."""
    if unknown := sorted(set(only) - {*READINGS, IN_WORDS}):
        known = ", ".join((*READINGS, IN_WORDS))
        raise ConfigError("no such section", where="--only", expected=known, got=", ".join(unknown))


class _Sections:
    """Runs the sections that are wanted, and notes why others are left out."""

    def __init__(self, only: Collection[str], on_section: Callable[[str], None], keep_on_interrupt: bool) -> None:
        self.only, self.on_section = frozenset(only), on_section
        self.keep_on_interrupt, self.interrupted = keep_on_interrupt, False
        self.left_out: dict[str, str] = {}

    def leave_out(self, name: str, reason: str) -> None:
        """Note the reason, unless there is one already."""
        if name in self.only:
            self.left_out.setdefault(name, reason)

    def read(self, name: str, reading: Callable[[], _Reading], label: str = "") -> _Reading | None:
        """The section, or None with its reason in `left_out`."""
        if self.interrupted:
            self.leave_out(name, "interrupted")
        if name not in self.only or name in self.left_out:
            return None
        try:
            self.on_section(f"{name} of the {label} prompt" if label else name)
            return reading()
        except UnsupportedModelError as error:
            self.leave_out(name, error.what)
        except KeyboardInterrupt:
            if not self.keep_on_interrupt:
                raise
            self.interrupted = True
            if not label:
                self.leave_out(name, "interrupted")
        return None


def _shared_readings(
    effect: PromptEffect,
    few: PromptEffect,
    sections: _Sections,
    foreign: PromptEffect | None = None,
    start: SoftPrompt | None = None,
    label: str = "",
) -> Inspection:
    """The sections that controls have as well; the others hold their controls in themselves."""
    lm, some = effect.lm, effect.first(_SOME)
    return Inspection(
        rows=len(effect.examples),
        effect=effect.total,
        recovered=1.0,
        behavior=sections.read("behavior", lambda: behavior(effect, foreign), label),
        nearest=None,
        drift=sections.read("drift", lambda: drift(lm, effect.prompt, start), label),
        worth=None,
        layers=sections.read("layers", lambda: layer_bands(few, _band_size(lm)), label),
        heads=None,
        attention=sections.read("attention", lambda: attention_reading(some), label),
        lens=None,
        leak=None,
        likeness=None,
        words=None,
        left_out=sections.left_out,
    )


def _control(effect: PromptEffect, prompt: SoftPrompt, sections: _Sections, label: str) -> Inspection | None:
    """The readings of a control prompt on the same rows; None if nothing of it was wanted or Ctrl-C came."""
    if sections.interrupted:
        return None
    sections.on_section(f"the {label} prompt")
    try:
        own = effect.of_other(prompt)
        found = _shared_readings(own, own.shortest(_FEW), sections, label=label)
        return replace(found, recovered=effect.share(own.states))
    except KeyboardInterrupt:
        if not sections.keep_on_interrupt:
            raise
        sections.interrupted = True
        return None


def _band_size(lm: FrozenLM) -> int:
    return -(-len(lm.geometry.layers) // _BANDS)
