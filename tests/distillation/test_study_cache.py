"""Queries and answers come back as they were, and only to a run of the same text and teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt.data.soft_labels import SoftLabels
from softprompt.distillation.queries import Query
from softprompt.distillation.study_cache import StudyCache
from softprompt.errors import StoreError

BATCH = [[Query(0, "question", "Why?"), Query(1, "use", "Ünïcode “x”")], []]


def soft_labels(n: int) -> SoftLabels:
    draw = torch.Generator().manual_seed(n)
    return SoftLabels(torch.randint(0, 99, (n, 4), generator=draw).int(), torch.randn(n, 4, generator=draw), 1.5)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    book = StudyCache.opened(tmp_path / "book", "a")
    for number, batch in enumerate(BATCH):
        book.add_queries(number, batch)
    rows = [((1, 2, 3), soft_labels(3)), ((4,), soft_labels(1))]
    book.add_answers(0, rows)
    again = StudyCache.opened(tmp_path / "book", "a")
    assert again.queries() == BATCH
    found = again.answers(0, 1.5)
    assert found is not None and again.answers(1, 1.5) is None
    for (answer, own), (wanted, other) in zip(found, rows, strict=True):
        assert answer == wanted and own.temperature == 1.5
        assert torch.equal(own.ids, other.ids) and torch.equal(own.logprobs, other.logprobs)


def test_another_identity_starts_anew(tmp_path: Path) -> None:
    StudyCache.opened(tmp_path / "book", "a").add_queries(0, BATCH[0])
    assert StudyCache.opened(tmp_path / "book", "b").queries() == []
    assert StudyCache.opened(tmp_path / "book", "a").queries() == []


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    book = StudyCache.opened(tmp_path / "book", "a")
    book.add_answers(0, [((1,), soft_labels(1))])
    path = tmp_path / "book" / "lessons-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match="damaged"):
        book.answers(0, 1.0)


def test_an_existing_cache_is_read_and_never_replaced(tmp_path: Path) -> None:
    StudyCache.opened(tmp_path / "book", "a").add_queries(0, BATCH[0])
    assert StudyCache.existing(tmp_path / "book", "a").queries() == [BATCH[0]]
    for folder, identity in (("book", "b"), ("none", "a")):
        with pytest.raises(StoreError, match="missing, or of another base model"):
            StudyCache.existing(tmp_path / folder, identity)
    assert StudyCache.existing(tmp_path / "book", "a").queries() == [BATCH[0]]
