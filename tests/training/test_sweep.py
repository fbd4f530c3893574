"""A sweep: the grid, what may differ, the best one saved as it would be alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from softprompt.errors import ConfigError, StoreError
from softprompt.prompts import store
from softprompt.prompts.forms import prompt_digest
from softprompt.training.config import Config
from softprompt.training.run import build_trial, fit, prepare
from softprompt.training.run_log import read_log
from softprompt.training.starts import find_start
from softprompt.training.sweep import grid, sweep
from tests.support.saved import save_tiny, settings
from tests.support.shell import done, refused
from tests.support.tiny import tiny_lm
from tests.training.test_batched_losses import TOLERANCE


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "llama", bos=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_HOME", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


def test_the_grid() -> None:
    cells = grid(["train.lr=1e-2, 3e-2", "method.n_tokens=16,32"])
    assert list(cells) == ["lr=1e-2 n_tokens=16", "lr=1e-2 n_tokens=32", "lr=3e-2 n_tokens=16", "lr=3e-2 n_tokens=32"]
    assert cells["lr=3e-2 n_tokens=16"] == {"train.lr": "3e-2", "method.n_tokens": "16"}
    assert grid(["train.seed=1,2,3"])["seed=2"] == {"train.seed": "2"}


@pytest.mark.parametrize(
    ("axes", "text"),
    [
        (["train.lr"], "different values"),
        (["train.lr=1,1"], "different values"),
        (["train.lr=1,2", "train.lr=3"], r"(?s)given twice.*train\.lr=1,2,3"),
        (["data=a,b"], "share this setting"),
        (["train.minutes=1,2"], "share this setting"),
        ([f"train.seed={','.join(map(str, range(300)))}"], "too many"),
    ],
)
def test_what_is_refused(axes: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        grid(axes)


def cells(base: Path, folder: Path, **changes: Any) -> dict[str, Config]:
    rates = (0.001, 0.3)
    return {f"lr={lr}": settings(base, folder, name="best", train__lr=lr, **changes) for lr in rates}


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
def test_the_best_is_saved_as_it_would_be_alone(method: str, base: Path, tmp_path: Path, home: Path) -> None:
    lm, changes = tiny_lm("llama", bos=True), {"method__name": method, "train__steps": 20, "train__patience": None}
    prepared = prepare(settings(base, tmp_path, name="best", **changes))
    found = sweep(prepared, cells(base, tmp_path, **changes), lm, rungs=())
    assert list(found.results) == ["lr=0.3", "lr=0.001"], "best first"
    losses = [result.validation_loss for result in found.results.values()]
    assert losses[0] is not None and losses[1] is not None and losses[0] < losses[1]
    assert [folder for folder, _ in found.saved] == [home / "best"]
    prompt, card = store.load(home / "best", lm.geometry)
    assert (card.recipe["lr"], card.method["name"], card.metrics["validation_loss"]) == (0.3, method, losses[0])
    alone = fit(prepare(settings(base, tmp_path, name="alone", train__lr=0.3, **changes)), lm)
    for name, tensor in alone.result.prompt.tensors().items():
        assert_close(prompt.tensors()[name], tensor, rtol=0, atol=TOLERANCE * tensor.abs().max().item())
    run = home / ".runs" / "best"
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl", "starts", "sweep.json"]
    (untrained,) = build_trial(prepared, lm).trial.learner.freeze()
    start = find_start(home / "best", card)
    assert start is not None and prompt_digest(start) == prompt_digest(untrained)
    table = json.loads((run / "sweep.json").read_text())
    assert [row["trial"] for row in table] == ["lr=0.3", "lr=0.001"]
    events: list[Any] = read_log(run / "metrics.jsonl")
    assert {event.get("trial") for event in events if event["event"] == "step"} == set(found.results)


def test_a_taken_name_is_refused_before_training(base: Path, tmp_path: Path, home: Path) -> None:
    lm = tiny_lm("llama", bos=True)
    prepared = prepare(settings(base, tmp_path, name="best"))
    (home / "best").mkdir(parents=True)
    (home / "best" / "card.json").write_text("{}")
    with pytest.raises(StoreError, match="of that name"):
        sweep(prepared, cells(base, tmp_path), lm)
    assert not (home / ".runs" / "best" / "metrics.jsonl").exists()


def test_on_the_command_line(base: Path, tmp_path: Path, home: Path) -> None:
    settings(base, tmp_path)  # writes the rows
    config = tmp_path / "cfg.yml"
    config.write_text(f"model: {base}\ndata: {tmp_path / 'data'}\ntrain: {{steps: 8, patience: null}}\n")
    environment = {"SOFTPROMPT_HOME": str(home)}
    words = ["sweep", config, "train.lr=0.001,0.3", "method.n_tokens=4,6", "--name", "best"]
    shown = done(*words, "--template", "Row: {text}", **environment).stdout
    assert "lr=0.3 n_tokens=6" in shown and "halving" in shown and f"saved       {home / 'best'}" in shown
    assert store.load_card(home / "best").n_tokens in (4, 6)
    assert "of that name" in str(refused(*words, **environment))
    told = done(*words, "--overwrite", "--json", **environment).stdout.splitlines()
    result = json.loads(told[-1])
    assert len(result["trials"]) == 4
    assert result["candidates"] == result["trials"], "the old name, for one release"
    wrong = refused("sweep", config, "train.lrr=1,2", "--name", "x", **environment)
    assert "did you mean train.lr" in str(wrong)
