"""The cost and gain of virtual tokens inside a sentence (`--frame`): accuracy, and the text found for them.

    python -m benchmarks.frame --home DIR --out benchmarks/results/frame.json

SST-2 and AG News ($SOFTPROMPT_DATA), prompt tuning with 16 virtual tokens, the same steps and seed with a frame and
without one. Each is scored on test rows and put into words on the rows that its run held out. Written after each.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from benchmarks.distil import data
from benchmarks.machine import facts
from benchmarks.output import put
from softprompt.evaluation.evaluate import evaluate
from softprompt.evaluation.held_out import selection_rows
from softprompt.inspection.effect import PromptEffect
from softprompt.inspection.nearest import nearest
from softprompt.inspection.saved import load_saved
from softprompt.inspection.verbalize import verbalize
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts import store
from softprompt.training.config import resolve
from softprompt.training.run import fit, prepare

FRAMES = {"none": "", "sentence": "Please {prompt}."}
TASKS = ("sst2", "agnews")


def train(lm: FrozenLM, name: str, task: str, frame: str, options: argparse.Namespace) -> None:
    """Train a soft prompt of the task, unless it is there."""
    if store.locate(name).exists():
        return
    flags = {"data": str(data() / task), "name": name, "dtype": "float32", "method.name": "prompt-tuning"}
    flags |= {"method.n_tokens": str(options.tokens), "train.steps": str(options.steps), "train.eval_rows": "32"}
    flags |= {"model": options.model, "chat": "false"} | ({"frame": frame} if frame else {})
    fit(prepare(resolve(flags), overwrite=True), lm, overwrite=True)


def measured(lm: FrozenLM, name: str, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy on test rows; shares of the nearest words and of the best text, with their controls."""
    saved = load_saved(lm, name, limit=options.rows)
    test = selection_rows(str(data() / task / "test.jsonl"), saved.card).rows[: options.test_rows]
    scores = evaluate(lm, saved.formatted, test).to_dict()
    near = nearest(PromptEffect(lm, saved.formatted, list(saved.rows or ())), saved.start)
    text = verbalize(lm, saved.formatted, saved.rows, start=saved.start)
    return {
        "name": name,
        "task": task,
        "steps": saved.card.recipe.get("steps"),
        "scores": scores,
        "nearest": near.recovered,
        "nearest_of_random": near.random_recovered,
        "text": text.best.text,
        "text_recovers": text.recovered,
        "text_controls": text.controls,
        "says_it": text.says_it,
    }


def main() -> None:
    """Train what is missing, and measure each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("frame"), help="where the prompts are, or will be trained")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", type=int, default=32, help="that texts are judged on")
    parser.add_argument("--test-rows", type=int, default=400)
    options = parser.parse_args()
    os.environ["SOFTPROMPT_HOME"] = str(options.home / "prompts")
    machine = facts()  # before hours pass, in which files may change
    lm, found = load_model(options.model, dtype="float32"), list[dict[str, Any]]()
    for task in options.tasks.split(","):
        for label, frame in FRAMES.items():
            name = f"{task}-{label}"
            train(lm, name, task, frame, options)
            found.append({"frame": frame} | measured(lm, name, task, options))
            put({"machine": machine, "rows": found}, options.out)


if __name__ == "__main__":
    main()
