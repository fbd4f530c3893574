"""How well each way of adapting one frozen model does, given the same wall time on the same rows.

    python -m benchmarks.quality --tasks sst2,rte --budget-minutes 5 --systems base,auto,lora [--seeds 3] [--out FILE]
    python -m benchmarks.quality --tasks sst2,agnews --few-shot --budget-minutes 1 --out FILE

Systems: the base model; text prompts (`text-0`: an instruction, `text-8`: with eight examples, `text-best`: the best of
32 by loss on validation rows, `text-fit`: with as many examples as the context holds); PEFT's prompt tuning, prefix
tuning, P-tuning, LoRA (rank 8, all linear layers), `rslora`, `lora-r1`, `ia3` and `vera` with the recipes of its
documentation (`peft_side.py`); each of them with the best of three rates, which share the time (`lora-tuned`) or have
it each (`lora-tuned-full`); ours untouched (`auto`), ours with an eighth of the time (`auto-eighth`), ours by method
(`ours:prompt-tuning`), and each of ours with other settings (`auto+train.average=0.9`). Labels are ranked by likelihood
and answers generated greedily by the same code for all, on the test split. The costs of a system stand beside its
scores (`cost.py`).

Data: $SOFTPROMPT_DATA (default ../shared/data) with TASK/{train,validation,test}.jsonl, TASK/fewshot16/DRAW/….
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cost import cost, folder_bytes
from benchmarks.machine import facts
from benchmarks.peft_side import LAYERED, RATES, TRIED, Kind, PeftTask, train_peft, train_rates
from benchmarks.text_search import ROWS, WORDS, TextTask, best_text, instructions_for, longest_text
from softprompt.data.records import Record
from softprompt.data.splits import load_rows
from softprompt.data.tokenize import encode_rows
from softprompt.evaluation.evaluate import evaluate
from softprompt.evaluation.held_out import pick_shots
from softprompt.files import write_json
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, layout_for, layout_ids, no_prompt
from softprompt.formatting.text_prompt import instruction_for, text_prompt
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.store import load as load_prompt
from softprompt.training.config import resolve
from softprompt.training.prepare import PreparedTraining, prepare
from softprompt.training.run import fit

TEMPLATES = {
    "sst2": "Review: {text}\nSentiment:",
    "agnews": "News: {text}\nTopic:",
    "banking77": "Message: {text}\nIntent:",
    "rte": "{text}\nHypothesis: {text2}\nRelation:",
    "boolq": "{text}\nQuestion: {text2}?\nAnswer:",
    "e2e": "Data: {input}\nText:",
}
PEFT: dict[str, Kind] = {kind if kind in LAYERED else f"peft:{kind}": kind for kind in RATES}
TUNED = ("-tuned-full", "-tuned")  # the best of three rates, each with the full time or with a third of it
SYSTEMS = ("base", "text-0", "text-8", "text-best", "text-fit", *PEFT, "auto", "auto-eighth")
DRAWS = ("13", "21", "42", "87", "100")
TOKENS = 20  # virtual tokens of PEFT's methods, as in its documentation
BATCH = 8
LONGEST = 700  # tokens of a row


@dataclass(frozen=True)
class Setting:
    """One task on one model.

    Attributes:
        data: of training and validation rows.
        test: the rows to score.
        tokenizer: a folder that PEFT reads the tokenizer from.
    """

    task: str
    model: str
    lm: FrozenLM
    data: Path
    minutes: float
    test: list[Record]
    tokenizer: str


def run_task(setting: Setting, systems: list[str], seed: int) -> Iterator[dict[str, Any]]:
    """One result after another: {"task", "system", "seed", "accuracy", …}."""
    prepared = prepared_for(setting, {}, setting.minutes, seed)
    task = prepared.tasks[0]
    instruction = instruction_for(task.classes) if task.classes else WORDS
    for system in systems:
        if system == "base":
            found = scored(setting, prepared, no_prompt(setting.lm, task.template), 0, 0)
        elif system.startswith("text-"):
            found = texts(setting, prepared, system, instruction, seed)
        elif (name := without_suffix(system)) in PEFT:
            found = theirs(setting, prepared, PEFT[name], system.removeprefix(name), instruction, seed)
        else:
            name, *changes = system.split("+")
            changed: dict[str, Any] = dict(change.split("=", 1) for change in changes)
            changed |= {"method.name": name.removeprefix("ours:")} if name.startswith("ours:") else {}
            found = ours(setting, changed, setting.minutes / (8 if name == "auto-eighth" else 1), seed)
        yield {"task": setting.task, "system": system, "seed": seed, **found}


def without_suffix(system: str) -> str:
    """A system without the words that say that three rates are tried."""
    for suffix in TUNED:
        if system.endswith(suffix):
            return system.removesuffix(suffix)
    return system


def is_known(system: str) -> bool:
    """Whether there is such a system."""
    name, *changes = system.split("+")
    if changes:
        return name.startswith(("auto", "ours:")) and is_known(name) and all("=" in change for change in changes)
    return name in SYSTEMS or without_suffix(name) in PEFT or name.startswith("ours:")


def texts(setting: Setting, prepared: PreparedTraining, system: str, instruction: str, seed: int) -> dict[str, Any]:
    """A text prompt, its search included."""
    task, begin = prepared.tasks[0], time.monotonic()
    longest = max(len(row.ids) for row in encode_rows(setting.test, task.template, setting.lm.tokenizer))
    instructions = instructions_for(setting.task, instruction)
    validation = [row for row in task.splits.validation if row.where in {example.where for example in task.validation}]
    search = TextTask(setting.lm, task.template, instructions, task.splits.train, validation, longest, seed)
    about: dict[str, object] = {}
    if system == "text-best":
        formatted, about = best_text(search)
    elif system == "text-fit":
        formatted, about = longest_text(search)
    else:
        shots = pick_shots(task.splits.train, int(system.removeprefix("text-")))
        formatted = text_prompt(setting.lm, task.template, instruction, shots)
    seconds = round(time.monotonic() - begin, 1)
    size = len(formatted.template.text.encode()) - len(task.template.text.encode())
    return scored(setting, prepared, formatted, 0, size) | {"search_seconds": seconds, **about}


def prepared_for(setting: Setting, changes: dict[str, Any], minutes: float, seed: int) -> PreparedTraining:
    """The library's defaults, but for the time, the template and what is changed."""
    flags = {
        "model": setting.model,
        "data": str(setting.data),
        "name": "benchmark",
        "template": TEMPLATES[setting.task],
        "max_length": LONGEST,
        "drop_long": True,
        "train.minutes": minutes,
        "train.seed": seed,
    }
    return prepare(resolve(flags | changes), overwrite=True)


