"""docs/quality.md from the committed results of `benchmarks.quality`: every number comes from a JSON file.

python -m benchmarks.quality_table            # writes it
python -m benchmarks.quality_table --check    # fails if it is not what the files say
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS, PAGE = Path("benchmarks/results"), Path("docs/quality.md")
CLASSIFICATION = ("sst2", "agnews", "banking77", "rte", "boolq")
Key = tuple[bool, float, str, str, str]  # few-shot, minutes, model on machine, task, system


def load() -> dict[Key, list[tuple[float, int, str]]]:
    """(score, test rows, file) of every run, by what was run."""
    found: dict[Key, list[tuple[float, int, str]]] = defaultdict(list)
    for path in sorted(RESULTS.glob("quality-*.json")):
        data = json.loads(path.read_text())
        for result in data["results"]:
            if "system" not in result:  # a file of the first layout, which the log speaks of
                continue
            key = (data["few_shot"], data["budget_minutes"], _where(data), result["task"], result["system"])
            found[key].append((result.get("accuracy", result.get("bleu", 0.0)), result["rows"], path.name))
    return found


def load_costs() -> dict[Key, list[dict[str, float]]]:
    """The costs of every run that has some, by what was run."""
    found: dict[Key, list[dict[str, float]]] = defaultdict(list)
    for path in sorted(RESULTS.glob("quality-*.json")):
        data = json.loads(path.read_text())
        for result in data["results"]:
            if "cost" in result:
                key = (data["few_shot"], data["budget_minutes"], _where(data), result["task"], result["system"])
                found[key].append(result["cost"])
    return found


def page(
    found: Mapping[Key, list[tuple[float, int, str]]], costs: Mapping[Key, list[dict[str, float]]] | None = None
) -> str:
    """The Markdown page."""
    lines = [
        "# Quality",
        "Made by `python -m benchmarks.quality_table` from `benchmarks/results/quality-*.json`, which have machine,"
        " versions and commit. Every trained system had the same wall time on the same rows; `base` and `text-N` are"
        " not trained. Accuracy of the likeliest label; BLEU for e2e. Mean ± standard deviation over runs, their number"
        " in brackets if there is more than one.",
    ]
    for few, minutes, model in sorted({key[:3] for key in found}):
        own = {key[3:]: runs for key, runs in found.items() if key[:3] == (few, minutes, model)}
        kind = "16 rows a label" if few else "all training rows"
        lines += [f"## {kind}, {minutes:g} minute{'s' * (minutes != 1)} a system ({model})", _table(own), _files(own)]
        spent = {key[3:]: runs for key, runs in (costs or {}).items() if key[:3] == (few, minutes, model)}
        if spent:
            lines.append(_cost_table(spent))
    return "\n\n".join(lines) + "\n"


def _where(data: dict[str, Any]) -> str:
    """Model, dtype and machine of a results file."""
    machine = data["machine"]
    place = machine["gpu"] or f"{machine['threads']} core{'s' * (machine['threads'] > 1)} of {machine['cpu']}"
    return f"{data['model']}, {data['dtype'].removeprefix('torch.')}, {place}"


def _table(runs: dict[tuple[str, str], list[tuple[float, int, str]]]) -> str:
    tasks = [task for task in (*CLASSIFICATION, "e2e") if any(key[0] == task for key in runs)]
    systems = list(dict.fromkeys(system for _, system in runs))
    rows = [["system", *tasks, "mean of classification"], ["---"] * (len(tasks) + 2)]
    judged = [task for task in tasks if task in CLASSIFICATION]
    for system in systems:
        cells = [_cell([score for score, _, _ in runs.get((task, system), [])]) for task in tasks]
        means = [statistics.mean(s for s, _, _ in runs[task, system]) for task in judged if (task, system) in runs]
        whole = f"{statistics.mean(means):.3f}" if len(means) == len(judged) and means else ""
        rows.append([system, *cells, whole])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cost_table(runs: Mapping[tuple[str, str], list[dict[str, float]]]) -> str:
    """What each system costs, the median over tasks and runs."""
    columns = {
        "parameters": "parameters",
        "bytes on disk": "disk_bytes",
        "tokens before a row": "prefix_tokens",
        "KV bytes": "kv_bytes",
        "tokens a second, one row": "tokens_per_second",
    }
    rows = [["cost", *columns], ["---"] * (len(columns) + 1)]
    for system in dict.fromkeys(system for _, system in runs):
        own = [cost for (_, name), costs in runs.items() if name == system for cost in costs]
        medians = [statistics.median(cost[key] for cost in own) for key in columns.values()]
        rows.append([system, *(f"{value:,.0f}" for value in medians[:-1]), f"{medians[-1]:.1f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(scores: list[float]) -> str:
    if not scores:
        return ""
    digits = 1 if max(scores) > 1 else 3
    mean = f"{statistics.mean(scores):.{digits}f}"
    return mean if len(scores) == 1 else f"{mean} ± {statistics.stdev(scores):.{digits}f} ({len(scores)})"


def _files(runs: dict[tuple[str, str], list[tuple[float, int, str]]]) -> str:
    tested = {task: max(rows for _, rows, _ in own) for (task, _), own in runs.items()}
    files = sorted({name for own in runs.values() for _, _, name in own})
    return f"Test rows: {', '.join(f'{task} {rows}' for task, rows in tested.items())}. From {', '.join(files)}."


def main() -> None:
    text = page(load(), load_costs())
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == text else f"{PAGE} is not what the results say")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
