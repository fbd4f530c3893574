"""`softprompt inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.shell import done, refused


def test_sections_as_text_and_json(trained: Path) -> None:
    text = done("inspect", "ok", "--only", "behavior,drift").stdout
    assert "nats an answer token away from the base" in text and "promotes" in text and "effective" in text
    found = json.loads(done("inspect", "ok", "--only", "drift", "--json").stdout)
    assert found["name"] == "ok" and found["drift"]["norms"] and found["behavior"] is None


def test_an_unknown_section_is_named(trained: Path) -> None:
    error = refused("inspect", "ok", "--only", "soul")
    assert error.got == "soul" and "behavior" in str(error.expected)
