"""A saved soft prompt as one zip file: what `softprompt push` uploads, in a folder of its name."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import IO

from softprompt.errors import StoreError
from softprompt.prompts import store
from softprompt.prompts.hub import travels
from softprompt.prompts.sharing import public_card

_OPEN_MODE = 0o644 << 16  # as zip files keep it


def write_archive(folder: Path, name: str, target: IO[bytes]) -> None:
    """Write tensors, card, README.md and pictures as NAME/FILE; equal soft prompts make equal bytes.

    The card is without paths of this machine. Unpacked into $SOFTPROMPT_HOME it is a saved soft prompt.

    Raises StoreError: the soft prompt is damaged or gone.
    """
    card = public_card(store.load_card(folder))
    contents = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # numbers hardly compress
            for path in sorted(folder.iterdir()):
                if path.name == store.CARD:
                    archive.writestr(_entry(f"{name}/{store.CARD}"), contents)
                elif travels(path.name) and path.is_file() and not path.is_symlink():
                    with path.open("rb") as source, archive.open(_entry(f"{name}/{path.name}"), "w") as copy:
                        while chunk := source.read(2**20):
                            copy.write(chunk)
    except OSError as error:
        raise StoreError(f"its files cannot be read: {error.strerror}", where=folder) from error


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # of 1980, the oldest date of a zip file
    entry.external_attr = _OPEN_MODE
    return entry
