"""Settings of the training objective: next tokens, preferences (DPO) or rewards (GRPO)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from softprompt.errors import ConfigError
from softprompt.settings import Section, flag

ObjectiveName = Literal["next-token", "dpo", "grpo"]

# The settings that only some objectives have, with these.
_OWNERS: dict[str, tuple[ObjectiveName, ...]] = {
    "beta": ("dpo", "grpo"),
    "reference": ("dpo", "grpo"),
    "label_smoothing": ("dpo",),
    "sft_weight": ("dpo",),
    "reward": ("grpo",),
    "group_size": ("grpo",),
    "temperature": ("grpo",),
    "max_new_tokens": ("grpo",),
}
_BETAS: dict[str, float] = {"dpo": 0.1, "grpo": 0.04}  # of the papers


class ObjectiveConfig(Section):
    """What a run learns from: given answers, pairs of answers, or rewards of its own answers."""

    name: ObjectiveName = Field(
        default="next-token",
        description="next-token learns given answers, dpo prefers chosen to rejected answers, grpo raises a reward",
        json_schema_extra=flag("--objective", help="next-token, dpo (chosen and rejected answers) or grpo (--reward)."),
    )
    beta: float | None = Field(
        default=None,
        ge=0,
        description="dpo, grpo: weight of staying near the reference; 0.1 for dpo and 0.04 for grpo if not given",
        json_schema_extra=flag("--beta", help="Of dpo and grpo: weight of staying near the reference."),
    )
    reference: Literal["start", "base"] = Field(
        default="start",
        description="dpo, grpo: the reference is the untrained start of the soft prompt, or the base model without one",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="dpo: share of pairs that are taken to be in the wrong order"
    )
    sft_weight: float = Field(
        default=1.0,
        ge=0,
        description="dpo: weight of the chosen answers' own loss, which keeps them likely; 0 for plain DPO",
    )
    reward: str | None = Field(
        default=None,
        description="grpo: FILE.py:function of yours, given on the command line only, since its code is run",
        json_schema_extra=flag(
            "--reward", help="Of grpo: FILE.py:function of yours, (prompts, completions, rows) to numbers."
        ),
    )
    group_size: int = Field(
        default=8,
        ge=2,
        description="grpo: answers that are drawn for each row and compared with each other",
        json_schema_extra=flag("--group-size", help="Of grpo: answers drawn for each row."),
    )
    temperature: float = Field(default=1.0, ge=0.01, lt=100, description="grpo: of the answers that are drawn")
    max_new_tokens: int = Field(
        default=64,
        ge=1,
        description="grpo: tokens of an answer at most",
        json_schema_extra=flag("--max-new-tokens", help="Of grpo: tokens of an answer at most."),
    )

    def check(self) -> None:
        """Raise ConfigError for settings that this objective has no use for, and for a missing reward."""
        for setting, owners in _OWNERS.items():
            value = getattr(self, setting)
            if value != type(self).model_fields[setting].default and self.name not in owners:
                what = f"{setting} is a setting of --objective {' or '.join(owners)}, not of {self.name}"
                raise ConfigError(what, where=f"objective.{setting}", got=value)
        if self.name == "grpo" and self.reward is None:
            hint = "--reward FILE.py:function, a function of (prompts, completions, rows)"
            raise ConfigError("--objective grpo needs --reward", where="objective.reward", hint=hint)
        if self.name == "dpo" and self.beta == 0:
            what = "with beta 0 the loss of dpo is the same for every prompt"
            raise ConfigError(what, where="objective.beta", expected="> 0", got=self.beta)

    @property
    def strength(self) -> float:
        """`beta`, or its default for this objective."""
        return _BETAS.get(self.name, 0.0) if self.beta is None else self.beta

    @property
    def generates(self) -> bool:
        """Whether the answers are generated in training, so that rows need none."""
        return self.name == "grpo"

    @property
    def answer_room(self) -> int:
        """Tokens that an answer may take behind a row of which only the prompt is known."""
        return self.max_new_tokens if self.generates else 0

    def used(self) -> dict[str, object]:
        """The settings that this objective has, with their values: for cards, and for digests of runs."""
        values: dict[str, object] = self.model_dump(mode="json", exclude={"beta"})
        own = {key: value for key, value in values.items() if self.name in _OWNERS.get(key, (self.name,))}
        return own | ({"beta": self.strength} if self.name in _OWNERS["beta"] else {})
