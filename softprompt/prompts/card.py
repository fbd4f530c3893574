"""The card: the JSON beside a soft prompt's tensors that says what it is, for which base model, and how it came about.

A card is data: loading one never downloads, imports or constructs anything.
"""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from softprompt.models.geometry import Geometry

FORMAT_VERSION = 1


class Layout(BaseModel):
    """What stands around the virtual tokens: [BOS] lead · virtual tokens · [BOS] follow, then the row.

    A KV prompt stands at position 0, so it has neither BOS nor lead: they are part of its keys and values.
    `follow_bos` is for prompts of tools that put the virtual tokens in front of the text's own BOS.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bos: bool = False
    lead: str = ""
    follow: str = ""
    follow_bos: bool = False


class Card(BaseModel):
    """The contents of card.json. Unknown keys and other format versions are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    form: Literal["embedding", "kv"]
    n_tokens: int = Field(ge=1, le=1_000_000)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the tensors, see prompt.digest
    base: dict[str, Any]  # Geometry.to_dict
    layout: Layout = Layout()
    template: dict[str, Any] = {}  # data.template.Template.to_dict
    labels: tuple[str, ...] = ()  # the classes, for a classification prompt
    method: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}  # digest and row counts; never the rows
    metrics: dict[str, Any] = {}
    versions: dict[str, str] = {}
    created: str = ""
    license: str | None = None

    @field_validator("base")
    @classmethod
    def _base_is_a_geometry(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return Geometry.from_dict(value).to_dict()
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a base model description: {error}") from error

    @property
    def geometry(self) -> Geometry:
        """The geometry of the base model the prompt was trained for."""
        return Geometry.from_dict(self.base)

    @property
    def trained_on(self) -> list[dict[str, Any]]:
        """{"sha256", "seed"} of every set of training rows, a composed prompt's inputs' too: what should not be scored.

        A card may come from a stranger, so what is not of this shape is left out.
        """
        own = {"sha256": self.data.get("train_sha256"), "seed": self.recipe.get("seed", 0)}
        given = self.data.get("trained_on")
        found = [own, *(given if isinstance(given, list) else [])]
        return [
            {"sha256": place["sha256"], "seed": seed if type(seed) is int and 0 <= seed < 2**63 else 0}
            for place in found
            if isinstance(place, dict) and isinstance(place.get("sha256"), str)
            for seed in [place.get("seed")]
        ]


def provenance() -> dict[str, Any]:
    """The fields `versions` and `created` of a card written now."""
    versions = {name: version(name) for name in ("softprompt", "torch", "transformers")}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions | {"python": platform.python_version()}, "created": now}
