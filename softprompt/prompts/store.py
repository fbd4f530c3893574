"""Soft prompts on disk: a folder NAME/ with prompt.safetensors, card.json and README.md.

Loading reads safetensors and JSON only, checks everything against the base model before use, and never downloads,
imports or constructs anything a file names. What the user names may be fetched from elsewhere, see `find`.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from softprompt.errors import StoreError, WrongBaseError
from softprompt.files import read_json, read_tensors, recover_all, recover_folder, write_folder, write_json
from softprompt.models.geometry import Geometry
from softprompt.prompts.card import FORMAT_VERSION, Card

if TYPE_CHECKING:  # torch: listing, finding and reading cards do without it
    from softprompt.prompts.base import Shape, SoftPrompt

PROMPT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # of a soft prompt
CARD = "card.json"
TENSORS = "prompt.safetensors"
README = "README.md"
_FLOATS = {"F32", "F16", "BF16"}  # safetensors' names of `forms.DTYPES`
_FRESH_S = 30.0  # see `find`
_found: dict[str, tuple[float, Path]] = {}  # when it was looked up, and where it is
ROUTER = "router.json"  # of a folder that names several soft prompts, see `router`


def home() -> Path:
    """The folder of saved soft prompts: $SOFTPROMPT_HOME, by default ./prompts."""
    return Path(os.environ.get("SOFTPROMPT_HOME") or "prompts")


def locate(name: str) -> Path:
    """The folder of a prompt, given as a name inside `home()` or as a path that contains a slash.

    Raises StoreError for a name that is not `[a-z0-9][a-z0-9._-]*` of at most 64 characters.
    """
    if ("/" in name or os.sep in name) and "\0" not in name:
        return Path(name)
    if not PROMPT_NAME.fullmatch(name):
        raise StoreError(f"{name!r} is not a usable name", expected="a-z 0-9 . _ -, at most 64, not first a dot")
    return home() / name


def find(name: str) -> Path:
    """The folder to read a soft prompt from: that of `locate`, or a copy of one that is elsewhere, fetched if need be.

    A name with a slash that is no folder here is the Hub's: owner/name or owner/name@revision (./a/b never is). A name
    with :// is a folder in a store that fsspec knows, such as s3://bucket/prompts/tone. Only what the user names is
    fetched, never what a file names: those names go to `locate`.

    A name that was looked up within half a minute is not looked up again.

    Raises StoreError: an impossible name, or it can neither be reached nor is there a copy.
    """
    here = None if "://" in name else locate(name)
    if here is not None and (here.parent == home() or here.exists()):
        return here
    known = _found.get(name)
    if known is not None and time.monotonic() - known[0] < _FRESH_S and known[1].is_dir():
        return known[1]
    folder = _fetch(name)
    if folder is None:
        return locate(name)
    _found[name] = (time.monotonic(), folder)
    return folder


def forget_found(place: str) -> None:
    """Look up again at the next use what has just changed: a repository of the Hub, or a URL."""
    for name in [name for name in _found if name.split("@")[0] == place or name == place]:
        del _found[name]


def _fetch(name: str) -> Path | None:
    """The copy of a soft prompt that is elsewhere; None for a name of this machine."""
    from softprompt.prompts import hub, remote_store

    if "://" in name:
        return remote_store.find_at_url(name)
    elsewhere = hub.parse_hub_name(name)
    return None if elsewhere is None else hub.find_on_hub(elsewhere)


def beside(name: str, other: str) -> str:
    """The name of the soft prompt `other` in the place where `name` is."""
    if "://" in name:
        return f"{name.rstrip('/').rpartition('/')[0]}/{other}"
    return str(Path(name).with_name(other)) if "/" in name else other


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise StoreError if an artifact may not be written to `folder`.

    With `overwrite` a soft prompt may be replaced; any other file or folder of that name is never replaced.
    """
    recover_folder(folder)
    if not os.path.lexists(folder):
        return
    if not any((folder / name).is_file() for name in (CARD, ROUTER)):
        what = "this is there already and is not a soft prompt, so it will not be replaced"
        raise StoreError(what, where=folder, hint="choose another name")
    if not overwrite:
        hint = "choose another --name, or --overwrite"
        raise StoreError("a soft prompt of that name is there", where=folder, hint=hint)


