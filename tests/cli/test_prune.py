"""`softprompt prune`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from softprompt.errors import ConfigError, DataError, SoftpromptError, StoreError
from softprompt.prompts import store
from tests.support.rows import write_jsonl
from tests.support.shell import SHORT, done, parsed, refused, same_answer


@pytest.fixture
def own(library: Path, tmp_path: Path) -> Path:
    """Copies of the trained prompts, beside which new ones may be written."""
    return Path(shutil.copytree(library / "prompts", tmp_path / "prompts"))


def test_a_shorter_prompt(own: Path, tmp_path: Path) -> None:
    data = same_answer(tmp_path / "rows.jsonl", "ok", 9)
    args = ("prune", "ok", "--data", data, "--keep", 4, "--dtype", "float32", "--limit", 8)
    report = parsed(*args, "--name", "ok4", "--json")
    kept = [row["token"] for row in report["tokens"] if row["kept"]]
    assert len(kept) == 4 and report["rows"] == 8
    best = sorted(report["tokens"], key=lambda row: -row["rise"])[:4]
    assert sorted(row["token"] for row in best) == kept
    card = store.load_card(own / "ok4")
    old = store.load_card(own / "ok")
    assert (card.n_tokens, card.method["name"], card.method["kept"]) == (4, "prune", kept)
    assert card.metrics == {"validation_loss": report["pruned_loss"]}
    assert card.data["inputs"] == [{"name": "ok", "sha256": old.sha256}] and card.trained_on == old.trained_on
    assert (card.layout, card.template) == (old.layout, old.template)
    output = done(*args, "--name", "ok4", "--overwrite").stdout
    assert output.count("kept") == 4 + 1 and output.count("left out") == 2
    assert "--init-from ok4" in output and f"{report['loss']:.4f} with all 6" in output
    assert done("generate", "ok4", "question 3", "--max-new-tokens", 4, "--dtype", "float32").stdout


def test_embedding_prompts_show_their_nearest_tokens(base: Path, tmp_path: Path) -> None:
    data = same_answer(tmp_path / "rows.jsonl", "ok", 12)
    done("train", "--model", base, "--data", data, "--name", "e", "--method", "prompt-tuning", *SHORT)
    args = ("prune", "e", "--data", data, "--keep", 1, "--dtype", "float32")
    report = parsed(*args, "--name", "e1", "--json")
    assert report["rows"] == 1, "of a file that it was trained on, the row held out"
    assert report["notes"] == ["scored on the 1 rows held out in training; the other 11 were trained on"]
    output = done(*args, "--name", "e2").stdout
    assert "nearest" in output and all(repr(row["nearest"]) in output for row in report["tokens"])


def test_a_folder_gives_its_validation_rows(own: Path, tmp_path: Path) -> None:
    """Never its test rows: they would no longer tell what the result is worth."""
    for split, count in (("train", 5), ("validation", 3), ("test", 7)):
        rows = ({"prompt": f"{split} {i}", "completion": "ok"} for i in range(count))
        write_jsonl(tmp_path / f"{split}.jsonl", *rows)
    args = ("prune", "ok", "--data", tmp_path, "--keep", 5, "--name", "new", "--dtype", "float32", "--json")
    assert parsed(*args)["rows"] == 3
    assert (own / "new").exists()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("changes", "kind", "part"),
    [
        ({"--keep": 6}, ConfigError, "nothing would be pruned"),
        ({"--name": "no"}, StoreError, "--overwrite"),
        ({"--data": "nowhere.jsonl"}, DataError, "no such data file"),
    ],
)
def test_mistakes(
    changes: dict[str, object], kind: type[SoftpromptError], part: str, own: Path, tmp_path: Path
) -> None:
    data = same_answer(tmp_path / "rows.jsonl", "ok", 2)
    options = {"--data": data, "--keep": 4, "--name": "new"} | changes
    error = refused("prune", "ok", *(word for option in options.items() for word in option))
    assert isinstance(error, kind) and part in str(error)
    assert not (own / "new").exists()
