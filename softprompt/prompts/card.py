"""The card: JSON beside a soft prompt's tensors with its form, base model, template and training.

A card is data: loading one never downloads, imports or constructs anything.
"""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

from softprompt.models.geometry import Geometry
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import form_names

FORMAT_VERSION = 1


class Layout(BaseModel):
    """The constant text around the virtual tokens: [BOS] lead · virtual tokens · [BOS] follow, then the row.

    A KV prompt starts at position 0 and has neither BOS nor lead: they are part of its keys and values.
    `follow_bos` is for prompts of tools that put the virtual tokens before the text's BOS.
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
    form: str  # name of a registered form, see forms.register_form
    n_tokens: int = Field(ge=1, le=1_000_000)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the tensors, see forms.prompt_digest
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

    @field_validator("form")
    @classmethod
    def _form_is_registered(cls, value: str) -> str:
        if value not in form_names():
            raise ValueError(f"unknown form {value!r}, known are {', '.join(form_names())}")
        return value

    @classmethod
    def draft(
        cls,
        name: str,
        prompt: SoftPrompt,
        base: Geometry,
        *,
        layout: Layout,
        template: dict[str, Any],
        labels: tuple[str, ...] = (),
        method: dict[str, Any],
        recipe: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        license: str | None = None,  # noqa: A002 - the field's name
    ) -> Card:
        """A card written now for an unsaved prompt: `store.save` replaces the sha256 of zeros."""
        return cls(
            name=name,
            form=prompt.form,
            n_tokens=prompt.n_tokens,
            sha256="0" * 64,
            base=base.to_dict(),
            layout=layout,
            template=template,
            labels=labels,
            method=method,
            recipe=recipe or {},
            data=data or {},
            metrics=metrics or {},
            license=license,
            **provenance(),
        )

    @property
    def geometry(self) -> Geometry:
        """The geometry of the base model the prompt was trained for."""
        return Geometry.from_dict(self.base)

    @property
    def trained_on(self) -> list[dict[str, Any]]:
        """{"sha256", "seed"} of every set of training rows, including those of a composed prompt's inputs.

        Such rows should not be scored. Entries of another shape are dropped, since a card may come from a stranger.
        """
        inputs = self.data.get("trained_on")
        entries: list[Any] = [{"sha256": self.data.get("train_sha256"), "seed": self.recipe.get("seed", 0)}]
        entries += inputs if isinstance(inputs, list) else []
        valid = [cast("dict[str, Any]", entry) for entry in entries if isinstance(entry, dict)]
        digests = [entry for entry in valid if isinstance(entry.get("sha256"), str)]
        return [{"sha256": entry["sha256"], "seed": _seed_of(entry)} for entry in digests]


def _seed_of(entry: dict[str, Any]) -> int:
    seed = entry.get("seed")
    return seed if type(seed) is int and 0 <= seed < 2**63 else 0


def provenance() -> dict[str, Any]:
    """The fields `versions` and `created` of a card written now."""
    versions = {name: version(name) for name in ("softprompt", "torch", "transformers")}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions | {"python": platform.python_version()}, "created": now}
