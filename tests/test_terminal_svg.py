"""The README's picture is the recorded session, and the pages that show parts of that session show them as printed."""

from __future__ import annotations

import re
import runpy
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
script = runpy.run_path(str(ROOT / "scripts" / "terminal_svg.py"))
SESSION: str = script["SESSION"].read_text(encoding="utf-8")
PICTURE: str = script["PICTURE"].read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: str) -> list[str]:
    """The lines of a picture."""
    return ["".join(element.itertext()) for element in ET.fromstring(picture).iter(f"{SVG}text")]


def test_the_picture_is_what_the_script_draws() -> None:
    assert script["draw"](SESSION) == PICTURE


def test_the_session_is_the_quickstart_of_the_readme() -> None:
    commands = re.findall(r"^\$ (.*)$", SESSION, re.MULTILINE)
    assert commands == script["quickstart"](README)
    assert commands[0] == "softprompt demo" and len(commands) == 6


def test_the_picture_shows_lines_of_the_session() -> None:
    shown = [line for line in texts(PICTURE) if line != "…"]
    assert set(shown) <= set(SESSION.splitlines()), "no line is so long that it is cut"
    assert {"softprompt eval helpdesk --data helpdesk", "softprompt demo"} <= {
        line.removeprefix("$ ") for line in shown
    }
    assert any(line.startswith("soft prompt  ") for line in shown)


def test_the_picture_can_be_read_by_everyone() -> None:
    """It is small, is named for screen readers, brings its own background, and fetches nothing."""
    root = ET.fromstring(PICTURE)
    assert root.get("role") == "img"
    names = [root.find(f"{SVG}{tag}") for tag in ("title", "desc")]
    assert root.get("aria-labelledby") == " ".join(str(element.get("id")) for element in names if element is not None)
    assert all(element is not None and element.text for element in names)
    assert len(PICTURE.encode()) < 60_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|<script|href", PICTURE)
    assert root.find(f"{SVG}rect") is not None


@pytest.mark.parametrize("page", ["README.md", "docs/guides/train.md", "docs/guides/evaluate.md"])
def test_pages_show_what_the_session_printed(page: str) -> None:
    """Blocks with a line of the session that holds its numbers; "…" stands for lines that are left out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    printed = set(SESSION.splitlines())
    numbers = ("saved  ", "soft prompt  ")
    shown = [block.splitlines() for block in blocks if any(line.startswith(numbers) for line in block.splitlines())]
    assert shown or page == "README.md"
    assert {line for block in shown for line in block} - {"…"} <= printed


def test_the_numbers_around_the_picture_are_those_of_the_session() -> None:
    quickstart = README.partition("## Quickstart")[2].partition("\n## ")[0]
    quickstart = re.sub(r"\[[^]]*\]\(docs/log/[^)]*\)", "", quickstart)  # another run, with its entry
    assert "docs/images/quickstart.svg" in quickstart
    (steps,) = re.findall(r"(\d+) steps", quickstart)
    assert f"after {steps} steps" in SESSION
    scores = re.findall(r"0\.\d{3}", quickstart)
    assert scores and all(score in SESSION for score in scores)


def test_lines_that_are_left_out_are_marked() -> None:
    session = (
        "$ softprompt demo\nhelpdesk/train.jsonl  1 rows\nhelpdesk/test.jsonl  1 rows\nnext  x\n"
        "$ softprompt inspect x\nlong\n$ softprompt list\nname <&>\n" + "x" * 130 + "\n"
    )
    assert list(script["shown"](session)) == [
        *("$ softprompt demo", "helpdesk/train.jsonl  1 rows", "…"),
        *("$ softprompt list", "name <&>", "x" * 100, "x" * 30),
    ]
    assert texts(script["draw"](session))[-3] == "name <&>"


def test_a_session_is_recorded_as_a_terminal_shows_it(capfd: pytest.CaptureFixture[str]) -> None:
    printing = f"{sys.executable} -c \"import sys; print('one  '); print('two', file=sys.stderr)\""
    session = script["record"]([printing, "true"])
    assert session.startswith(f"$ {printing}\n") and session.endswith("\n$ true\n")
    assert sorted(session.splitlines()[1:3]) == ["one", "two"]
    with pytest.raises(SystemExit, match="ended with 1"):
        script["record"](["false"])
    assert capfd.readouterr().out.endswith("$ false\n")
