"""What the readings of soft prompts recover, with their controls: ten instructions and two classification prompts.

    python -m benchmarks.study --home DIR --out F [--only-train] [--names sst2,01-tone] [--page docs/study-results.md]
    python -m benchmarks.study --join F1,F2 --page docs/study-results.md          # of runs beside each other

Prompts are trained where DIR/prompts lacks them: the ten texts of benchmarks/instructions as 32 keys and values behind
messages of bank customers ($SOFTPROMPT_DATA's banking77), SST-2 and AG News as 16 embeddings. Then each is inspected on
the rows that its own run held out, and put into words. Written after every prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.distil import TEXTS, data, instruction, messages
from benchmarks.machine import facts
from softprompt.distillation.config import resolve_distillation
from softprompt.distillation.prepare import prepare_distillation
from softprompt.distillation.run import distill
from softprompt.files import write_json
from softprompt.inspection.inspection import READINGS, Inspection, inspect
from softprompt.inspection.saved import SavedPrompt, load_saved
from softprompt.inspection.verbalize import verbalize
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts import store
from softprompt.training.config import resolve
from softprompt.training.run import fit, prepare

CLASSIFIED = ("sst2", "agnews")
BEGIN, END = "<!-- study: python -m benchmarks.study writes this part -->", "<!-- /study -->"


def names() -> list[str]:
    """The classification prompts, then the instructions by their files."""
    return [*CLASSIFIED, *(path.stem for path in sorted(TEXTS.glob("*.md")))]


def train(lm: FrozenLM, name: str, options: argparse.Namespace, home: Path) -> None:
    """Train a prompt of the study."""
    if name in CLASSIFIED:
        flags = {"data": str(data() / name), "name": name, "dtype": "float32", "method.name": "prompt-tuning"}
        flags |= {
            "model": options.model,
            "method.n_tokens": "16",
            "train.steps": str(options.classified_steps),
            "train.eval_rows": "32",
        }
        fit(prepare(resolve(flags), overwrite=True), lm, overwrite=True)
        return
    inputs = messages(options, home)
    flags = instruction(TEXTS / f"{name}.md", inputs, options) | {
        "name": name,
        "model": options.model,
        "dtype": "float32",
    }
    flags |= {"method.n_tokens": options.tokens, "fit_steps": options.fit_steps}
    flags |= {"study.held_out": options.held_out, "train.eval_rows": 8}
    distill(prepare_distillation(resolve_distillation(flags), overwrite=True), lm, overwrite=True)


def study(lm: FrozenLM, name: str, rows: int, *, words: bool) -> dict[str, Any]:
    """The shares that the readings of a prompt recover, and the seconds that they take.

    Args:
        words: also search a text, which takes longer than all else.
    """
    begin = time.monotonic()
    saved = load_saved(lm, name, limit=rows)
    others = [(other, store.load(other, lm.geometry)[0]) for other in names() if _is_comparable(other, saved)]
    found = inspect(
        lm,
        saved.formatted,
        saved.rows,
        only=[reading for reading in READINGS if reading != "leak" or saved.text],
        start=saved.start,
        text=saved.text,
        others=[(other, prompt) for other, prompt in others if other != name],
        name=name,
    )
    inspected = time.monotonic()
    text = verbalize(lm, saved.formatted, saved.rows, start=saved.start) if words else None
    seconds = {"inspect": inspected - begin, "verbalize": time.monotonic() - inspected}
    recipe, rows_trained, measured = saved.card.recipe, saved.card.data, saved.card.metrics
    return {
        "name": name,
        "steps": recipe.get("steps"),
        "queries": rows_trained.get("queries"),
        "fidelity": measured.get("recovered"),
        "form": saved.card.form,
        "tokens": saved.card.n_tokens,
        "rows": found.rows,
        "seconds": {part: round(value, 1) for part, value in seconds.items()},
        **summary(found),
        "verbalize": text
        and {
            "text": text.best.text,
            "source": text.best.source,
            "recovered": text.recovered,
            "controls": text.controls,
            "says_it": text.says_it,
        },
    }


def summary(found: Inspection) -> dict[str, Any]:
    """The numbers of an inspection that a table has room for."""
    worth, layers, near = found.worth, found.layers or (), found.nearest
    return {
        "effect": found.effect,
        "controls": {label: control.recovered for label, control in found.controls.items()},
        "foreign": found.behavior.foreign_divergence if found.behavior else None,
        "nearest": asdict(near) | {"tokens": None} if near else None,
        "half_of_tokens": worth.half[0] if worth else None,
        "half_at_random": worth.half[1] if worth else None,
        "largest_share_of_a_token": max(worth.shapley) if worth else None,
        "shapley_error": max(worth.shapley_error) if worth else None,
        "most_read_layers": [[band.first, band.last, band.lost] for band in sorted(layers, key=lambda b: -b.lost)[:2]],
        "lens": max((layer.recovered for layer in found.lens), default=None) if found.lens else None,
        "lens_of_random": max((layer.random_recovered for layer in found.lens), default=None) if found.lens else None,
        "leak_words": [len(found.leak.longest.split()), len(found.leak.base_longest.split())] if found.leak else None,
        "leak_share": found.leak.share if found.leak else None,
        "left_out": found.left_out,
    }


def _is_comparable(name: str, saved: SavedPrompt) -> bool:
    folder = store.locate(name)
    return folder.exists() and store.load_card(folder).form == saved.card.form


def results(lm: FrozenLM, options: argparse.Namespace, home: Path) -> Iterator[dict[str, Any]]:
    """Train what is missing, then read each."""
    wanted = options.names.split(",") if options.names else names()
    for name in wanted:
        if not store.locate(name).exists():
            train(lm, name, options, home)
        if not options.only_train:
            yield study(lm, name, options.rows, words=not options.without_words)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as tables in Markdown: shares of the effect, then layers, leaks and words."""
    head = "| prompt | form | trained | effect | start | random | nearest (random) | best half (random half) |"
    lines = [f"{head} lens (random) |", "|" + "---|" * 9]
    for row in rows:
        near, trained = row["nearest"], f"{row['steps']} steps"
        trained += f", {row['queries']} queries" if row["queries"] else ""
        cells = [row["name"], f"{row['tokens']} {row['form']}", trained, f"{row['effect']:.2f}"]
        cells += [_share(row["controls"].get(label)) for label in ("start", "random")]
        cells += [f"{_share(near['recovered'])} ({_share(near['random_recovered'])})" if near else "–"]
        cells += [f"{_share(row['half_of_tokens'])} ({_share(row['half_at_random'])})"]
        cells += [f"{_share(row['lens'])} ({_share(row['lens_of_random'])})" if row["lens"] is not None else "–"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| prompt | layers that lose most | leaked words (base) | in words (start, random) | the text |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        words, leak = row["verbalize"], row["leak_words"]
        layers = ", ".join(f"{first}–{last}: {_share(lost)}" for first, last, lost in row["most_read_layers"])
        cells = [row["name"], layers or "–", f"{leak[0]} ({leak[1]})" if leak else "–"]
        if words:
            controls = ", ".join(_share(words["controls"].get(label)) for label in ("start", "random"))
            text = " ".join(words["text"].split()).replace("|", "¦")[:90]
            cells += [f"{_share(words['recovered'])} ({controls})", f"{text} ({words['source']})"]
        else:
            cells += ["not searched", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def main() -> None:
    """Run the study and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("study"), help="where the prompts are, or will be trained")
    parser.add_argument("--join", default="", help="results of earlier runs, F1,F2: only the page is written")
    parser.add_argument(
        "--page", type=Path, help="a page whose part between the marks `study` is replaced by the tables"
    )
    parser.add_argument("--out", type=Path, help="JSON; a table of it goes to the terminal")
    parser.add_argument("--names", default="", help="some of the prompts, a,b")
    parser.add_argument("--only-train", action="store_true")
    parser.add_argument("--without-words", action="store_true", help="no search of a text")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", default="32", help="of an instruction")
    parser.add_argument("--rows", type=int, default=32, help="that a prompt is inspected on")
    parser.add_argument("--inputs", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=20, help="of an instruction's messages")
    parser.add_argument("--fit-steps", type=int, default=60, help="of an instruction")
    parser.add_argument("--steps", type=int, default=8, help="of an instruction")
    parser.add_argument("--classified-steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.join:
        files = [json.loads(Path(name).read_text(encoding="utf-8")) for name in options.join.split(",")]
        rows = sorted((row for file in files for row in file["prompts"]), key=lambda row: names().index(row["name"]))
    else:
        rows = measured_rows(options)
    print(table(rows))
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN, 1)
        options.page.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def measured_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of this run, written after every prompt."""
    options.home.mkdir(parents=True, exist_ok=True)
    os.environ["SOFTPROMPT_HOME"] = str(options.home / "prompts")
    random.seed(options.seed)
    machine = facts()  # before hours pass, in which files may change
    lm, rows = load_model(options.model, dtype="float32"), list[dict[str, Any]]()
    for row in results(lm, options, options.home):
        rows.append(row)
        if options.out:
            write_json(options.out, {"machine": machine, "prompts": rows})
    return rows


if __name__ == "__main__":
    main()
