"""docs/rivals.md from the committed results of the comparisons with what users take instead of a soft prompt.

python -m benchmarks.rivals_table            # writes it, once there are results
python -m benchmarks.rivals_table --check    # fails if it is not what the files say

It reads documents-*.json, system_prompts-*.json and prefix_caching-*.json in benchmarks/results; every number of the
page comes from one of them.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS, PAGE = Path("benchmarks/results"), Path("docs/rivals.md")
Found = list[tuple[str, dict[str, Any]]]  # name and contents of files
OTHER = "no size"
NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")  # of tokens, in a system's name: neither BM25's nor a rate's
NAMES = {
    "N": "soft prompt",
    "first N": "the first tokens",
    "BM25 N": "BM25 passages",
    "N + BM25 N": "soft prompt, and as many tokens of BM25 passages more",
    "summary N": "the model's own summary",
    "informative N": "tokens of highest self-information",
    "KVzip N": "KVzip (spread unevenly over layers and heads)",
    "KVzip-layerwise N": "KVzip (spread unevenly over a layer's heads)",
    "none": "the whole text in kvpress's environment",
}
MEASURES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "Divergence recovered": lambda scores: scores["recovered"],
    "Log-likelihood of right answers recovered": lambda scores: scores["gap_recovered"],
    "F1 of its own answers": lambda scores: scores.get("scores", {}).get("f1"),
    "Divergence that it causes after another text": lambda scores: scores.get("collateral", {}).get("another"),
}


def load(kind: str) -> Found:
    """The results of one benchmark."""
    paths = sorted(RESULTS.glob(f"{kind}-*.json"))
    return [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def page(documents: Found, instructions: Found, serving: Found) -> str:
    """The Markdown page."""
    parts = [
        "# Against what you would take instead",
        "Made by `python -m benchmarks.rivals_table` from files in `benchmarks/results`, which have machine, versions"
        " and commit. Recovered: the share of the whole text's effect, 1 for the text itself and 0 for none.",
    ]
    for name, data in documents:
        title = "Documents at the same number of tokens"
        trained = f" Soft prompts of all sizes are trained together, {data['minutes']} minutes after study and start."
        parts += [f"## {title}", told_once(data) + trained, shares(data["results"], "questions"), f"From {name}."]
    for name, data in instructions:
        title = "System prompts at the same number of tokens"
        trained = f" {data['inputs']} messages, {data['steps']} steps for all sizes together."
        parts += [f"## {title}", told_once(data) + trained, shares(data["results"], "messages"), f"From {name}."]
    for name, data in serving:
        parts += ["## Automatic prefix caching", told_once(data), first_tokens(data["results"]), f"From {name}."]
    return "\n\n".join(parts) + "\n"


def told_once(data: dict[str, Any]) -> str:
    """Model, dtype and machine of a file."""
    machine = data["machine"]
    place = machine["gpu"] or f"{machine['threads']} core{'s' * (machine['threads'] > 1)} of {machine['cpu']}"
    return f"{data['model']}, {data['dtype'].removeprefix('torch.')}, {place}."


def shares(results: Sequence[dict[str, Any]], key: str) -> str:
    """What every system recovers at every size, the mean over texts with the lowest and highest, a table a measure."""
    reports = [result[key] for result in results]
    texts = f"{len(reports)} text{'s' * (len(reports) > 1)}, {sum(report['rows'] for report in reports)} rows."
    parts = [texts]
    for title, value_of in MEASURES.items():
        found: dict[str, dict[str, list[float]]] = {}
        for report in reports:
            for name, scores in report["soft"].items():
                system, size = system_and_size(name)
                if (value := value_of(scores)) is not None:
                    found.setdefault(system, {}).setdefault(size, []).append(value)
        if found:
            parts += [f"{title}:", table_by_size(found)]
    return "\n\n".join(parts)


def system_and_size(name: str) -> tuple[str, str]:
    """`first 32` as what it is called on the page and its tokens; OTHER if a name has none."""
    number = NUMBER.search(name)
    kind = NUMBER.sub("N", name)
    return NAMES.get(kind, kind.removesuffix(" N")), f"{number[0]} tokens" if number else OTHER


def table_by_size(found: dict[str, dict[str, list[float]]]) -> str:
    """A row a system, a column a size."""
    sizes = sorted({size for of_system in found.values() for size in of_system}, key=lambda size: (len(size), size))
    sizes.sort(key=lambda size: size == OTHER)
    rows = [["system", *sizes], ["---"] * (1 + len(sizes))]
    rows += [[system, *(spread(own.get(size, [])) for size in sizes)] for system, own in found.items()]
    return table(rows)


def first_tokens(results: Sequence[dict[str, Any]]) -> str:
    """Time to first token, memory and speed of every case."""
    rows = [
        [
            "texts",
            "cache",
            "system",
            "first token, s",
            "mean, s",
            "cached",
            "tokens/s, one row",
            "together",
            "KV of all, MB",
        ]
    ]
    rows.append(["---"] * len(rows[0]))
    for result in results:
        row = [str(result["texts"]), str(result["cache"]), str(result["system"])]
        if "not_run" in result:
            row += [f"not run: {result['not_run']}", "", "", "", ""]
        else:
            first = result["first_token"]
            speeds = [f"{result[key]:.1f}" for key in ("tokens_per_second", "tokens_per_second_together")]
            row += [f"{first['median']:.3f}", f"{first['mean']:.3f}", f"{result['cached_share']:.0%}", *speeds]
        rows.append([*row, f"{result['kv_bytes_of_all'] / 1e6:,.0f}"])
    return table(rows)


def spread(values: Sequence[float]) -> str:
    """A mean, and between which values it lies."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    found = [load(kind) for kind in ("documents", "system_prompts", "prefix_caching")]
    text = page(*found)
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text else f"{PAGE} is not what the files say"
        )
    if not any(found):
        sys.exit(f"rivals_table: there are no results in {RESULTS}")
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