def ours(setting: Setting, changes: dict[str, Any], minutes: float, seed: int) -> dict[str, Any]:
    """Train with the library as its users do, load what was saved, score it."""
    prepared = prepared_for(setting, changes, minutes, seed)
    outcome = fit(prepared, setting.lm, overwrite=True)
    assert outcome.folder is not None
    prompt, card = load_prompt(outcome.folder, setting.lm.geometry)
    chosen = {choice.setting: choice.value for choice in prepared.choices}
    about = {"steps": outcome.result.step, "seconds": round(outcome.result.seconds, 1), "chosen": chosen}
    about |= {"history": outcome.result.history}
    numbers = sum(tensor.numel() for tensor in prompt.tensors().values())
    return scored(setting, prepared, from_card(prompt, card), numbers, folder_bytes(outcome.folder)) | about


def theirs(
    setting: Setting, prepared: PreparedTraining, kind: Kind, tuned: str, instruction: str, seed: int
) -> dict[str, Any]:
    """The same rows and time with PEFT; what it trained is scored in our form, changed layers in the model.

    Args:
        tuned: one of `TUNED`, or "" for the recipe's rate alone.
    """
    lm, task = setting.lm, prepared.tasks[0]
    lead, follow = layout_ids(lm, layout_for(lm, task.template, None))
    given = PeftTask(
        lm, task.train, task.validation[:ROWS], [*lead, *follow], TOKENS, instruction, setting.tokenizer, BATCH, seed
    )
    seconds = setting.minutes * 60 / (len(TRIED) if tuned == "-tuned" else 1)
    trained = train_rates(given, kind, seconds) if tuned else train_peft(given, kind, seconds)
    form = None if trained.prompt is None else trained.prompt.form
    formatted = FormattedPrompt(trained.prompt, task.template, layout_for(lm, task.template, form))
    about = {"steps": trained.steps, "seconds": round(trained.seconds, 1), "loss_gap": trained.gap}
    about |= {"rate": trained.rate, "losses": trained.losses} if tuned else {"rate": trained.rate}
    result = scored(setting, prepared, formatted, trained.parameters, trained.disk_bytes) | about
    trained.undo()
    return result


