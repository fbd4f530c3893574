"""The notebooks run on a tiny model, and hold outputs of the kind that their cells give."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.saved import save_tiny

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
run_notebook: Callable[..., dict[str, Any]] = runpy.run_path(str(ROOT / "scripts" / "notebooks.py"))["run_notebook"]


def kinds(notebook: dict[str, Any]) -> list[list[str]]:
    """The kinds of outputs of every code cell."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [[output["output_type"] for output in cell["outputs"]] for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_its_outputs_are_there(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOFTPROMPT_HOME", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    base = save_tiny(tmp_path / "tiny")
    committed = json.loads(path.read_text(encoding="utf-8"))
    first = '"smollm2-135m", '

    def tiny(source: str) -> str:
        return source.replace(f"{first}16", f"{str(base)!r}, 2").replace(f"{first}24", f"{str(base)!r}, 2")

    assert sum(tiny("".join(cell["source"])) != "".join(cell["source"]) for cell in committed["cells"]) == 1
    assert kinds(run_notebook(committed, tiny)) == kinds(committed)
    numbers = [cell["execution_count"] for cell in committed["cells"] if cell["cell_type"] == "code"]
    assert numbers == list(range(1, len(numbers) + 1)), "scripts/notebooks.py writes the outputs"


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_prompt", "inside_a_prompt"]


def test_what_a_cell_prints_returns_and_draws_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    sources = ["x = 1\nprint('a')\nx + 1", "import matplotlib.pyplot as plt\nplt.plot([1, x]);", "x = 3"]
    cells = [{"cell_type": "code", "source": source} for source in sources]
    done = run_notebook({"cells": [*cells, {"cell_type": "markdown", "source": "x"}]}, lambda source: source)["cells"]
    assert [output.get("text") for output in done[0]["outputs"]] == [["a\n"], None]
    assert done[0]["outputs"][1]["data"] == {"text/plain": ["2"]}
    (figure,) = done[1]["outputs"]
    assert "image/png" in figure["data"]
    assert done[2]["outputs"] == [] and done[2]["execution_count"] == 3
