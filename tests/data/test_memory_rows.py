"""Rows in memory: lists of dicts, data sets, splits; nothing of `datasets` is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from softprompt.data.splits import load_rows, load_splits
from softprompt.errors import DataError
from tests.support.rows import labelled


class Dataset:
    """As `datasets.Dataset` looks from outside."""

    def __init__(self, rows: list[dict[str, Any]], classes: list[str] | None = None) -> None:
        self.rows = rows
        self.features = {"text": SimpleNamespace(dtype="string"), "label": SimpleNamespace(names=classes)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def test_a_list_of_dicts() -> None:
    rows = load_rows(labelled(3))
    assert [(row.fields["text"], row.target, row.where) for row in rows][2] == ("row 2", "even", "rows:3")
    splits = load_splits(labelled(20))
    assert (len(splits.train), len(splits.validation)) == (18, 2)


def test_class_numbers_of_a_data_set_are_names() -> None:
    before = "datasets" in sys.modules  # other tests use it
    data = Dataset([{"text": "a", "label": 1}, {"text": "b", "label": 0}], ["bad", "good"])
    assert [row.target for row in load_rows(data)] == ["good", "bad"]
    unlabelled = Dataset([{"text": "a", "label": -1}], ["bad", "good"])
    assert load_rows(unlabelled, require_target=False)[0].target is None
    assert ("datasets" in sys.modules) == before


def test_a_mapping_of_splits() -> None:
    splits = load_splits(
        {"train": labelled(6), "val": Dataset(labelled(2, 10)), "test": labelled(2, 20), "extra": labelled(1)}
    )
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [6, 2, 2]
    assert splits.notes == ("'val' is the validation split",)
    with pytest.raises(DataError, match="no training rows"):
        load_splits({"test": labelled(2)})


def test_numbers_of_numpy_are_numbers() -> None:
    assert load_rows([{"text": "a", "label": np.int64(3)}])[0].target == "3"


def test_a_data_frame_is_its_records() -> None:
    frame = SimpleNamespace(iterrows=None, to_dict=lambda orient: labelled(2) if orient == "records" else {})
    assert len(load_rows(frame)) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "part"), [(3, "no rows"), (b"x", "no rows"), (["text"], "JSON object"), ([], "no rows")]
)
def test_other_things_are_refused(rows: Any, part: str) -> None:
    with pytest.raises(DataError, match=part):
        load_rows(rows)
