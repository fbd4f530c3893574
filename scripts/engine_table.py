"""The table of docs/guides/engines.md from the results of `make test-engines`.

python -m scripts.engine_table RESULTS docs/guides/engines.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
HEAD = (
    "| target | form | weights | same greedy text | largest difference | without the soft prompt |\n"
    "|---|---|---|---|---|---|"
)


def table(results: Path) -> str:
    """A row for each result."""
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    rows = [
        f"| {f['target']} | {f['form']} | {f['weights']} | {f['same']} of {f['rows']} "
        f"| {f['difference']:.1e} | {f['plain_difference']:.1e} |"
        for f in facts
    ]
    return "\n".join([HEAD, *rows])


def replace_table(text: str, rows: str) -> str:
    """The page with these rows between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{rows}\n{END}{rest.split(END)[1]}"


def main() -> None:
    results, page = Path(sys.argv[1]), Path(sys.argv[2])
    page.write_text(replace_table(page.read_text(encoding="utf-8"), table(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
