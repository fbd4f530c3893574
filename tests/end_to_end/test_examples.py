"""The data of examples/preferences and examples/reward is what their scripts make, and fits their objectives."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from examples.preferences import make_data as preferences
from examples.reward import make_data as reward
from examples.reward.rule import one_sentence, score
from softprompt.data.read_options import ReadOptions
from softprompt.data.splits import load_splits


@pytest.mark.parametrize("script", [preferences, reward], ids=["preferences", "reward"])
def test_the_files_are_those_of_the_script(script: ModuleType, tmp_path: Path) -> None:
    script.main(tmp_path)
    for name, size in script.SIZES.items():
        text = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8")
        assert text == (script.FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
        assert len(text.splitlines()) == size


def test_no_answer_of_training_is_asked_for_later() -> None:
    splits = load_splits(preferences.FOLDER, options=ReadOptions(pairs=True))
    answers = [{record.target for record in rows} for rows in (splits.train, splits.validation, splits.test)]
    assert not answers[0] & answers[1] and not answers[0] & answers[2]
    assert all(record.rejected and str(record.target) in str(record.rejected.target) for record in splits.train)


def test_the_rule_rewards_one_whole_sentence() -> None:
    right = "The moon goes round the earth once in a month."
    assert score(right) == 1.0
    worse = ["The moon.", right + " It is far away.", right[:-1], f"- {right}\n- It is far.", "word " * 60, ""]
    assert all(score(text) < 1.0 for text in worse) and score("") == 0.0
    assert one_sentence(["?"], [[{"role": "assistant", "content": right}]], [{}]) == [1.0]
