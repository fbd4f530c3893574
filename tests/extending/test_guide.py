"""docs/guides/extending.md shows the toys of these tests, whole."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "extending.md"


def test_its_code_is_that_of_the_tests() -> None:
    """Each block is a file that works as it stands, without the file's docstring."""
    toys = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("toy_*.py")]
    files = [text.partition('"""\n\n')[2].rstrip() for text in toys]
    blocks = re.findall(r"```python\n(.*?)\n```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(files) >= 6
    assert sorted(blocks) == sorted(files)
