"""The table of docs/guides/clients.md from the results of `make test-clients`.

python -m scripts.client_table RESULTS tests/clients_real docs/guides/clients.md

What was found in earlier runs is kept in results.json beside the tests, as long as the test is there.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from scripts.engine_table import replace_table

FEATURES = ("chat", "streaming", "tools", "structured_output", "responses", "given_text", "errors")
NAMES = {"structured_output": "structured output", "responses": "/v1/responses", "given_text": "given text scored"}
Fact = dict[str, str]


def joined(results: Path, tests: Path) -> list[Fact]:
    """What this run found, and what earlier ones found of other tests that are still there; kept for the next run."""
    kept = tests / "results.json"
    old: list[Fact] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
    new: list[Fact] = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    found = {(fact["client"], fact["feature"], fact["model"]): fact for fact in [*old, *new] if has_test(tests, fact)}
    facts = [fact for _, fact in sorted(found.items())]
    lines = ",\n".join(json.dumps(fact) for fact in facts)
    kept.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return facts


def has_test(tests: Path, fact: Fact) -> bool:
    """Whether the test of a fact is there."""
    path = tests / f"test_{fact['client']}.py"
    return path.is_file() and f"def test_{fact['feature']}(" in path.read_text(encoding="utf-8")


def table(facts: list[Fact]) -> str:
    """A row for each client, a column for each feature, and the reasons of what did not pass."""
    found, versions = defaultdict[tuple[str, str], list[Fact]](list), dict[str, str]()
    for fact in facts:
        found[fact["client"], fact["feature"]].append(fact)
        versions[fact["client"]] = fact["version"]
    lines = [f"| client | version | {' | '.join(NAMES.get(feature, feature) for feature in FEATURES)} |"]
    lines.append("|---" * (len(FEATURES) + 2) + "|")
    reasons = list[str]()
    for client, version in sorted(versions.items()):
        cells = [cell(found[client, feature], reasons) for feature in FEATURES]
        lines.append(f"| {client.replace('_', ' ')} | {version} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def cell(facts: list[Fact], reasons: list[str]) -> str:
    """ "yes", "no" with the numbers of its reasons, or "" for what the client has not."""
    failed = [fact for fact in facts if fact["result"] != "passed"]
    if not failed:
        return "yes" if facts else ""
    for fact in failed:
        if fact["reason"] not in reasons:
            reasons.append(fact["reason"])
    numbers = sorted({reasons.index(fact["reason"]) + 1 for fact in failed})
    skipped = all(fact["result"] == "skipped" for fact in failed)
    passed = [fact["model"] for fact in facts if fact["result"] == "passed"]
    word = "not tried" if skipped else f"{', '.join(passed)} only" if passed else "no"
    return f"{word} ({', '.join(map(str, numbers))})"


def main() -> None:
    results, tests, page = (Path(one) for one in sys.argv[1:])
    page.write_text(replace_table(page.read_text(encoding="utf-8"), table(joined(results, tests))), encoding="utf-8")


if __name__ == "__main__":
    main()
