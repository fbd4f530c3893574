"""The table of docs/guides/clients.md from the results of `make test-clients`.

python -m scripts.client_table RESULTS docs/guides/clients.md
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from scripts.engine_table import replace_table

FEATURES = ("chat", "streaming", "tools", "structured_output", "responses", "given_text", "errors")
NAMES = {"structured_output": "structured output", "responses": "/v1/responses", "given_text": "given text scored"}


def table(results: Path) -> str:
    """A row for each client, a column for each feature, and the reasons of what did not pass."""
    found = defaultdict[tuple[str, str], list[dict[str, str]]](list)
    for path in sorted(results.glob("*.json")):
        fact = json.loads(path.read_text(encoding="utf-8"))
        found[fact["client"], fact["feature"]].append(fact)
    clients = sorted({client for client, _ in found})
    lines = [f"| client | {' | '.join(NAMES.get(feature, feature) for feature in FEATURES)} |"]
    lines.append("|---" * (len(FEATURES) + 1) + "|")
    reasons = list[str]()
    for client in clients:
        cells = [cell(found[client, feature], reasons) for feature in FEATURES]
        lines.append(f"| {client.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(["", *reasons] if reasons else [])])


def cell(facts: list[dict[str, str]], reasons: list[str]) -> str:
    """ "yes", "no" with the number of its reason, or "" for what the client has not."""
    failed = [fact for fact in facts if fact["result"] != "passed"]
    if not failed:
        return "yes" if facts else ""
    for fact in failed:
        line = f"{fact['client']}, {NAMES.get(fact['feature'], fact['feature'])}, {fact['model']}: {fact['reason']}"
        reasons.append(f"{len(reasons) + 1}. {line}")
    skipped = all(fact["result"] == "skipped" for fact in failed)
    passed = [fact["model"] for fact in facts if fact["result"] == "passed"]
    word = "not tried" if skipped else f"{', '.join(passed)} only" if passed else "no"
    return f"{word} ({len(reasons)})"


def main() -> None:
    results, page = Path(sys.argv[1]), Path(sys.argv[2])
    page.write_text(replace_table(page.read_text(encoding="utf-8"), table(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
