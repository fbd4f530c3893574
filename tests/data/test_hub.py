"""Hub datasets through a stand-in for the package `datasets`: no network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from softprompt.data.hub import is_hub_name, read_hub
from softprompt.data.splits import load_splits
from softprompt.errors import DataError
from tests.support.rows import labelled


class Split:
    def __init__(self, rows: list[dict[str, Any]], classes: list[str] | None = None) -> None:
        self.rows = rows
        plain = SimpleNamespace()
        self.features = {"text": plain, "label": SimpleNamespace(names=classes) if classes else plain}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A Hub with one dataset: set "splits" and "error"; "asked" lists the calls."""
    state: dict[str, Any] = {"splits": {}, "error": None, "asked": []}

    def load_dataset(repo: str, config: str | None) -> dict[str, Split]:
        state["asked"].append(("load", repo, config))
        if state["error"]:
            raise state["error"]
        return state["splits"]

    def dataset_info(_: object, repo: str, *, timeout: float) -> None:
        state["asked"].append(("ask", repo, timeout))
        if state.get("unreachable"):
            raise state["unreachable"]

    module = ModuleType("datasets")
    module.__dict__["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    return state


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("owner/name", True),
        ("owner/name.x-1:config_2", True),
        ("name", False),
        ("a/b/c", False),
        ("./a", False),
        ("../a", False),
        ("/a/b", False),
        ("owner/name:", False),
        ("owner/né", False),
        ("owner/name\n", False),
    ],
)
def test_names(name: str, good: bool) -> None:
    assert is_hub_name(name) is good


def test_class_numbers_become_names(hub: dict[str, Any]) -> None:
    hub["splits"] = {"train": Split([{"text": "a", "label": 1}, {"text": "b", "label": -1}], ["bad", "good"])}
    rows = list(read_hub("owner/name")["train"])
    assert rows == [
        ("owner/name/train:1", {"text": "a", "label": "good"}),
        ("owner/name/train:2", {"text": "b", "label": None}),
    ]


def test_splits_of_the_hub(hub: dict[str, Any]) -> None:
    hub["splits"] = {
        "train": Split(labelled(6)),
        "validation": Split(labelled(2, 10)),
        "test": Split(labelled(4, 20)),
        "unsupervised": Split([{"nothing": 1}]),
    }
    splits = load_splits("owner/name:config")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [6, 2, 4]
    assert splits.train[0].where == "owner/name:config/train:1"
    assert hub["asked"] == [("ask", "owner/name", 5.0), ("load", "owner/name", "config")]


def test_a_test_split_without_labels_is_left_out(hub: dict[str, Any]) -> None:
    unlabelled = Split([{"text": "a", "label": -1}] * 3, ["even", "odd"])
    hub["splits"] = {"train": Split(labelled(20)), "test": unlabelled}
    assert load_splits("owner/name").test == []


def test_training_rows_are_needed(hub: dict[str, Any]) -> None:
    hub["splits"] = {"validation": Split(labelled(4))}
    with pytest.raises(DataError, match="no training rows"):
        load_splits("owner/name")


def test_a_file_or_folder_of_that_name_comes_first(hub: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(DataError, match="no training file"):
        load_splits("owner/name")
    with pytest.raises(DataError, match="no such data file"):
        load_splits("owner/train.jsonl")
    assert hub["asked"] == []


def test_no_network_and_no_such_dataset_are_told_apart(hub: dict[str, Any]) -> None:
    hub["unreachable"] = ConnectionError("Name or service not known")
    with pytest.raises(DataError, match="cannot be reached") as caught:
        load_splits("owner/name")
    assert "HF_HUB_OFFLINE=1" in str(caught.value)
    from huggingface_hub.errors import RepositoryNotFoundError

    hub["unreachable"] = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    with pytest.raises(DataError, match="no such dataset"):
        load_splits("owner/name")
    assert [call[0] for call in hub["asked"]] == ["ask", "ask"]


def test_offline_asks_nothing(hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub["splits"] = {"train": Split(labelled(20))}
    assert len(load_splits("owner/name").train) == 18
    assert [call[0] for call in hub["asked"]] == ["load"]


def test_what_datasets_refuses_is_passed_on(hub: dict[str, Any]) -> None:
    hub["error"] = ValueError("Config name is missing.\nPlease pick one")
    with pytest.raises(DataError) as caught:
        load_splits("owner/name")
    assert caught.value.got == "ValueError: Config name is missing."


def test_without_the_package_the_message_says_what_to_install(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install datasets"):
        load_splits("owner/name")
    assert hub["asked"] == []
