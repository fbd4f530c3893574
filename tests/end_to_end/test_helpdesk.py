"""The shipped example data is what its README says."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from softprompt.data.records import Record
from softprompt.data.splits import load_splits

FOLDER = Path(__file__).parents[2] / "examples" / "helpdesk"
QUEUES = ("billing", "shipping", "returns", "account", "technical", "sales")
URGENCIES = ("high", "medium", "low")
PER_CLASS = {"train": 27, "validation": 4, "test": 5}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Record]]:
    loaded = load_splits(FOLDER)
    assert loaded.notes == ()
    return {"train": loaded.train, "validation": loaded.validation, "test": loaded.test}


@pytest.mark.parametrize("name", PER_CLASS)
def test_every_class_is_equally_frequent(splits: dict[str, list[Record]], name: str) -> None:
    answers = Counter(record.target for record in splits[name])
    expected = {f'{{"queue": "{q}", "urgency": "{u}"}}': PER_CLASS[name] for q in QUEUES for u in URGENCIES}
    assert answers == expected


def test_rows_have_the_two_fields_and_clean_text() -> None:
    for name in PER_CLASS:
        for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert list(row) == ["prompt", "completion"]
            assert row["prompt"] == row["prompt"].strip()
            assert row["prompt"].isprintable()
            assert 32 <= len(row["prompt"]) <= 324


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_nothing_is_repeated_inside_or_across_files(splits: dict[str, list[Record]]) -> None:
    prompts = [(name, record.fields["prompt"]) for name, records in splits.items() for record in records]
    assert len({" ".join(re.findall(r"\w+", prompt.lower())) for _, prompt in prompts}) == 648
    found = [(name, prompt, trigrams(prompt)) for name, prompt in prompts]
    for (one, prompt, left), (two, other, right) in itertools.combinations(found, 2):
        if one != two and left | right:
            assert len(left & right) / len(left | right) < 0.2, (prompt, other)


def test_the_files_are_shuffled(splits: dict[str, list[Record]]) -> None:
    for records in splits.values():
        assert len({record.target for record in records[:18]}) > 6


def test_the_readme_counts_the_rows(splits: dict[str, list[Record]]) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, count in PER_CLASS.items():
        assert f"| `{name}.jsonl` | {len(splits[name])} | {count} |" in readme
    assert all(f"| `{word}` |" in readme for word in (*QUEUES, *URGENCIES))
