"""`softprompt list` and `softprompt show`."""

from __future__ import annotations

import json
import re
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
    title, sentence, *lines = done("show", "ok").stdout.splitlines()
    made = card.created[:16].replace("T", " ")
    assert title == "ok"
    assert sentence == f"A soft prompt of 6 virtual tokens in kv form, made by prefix-tuning on {made}."
    assert [line for line in lines if line and line[0] != " "] == [
        "Base model",
        "Size",
        "Rows",
        "Training",
        "Scores",
        "Files",
        'next  softprompt generate ok "your text"',
    ]
    pairs = [line.strip().partition("  ") for line in lines if line.startswith("  ")]
    values = {key: value.strip() for key, _, value in pairs}
    assert values.keys() >= {"name", "shape", "fingerprint", "tensors", "settings", "data", "versions"}
    assert (values["name"], values["fingerprint"]) == (str(base), card.geometry.fingerprint)
    assert values["tensors"] == f"{size / 1024:.1f} KiB of float32"
    assert values["sha256"] == card.sha256
    assert "lr 0.3, " in values["settings"] and "train_rows 22" in values["data"]
    assert values["validation loss"] == f"{card.metrics['validation_loss']:.4g}"
    assert values["ended by"].startswith("steps after 80 steps, ")
    assert values["folder"] == str(own)
    assert "labels" not in values and "license" not in values, "an empty value is left out"


def test_show_says_what_to_type_next(own: Path) -> None:
    """With the name as typed, and for a distilled one the comparison with its text."""
    assert f"softprompt eval {own} --data test.jsonl" in done("show", own).stdout
    rewrite_card(own, data={"text_sha256": "0" * 64})
    assert done("show", "ok").stdout.endswith("\n      softprompt fidelity ok\n")


def test_show_names_labels(trained: Path) -> None:
    assert "\n  labels           even, odd\n" in done("show", "parity").stdout


def test_show_cuts_what_nobody_reads(own: Path) -> None:
    """Digests and long texts; line breaks stay one line, --json has everything."""
    text = "a policy\n" * 100
    rewrite_card(own, data={"text": text, "inputs": [{"sha256": "ab" * 32}, {"rows": 7}], "empty": None}, metrics={})
    output = done("show", "ok").stdout
    assert (
        "text a policy\\na policy\\n" in output
        and "… (1,000 characters), inputs sha256 abababababababab…; rows 7\n" in output
    )
    assert "empty" not in output and "Scores\n  none " in output
    assert parsed("show", "ok", "--json")["data"]["text"] == text


def test_show_is_bold_and_wraps_on_a_terminal_only(trained: Path) -> None:
    assert "\x1b" not in done("show", "ok").stdout
    shown = done("show", "ok", FORCE_COLOR="1", COLUMNS="60").stdout
    assert shown.startswith("\x1b[1mok\x1b[0m\n")
    plain = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines() if line.startswith("  ")]
    assert max(map(len, plain)) <= 60
    (first,) = [number for number, line in enumerate(plain) if line.startswith("  settings")]
    assert plain[first + 1].startswith(" " * 10), "a long value goes on under itself"


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
