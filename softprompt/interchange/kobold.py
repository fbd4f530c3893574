"""Reads KoboldAI soft prompts: a zip of `tensor.npy` [P, H] (usually LZMA; 16 or 32 bit floats) and `meta.json`.

Format: https://github.com/KoboldAI/KoboldAI-Client (aiserver.py, `spRequest`). The older mkultra files are pickles
in JSON and are not read.
"""

from __future__ import annotations

from softprompt.interchange import npy
from softprompt.interchange.base import ImportedPrompt, embedding_prompt, zip_archive
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.interchange.registry import Format, register_format
from softprompt.models.geometry import Geometry

_NAME = "koboldai"
_MEMBER = "tensor.npy"  # of the zip


def _matches(file: ForeignFile) -> bool:
    return _MEMBER in file.zip_names


def read(file: ForeignFile, geometry: Geometry) -> list[ImportedPrompt]:
    """The one prompt of the zip. Nothing is unpacked to disk, and no more is inflated than the header declares."""
    path = file.path
    with zip_archive(path, path) as archive, archive.open(_MEMBER) as stream:
        tensor = npy.read_npy(stream, f"{path}/{_MEMBER}")
    return [ImportedPrompt(embedding_prompt(tensor, path), {"name": "prompt_tuning", "imported_from": _NAME})]


register_format(Format(_NAME, _matches, read))
