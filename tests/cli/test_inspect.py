"""`softprompt inspect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.support.shell import done, refused, softprompt


def test_sections_as_text_and_json(trained: Path) -> None:
    text = done("inspect", "ok", "--only", "behavior,drift").stdout
    assert "nats an answer token away from the base" in text and "promotes" in text and "effective" in text
    found = json.loads(done("inspect", "ok", "--only", "drift", "--json").stdout)
    assert found["name"] == "ok" and found["drift"]["norms"] and found["behavior"] is None


def test_rows_and_sections_are_checked_before_a_model_is_loaded(trained: Path, no_model: None, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    for verb in ("inspect", "verbalize"):
        assert "empty.jsonl" in str(refused(verb, "ok", "--data", tmp_path / "empty.jsonl").where)
        assert "nowhere" in str(refused(verb, "ok", "--data", tmp_path / "nowhere.jsonl"))
    assert refused("inspect", "ok", "--only", "soul").got == "soul"


def test_an_unknown_section_is_named(trained: Path) -> None:
    error = refused("inspect", "ok", "--only", "soul")
    assert error.got == "soul" and "behavior" in str(error.expected)


def test_a_text_is_searched_and_measured(trained: Path, tmp_path: Path) -> None:
    text = done("verbalize", "ok").stdout
    assert "of the effect (" in text and "random" in text
    found = json.loads(done("verbalize", "ok", "--json").stdout)
    assert found["name"] == "ok" and found["candidates"] and found["says_it"] in (True, False)
    whole = done("inspect", "ok", "--only", "drift", "--verbalize", "--html").stdout
    assert "drift:" in whole and "words:" in whole and f"{found['recovered']:.0%} of the effect (" in whole
    same = json.loads((tmp_path / "ok.inspect.json").read_text(encoding="utf-8"))["words"]
    assert same["best"] == found["best"] and same["controls"] == found["controls"]
    assert "In words" in (tmp_path / "ok.inspect.html").read_text(encoding="utf-8")


def test_several_prompts_are_compared_and_written(trained: Path, tmp_path: Path) -> None:
    """One run with every kind of file; a second one replaces nothing unless it is told to."""
    sections = ("--only", "behavior,drift,likeness")
    result = done("inspect", "ok", "no", *sections, "--html", "--png", "png", "--projector", "points")
    assert "effective rank, mean" in result.stdout and "effect, a token" in result.stdout
    assert "<h1>ok, no</h1>" in (tmp_path / "ok+no.inspect.html").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "ok+no.inspect.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in found["prompts"]] == ["ok", "no"] and found["comparison"]
    assert {path.suffix for path in (tmp_path / "png").iterdir()} == {".png"}
    assert len((tmp_path / "points" / "tensors.tsv").read_text(encoding="utf-8").splitlines()) == 24
    printed = json.loads(done("inspect", "ok,no", *sections, "--json").stdout)
    assert printed == found
    shutil.copytree(trained / "prompts" / "ok", tmp_path / "copies" / "ok")
    twins = json.loads(done("inspect", "ok", "copies/ok", "--only", "drift", "--html", "--json").stdout)
    assert [entry["name"] for entry in twins["prompts"]] == ["ok", "copies/ok"]
    assert (tmp_path / "ok+copies-ok.inspect.html").exists()


def test_files_are_not_replaced_unless_it_is_said(trained: Path, tmp_path: Path, no_model: None) -> None:
    for name, flags in {"ok.inspect.html": [], "ok.inspect.json": [], "mine.html": ["mine.html"]}.items():
        (tmp_path / name).write_text("mine", encoding="utf-8")
        error = refused("inspect", "ok", "--html", *flags)
        assert "already there" in str(error) and "--overwrite" in str(error)
        (tmp_path / name).unlink()
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "tensors.tsv").touch()
    assert "already there" in str(refused("inspect", "ok", "--projector", "points"))


def test_the_file_of_html_is_only_a_word_that_ends_so(trained: Path, tmp_path: Path) -> None:
    done("inspect", "--html", "ok", "--only", "drift")
    done("inspect", "ok", "--only", "drift", "--html", "--overwrite")
    done("inspect", "ok", "--only", "drift", "--html", "else.html")
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["else.html", "ok.inspect.html"]


def test_without_a_name_the_usage_is_shown() -> None:
    for arguments in ([], ["--html"]):
        assert "Missing argument 'NAME" in softprompt("inspect", *arguments).stderr
