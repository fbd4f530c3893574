"""A router on disk, and everything that is not one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from softprompt.errors import DataError, SoftpromptError, StoreError, WrongBaseError
from softprompt.prompts import router
from softprompt.prompts.router import ROUTER_TENSORS as TENSORS
from softprompt.prompts.router import Router
from softprompt.prompts.store import ROUTER
from tests.support.tiny import tiny_lm


def made(names: tuple[str, ...] = ("calm", "loud")) -> Router:
    lm = tiny_lm("llama")
    return Router(torch.randn(len(names), lm.geometry.hidden), names, lm.geometry)


def test_it_chooses_by_the_mean_embedding() -> None:
    lm = tiny_lm("llama")
    means = [lm.embed([70, 71]).mean(0), lm.embed([90, 91, 92]).mean(0)]
    own = Router(torch.stack([mean / mean.norm() for mean in means]), ("a", "b"), lm.geometry)
    for ids in ([70, 71], [71, 70, 70, 71], [90, 91, 92], [40], [200, 5]):
        mean = torch.stack([lm.embed([i])[0] for i in ids]).sum(0) / len(ids)
        assert own.choose(lm, ids) == max(range(2), key=lambda k: float(own.weights[k] @ mean))
    assert (own.choose(lm, [70, 71]), own.choose(lm, [92, 91, 90])) == (0, 1)
    with pytest.raises(DataError, match="empty text"):
        own.choose(lm, [])


def test_loading_what_was_saved_is_the_identity(tmp_path: Path) -> None:
    one = made()
    router.save_router(tmp_path / "r", one)
    two = router.load_router(tmp_path / "r", tiny_lm("llama").geometry)
    assert torch.equal(one.weights, two.weights)
    assert (one.names, one.base) == (two.names, two.base)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [ROUTER, TENSORS]
    with pytest.raises(StoreError, match="already there"):
        router.save_router(tmp_path / "r", made(("x", "y")))
    router.save_router(tmp_path / "r", made(("x", "y")), overwrite=True)
    assert router.load_router(tmp_path / "r", tiny_lm("llama").geometry).names == ("x", "y")


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    router.save_router(tmp_path / "r", made())
    with pytest.raises(WrongBaseError, match=r"(?s)another base.*tiny-llama.*tiny-qwen2"):
        router.load_router(tmp_path / "r", tiny_lm("qwen2").geometry)


@pytest.mark.parametrize("names", [(), ("../x", "y"), ("a/b", "c"), ("", "y"), ("A b", "c"), ("a", "b", "c")])
def test_names_that_no_soft_prompt_can_have_are_not_saved(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        router.save_router(tmp_path / "r", Router(made().weights, names, tiny_lm("llama").geometry))
    assert not (tmp_path / "r").exists()


def _facts(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / ROUTER).read_text()) | changes
        (folder / ROUTER).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))

    return change


def _weights(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: save_file({name: tensor}, folder / TENSORS)


@pytest.mark.parametrize(
    "damage",
    [
        _facts(names=["../../etc", "loud"]),
        _facts(names=["calm"]),
        _facts(names=[1, 2]),
        _facts(names=7),
        _facts(names=None),
        _facts(base={"hidden": 32}),
        _facts(base=[]),
        _facts(format_version=2),
        lambda folder: (folder / ROUTER).write_text("[]"),
        lambda folder: (folder / ROUTER).unlink(),
        lambda folder: (folder / TENSORS).unlink(),
        lambda folder: (folder / TENSORS).write_bytes(b"garbage"),
        _weights("weights", torch.zeros(2, 31)),
        _weights("weights", torch.zeros(2, 32, dtype=torch.float64)),
        _weights("weights", torch.full((2, 32), torch.nan)),
        _weights("other", torch.zeros(2, 32)),
    ],
)
def test_what_is_no_router_is_refused(damage: Callable[[Path], object], tmp_path: Path) -> None:
    router.save_router(tmp_path / "r", made())
    damage(tmp_path / "r")
    with pytest.raises(SoftpromptError):
        router.load_router(tmp_path / "r", tiny_lm("llama").geometry)
