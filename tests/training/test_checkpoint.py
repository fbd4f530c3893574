"""The state of a run on disk: complete, the newest readable one counts, another run is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softprompt.errors import CheckpointError, StoreError
from softprompt.training import checkpoint
from softprompt.training.checkpoint import (
    KEEP,
    Checkpoint,
    flatten,
    latest_checkpoint,
    latest_step,
    save_checkpoint,
    unflatten,
)

CPU = torch.device("cpu")
Shapes = st.lists(st.integers(0, 3), max_size=3)
Dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8])
Tensors = st.builds(lambda shape, dtype: (torch.rand(shape) * 100).to(dtype), Shapes, Dtypes)
Numbers = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
Plain = st.none() | st.booleans() | Numbers | st.text()
Keys = st.integers(0, 99) | st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
Trees = st.recursive(
    Tensors | Plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(Keys, inner, max_size=4), max_leaves=12
)


def same(one: Any, other: Any) -> bool:
    """Equal in values and types; tensors bit by bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def through_json(tree: Any) -> Any:
    """As a checkpoint's facts travel."""
    return json.loads(json.dumps(tree, allow_nan=False))


@given(Trees)
@settings(deadline=None, max_examples=150)
def test_flatten_and_back(tree: Any) -> None:
    tensors, rest = flatten(tree, "state")
    assert same(unflatten(tensors, through_json(rest)), tree)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adafactor])
def test_an_optimisers_state_survives_the_disk(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    """The next step after loading is the step that would have come, bit by bit."""

    def start() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(5))]
        return parameters, kind(parameters, lr=0.1, weight_decay=0.01)  # type: ignore[call-arg]

    def step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()

    mine, optimizer = start()
    for number in range(3):
        step(mine, optimizer, number)
    tensors, tree = flatten({"method": mine, "optimizer": optimizer.state_dict()}, "state")
    save_checkpoint(tmp_path, Checkpoint("run", 3, tensors, {"tree": tree}))
    step(mine, optimizer, 3)

    found = latest_checkpoint(tmp_path, "run")
    state = unflatten(found.tensors, found.data["tree"])
    others, loaded = start()
    loaded.load_state_dict(state["optimizer"])
    with torch.no_grad():
        for other, value in zip(others, state["method"], strict=True):
            other.copy_(value)
    step(others, loaded, 3)
    assert all(torch.equal(one, other) for one, other in zip(mine, others, strict=True))


def test_random_state_survives_the_disk(tmp_path: Path) -> None:
    """Also in the middle of a pair of normal draws, of which one is kept back."""

    def draw() -> list[object]:
        return [torch.randn(3).tolist(), np.random.normal(), np.random.rand(), random.gauss(0, 1), random.random()]

    draw()
    tensors, tree = flatten(checkpoint.random_state(CPU), "state")
    save_checkpoint(tmp_path, Checkpoint("run", 1, tensors, {"tree": tree}))
    wanted = [draw(), draw()]
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(1)
    found = latest_checkpoint(tmp_path, "run")
    checkpoint.restore_random_state(unflatten(found.tensors, found.data["tree"]), CPU)
    assert [draw(), draw()] == wanted


def write(folder: Path, *steps: int, run: str = "run") -> None:
    for step in steps:
        save_checkpoint(folder, Checkpoint(run, step, {"x": torch.full((50,), float(step))}, {"at": step}))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_was_saved_is_what_is_found(tmp_path: Path) -> None:
    write(tmp_path, 3, 7)
    found = latest_checkpoint(tmp_path, "run")
    assert (found.run, found.step, found.data) == ("run", 7, {"at": 7})
    assert torch.equal(found.tensors["x"], torch.full((50,), 7.0))
    assert latest_step(tmp_path) == 7


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, 5)
    assert names(tmp_path) == ["checkpoint-000004", "checkpoint-000005"]
    assert KEEP == 2
    write(tmp_path, 5)  # once more, as a signal right after a validation does
    assert names(tmp_path) == ["checkpoint-000004", "checkpoint-000005"]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    write(tmp_path, 999_998, 999_999, 1_000_000, 1_000_001)
    assert names(tmp_path) == ["checkpoint-1000000", "checkpoint-1000001"]
    assert latest_checkpoint(tmp_path, "run").step == latest_step(tmp_path) == 1_000_001


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated tensors": lambda p: truncate(p / "state.safetensors"),
    "no tensors": lambda p: (p / "state.safetensors").unlink(),
    "tensors are a link": lambda p: link(p / "state.safetensors"),
    "no facts": lambda p: (p / "state.json").unlink(),
    "truncated facts": lambda p: truncate(p / "state.json"),
    "facts are a list": lambda p: (p / "state.json").write_text("[1, 2]"),
    "facts lack the run": lambda p: (p / "state.json").write_text('{"step": 2, "facts": {}}'),
    "empty folder": lambda p: [f.unlink() for f in p.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_the_newest_readable_one_counts(damage: Callable[[Path], object], tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    damage(tmp_path / "checkpoint-000002")
    assert latest_checkpoint(tmp_path, "run").step == 1
    damage(tmp_path / "checkpoint-000001")
    with pytest.raises(CheckpointError, match=r"(?s)nothing to resume.*checkpoint-000002: .*checkpoint-000001: "):
        latest_checkpoint(tmp_path, "run")


def test_a_run_that_goes_back_is_not_pruned_for_damaged_later_ones(tmp_path: Path) -> None:
    """Both newest are damaged and the run goes on from an earlier step: what it writes must stay."""
    write(tmp_path, 9, 10)
    for step in ("09", "10"):
        truncate(tmp_path / f"checkpoint-0000{step}" / "state.safetensors")
    write(tmp_path, 6)
    assert latest_checkpoint(tmp_path, "run").step == latest_step(tmp_path) == 6


def test_another_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1, run="other")
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint-000001: .*other settings, data or base model.*--resume"):
        latest_checkpoint(tmp_path, "run")


def test_nothing_there(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert latest_step(folder) is None
        with pytest.raises(CheckpointError, match=r"(?s)nothing to resume.*no checkpoint"):
            latest_checkpoint(folder, "run")
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    assert latest_step(tmp_path) is None


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / ".checkpoint-000002.tmp-abc").mkdir()
    (tmp_path / ".checkpoint-000002.tmp-abc" / "state.json").write_text("half")
    assert latest_checkpoint(tmp_path, "run").step == 1
    write(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-000001", "checkpoint-000002"]


def test_killed_while_the_same_step_was_replaced(tmp_path: Path) -> None:
    """Between the two renames the old one stands aside; it is put back."""
    write(tmp_path, 4)
    os.rename(tmp_path / "checkpoint-000004", tmp_path / ".checkpoint-000004.old")
    assert latest_step(tmp_path) == 4
    assert latest_checkpoint(tmp_path, "run").step == 4


def test_a_disk_that_refuses_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1, 2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StoreError, match=r"(?s)checkpoint-000003: cannot write: No space left on device"):
        write(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-000001", "checkpoint-000002"]
    shutil.rmtree(tmp_path / "checkpoint-000001")
    assert latest_checkpoint(tmp_path, "run").step == 2
