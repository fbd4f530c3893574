"""Google's prompt-tuning: a NumPy file with an array [P, H], as `prompt_tuning` of T5X exports it.

Lester, Al-Rfou, Constant 2021. https://arxiv.org/abs/2104.08691
Format: https://github.com/google-research/prompt-tuning (README, "Extracting a Prompt from a Training Checkpoint")
"""

from __future__ import annotations

from pathlib import Path

from softprompt.interchange import npy
from softprompt.interchange.base import ImportedPrompt, embedding_prompt

FORMAT = "google-prompt-tuning"


def read(path: Path) -> list[ImportedPrompt]:
    """The one prompt of the file."""
    with path.open("rb") as stream:
        tensor = npy.read_npy(stream, path)
    return [ImportedPrompt(embedding_prompt(tensor, path), {"name": "prompt_tuning", "imported_from": FORMAT})]
