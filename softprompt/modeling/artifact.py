"""Writes a soft prompt into a folder that may hold other files already, such as a trainer's checkpoint."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from softprompt.errors import StoreError
from softprompt.files import READABLE, writing
from softprompt.prompts import store
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card
from softprompt.prompts.forms import size_of
from softprompt.prompts.model_card import model_card

WEIGHTS = "model.safetensors"  # Transformers' name: its Trainer resumes from it
_HEADER = "library_name: softprompt"  # in the READMEs that `model_card` writes


def write_into(folder: Path, prompt: SoftPrompt, card: Card, parameters: Mapping[str, Tensor]) -> Card:
    """Write the artifact, file by file; returns the card as written.

    A README.md of others stays. A crash between two files leaves an artifact that is refused as damaged, never one with
    other numbers than its card says.

    Args:
        parameters: what is trained, by name, for training to be continued; nothing is written if there is none.

    Raises:
        StoreError: the folder cannot be written to.
        GeometryError: the prompt does not fit the card's base model.
    """
    name = folder.resolve().name
    card = card.model_copy(update={"name": name if store.PROMPT_NAME.fullmatch(name) else card.name})
    readme = model_card(card, bytes_on_disk=size_of(prompt), curve=None)
    written = (folder / store.CARD).is_file()
    ours = _is_ours(folder / store.README)
    with writing(folder):
        if folder.is_file():
            raise StoreError("not a folder, nothing was written", where=folder, hint="choose another name")
        if parameters and not written and (folder / WEIGHTS).exists():
            what = "the folder holds a model's weights, nothing was written"
            raise StoreError(what, where=folder / WEIGHTS, hint="choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".softprompt-", dir=folder) as scratch:
            artifact = Path(scratch) / "artifact"
            card = store.save(artifact, prompt, card, readme=readme)
            if parameters:
                plain = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters.items()}
                save_file(plain, artifact / WEIGHTS, metadata={"format": "pt"})
                (artifact / WEIGHTS).chmod(READABLE)
            for file in sorted(artifact.iterdir(), key=lambda file: file.name == store.CARD):  # the card last
                if file.name != store.README or ours:
                    os.replace(file, folder / file.name)
    return card


def _is_ours(readme: Path) -> bool:
    """Whether a README may be replaced: there is none, or this package wrote it."""
    if not readme.exists():
        return True
    with readme.open(encoding="utf-8", errors="replace") as file:
        return _HEADER in file.read(1000)
