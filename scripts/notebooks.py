"""Run the notebooks of examples/notebooks and write their outputs into them, without Jupyter.

    .venv/bin/python scripts/notebooks.py

Cells run in order in one namespace and in an empty folder. Kept are what a cell prints, the value of its last line
(unless a semicolon ends it), and its figures of matplotlib.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "examples" / "notebooks"


def run_notebook(notebook: dict[str, Any], change: Callable[[str], str] = lambda source: source) -> dict[str, Any]:
    """The notebook with the outputs of its cells.

    Args:
        change: applied to the source before it is run, not to the one that is kept.
    """
    scope: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    cells = list[dict[str, Any]]()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = list(_outputs(change("".join(cell["source"])), scope, count))
            cell = cell | {"execution_count": count, "outputs": outputs}
        cells.append(cell)
    return notebook | {"cells": cells}


def _outputs(source: str, scope: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """Run one cell."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), f"cell {count}", "exec"), scope)  # noqa: S102 - our own notebooks
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), scope)  # noqa: S307
    if text := printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}
    if value is not None and not source.rstrip().endswith(";"):
        shown = {"text/plain": repr(value).splitlines(keepends=True)}
        yield {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": shown}
    for picture in _figures():
        shown = {"image/png": base64.b64encode(picture).decode(), "text/plain": ["<Figure>"]}
        yield {"output_type": "display_data", "metadata": {}, "data": shown}


def _figures() -> Iterator[bytes]:
    """The open figures of matplotlib as PNG, which are then closed."""
    plots = sys.modules.get("matplotlib.pyplot")
    for number in plots.get_fignums() if plots else ():
        picture = io.BytesIO()
        plots.figure(number).savefig(picture, dpi=70, bbox_inches="tight", metadata={"Software": None})
        plots.close(number)
        yield picture.getvalue()


def main() -> None:
    os.environ["MPLBACKEND"] = "agg"
    paths = [Path(name).resolve() for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            notebook = run_notebook(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
