"""How well each way of adapting one frozen model does, given the same wall time on the same rows.

    python -m benchmarks.quality --tasks sst2,banking77 --budget-minutes 15 --seeds 1 [--test-rows N] [--ours] [--json]

For each task: the base model, a text prompt (instruction and three examples), our prompt tuning and prefix tuning with
the library's defaults, and PEFT's prompt tuning, prefix tuning and LoRA (rank 8, all linear layers) with the recipes
of its documentation (`peft_side.py`). Accuracy on the test split, labels ranked by likelihood, for all by one code.

Data: $SOFTPROMPT_DATA (default ../shared/data) with TASK/{train,validation,test}.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from benchmarks.peft_side import Kind, train_peft
from softprompt.comparison import pick_shots
from softprompt.config import resolve
from softprompt.data.formats import Record
from softprompt.data.load import load_rows
from softprompt.evaluation import evaluate
from softprompt.framing import Subject, base_subject, card_subject, layout_for, layout_ids, text_subject
from softprompt.model import FrozenLM, load
from softprompt.recipe import Prepared, classes, fit, instruction_for, prepare
from softprompt.store import load as load_prompt

TEMPLATES = {"sst2": "Review: {text}\nSentiment:", "banking77": "Message: {text}\nIntent:"}
OURS = ("prompt-tuning", "prefix-tuning")
THEIRS: tuple[Kind, ...] = ("prompt-tuning", "prefix-tuning", "lora")


@dataclass(frozen=True)
class Setting:
    """One task on one model.

    Attributes:
        test: the rows to score.
        tokenizer: a folder that PEFT reads the tokenizer from.
    """

    task: str
    model: str
    lm: FrozenLM
    folder: Path
    minutes: float
    test: list[Record]
    tokenizer: str


def run_task(setting: Setting, seeds: int, theirs_too: bool = True) -> Iterator[dict[str, Any]]:
    """One result after another: {"method", "seed", "accuracy", …}."""
    prepared = prepared_for(setting, OURS[0], 0)
    template, train = prepared.template, prepared.splits.train
    instruction = instruction_for(classes(prepared.splits))
    yield scored(setting, prepared, "base", base_subject(setting.lm, template))
    yield scored(
        setting, prepared, "text prompt", text_subject(setting.lm, template, instruction, pick_shots(train, 3))
    )
    for seed in range(seeds):
        for method in OURS:
            yield ours(setting, method, seed)
        for kind in THEIRS if theirs_too else ():
            yield theirs(setting, prepared, kind, seed)


def prepared_for(setting: Setting, method: str, seed: int) -> Prepared:
    """The library's defaults, but for the method, the time and the template."""
    flags = {
        "model": setting.model,
        "data": str(setting.folder),
        "name": f"{setting.task}-{method}-{seed}",
        "template": TEMPLATES[setting.task],
        "method.name": method,
        "train.minutes": setting.minutes,
        "train.seed": seed,
    }
    return prepare(resolve(flags), overwrite=True)


def ours(setting: Setting, method: str, seed: int) -> dict[str, Any]:
    """Train with the library as its users do, load what was saved, score it."""
    prepared = prepared_for(setting, method, seed)
    outcome = fit(prepared, setting.lm, overwrite=True)
    assert outcome.folder is not None
    subject = card_subject(*load_prompt(outcome.folder, setting.lm.geometry))
    facts = {"seed": seed, "steps": outcome.result.step, "seconds": round(outcome.result.seconds, 1)}
    return scored(setting, prepared, f"ours {method}", subject) | facts


def theirs(setting: Setting, prepared: Prepared, kind: Kind, seed: int) -> dict[str, Any]:
    """The same rows and time with PEFT; what it trained is scored in our form (LoRA: in the model)."""
    lm, template = setting.lm, prepared.template
    lead, follow = layout_ids(lm, layout_for(lm, template, "none"))
    trained = train_peft(
        lm,
        kind,
        prepared.train,
        [*lead, *follow],
        tokens=prepared.config.method.n_tokens,
        text=instruction_for(classes(prepared.splits)),
        tokenizer=setting.tokenizer,
        batch_size=prepared.config.train.batch_size,
        seconds=setting.minutes * 60,
        seed=seed,
    )
    form = "none" if trained.prompt is None else trained.prompt.form
    subject = Subject(trained.prompt, template, layout_for(lm, template, form))
    facts = {"seed": seed, "steps": trained.steps, "seconds": round(trained.seconds, 1), "loss_gap": trained.gap}
    result = scored(setting, prepared, f"PEFT {kind}", subject) | facts
    trained.undo()
    return result


def scored(setting: Setting, prepared: Prepared, method: str, subject: Subject) -> dict[str, Any]:
    """Test accuracy of a subject."""
    begin = time.monotonic()
    found = evaluate(setting.lm, subject, setting.test, labels=classes(prepared.splits)).to_dict()
    spent = round(time.monotonic() - begin, 1)
    return {"task": setting.task, "method": method, **found, "evaluation_seconds": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="sst2,banking77")
    parser.add_argument("--budget-minutes", type=float, default=15.0, help="training time of every method")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test-rows", type=int, help="score only the first rows of the test split")
    parser.add_argument("--ours", action="store_true", help="leave PEFT's methods out")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    root = Path(os.environ.get("SOFTPROMPT_DATA") or "../shared/data")
    tasks = options.tasks.split(",")
    for task in tasks:
        if task not in TEMPLATES:
            sys.exit(f"quality: unknown task {task!r}; known: {', '.join(TEMPLATES)}")
        if not (root / task / "train.jsonl").is_file():
            sys.exit(f"quality: no data for {task} in {root}; set SOFTPROMPT_DATA to the folder that holds {task}/")
    warnings.filterwarnings("ignore")
    lm = load(options.model)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SOFTPROMPT_HOME"] = scratch
        lm.tokenizer.save_pretrained(f"{scratch}/tokenizer")
        for task in tasks:
            folder = root / task
            test = load_rows(str(folder / "test.jsonl"))[: options.test_rows]
            setting = Setting(task, options.model, lm, folder, options.budget_minutes, test, f"{scratch}/tokenizer")
            for result in run_task(setting, options.seeds, not options.ours):
                results.append(result)
                line = f"{task:<10} {result['method']:<20} accuracy {result['accuracy']:.3f}"
                print(
                    line,
                    f"steps {result.get('steps', '-')}",
                    file=sys.stderr if options.json else sys.stdout,
                    flush=True,
                )
    if options.json:
        settings = {"budget_minutes": options.budget_minutes, "seeds": options.seeds, "test_rows": options.test_rows}
        about = {"benchmark": "quality", "model": options.model, "dtype": str(lm.dtype), **settings}
        print(json.dumps({**about, "machine": facts(), "results": results}))


if __name__ == "__main__":
    main()
