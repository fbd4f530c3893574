"""What was studied, on disk as it comes: a run that was stopped goes on, and another on the same text starts here.

    NOTEBOOK/notebook.json            what it belongs to
    NOTEBOOK/inputs-00000.json        a batch of inputs
    NOTEBOOK/lessons-00000.safetensors    the teacher's answers to a batch, and what it says at each token

Each file appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from softprompt.data.soft_labels import SoftLabels
from softprompt.distillation.queries import Query
from softprompt.errors import StoreError
from softprompt.files import read_json, read_tensors, write_json, writing

ABOUT = "notebook.json"
Answered = tuple[tuple[int, ...], SoftLabels]  # token ids of an answer, and the lesson on them


class StudyCache:
    """Inputs and lessons of one text and one teacher, in a folder that is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def opened(folder: Path, identity: str) -> StudyCache:
        """One to write in: what an earlier run of the same identity wrote is kept, anything else removed.

        Args:
            identity: a digest of all that inputs and lessons depend on.
        """
        about = folder / ABOUT
        with writing(folder):
            if not about.exists() or read_json(about) != {"identity": identity}:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write_json(about, {"identity": identity})
        return StudyCache(folder)

    @staticmethod
    def kept(folder: Path, identity: str) -> StudyCache:
        """One to read. Raises StoreError if there is none of this identity."""
        about = folder / ABOUT
        if not about.exists() or read_json(about) != {"identity": identity}:
            what = "what was studied is not there, or is of another base model, dtype or text"
            raise StoreError(what, where=folder, hint="the same --model and --dtype as in distil, or distil it again")
        return StudyCache(folder)

    def inputs(self) -> list[list[Query]]:
        """All batches of inputs so far."""
        found = sorted(self.folder.glob("inputs-*.json"))
        return [[Query(**line) for line in read_json(path)] for path in found]

    def add_inputs(self, number: int, batch: Sequence[Query]) -> None:
        """Keep a batch of inputs."""
        with writing(self.folder):
            scratch = self.folder / "scratch"
            write_json(scratch, [asdict(one) for one in batch])
            os.replace(scratch, self.folder / f"inputs-{number:05d}.json")

    def lessons(self, number: int, temperature: float) -> list[Answered] | None:
        """A batch of answers with their lessons; None if it is not there."""
        path = self._lessons(number)
        if not path.exists():
            return None
        tensors = read_tensors(path)
        sizes = tensors["sizes"].tolist()
        parts = [tensors[name].split(sizes) for name in ("answers", "ids", "logprobs")]
        rows = zip(*parts, strict=True)
        return [(tuple(answer.tolist()), SoftLabels(ids, logprobs, temperature)) for answer, ids, logprobs in rows]

    def add_lessons(self, number: int, batch: Sequence[Answered]) -> None:
        """Keep a batch of answers with their lessons."""
        tensors = {
            "sizes": torch.tensor([len(answer) for answer, _ in batch], dtype=torch.int32),
            "answers": torch.tensor([token for answer, _ in batch for token in answer], dtype=torch.int32),
            "ids": torch.cat([lesson.ids for _, lesson in batch]),
            "logprobs": torch.cat([lesson.logprobs for _, lesson in batch]),
        }
        with writing(self.folder):
            scratch = self.folder / "scratch"
            save_file(tensors, scratch)
            os.replace(scratch, self._lessons(number))

    def _lessons(self, number: int) -> Path:
        return self.folder / f"lessons-{number:05d}.safetensors"
