"""All sections of an inspection, as `softprompt inspect` prints them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from softprompt.data.records import Record
from softprompt.errors import ConfigError, UnsupportedModelError
from softprompt.formatting.formatted_prompt import FormattedPrompt
from softprompt.inspection.attention import AttentionReading, attention_reading
from softprompt.inspection.behavior import Behavior, behavior
from softprompt.inspection.drift import Drift, drift
from softprompt.inspection.effect import PromptEffect
from softprompt.inspection.layers import LayerBand, layer_bands
from softprompt.inspection.leak import Leak, leak
from softprompt.inspection.nearest import Nearest, nearest
from softprompt.inspection.rows import neutral_rows, with_own_answers
from softprompt.inspection.worth import TokenWorth, token_worth
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.base import SoftPrompt

_Reading = TypeVar("_Reading")
READINGS = ("behavior", "nearest", "drift", "worth", "layers", "attention", "leak")
_FEW = 4  # rows of sections that run each row many times
_BANDS = 10  # of layers


@dataclass(frozen=True)
class Inspection:
    """The readings of a soft prompt. A section that was not wanted, or has no meaning for this prompt, is None.

    Attributes:
        rows: how many rows the effect was measured on.
        effect: E(P), nats an answer token.
        left_out: reason for each section that has no meaning here, by its name.
    """

    rows: int
    effect: float
    behavior: Behavior | None
    nearest: Nearest | None
    drift: Drift | None
    worth: TokenWorth | None
    layers: tuple[LayerBand, ...] | None
    attention: AttentionReading | None
    leak: Leak | None
    left_out: dict[str, str]

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
    on_section: Callable[[str], None] = lambda section: None,
) -> Inspection:
    """Read a soft prompt.

        prompts = softprompt.load_prompts(lm, ["tone"])
        print(softprompt.inspect(lm, prompts["tone"]).nearest.recovered)

    Args:
        formatted: the soft prompt with its template and layout.
        records: rows with answers that it was not trained on; without any a few neutral texts with its own answers.
        only: names of sections.
        start: the prompt that training began from.
        text: that it was trained on or distilled from, for the section "leak".
        on_section: called with the name of the section that begins.

    Raises:
        ConfigError: an unknown section.
        PromptError: there is no soft prompt.
        DataError: the rows cannot be used.
    """
    if unknown := sorted(set(only) - set(READINGS)):
        raise ConfigError("no such section", where="--only", expected=", ".join(READINGS), got=", ".join(unknown))
    neutral = neutral_rows(formatted)
    rows = with_own_answers(lm, formatted, neutral if records is None else records)
    effect = PromptEffect(lm, formatted, rows)
    few = PromptEffect(lm, formatted, rows[:_FEW]) if {"worth", "layers"} & set(only) else effect
    left_out: dict[str, str] = {}

    def section(name: str, read: Callable[[], _Reading | None]) -> _Reading | None:
        if name not in only:
            return None
        on_section(name)
        try:
            return read()
        except UnsupportedModelError as error:
            left_out[name] = error.what
            return None

    def of_foreign() -> Behavior:
        if records is None:
            return behavior(effect)
        return behavior(effect, PromptEffect(lm, formatted, with_own_answers(lm, formatted, neutral)))

    if "leak" in only and not text:
        left_out["leak"] = "it needs the text that the soft prompt was trained on (--text FILE)"
    if "nearest" in only and effect.prompt.input_embeddings() is None:
        left_out["nearest"] = "keys and values have no place among the vocabulary's embeddings"
    return Inspection(
        rows=len(effect.examples),
        effect=effect.total,
        behavior=section("behavior", of_foreign),
        nearest=section("nearest", lambda: nearest(effect, start)),
        drift=section("drift", lambda: drift(lm, effect.prompt, start)),
        worth=section("worth", lambda: token_worth(few)),
        layers=section("layers", lambda: layer_bands(few, -(-len(lm.geometry.layers) // _BANDS))),
        attention=section("attention", lambda: attention_reading(effect)),
        leak=section("leak", lambda: leak(lm, formatted, text)) if text else None,
        left_out=left_out,
    )
