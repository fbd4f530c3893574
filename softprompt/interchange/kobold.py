"""KoboldAI soft prompts: a zip of `tensor.npy` [P, H] (usually LZMA; float16, float32 or bfloat16) and `meta.json`.

Format: https://github.com/KoboldAI/KoboldAI-Client (aiserver.py, `spRequest`). The older mkultra files are pickles
in JSON and are not read.
"""

from __future__ import annotations

from pathlib import Path

from softprompt.interchange import npy
from softprompt.interchange.base import ImportedPrompt, embedding_prompt, zip_archive

FORMAT, TENSOR = "koboldai", "tensor.npy"


def read(path: Path) -> list[ImportedPrompt]:
    """The one prompt of the zip. Nothing is unpacked to disk, and no more is inflated than the header declares."""
    with zip_archive(path, path) as archive, archive.open(TENSOR) as stream:
        tensor = npy.read_npy(stream, f"{path}/{TENSOR}")
    return [ImportedPrompt(embedding_prompt(tensor, path), {"name": "prompt_tuning", "imported_from": FORMAT})]
