"""`frame.json`, softprompt's own file in exported folders: how the prompt is fed, and for which base."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, StrictBool

from softprompt.data.template import Template
from softprompt.errors import StoreError
from softprompt.files import read_json
from softprompt.interchange.base import ImportedLayout
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.models.geometry import Geometry
from softprompt.prompts.card import Card, Layout
from softprompt.prompts.model_card import public_name

FRAME = "frame.json"


class FrameFile(BaseModel):
    """The contents of frame.json.

    Attributes:
        template: how records become rows.
        bos: whether the text after virtual tokens that come before everything begins with BOS.
        labels: the classes of a classification prompt.
        base: geometry of the base model; releases before 0.2 wrote none.
        layout: the text around virtual tokens that do not come before everything.
        written: digests by name of the files that the prompt can also be read from.
    """

    template: dict[str, object]
    bos: StrictBool
    labels: tuple[str, ...]
    base: dict[str, object] | None = None
    layout: Layout | None = None
    written: dict[str, str] = {}


def frame_of(card: Card, *, written: dict[str, str] | None = None) -> dict[str, object]:
    """The contents of frame.json.

    Args:
        written: digests of files that are made from the virtual tokens; None for a folder whose tool puts the virtual
            tokens in front of everything.
    """
    chat_template = {"chat_template": card.chat_template} if card.chat_template else {}
    frame: dict[str, object] = {
        "template": card.template | chat_template,
        "bos": card.layout.follow_bos,
        "labels": list(card.labels),
        "base": card.base | {"base": public_name(card.geometry.base)},
    }
    return frame if written is None else frame | {"layout": card.layout.model_dump(), "written": written}


def read_frame(file: ForeignFile) -> ImportedLayout | None:
    """The frame in a folder that softprompt exported, if there is one.

    Raises StoreError for a damaged one, and for files that were changed after the export.
    """
    path = file.path / FRAME
    if not path.exists():
        return None
    data = read_json(file.member(FRAME))
    try:
        frame = FrameFile.model_validate(data)
        base = None if frame.base is None else Geometry.from_dict(frame.base)
    except (KeyError, TypeError, ValueError) as error:
        hint = "remove it, and give --template"
        raise StoreError("not a frame that softprompt wrote", where=path, hint=hint) from error
    for name, digest in frame.written.items():
        if Path(name).name != name or not file.member(name).is_file() or file_digest(file.member(name)) != digest:
            what = (
                "this file was changed after softprompt wrote it, so it holds another soft prompt than its folder says"
            )
            raise StoreError(what, where=file.path / Path(name).name, hint="export the soft prompt again")
    return ImportedLayout(Template.from_dict(frame.template), frame.bos, frame.labels, base, frame.layout)


def file_digest(path: Path) -> str:
    """sha256 hex of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
