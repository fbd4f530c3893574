"""Reads prompts of Google's prompt-tuning: a NumPy file with an array [P, H], as `prompt_tuning` of T5X exports it.

Lester, Al-Rfou, Constant 2021. https://arxiv.org/abs/2104.08691
Format: https://github.com/google-research/prompt-tuning (README, "Extracting a Prompt from a Training Checkpoint")
"""

from __future__ import annotations

from softprompt.interchange import npy
from softprompt.interchange.base import ImportedPrompt, embedding_prompt
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.interchange.registry import Format, register_format
from softprompt.models.geometry import Geometry

_NAME = "google-prompt-tuning"


def _matches(file: ForeignFile) -> bool:
    return file.head.startswith(npy.MAGIC)


def read(file: ForeignFile, geometry: Geometry) -> list[ImportedPrompt]:
    """The one prompt of the file."""
    with file.path.open("rb") as stream:
        tensor = npy.read_npy(stream, file.path)
    return [ImportedPrompt(embedding_prompt(tensor, file.path), {"name": "prompt_tuning", "imported_from": _NAME})]


register_format(Format(_NAME, _matches, read))