def scored(
    setting: Setting, prepared: PreparedTraining, formatted: FormattedPrompt, parameters: int, disk_bytes: int
) -> dict[str, Any]:
    """Scores of a subject on the test rows, and what it costs."""
    begin = time.monotonic()
    classes = prepared.tasks[0].classes
    found = evaluate(
        setting.lm, formatted, setting.test, labels=classes, sampling=Sampling(max_new_tokens=80)
    ).to_dict()
    seconds = round(time.monotonic() - begin, 1)
    costs = cost(setting.lm, formatted, setting.test[0], parameters, disk_bytes)
    return {**found, "evaluation_seconds": seconds, "cost": costs}


def folders(tasks: list[str]) -> dict[str, Path]:
    """Where the rows of each task are; ends the program, saying why, if one has none."""
    root = Path(os.environ.get("SOFTPROMPT_DATA") or "../shared/data")
    for task in tasks:
        if task not in TEMPLATES:
            sys.exit(f"quality: unknown task {task!r}; known: {', '.join(TEMPLATES)}")
        if not (root / task / "train.jsonl").is_file():
            sys.exit(f"quality: no data for {task} in {root}; set SOFTPROMPT_DATA to the folder that holds {task}/")
    return {task: root / task for task in tasks}


def settings_of(options: argparse.Namespace, lm: FrozenLM, scratch: str) -> Iterator[tuple[Setting, int]]:
    """Every task (or few-shot draw) with every seed."""
    for task, folder in folders(options.tasks.split(",")).items():
        test = load_rows(str(folder / "test.jsonl"))[: options.test_rows]
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            places = [folder / "fewshot16" / draw for draw in DRAWS] if options.few_shot else [folder]
            for place in places:
                token_folder = f"{scratch}/tokenizer"
                yield Setting(task, options.model, lm, place, options.budget_minutes, test, token_folder), seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="sst2,banking77")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="of the list above")
    parser.add_argument("--budget-minutes", type=float, default=15.0, help="training time of every system")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--few-shot", action="store_true", help="the published draws of 16 rows a label")
    parser.add_argument("--test-rows", type=int, help="score only the first rows of the test split")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto", help="of the base model")
    parser.add_argument("--out", type=Path, help="a JSON file, written anew after every result")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    systems = options.systems.split(",")
    if unknown := [s for s in systems if not is_known(s)]:
        known = f"{', '.join(SYSTEMS)}, ours:METHOD, {', '.join(f'{name}{TUNED[-1]}' for name in PEFT)}, …{TUNED[0]}"
        sys.exit(f"quality: unknown system {unknown[0]!r}; known: {known}")
    folders(options.tasks.split(","))
    machine = facts()  # before hours pass, in which files may change
    lm = load_model(options.model, dtype=options.dtype)
    shared = {name: getattr(options, name) for name in ("budget_minutes", "few_shot", "test_rows")}
    about = {"benchmark": "quality", "model": options.model, "dtype": str(lm.dtype), **shared, "machine": machine}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SOFTPROMPT_HOME"] = scratch
        lm.tokenizer.save_pretrained(f"{scratch}/tokenizer")
        for setting, seed in settings_of(options, lm, scratch):
            draw = {"draw": setting.data.name} if options.few_shot else {}
            for result in run_task(setting, systems, seed):
                results.append(result | draw)
                print(told(result), flush=True)
                if options.out:
                    write_json(options.out, {**about, "results": results})


def told(result: dict[str, Any]) -> str:
    """A result as a line."""
    score = " ".join(f"{name} {result[name]:.3f}" for name in ("accuracy", "bleu") if name in result)
    return f"{result['task']:<10} {result['seed']} {result['system']:<20} {score} steps {result.get('steps', '-')}"


if __name__ == "__main__":
    main()
