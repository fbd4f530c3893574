"""`train --objective dpo|grpo`: from rows to a soft prompt whose card says how it was trained, and the refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.prompts import store
from softprompt.training.run_log import read_log
from tests.support.rows import write_jsonl
from tests.support.shell import done, parsed, refused

SMALL = ("--n-tokens", 3, "--batch-size", 4, "--steps", 3, "--dtype", "float32")
RULE = "def short(prompts, completions, rows):\n    return [-len(text) / 10 for text in completions]\n"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"question {i}", "chosen": "ok", "rejected": f"no {i}"} for i in range(12)]
    return write_jsonl(tmp_path / "pairs.jsonl", *rows)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    (tmp_path / "rule.py").write_text(RULE)
    return write_jsonl(tmp_path / "asked.jsonl", *({"prompt": f"question {i}"} for i in range(12)))


def card_and_readme(name: str) -> tuple[Any, str]:
    folder = store.find(name)
    return store.load_card(folder), (folder / "README.md").read_text()


def test_dpo(base: Path, pairs: Path) -> None:
    options = ("--objective", "dpo", "--beta", 0.3, "--objective.label-smoothing", 0.1, "--objective.sft-weight", 0.5)
    shown = done("train", "--model", base, "--data", pairs, "--name", "kind", *SMALL, *options).stdout
    assert "objective   dpo: " in shown and "beta 0.3" in shown and "validation loss" in shown and "accuracy" in shown
    assert "rejected ones" not in shown, "here they are used"
    card, readme = card_and_readme("kind")
    objective = {"name": "dpo", "beta": 0.3, "reference": "start", "label_smoothing": 0.1, "sft_weight": 0.5}
    assert card.recipe["objective"] == objective
    assert {"validation_accuracy", "validation_margin"} <= card.metrics.keys()
    assert "Objective: dpo (beta 0.3, reference start, label smoothing 0.1, sft weight 0.5)." in readme
    assert (store.find("kind") / "objective.png").exists()
    assert parsed(
        "eval", "kind", "--model", base, "--data", pairs, "--dtype", "float32", "--max-new-tokens", 4, "--json"
    )


def test_grpo(base: Path, asked: Path) -> None:
    options = ("--objective", "grpo", "--reward", "rule.py:short", "--group-size", 3, "--max-new-tokens", 5)
    shown = done("train", "--model", base, "--data", asked, "--name", "brief", *SMALL, *options).stdout
    assert "objective   grpo: " in shown and "reward" in shown
    assert "softprompt eval" not in shown and "softprompt generate brief" in shown
    card, readme = card_and_readme("brief")
    objective = card.recipe["objective"]
    assert (objective["reward"], objective["beta"], objective["group_size"]) == ("rule.py:short", 0.04, 3)
    assert len(objective["reward_sha256"]) == 64 and "Objective: grpo" in readme
    assert card.metrics["validation_loss"] == -card.metrics["validation_reward"]
    lines = read_log(store.find("brief").parent / ".runs" / "brief" / "metrics.jsonl")
    assert all({"reward", "kl", "cut_off"} <= line.keys() for line in lines if line["event"] == "step")


def test_only_the_command_line_names_a_reward(base: Path, asked: Path, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(f"model: {base}\ndata: {asked}\nname: x\nobjective:\n  name: grpo\n  reward: rule.py:short\n")
    error = refused("train", config)
    assert "only the command line may name it" in error.what and error.hint == "repeat it: --reward rule.py:short"
    environment = {"SOFTPROMPT__OBJECTIVE__NAME": "grpo", "SOFTPROMPT__OBJECTIVE__REWARD": "rule.py:short"}
    error = refused("train", "--model", base, "--data", asked, "--name", "x", **environment)
    assert "only the command line may name it" in error.what
    done("train", config, "--reward", "rule.py:short", *SMALL, "--group-size", 2, "--max-new-tokens", 3)


REFUSED: list[tuple[tuple[object, ...], str]] = [
    (("--objective", "grpo"), "needs --reward"),
    (("--reward", "rule.py:short"), "reward is a setting of --objective grpo, not of next-token"),
    (("--objective", "dpo", "--group-size", 4), "group_size is a setting of --objective grpo, not of dpo"),
    (("--objective", "dpo", "--beta", 0), "with beta 0 the loss of dpo is the same"),
    (("--objective", "dpo"), "no rejected answer"),
    (("--objective", "grpo", "--reward", "rule.py:long"), "no such function"),
]


@pytest.mark.parametrize(("options", "what"), REFUSED, ids=[what for _, what in REFUSED])
def test_what_does_not_fit(options: tuple[object, ...], what: str, base: Path, asked: Path, tmp_path: Path) -> None:
    data = asked
    if "dpo" in options:
        data = write_jsonl(tmp_path / "b.jsonl", *({"prompt": f"{i}", "completion": "ok"} for i in range(9)))
    error = refused("train", "--model", base, "--data", data, "--name", "x", *SMALL, *options)
    assert what in error.what


def test_check_and_preview_show_both_answers(base: Path, pairs: Path, tmp_path: Path) -> None:
    report = parsed("data", "check", pairs, "--model", base, "--json")
    assert report["splits"]["train"]["rejected_tokens"]["min"] == 5  # "no 1" and the end
    assert "only the objective dpo" in report["notes"][0]
    shown = done("data", "preview", pairs, "-n", 12).stdout
    assert "« ok»" in shown and "rejected:" in shown and "« no 1»" in shown
    bad = write_jsonl(
        tmp_path / "bad.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}
    )
    assert str(refused("data", "check", bad).where).endswith("bad.jsonl:2")
