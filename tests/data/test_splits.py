"""Rows and splits: names of files, splitting off, labels, overlap, digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data import splits
from softprompt.data.splits import carve, check_place, data_digest, inputs_of, load_rows, load_splits
from softprompt.errors import DataError
from tests.support.rows import labelled, records, write_jsonl

PINNED = "ffa85de441880011b137327f8dcab458084e58db2f267d83cc178f651ee14b3f"


def folder(tmp_path: Path, **splits: list[dict[str, str]]) -> Path:
    for name, rows in splits.items():
        write_jsonl(tmp_path / f"{name}.jsonl", *rows)
    return tmp_path


def test_load_rows_reads_and_checks(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", *labelled(3))
    rows = load_rows(path)
    assert [row.fields["text"] for row in rows] == ["row 0", "row 1", "row 2"]
    assert rows[2].where == f"{path}:3"
    assert load_rows(str(path)) == rows


def test_load_rows_of_an_inference_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "q"})
    assert load_rows(path, require_target=False)[0].target is None
    with pytest.raises(DataError, match="'completion' is missing"):
        load_rows(path)


def test_csv_cells_without_a_label_are_inference_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,\n")
    assert load_rows(path, require_target=False)[0].target is None


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[]" if name == "a.json" else "")
    with pytest.raises(DataError, match="no rows"):
        load_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_a_folder_has_its_splits_under_the_usual_names(tmp_path: Path, name: str) -> None:
    splits = load_splits(folder(tmp_path, train=labelled(6), test=labelled(2, 20), **{name: labelled(4, 10)}))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [6, 4, 2]
    assert splits.notes == (() if name == "validation" else (f"{name!r} is the validation split",))


def test_without_a_validation_file_rows_are_split_off_and_it_is_said(tmp_path: Path) -> None:
    path = folder(tmp_path, train=labelled(30), test=labelled(2, 50))
    splits = load_splits(path, seed=3)
    train, validation = carve(load_rows(path / "train.jsonl"), 0.1, 3)
    assert (splits.train, splits.validation) == (train, validation)
    assert splits.notes == ("no validation split: 3 rows of 30 training rows were split off (seed 3)",)


def test_a_file_is_the_training_split(tmp_path: Path) -> None:
    splits = load_splits(write_jsonl(tmp_path / "a.jsonl", *labelled(20)), fraction=0.5)
    assert (len(splits.train), len(splits.validation), splits.test) == (10, 10, [])


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (["train.jsonl", "valid.jsonl", "dev.jsonl"], "valid and dev"),
        (["train.jsonl", "train.json"], "several files for the split 'train'"),
        (["validation.jsonl"], "no training file"),
        ([], "an empty folder"),
    ],
)
def test_unclear_folders_are_refused(tmp_path: Path, files: list[str], part: str) -> None:
    for name in files:
        write_jsonl(tmp_path / name, *labelled(4))
    with pytest.raises(DataError, match=part):
        load_splits(tmp_path)


def test_labels_that_training_lacks_are_listed(tmp_path: Path) -> None:
    strange = [{"text": "a", "label": "even"}, {"text": "b", "label": "evne"}, {"text": "c", "label": "ood"}]
    path = folder(tmp_path, train=labelled(4), validation=labelled(2, 8), test=strange)
    with pytest.raises(DataError, match="labels occur that the training rows do not have") as caught:
        load_splits(path)
    assert caught.value.where == f"{path / 'test.jsonl'}:2"
    assert (caught.value.got, caught.value.expected) == ("'evne', 'ood'", "one of 'even', 'odd'")


def test_a_long_list_of_labels_is_cut_short(tmp_path: Path) -> None:
    many = [{"text": f"t{i}", "label": f"x{i:02}"} for i in range(13)]
    with pytest.raises(DataError, match="'x09' and 3 more"):
        load_splits(folder(tmp_path, train=labelled(4), validation=many))


def test_splits_of_different_kinds_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, train=labelled(4), validation=[{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match="different kinds"):
        load_splits(path)


def test_inputs_seen_in_training_are_counted(tmp_path: Path) -> None:
    path = folder(tmp_path, train=labelled(6), validation=labelled(3, 10), test=labelled(4, 4))
    assert load_splits(path).notes == ("2 of 4 test rows ask what a training row asks already",)


def test_the_same_question_with_another_answer_is_the_same_input() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    one, two = records({"messages": chat}, {"messages": [chat[0], {**chat[1], "content": "Hey"}]})
    assert inputs_of(one) == inputs_of(two)
    one, two = records({"text": "a", "label": "b"}, {"text": "a", "label": "c"})
    assert inputs_of(one) == inputs_of(two)
    one, two = records({"text": "a", "text2": "b", "label": "c"}, {"text": "a", "text2": "x", "label": "c"})
    assert inputs_of(one) != inputs_of(two)
    one, two = records({"prompt": "a", "completion": "b"}, {"prompt": "b", "completion": "b"})
    assert inputs_of(one) != inputs_of(two)
    one, two = records({"text": "a", "label": "b", "id": "1"}, {"text": "a", "label": "b", "id": "2"})
    assert inputs_of(one) == inputs_of(two)


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 2**63 - 1))
def test_carve_splits_every_row_into_one_of_two_parts(rows: int, fraction: float, seed: int) -> None:
    data = records(*({"prompt": str(i), "completion": "a"} for i in range(rows)))
    train, validation = carve(data, fraction, seed)
    assert carve(data, fraction, seed) == (train, validation)
    assert len(validation) == min(max(1, round(rows * fraction)), rows - 1)
    order = [int(row.fields["prompt"]) for row in train], [int(row.fields["prompt"]) for row in validation]
    assert sorted(order[0] + order[1]) == list(range(rows))
    assert order == (sorted(order[0]), sorted(order[1]))


def test_carve_depends_on_the_seed_and_takes_500_at_most() -> None:
    data = records(*({"prompt": str(i), "completion": "a"} for i in range(6000)))
    first, second = carve(data, 0.1, 0)[1], carve(data, 0.1, 1)[1]
    assert len(first) == 500
    assert first != second


@given(st.integers(0, 1000))
def test_carve_never_takes_the_last_row_of_a_label(seed: int) -> None:
    data = records(*labelled(4), {"text": "lonely", "label": "rare"})
    train, validation = carve(data, 0.9, seed)
    assert {row.target for row in train} == {"even", "odd", "rare"}
    assert len(validation) == 2


@pytest.mark.parametrize("rows", [0, 1])
def test_carve_needs_a_row_to_spare(rows: int) -> None:
    with pytest.raises(DataError, match="can be spared"):
        carve(records(*({"prompt": "a", "completion": "b"} for _ in range(rows))))
    with pytest.raises(DataError, match="can be spared"):
        carve(records(*({"text": "a", "label": f"{i}"} for i in range(rows))))


@pytest.mark.parametrize(("fraction", "seed"), [(0, 0), (1, 0), (float("nan"), 0), (0.1, -1), (0.1, 2**63)])
def test_carve_refuses_impossible_settings(fraction: float, seed: int) -> None:
    with pytest.raises(DataError):
        carve(records(*labelled(4)), fraction, seed)


def test_digest_is_pinned_and_ignores_the_place() -> None:
    rows = records({"text": "é", "label": "b"}, {"text": "c", "label": "d"})
    assert data_digest(rows) == PINNED
    moved = splits.parse_rows([("elsewhere:9", {"label": "b", "text": "é"}), ("x:1", {"text": "c", "label": "d"})])
    assert data_digest(moved) == data_digest(rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[::-1],
        lambda rows: rows[:1],
        lambda rows: [{**rows[0], "text": "A"}, rows[1]],
        lambda rows: [{**rows[0], "label": "A"}, rows[1]],
        lambda rows: [{**rows[0], "extra": "A"}, rows[1]],
        lambda rows: [{**rows[0], "references": ["A"]}, rows[1]],
    ],
)
def test_digest_sees_every_change(change: Callable[[list[Any]], list[Any]]) -> None:
    rows = [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]
    assert data_digest(records(*change(rows))) != data_digest(records(*rows))


def test_digest_sees_turns_and_what_is_learned() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    variants: list[object] = [
        {"messages": chat},
        {"prompt": chat[:1], "completion": chat[1:]},
        {"messages": [{**chat[0], "role": "system"}, chat[1]]},
        {"messages": [{**chat[0], "content": "Ho"}, chat[1]]},
    ]
    assert len({data_digest(records(row)) for row in variants}) == 4


def test_labels_that_a_split_lacks_are_noted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", *labelled(8))
    write_jsonl(tmp_path / "validation.jsonl", *labelled(1, 20))
    write_jsonl(tmp_path / "test.jsonl", *labelled(2, 30))
    assert load_splits(tmp_path).notes == ("validation has no row labeled 'odd'",)


def test_a_place_without_a_row_is_refused_at_once(tmp_path: Path) -> None:
    """Folders and possible names of Hub datasets are left to `load_splits`."""
    check_place(write_jsonl(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"}))
    check_place(tmp_path)
    check_place("owner/name")
    for name, message in (
        ("none.jsonl", "no such data file"),
        ("none", "no such data file"),
        ("empty.jsonl", "no rows"),
    ):
        (tmp_path / "empty.jsonl").write_text("\n")
        with pytest.raises(DataError, match=message):
            check_place(tmp_path / name)
