"""`virtual_tokens.safetensors`: the exact virtual tokens beside what `softprompt export` made of them for an engine.

An adapter on the embedding (`--to lora`) holds differences to the base model's embeddings, and a copy of the base model
(`--to vocabulary`) holds them in the base's dtype; both are rounded. This file is not.

Shapes: P virtual tokens, H embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from softprompt.errors import StoreError
from softprompt.files import read_tensors, write_json
from softprompt.interchange.base import ImportedPrompt, embedding_prompt
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.interchange.frame import FRAME, file_digest, frame_of, read_frame
from softprompt.interchange.registry import Format, register_format
from softprompt.models.geometry import Geometry
from softprompt.prompts.card import Card

VIRTUAL_TOKENS = "virtual_tokens.safetensors"
_NAME = "virtual-tokens"
_KEY = "virtual_tokens"


def write_virtual_tokens(folder: Path, embeddings_PH: Tensor, card: Card, written: Sequence[str] = ()) -> None:
    """Write the virtual tokens and the frame into an export's folder.

    Args:
        written: names of files there that are made from them. If one was changed, `softprompt import` refuses the
            folder.
    """
    tensors = {_KEY: embeddings_PH.detach().cpu().contiguous()}
    save_file(tensors, folder / VIRTUAL_TOKENS, metadata={"format": "pt"})
    write_json(folder / FRAME, frame_of(card, written={name: file_digest(folder / name) for name in written}))


def _matches(file: ForeignFile) -> bool:
    return (file.path / VIRTUAL_TOKENS).exists()


def read(file: ForeignFile, geometry: Geometry) -> list[ImportedPrompt]:
    """The soft prompt of an exported folder.

    Raises StoreError for a damaged folder, or one that was changed after the export.
    """
    path = file.path / VIRTUAL_TOKENS
    layout = read_frame(file)
    tensors = read_tensors(file.member(VIRTUAL_TOKENS))
    if tensors.keys() != {_KEY} or layout is None:
        raise StoreError("not a folder that softprompt exported", where=path, expected=f"the tensor {_KEY} and {FRAME}")
    made_for = layout.base.base if layout.base else ""
    method: dict[str, object] = {"name": "prompt_tuning", "imported_from": _NAME}
    return [ImportedPrompt(embedding_prompt(tensors[_KEY], path), method, made_for=made_for, layout=layout)]


register_format(Format(_NAME, _matches, read, marker=VIRTUAL_TOKENS, first=True))
