"""Soft prompts for vLLM's own server: in a folder a NAME.json for each, beside the compiled prefixes that they name.

    tone.json                                   what a request for tone needs
    3f0c….safetensors                           its keys and values, by content

A new version of a soft prompt is a new file and another id in its JSON. The old file stays, since requests that run may
need it; when no server runs, files that no JSON names can be deleted.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softprompt.data.template import Template
from softprompt.errors import DataError, StoreError
from softprompt.files import read_json, write_json, writing
from softprompt.formatting.context import end_ids
from softprompt.formatting.formatted_prompt import from_card
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card, Layout
from softprompt.vllm.prefix_file import PREFIX_ID, compile_prefix, prefix_path, write_prefix

NO_LAYOUT = Layout()  # what stands around the virtual tokens is compiled with them


@dataclass(frozen=True)
class PublishedPrompt:
    """One soft prompt.

    Attributes:
        id: of its compiled prefix.
        size: tokens of the prefix, text around the virtual tokens included.
        template: how texts and conversations become the ids behind the prefix.
        end_ids: tokens that end an answer.
        base: the base model's name, for messages.
    """

    name: str
    id: str
    size: int
    template: Template
    end_ids: tuple[int, ...]
    base: str


def publish(lm: FrozenLM, prompt: SoftPrompt, card: Card, folder: Path, *, overwrite: bool = False) -> PublishedPrompt:
    """Compile a soft prompt into the folder, under its card's name.

    Raises:
        StoreError: its name is none, another version of it is there already, or the folder cannot be written.
        UnsupportedModelError: the base model keeps no keys and values that could be handed over.
    """
    if not store.NAME.fullmatch(card.name):
        raise StoreError("the card holds no name", where=folder, expected=store.NAME.pattern, got=repr(card.name[:80]))
    formatted = from_card(prompt, card)
    kv_L2TKD = compile_prefix(lm, formatted.prefix(lm))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder: {error.strerror}", where=folder) from error
    target = _json_path(folder, card.name)
    ends = tuple(end_ids(lm, formatted.template))
    found = PublishedPrompt(
        card.name, write_prefix(folder, kv_L2TKD), kv_L2TKD.shape[2], formatted.template, ends, lm.name
    )
    if target.exists() and not overwrite and find_published(folder, card.name) != found:
        raise StoreError("another version is there, and stays", where=target, hint="--overwrite puts this one there")
    facts = asdict(found) | {"template": found.template.to_dict(), "end_ids": list(ends)}
    with writing(target), tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
        new = Path(scratch) / target.name
        write_json(new, facts)
        os.replace(new, target)
    return found


def find_published(folder: Path, name: str) -> PublishedPrompt | None:
    """The soft prompt of this name; None if there is none. Raises StoreError for one that is damaged."""
    if not store.NAME.fullmatch(name) or not _json_path(folder, name).is_file():
        return None
    path = _json_path(folder, name)
    facts: Any = read_json(path)
    try:
        found = PublishedPrompt(
            facts["name"],
            facts["id"],
            facts["size"],
            Template.from_dict(facts["template"]),
            tuple(facts["end_ids"]),
            facts["base"],
        )
        wrong = found.name != name or not PREFIX_ID.fullmatch(found.id) or type(found.size) is not int or found.size < 1
    except (KeyError, TypeError, DataError) as error:
        raise StoreError("not a published soft prompt", where=path, got=repr(error)) from error
    if wrong or not prefix_path(folder, found.id).is_file():
        raise StoreError("not a published soft prompt, or its compiled prefix is gone", where=path)
    return found


def published_names(folder: Path) -> list[str]:
    """Of all soft prompts in the folder, by name."""
    return sorted(path.stem for path in folder.glob("*.json") if store.NAME.fullmatch(path.stem))


def _json_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
