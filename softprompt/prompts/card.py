"""The card: JSON beside a soft prompt's tensors with its form, base model, template and training.

A card is data: loading one never downloads, imports or constructs anything.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, TypedDict, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator

from softprompt.models.geometry import Geometry

if TYPE_CHECKING:  # torch: a card is read without it
    from softprompt.prompts.base import SoftPrompt

FORMAT_VERSION = 1
_BUILT_IN_FORMS = ("embedding", "kv", "state")  # known without importing torch


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


class TrainedRows(TypedDict):
    """A set of training rows: its digest, and the seed that split its validation rows off."""

    sha256: str
    seed: int


class Provenance(TypedDict):
    """The fields of a card that say when it was written, and with which software."""

    versions: dict[str, str]
    created: str


class Card(BaseModel):
    """The contents of card.json. Unknown keys and other format versions are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    form: str  # name of a registered form, see forms.register_form
    n_tokens: int = Field(ge=1, le=1_000_000)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the tensors, see forms.prompt_digest
    base: dict[str, object]  # Geometry.to_dict
    layout: Layout = Layout()
    template: dict[str, object] = {}  # data.template.Template.to_dict
    chat_template: str = ""  # Jinja text that the soft prompt was trained with; empty: none, or not known
    labels: tuple[str, ...] = ()  # the classes, for a classification prompt
    method: dict[str, object] = {}
    recipe: dict[str, object] = {}
    data: dict[str, object] = {}  # digest and row counts; never the rows
    metrics: dict[str, object] = {}
    versions: dict[str, str] = {}
    created: str = ""
    license: str | None = None

    @field_validator("base")
    @classmethod
    def _base_is_a_geometry(cls, value: dict[str, object]) -> dict[str, object]:
        try:
            return Geometry.from_dict(value).to_dict()
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a base model description: {error}") from error

    @field_validator("form")
    @classmethod
    def _form_is_registered(cls, value: str) -> str:
        if value in _BUILT_IN_FORMS:
            return value
        from softprompt.prompts.forms import form_names

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
        template: Mapping[str, object],
        chat_template: str = "",
        labels: tuple[str, ...] = (),
        method: Mapping[str, object],
        recipe: Mapping[str, object] | None = None,
        data: Mapping[str, object] | None = None,
        metrics: Mapping[str, object] | None = None,
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
            template=dict(template),
            chat_template=chat_template,
            labels=labels,
            method=dict(method),
            recipe=dict(recipe or {}),
            data=dict(data or {}),
            metrics=dict(metrics or {}),
            license=license,
            **provenance(),
        )

    @property
    def geometry(self) -> Geometry:
        """The geometry of the base model the prompt was trained for."""
        return Geometry.from_dict(self.base)

    @property
    def trained_on(self) -> list[TrainedRows]:
        """Every set of training rows, including those of a composed prompt's inputs.

        Such rows should not be scored. Entries of another shape are dropped, since a card may come from a stranger.
        """
        inputs = self.data.get("trained_on")
        entries: list[object] = [{"sha256": self.data.get("train_sha256"), "seed": self.recipe.get("seed", 0)}]
        entries += cast("list[object]", inputs) if isinstance(inputs, list) else []
        return [rows for entry in entries if (rows := _trained_rows(entry)) is not None]


def _trained_rows(entry: object) -> TrainedRows | None:
    """A set of training rows as cards name it, None for anything else; a seed that is none is 0."""
    if not isinstance(entry, dict):
        return None
    fields = cast("dict[object, object]", entry)
    sha256, seed = fields.get("sha256"), fields.get("seed")
    if not isinstance(sha256, str):
        return None
    return {"sha256": sha256, "seed": seed if type(seed) is int and 0 <= seed < 2**63 else 0}


def provenance() -> Provenance:
    """The date and the versions of the software that writes a card now."""
    versions = {name: version(name) for name in ("softprompt", "torch", "transformers")}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions | {"python": platform.python_version()}, "created": now}
