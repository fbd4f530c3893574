"""`softprompt demo`."""

from __future__ import annotations

from pathlib import Path

from tests.support.shell import done, refused

ROOT = Path(__file__).parents[2]


def test_the_example_rows_are_written_once(tmp_path: Path) -> None:
    told = done("demo", tmp_path / "rows").stdout
    for split, count in (("train", 486), ("validation", 72), ("test", 90)):
        written = tmp_path / "rows" / f"{split}.jsonl"
        assert written.read_bytes() == (ROOT / "examples" / "helpdesk" / written.name).read_bytes()
        assert f"{written}  {count} rows" in told
    assert f"softprompt train --data {tmp_path / 'rows'}" in told
    done("demo", tmp_path / "rows")  # the same rows are no harm
    (tmp_path / "rows" / "test.jsonl").write_text("mine", encoding="utf-8")
    assert "test.jsonl" in str(refused("demo", tmp_path / "rows").where)
    assert (tmp_path / "rows" / "test.jsonl").read_text(encoding="utf-8") == "mine"


def test_the_wheel_has_what_the_verb_reads() -> None:
    """Each file of the example is named in the build's settings."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for split in ("train", "validation", "test"):
        place = f"helpdesk/{split}.jsonl"
        assert f'"examples/{place}" = "softprompt/examples/{place}"' in settings
