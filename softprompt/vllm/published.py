"""A folder of published soft prompts for vLLM's own server: a NAME.json for each, and the compiled prefixes.

    tone.json                                   template, end tokens and prefix id of the soft prompt tone
    3f0c….safetensors                           its keys and values, named by content

A new version of a soft prompt is a new file and another id in its JSON. The old file stays, since running requests may
need it. Files that no JSON names can be deleted while no server runs.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import BaseModel, StrictInt, ValidationError

from softprompt.data.template import Template
from softprompt.errors import DataError, StoreError
from softprompt.files import read_json, write_json, writing
from softprompt.formatting.chat_template import pinned_chat_template
from softprompt.formatting.context import end_ids
from softprompt.formatting.formatted_prompt import from_card
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card, Layout
from softprompt.vllm.prefix_file import PREFIX_ID, compile_prefix, prefix_path, write_prefix

NO_LAYOUT = Layout()  # text around the virtual tokens is part of the compiled prefix


@dataclass(frozen=True)
class PublishedPrompt:
    """A soft prompt in the folder.

    Attributes:
        id: id of its compiled prefix.
        size: tokens of the prefix, including text around the virtual tokens.
        template: turns texts and conversations into the ids after the prefix.
        end_ids: tokens that end an answer.
        base: the base model's name, for error messages.
    """

    name: str
    id: str
    size: int
    template: Template
    end_ids: tuple[int, ...]
    base: str


class _PublishedFile(BaseModel):
    """The contents of NAME.json."""

    name: str
    id: str
    size: StrictInt
    template: dict[str, object]
    end_ids: tuple[int, ...]
    base: str


def publish(lm: FrozenLM, prompt: SoftPrompt, card: Card, folder: Path, *, overwrite: bool = False) -> PublishedPrompt:
    """Compile a soft prompt into the folder, under its card's name.

    Raises:
        StoreError: invalid name, another version exists already, or the folder cannot be written.
        UnsupportedModelError: the base model has layers without keys and values.
    """
    if not store.PROMPT_NAME.fullmatch(card.name):
        raise StoreError(
            "the card holds no valid name", where=folder, expected=store.PROMPT_NAME.pattern, got=repr(card.name[:80])
        )
    formatted = from_card(prompt, card)
    template = replace(formatted.template, chat_template=pinned_chat_template(formatted.template, lm.tokenizer))
    kv_L2TKD = compile_prefix(lm, formatted.prefix(lm))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder: {error.strerror}", where=folder) from error
    target = _json_path(folder, card.name)
    ends = tuple(end_ids(lm, formatted.template))
    entry = PublishedPrompt(card.name, write_prefix(folder, kv_L2TKD), kv_L2TKD.shape[2], template, ends, lm.name)
    if target.exists() and not overwrite and find_published(folder, card.name) != entry:
        raise StoreError("another version exists, and is kept", where=target, hint="--overwrite replaces it")
    content = asdict(entry) | {"template": entry.template.to_dict(), "end_ids": list(ends)}
    with writing(target), tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
        new = Path(scratch) / target.name
        write_json(new, content)
        os.replace(new, target)
    return entry


def find_published(folder: Path, name: str) -> PublishedPrompt | None:
    """The soft prompt of this name; None if there is none. Raises StoreError if it is damaged."""
    if not store.PROMPT_NAME.fullmatch(name) or not _json_path(folder, name).is_file():
        return None
    path = _json_path(folder, name)
    content = read_json(path)
    try:
        saved = _PublishedFile.model_validate(content)
        template = Template.from_dict(saved.template)
    except (ValidationError, DataError) as error:
        raise StoreError("not a published soft prompt", where=path, got=repr(error)) from error
    wrong = saved.name != name or not PREFIX_ID.fullmatch(saved.id) or saved.size < 1
    if wrong or not prefix_path(folder, saved.id).is_file():
        raise StoreError("not a published soft prompt, or its compiled prefix is gone", where=path)
    return PublishedPrompt(saved.name, saved.id, saved.size, template, saved.end_ids, saved.base)


def published_names(folder: Path) -> list[str]:
    """Names of all soft prompts in the folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.json") if store.PROMPT_NAME.fullmatch(path.stem))


def _json_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
