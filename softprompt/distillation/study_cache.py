"""On-disk cache of queries and teacher answers: interrupted runs resume, and later runs on the same text reuse it.

    NAME.study/notebook.json                 digest of everything that the rest depends on
    NAME.study/inputs-00000.json             a batch of queries
    NAME.study/lessons-00000.safetensors     the teacher's answers to a batch, and its soft labels for each token

Files keep the names that softprompt 0.1 gave them. Each is written atomically.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file

from softprompt.data.soft_labels import SoftLabels
from softprompt.distillation.queries import Query
from softprompt.errors import StoreError
from softprompt.files import read_json, read_tensors, write_json, writing

IDENTITY_FILE = "notebook.json"
KINDS_0_1 = {"gap": "cloze"}  # kinds of queries in caches of softprompt 0.1, and their names now
TeacherAnswer = tuple[tuple[int, ...], SoftLabels]  # token ids of an answer, and the soft labels of each
_QUERIES = TypeAdapter(list[Query])


class StudyCache:
    """Queries and teacher answers of one text and one teacher, in an existing folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def opened(folder: Path, identity: str) -> StudyCache:
        """Open a cache for writing; files of an earlier run with the same identity are kept, others deleted.

        Args:
            identity: a digest of everything that queries and answers depend on.
        """
        path = folder / IDENTITY_FILE
        with writing(folder):
            if not StudyCache.is_there(folder, identity):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write_json(path, {"identity": identity})
        return StudyCache(folder)

    @staticmethod
    def is_there(folder: Path, identity: str) -> bool:
        """Whether there is a cache of this identity."""
        path = folder / IDENTITY_FILE
        return path.exists() and read_json(path) == {"identity": identity}

    @staticmethod
    def existing(folder: Path, identity: str) -> StudyCache:
        """Open a cache for reading. Raises StoreError if there is none of this identity."""
        if not StudyCache.is_there(folder, identity):
            message = "the study cache is missing, or of another base model, dtype or text"
            hint = "use the same --model and --dtype as in distill, or distill it again"
            raise StoreError(message, where=folder, hint=hint)
        return StudyCache(folder)

    def queries(self) -> list[list[Query]]:
        """All batches of queries so far."""
        paths = sorted(self.folder.glob("inputs-*.json"))
        return [_read_queries(path) for path in paths]

    def add_queries(self, number: int, batch: Sequence[Query]) -> None:
        """Write a batch of queries."""
        with writing(self.folder):
            scratch = self.folder / "scratch"
            write_json(scratch, [asdict(query) for query in batch])
            os.replace(scratch, self.folder / f"inputs-{number:05d}.json")

    def answers(self, number: int, temperature: float) -> list[TeacherAnswer] | None:
        """Read a batch of answers with their soft labels; None if it is missing."""
        path = self._answers_path(number)
        if not path.exists():
            return None
        tensors = read_tensors(path)
        sizes = tensors["sizes"].tolist()
        parts = [tensors[name].split(sizes) for name in ("answers", "ids", "logprobs")]
        rows = zip(*parts, strict=True)
        return [(tuple(answer.tolist()), SoftLabels(ids, logprobs, temperature)) for answer, ids, logprobs in rows]

    def add_answers(self, number: int, batch: Sequence[TeacherAnswer]) -> None:
        """Write a batch of answers with their soft labels."""
        tensors = {
            "sizes": torch.tensor([len(answer) for answer, _ in batch], dtype=torch.int32),
            "answers": torch.tensor([token for answer, _ in batch for token in answer], dtype=torch.int32),
            "ids": torch.cat([labels.ids for _, labels in batch]),
            "logprobs": torch.cat([labels.logprobs for _, labels in batch]),
        }
        with writing(self.folder):
            scratch = self.folder / "scratch"
            save_file(tensors, scratch)
            os.replace(scratch, self._answers_path(number))

    def _answers_path(self, number: int) -> Path:
        return self.folder / f"lessons-{number:05d}.safetensors"


def _read_queries(path: Path) -> list[Query]:
    """A batch of queries, their kinds under today's names. Raises StoreError for another content."""
    try:
        batch = _QUERIES.validate_python(read_json(path))
    except ValidationError as error:
        hint = f"delete {path.parent}, and queries and answers are made again"
        raise StoreError("not a batch of queries", where=path, got=str(error), hint=hint) from error
    return [replace(query, kind=KINDS_0_1.get(query.kind, query.kind)) for query in batch]
