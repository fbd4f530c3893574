"""The report that workers make: of one soft prompt's files alone, without a path of the machine."""

from __future__ import annotations

import json
from pathlib import Path

from softprompt.jobs.inspection_records import InspectionInput
from softprompt.models.loading import load_model
from softprompt.report.saved_report import inspect_saved
from tests.support.live_server import TEMPLATES, save_prompt
from tests.support.saved import save_tiny


def test_one_prompt_and_nothing_around_it(tmp_path: Path) -> None:
    lm = load_model(str(save_tiny(tmp_path / "base")), dtype="float32", device="cpu")
    for seed, name in enumerate(("mine", "another"), 1):
        save_prompt(tmp_path / name, *TEMPLATES["talk"], seed, lm)
    begun = list[str]()
    wanted = InspectionInput(tmp_path / "mine", "ft:tiny:mine:1", None, ("nearest", "drift"), 2)
    result = inspect_saved(lm, wanted, begun.append)
    numbers = json.loads(result.numbers)
    assert numbers["name"] == "ft:tiny:mine:1" and numbers["nearest"] and numbers["worth"] is None
    assert {"nearest", "drift"} <= set(begun) and "likeness" not in begun
    for text in (result.report, result.numbers):
        assert str(tmp_path) not in text and "another" not in text
    assert "<h1>ft:tiny:mine:1</h1>" in result.report.replace("\n", "")
