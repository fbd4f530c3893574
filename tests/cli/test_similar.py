"""`softprompt similar`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from softprompt.editing.similarity import similarity
from softprompt.prompts import store
from tests.support.shell import SHORT, done, parsed, same_answer


@pytest.fixture
def own(library: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(library / "prompts", tmp_path / "prompts"))


@pytest.mark.usefixtures("no_model")
def test_the_most_alike_first(own: Path) -> None:
    done("compose", "0.9*ok + 0.1*no", "--name", "near")
    report = parsed("similar", "ok", "--json")
    assert report["name"] == "ok"
    names = [row["name"] for row in report["similar"]]
    assert names[0] == "near" and sorted(names) == ["near", "no", "parity"]
    wanted = similarity(store.load("ok")[0], store.load("no")[0])
    row = next(row for row in report["similar"] if row["name"] == "no")
    assert (row["average"], row["per_token"]) == (wanted.average, wanted.per_token)
    output = done("similar", "ok").stdout
    assert "--method.init prompt --method.init-from near" in output
    assert [line.split()[0] for line in output.splitlines()[1:4]] == names


def test_others_are_left_out(own: Path, base: Path, tmp_path: Path) -> None:
    """Other forms, other base models, damaged ones."""
    data = same_answer(tmp_path / "rows.jsonl", "ok", 12)
    done("train", "--model", base, "--data", data, "--name", "e", "--method", "prompt-tuning", *SHORT)
    facts = json.loads((own / "no" / store.CARD).read_text())
    facts["base"]["architecture"] = "qwen2"
    (own / "no" / store.CARD).write_text(json.dumps(facts))
    (own / "parity" / store.CARD).write_text("{")
    assert parsed("similar", "ok", "--json")["similar"] == []
    assert "no other kv prompt" in done("similar", "ok").stdout
    assert parsed("similar", "e", "--json")["similar"] == []
