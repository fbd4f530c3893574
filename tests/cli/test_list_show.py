"""`softprompt list` and `softprompt show`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from softprompt.errors import StoreError
from softprompt.prompts import store
from tests.support.shell import done, parsed, refused


@pytest.fixture
def own(library: Path, tmp_path: Path) -> Path:
    """A copy of a trained prompt, to be damaged."""
    return Path(shutil.copytree(library / "prompts" / "ok", tmp_path / "prompts" / "ok"))


def rewrite_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / store.CARD).read_text())
    (folder / store.CARD).write_text(json.dumps(card | changes))


def test_list_of_nothing() -> None:
    """The folder need not be there."""
    assert parsed("list", "--json") == []
    output = done("list").stdout
    assert "no soft prompts in" in output and "softprompt train" in output


def test_list(own: Path, base: Path) -> None:
    (own.parent / ".runs" / "ok").mkdir(parents=True)
    (own.parent / "notes").mkdir()
    header, row = done("list").stdout.splitlines()
    assert header.split() == ["name", "form", "tokens", "base", "model", "method", "created"]
    card = store.load_card(own)
    assert row.split() == ["ok", "kv", "6", str(base), "prefix-tuning", card.created[:16]]
    (shown,) = parsed("list", "--json")
    assert shown == {**json.loads((own / store.CARD).read_text()), "name": "ok"}


def test_list_shows_damaged_ones_beside_the_others(own: Path) -> None:
    for name, text in {"broken": "{", "future": json.dumps({"format_version": 99})}.items():
        (own.parent / name).mkdir()
        (own.parent / name / store.CARD).write_text(text)
    lines = {line.split()[0]: line for line in done("list").stdout.splitlines()}
    assert "damaged" in lines["broken"]
    assert "damaged: unknown format version" in lines["future"]
    assert "damaged" not in lines["ok"] and "prefix-tuning" in lines["ok"]
    rows = {row["name"]: row for row in parsed("list", "--json")}
    assert "99" in rows["future"]["error"]
    assert rows["broken"].keys() == {"name", "error"}
    assert rows["ok"]["n_tokens"] == 6


def test_show(own: Path, base: Path) -> None:
    card = store.load_card(own)
    shown = parsed("show", "ok", "--json")
    size = (2 * 2) * 2 * 6 * 8 * 4  # keys and values of two layers, [2 heads, 6 tokens, 8 wide] in float32
    assert shown == {**json.loads((own / store.CARD).read_text()), "bytes": size}
    output = done("show", "ok").stdout
    lines = {line[:12].strip(): line[12:] for line in output.splitlines()}
    assert lines["form"] == f"kv, 6 virtual tokens, {size / 1024:.0f} KiB, sha256 {card.sha256[:16]}…"
    assert str(base) in lines["base model"] and card.geometry.fingerprint in lines["base model"]
    assert json.loads(lines["recipe"])["lr"] == 0.3
    assert json.loads(lines["data"])["train_rows"] == 22
    assert lines["files"] == str(own)
    assert "labels" not in lines, "an empty fact is left out"


def test_show_names_labels(trained: Path) -> None:
    assert "labels      even, odd\n" in done("show", "parity").stdout


def test_show_takes_a_path(library: Path) -> None:
    assert parsed("show", library / "prompts" / "no", "--json")["name"] == "no"


def test_show_refuses_damaged_tensors(own: Path) -> None:
    """One bit of one number."""
    path = own / store.TENSORS
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    for options in ([], ["--json"]):
        error = refused("show", "ok", *options)
        assert isinstance(error, StoreError) and "sha256" in error.what
        assert error.where == path


def test_show_refuses_what_does_not_belong_together(own: Path) -> None:
    whole = (own / store.CARD).read_bytes()
    rewrite_card(own, n_tokens=7)
    assert "7" in str(refused("show", "ok").expected)
    rewrite_card(own, n_tokens=6, surprise=1)
    assert "surprise" in str(refused("show", "ok"))
    (own / store.CARD).write_bytes(whole)
    (own / store.TENSORS).unlink()
    assert "no such file" in refused("show", "ok").what


@pytest.mark.parametrize(("name", "part"), [("nothing", "no such soft prompt"), ("Bad Name", "not a usable name")])
def test_show_of_what_is_not_there(name: str, part: str) -> None:
    assert part in refused("show", name).what


def test_list_names_the_folder(own: Path) -> None:
    """By that name it is found, whatever the card calls it."""
    own.rename(own.with_name("renamed"))
    assert [row["name"] for row in parsed("list", "--json")] == ["renamed"]
    assert "renamed" in done("list").stdout


def test_list_never_cuts_a_name(own: Path) -> None:
    """What is piped into grep or a loop."""
    long = "customer-support-classifier-of-the-second-quarter-of-the-year"
    own.rename(own.with_name(long))
    assert long in done("list", COLUMNS="80").stdout


def test_a_strangers_card_cannot_steer_the_terminal(own: Path) -> None:
    """Neither as markup nor by control characters."""
    base = json.loads((own / store.CARD).read_text())["base"]
    rewrite_card(own, base=base | {"base": "[/x]\x1b[2J[v2]"}, created="[red]", method={"name": "[/bold]\x07"})
    for command in (("list",), ("show", "ok")):
        output = done(*command).stdout
        assert r"[/x]\x1b[2J[v2]" in output and "[/bold]" in output and "[red]" in output
        assert "\x1b" not in output and "\x07" not in output
