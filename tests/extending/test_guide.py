"""docs/guides/extending.md shows these tests' own code."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "extending.md"


def test_its_code_is_that_of_the_tests() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py")))
    blocks = re.findall(r"```python\n(.*?)\n```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    pieces = [piece for block in blocks for piece in block.split("\n\n\n")]
    assert len(pieces) >= 10
    assert [piece for piece in pieces if piece not in tests] == []
