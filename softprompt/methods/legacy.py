"""The `method` section of 0.1, in which every method had the settings of all methods.

Settings files of 0.1 list them all, and digests in its checkpoints cover them all.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from softprompt.methods.config import FrozenTokens, Hidden, MethodConfig, Names, Sites
from softprompt.settings import Section


class ForeignFields(Section):
    """Settings of 0.1 that are now known to some methods only, with the defaults of 0.1."""

    sources: Names = ()
    frozen_tokens: FrozenTokens = 0
    hidden: Hidden = 512
    rank: int = Field(default=10, ge=1)
    n_prompts: int = Field(default=4, ge=2)
    sites: Sites = None


def not_default(values: Mapping[str, object]) -> dict[str, object]:
    """The values that differ from the default of 0.1."""
    defaults = ForeignFields().model_dump(mode="json")
    return {name: value for name, value in values.items() if value != defaults[name]}


def legacy_dump(settings: MethodConfig, **defaults: object) -> dict[str, object]:
    """The section as 0.1 dumped it, for digests: a run that 0.1 left unfinished can be resumed.

    Args:
        defaults: defaults of 0.1 other than those of training, e.g. frozen_tokens=1 in a distillation.
    """
    values = ForeignFields().model_dump(mode="json") | defaults | settings.foreign()
    values |= settings.model_dump(mode="json")
    for name, renamed in MethodConfig.renamed_values.items():
        old_values = {new: old for old, new in renamed.items()}
        value = str(values[name])
        values[name] = old_values.get(value, value)
    return values
