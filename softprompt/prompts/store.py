"""Soft prompts on disk: a folder NAME/ with prompt.safetensors, card.json and README.md.

Loading reads safetensors and JSON only, checks everything against the base model before use, and never downloads,
imports or constructs anything a file names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import save_file

from softprompt.errors import StoreError, WrongBaseError
from softprompt.files import read_json, read_tensors, recover_all, recover_folder, write_folder, write_json
from softprompt.models.geometry import Geometry
from softprompt.prompts.card import FORMAT_VERSION, Card
from softprompt.prompts.forms import (
    Prompt,
    check_fits,
    expected_shapes,
    from_tensors,
    frozen,
    needed_shapes,
    prompt_digest,
)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TENSORS, CARD, README = "prompt.safetensors", "card.json", "README.md"
ROUTER = "router.json"  # of a folder that names several soft prompts, see `router`


def home() -> Path:
    """$SOFTPROMPT_HOME, by default ./prompts."""
    return Path(os.environ.get("SOFTPROMPT_HOME") or "prompts")


def locate(name: str) -> Path:
    """The folder of a prompt: a name inside `home()`, or a path that contains a slash.

    Raises StoreError for a name that is not `[a-z0-9][a-z0-9._-]*` of at most 64 characters.
    """
    if ("/" in name or os.sep in name) and "\0" not in name:
        return Path(name)
    if not NAME.fullmatch(name):
        raise StoreError(f"{name!r} is not a usable name", expected="a-z 0-9 . _ -, at most 64, not first a dot")
    return home() / name


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise StoreError if an artifact may not be written there.

    A soft prompt may be replaced with `overwrite`; whatever else has that name never is.
    """
    recover_folder(folder)
    if not os.path.lexists(folder):
        return
    if not any((folder / facts).is_file() for facts in (CARD, ROUTER)):
        what = "this is there already and is not a soft prompt, so it will not be replaced"
        raise StoreError(what, where=folder, hint="choose another name")
    if not overwrite:
        hint = "choose another --name, or --overwrite"
        raise StoreError("a soft prompt of that name is there", where=folder, hint=hint)


def save(
    folder: Path | str,
    prompt: Prompt,
    card: Card,
    *,
    readme: str = "",
    extras: Callable[[Path], None] | None = None,
    overwrite: bool = False,
) -> Card:
    """Write the artifact atomically; returns the card as written.

    Args:
        folder: where to, or as text what `locate` takes.
        prompt: is checked against the card's geometry first.
        readme: the text of README.md (a model card); a line of the card's facts if empty.
        extras: may write more files (a picture) in the folder it is given.
        overwrite: replace an artifact of that name instead of refusing.
    """
    folder = locate(folder) if isinstance(folder, str) else folder
    check_free(folder, overwrite)
    prompt = frozen(prompt)
    check_fits(prompt, card.geometry)
    card = card.model_copy(update={"sha256": prompt_digest(prompt), "form": prompt.form, "n_tokens": prompt.n_tokens})

    def fill(scratch: Path) -> None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in prompt.tensors().items()}
        save_file(tensors, scratch / TENSORS, metadata={"format": "pt"})
        write_json(scratch / CARD, card.model_dump(mode="json"))
        (scratch / README).write_text(
            readme or f"# {card.name}\n\n{card.form} prompt, {card.n_tokens} virtual tokens.\n",
            encoding="utf-8",
        )
        if extras is not None:
            extras(scratch)

    write_folder(folder, fill, overwrite=overwrite)
    return card


def load_card(folder: Path) -> Card:
    """The checked card of an artifact; StoreError if missing, damaged or of another format version."""
    recover_folder(folder)
    if not folder.is_dir():
        raise StoreError("no such soft prompt", where=folder, hint="softprompt list shows what is there")
    data = read_json(folder / CARD)
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise StoreError(
            "unknown format version",
            where=folder / CARD,
            expected=FORMAT_VERSION,
            got=version,
            hint="upgrade softprompt",
        )
    try:
        return Card.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"field {field or '(top)'}: {first['msg']}", where=folder / CARD) from error


def load(folder: Path | str, geometry: Geometry | None = None) -> tuple[Prompt, Card]:
    """The prompt and its card, checked: sizes before allocation, then shapes, finite values and sha256.

    Args:
        folder: where it is, or as text what `locate` takes: a name, or a path with a slash.
        geometry: of the base model it is meant for; None checks against the card's own.

    Raises:
        StoreError: missing, damaged, oversized or altered files.
        WrongBaseError: made for another base model; names both.
    """
    folder = locate(folder) if isinstance(folder, str) else folder
    card = load_card(folder)
    reason = geometry.differs(card.geometry) if geometry is not None else None
    if geometry is not None and reason is not None:
        raise WrongBaseError(
            "this soft prompt belongs to another base model",
            where=folder,
            expected=f"{card.geometry.base} ({card.geometry.fingerprint})",
            got=f"{geometry.base} ({geometry.fingerprint}): {reason}",
            hint=f"load it with --model {card.geometry.base}",
        )
    path, shapes = folder / TENSORS, expected_shapes(card.form, card.n_tokens, card.geometry)

    def check(name: str, shape: tuple[int, ...], dtype: str) -> None:
        if shape != shapes.get(name) or dtype not in {"F32", "F16", "BF16"}:
            raise StoreError(f"tensor {name}", where=path, expected=f"{shapes.get(name)} float", got=f"{shape} {dtype}")

    tensors = read_tensors(path, check)
    needed = needed_shapes(card.form, card.n_tokens, card.geometry, tensors)
    if missing := sorted(needed.keys() - tensors.keys()):
        raise StoreError("tensors are missing", where=path, got=", ".join(missing[:6]))
    prompt = from_tensors(card.form, tensors, card.geometry)
    check_fits(prompt, card.geometry)
    if prompt_digest(prompt) != card.sha256:
        raise StoreError("the tensors are not those the card describes (sha256)", where=path, hint="restore both files")
    return prompt, card


def list_cards(folder: Path) -> list[tuple[Path, Card | StoreError]]:
    """Every artifact folder directly below `folder`, by name; a damaged one comes with its error."""
    found: list[tuple[Path, Card | StoreError]] = []
    recover_all(folder, CARD)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and not path.name.startswith(".") and (path / CARD).exists():
            try:
                found.append((path, load_card(path)))
            except StoreError as error:
                found.append((path, error))
    return found
