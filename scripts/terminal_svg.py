"""The README's picture: a recorded terminal session, drawn as an SVG that needs no fonts or files from elsewhere.

python scripts/terminal_svg.py [--record]

`--record` first runs the README's quickstart in an empty folder, with the `softprompt` of PATH, and writes what it
printed to docs/images/quickstart.txt. That takes minutes. The picture shows a part of the session; the rest is "…".
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
SESSION = ROOT / "docs" / "images" / "quickstart.txt"
PICTURE = SESSION.with_suffix(".svg")
COLUMNS = 100
# Verbs that the picture shows, each with the beginnings of the lines that it shows.
SHOWN = {
    "demo": r"helpdesk/train",
    "train": r"auto +method\.n|data |expected|step \d*[05]0 |saved|ended",
    "eval": r"note: scored| {9}|base  |text prompt|soft prompt|\d+ rows",
    "generate": r"\{",
    "list": r"",
}
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SIZE = 13
ADVANCE = 7.83  # width of a character of that size in those fonts, which textLength holds them to
LINE = 19
MARGIN = 18
BAR = 34  # height of the title bar
STYLE = f"""\
text {{ font: {SIZE}px {FONT}; fill: #d5dae3; white-space: pre; }}
.typed {{ fill: #ffffff; font-weight: bold; }}
.sign {{ fill: #7ee787; font-weight: bold; }}
.left-out {{ fill: #8b949e; }}"""
TITLE = "A terminal session with softprompt"
SOURCE = "The whole text is in docs/images/quickstart.txt."


def quickstart(readme: str) -> list[str]:
    """The commands of the README's quickstart, without comments."""
    block = re.search(r"## Quickstart\n.*?```\w*\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    lines = [line.partition("  #")[0].strip() for line in block[1].splitlines()]
    return [line for line in lines if line.startswith("softprompt ")]


def record(commands: list[str]) -> str:
    """Run the commands in an empty folder, one after the other, and return the session's text."""
    lines = list[str]()
    environment = os.environ | {"COLUMNS": str(COLUMNS)}
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            print("$", command, flush=True)
            result = subprocess.run(
                shlex.split(command), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            printed = result.stdout.decode().rstrip()
            if result.returncode:
                sys.exit(f"it ended with {result.returncode}\n{printed}")
            lines += [f"$ {command}", *(line.rstrip() for line in printed.splitlines())]
    return "\n".join(lines) + "\n"


def shown(session: str) -> Iterator[str]:
    """The lines of the picture, cut at the terminal's width; "…" stands for lines that are left out."""
    for part in re.split(r"^(?=\$ )", session, flags=re.MULTILINE)[1:]:
        typed, *printed = part.splitlines()
        pattern = SHOWN.get(typed.split()[2])
        if pattern is None:
            continue
        yield typed
        kept = [line if re.match(pattern, line) else "…" for line in printed]
        for line, before in zip(kept, [typed, *kept], strict=False):
            if line == "…" == before:
                continue
            yield from (line[i : i + COLUMNS] for i in range(0, len(line), COLUMNS))


def draw(session: str) -> str:
    """The SVG of a session."""
    lines = list(shown(session))
    width = round(2 * MARGIN + ADVANCE * max(map(len, lines)))
    height = BAR + MARGIN + LINE * len(lines)
    texts = [_text(line, BAR + LINE * (i + 1)) for i, line in enumerate(lines)]
    typed = [line[2:] for line in lines if line.startswith("$ ")]
    description = f"The commands {', '.join(typed)}, and what they print. {SOURCE}"
    dots = [
        f'<circle cx="{MARGIN + 4 + 20 * i}" cy="{BAR // 2}" r="6" fill="{color}"/>'
        for i, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" aria-labelledby="title description">',
            f'<title id="title">{TITLE}</title>',
            f'<desc id="description">{escape(description, quote=False)}</desc>',
            f"<style>{STYLE}</style>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="9" fill="#161b22" stroke="#768390"/>',
            *dots,
            *texts,
            "</svg>\n",
        ]
    )


def _text(line: str, y: int) -> str:
    """One line of the terminal; spaces stay, and every font takes the same width."""
    spans = escape(line, quote=False)
    if line.startswith("$ "):
        spans = f'<tspan class="sign">$</tspan> <tspan class="typed">{escape(line[2:], quote=False)}</tspan>'
    elif line == "…":
        spans = '<tspan class="left-out">…</tspan>'
    length = f"{ADVANCE * len(line):.1f}"
    return f'<text x="{MARGIN}" y="{y}" textLength="{length}" xml:space="preserve">{spans}</text>'


def main() -> None:
    """Record, if told to, and draw."""
    if sys.argv[1:] == ["--record"]:
        SESSION.write_text(record(quickstart((ROOT / "README.md").read_text(encoding="utf-8"))), encoding="utf-8")
    PICTURE.write_text(draw(SESSION.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
