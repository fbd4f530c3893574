"""A foreign format in one file, as docs/guides/extending.md shows it: a text file of numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from softprompt.errors import StoreError
from softprompt.interchange.base import ImportedPrompt, embedding_prompt
from softprompt.interchange.foreign_file import ForeignFile
from softprompt.models.geometry import Geometry
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.card import Card

HEAD = b"numbers\n"


def matches(file: ForeignFile) -> bool:
    return file.head.startswith(HEAD)


def read(file: ForeignFile, geometry: Geometry) -> list[ImportedPrompt]:
    lines = file.path.read_text().splitlines()[1:]
    table = torch.tensor([[float(number) for number in line.split()] for line in lines])
    return [ImportedPrompt(embedding_prompt(table, file.path), {"name": "numbers", "imported_from": "numbers"})]


def write(out: Path, prompt: SoftPrompt, card: Card, lead_NH: Tensor) -> None:
    embeddings = prompt.input_embeddings()
    if embeddings is None:
        raise StoreError("numbers are for embedding prompts", where=card.name, got=prompt.form)
    rows = torch.cat([lead_NH.to(embeddings), embeddings]).tolist()
    out.write_bytes(HEAD + "\n".join(" ".join(map(str, row)) for row in rows).encode())