def save(
    folder: Path | str,
    prompt: SoftPrompt,
    card: Card,
    *,
    readme: str = "",
    extras: Callable[[Path], None] | None = None,
    overwrite: bool = False,
) -> Card:
    """Write the artifact atomically; returns the card as written.

    Args:
        folder: the artifact's folder, or a name for `locate`.
        prompt: checked against the card's geometry before anything is written.
        readme: the text of README.md (a model card); one line from the card if empty.
        extras: writes further files (a plot) to the folder that it is called with.
        overwrite: replace an artifact of that name instead of refusing.
    """
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    from softprompt.prompts.forms import check_fits, prompt_digest

    folder = locate(folder) if isinstance(folder, str) else folder
    check_free(folder, overwrite)
    prompt = prompt.freeze()
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


def load(folder: Path | str, geometry: Geometry | None = None) -> tuple[SoftPrompt, Card]:
    """The prompt and its card, checked: sizes before allocation, then shapes, finite values and sha256.

    Args:
        folder: the artifact's folder, or a name for `find`.
        geometry: of the base model that will run the prompt; None checks against the card's geometry only.

    Raises:
        StoreError: missing, damaged, oversized or altered files.
        WrongBaseError: made for another base model; names both.
    """
    from softprompt.prompts.forms import check_fits, form_class, prompt_digest

    folder = find(folder) if isinstance(folder, str) else folder
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
    if geometry is not None:
        _note_quantization(card, geometry)
    path = folder / TENSORS
    form = form_class(card.form)

    def check(header: Mapping[str, tuple[Shape, str]]) -> None:
        stored = {name: shape for name, (shape, _) in header.items()}
        shapes = form.expected_shapes(card.geometry, card.n_tokens, stored)
        for name, (shape, dtype) in header.items():
            if shape != shapes.get(name) or dtype not in _FLOATS:
                expected = f"{shapes.get(name)} float"
                raise StoreError(f"tensor {name}", where=path, expected=expected, got=f"{shape} {dtype}")
        if missing := sorted(shapes.keys() - header.keys()):
            raise StoreError("tensors are missing", where=path, got=", ".join(missing[:6]))

    prompt = form.from_tensors(read_tensors(path, check), card.geometry)
    check_fits(prompt, card.geometry)
    if prompt_digest(prompt) != card.sha256:
        raise StoreError("the tensors are not those the card describes (sha256)", where=path, hint="restore both files")
    return prompt, card


def _note_quantization(card: Card, geometry: Geometry) -> None:
    """Warn if the prompt was trained on other weights: full ones, or of another quantization."""
    trained, here = card.geometry.quantization, geometry.quantization
    if trained == here or not (trained or card.geometry.matrices):  # 0.1 did not write down which quantization
        return
    on, now = trained or "plain weights", here or "plain weights"
    note = f"{card.name} was trained on {on} of its base model and is used on {now}: answers may differ"
    warnings.warn(note, stacklevel=3)


def saved_names() -> list[str]:
    """The names that `locate` finds something under, sorted: soft prompts and routers. No card is read."""
    folder = home()
    found = [path.name for path in folder.iterdir() if PROMPT_NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(name for name in found if any((folder / name / file).is_file() for file in (CARD, ROUTER)))


def list_cards(folder: Path) -> list[tuple[Path, Card | StoreError]]:
    """The artifact folders directly below `folder` by name, each with its card, or the error of a damaged card."""
    cards: list[tuple[Path, Card | StoreError]] = []
    recover_all(folder, CARD)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and not path.name.startswith(".") and (path / CARD).exists():
            try:
                cards.append((path, load_card(path)))
            except StoreError as error:
                cards.append((path, error))
    return cards
