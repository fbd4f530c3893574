"""lm-evaluation-harness over HTTP, over the library, and the ranking of `softprompt eval`: the same numbers.

    python -m benchmarks.lm_eval_http [--rows 100] [--prompts FOLDER] [--model smollm2-135m] [--dtype float32]
        [--out FILE]

The base model, and every soft prompt in FOLDER whose template leaves a text as it is, on two tasks: SST-2 as choices
($SOFTPROMPT_DATA, default ../shared/data) and the byte perplexity of the same texts. Differences are at most 1e-3, in
float32; in bfloat16 a row's numbers depend on the rows beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from benchmarks.machine import facts
from benchmarks.serve_soak import SERVER, USER, started
from softprompt.data.records import Record
from softprompt.data.template import Template
from softprompt.evaluation.label_ranking import rank_choices
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, no_prompt
from softprompt.modeling.prompts import load_prompt
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts import store
from softprompt.server.model_directory import served_name

MOST = 1e-3
LABELS = ("negative", "positive")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: {output}
doc_to_text: "{text}"
doc_to_target: "{target}"
{rest}
metric_list:
  - metric: {metric}
"""
CHOICES = {"output": "multiple_choice", "text": "{{text}}", "target": "answer", "metric": "acc"}
ROLLING = {"output": "loglikelihood_rolling", "text": "", "target": "{{text}}", "metric": "byte_perplexity", "rest": ""}


def tasks(folder: Path, rows: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The files of the two tasks, and their rows."""
    source = Path(os.environ.get("SOFTPROMPT_DATA") or "../shared/data") / "sst2" / "test.jsonl"
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:rows]]
    own = [{"text": f"{line['text']} It is", "answer": LABELS.index(line["label"])} for line in lines]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    choices = CHOICES | {"rest": f"doc_to_choice: {json.dumps(LABELS)}"}
    for name, task in (("own_sst2", choices), ("own_rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data, **task), encoding="utf-8")
    return [str(folder / "own_sst2.yaml"), str(folder / "own_rolling.yaml")], own


def scores(model: Any, files: list[str], arguments: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[float]]:
    """The tasks' metrics, and all log-likelihoods in order."""
    manager = TaskManager(include_defaults=False)
    simple_evaluate: Any = lm_eval.simple_evaluate
    found = simple_evaluate(model, arguments, tasks=files, bootstrap_iters=0, task_manager=manager)
    metrics = {
        name: value
        for task in found["results"].values()
        for name, value in task.items()
        if isinstance(value, float) and "stderr" not in name
    }
    return metrics, [number for rows in found["samples"].values() for row in rows for number in flat(row["resps"])]


def flat(values: Any) -> list[float]:
    """Log-likelihoods of nested lists, without whether they are greedy."""
    if isinstance(values, list | tuple):
        return [number for value in values for number in flat(value)]
    return [] if isinstance(values, bool | str) else [float(values)]


def ranked(lm: FrozenLM, prompt: FormattedPrompt, rows: Sequence[dict[str, Any]]) -> float:
    """The accuracy by which `softprompt eval` ranks the labels."""
    asked = [
        Record({"prompt": row["text"]}, None, "choice", choices=tuple(f" {one}" for one in LABELS)) for row in rows
    ]
    found = [max(range(len(LABELS)), key=totals.__getitem__) for totals, _ in rank_choices(lm, prompt, asked)]
    return sum(one == row["answer"] for one, row in zip(found, rows, strict=True)) / len(rows)


def compared(lm: FrozenLM, name: str, options: argparse.Namespace, files: list[str], rows: Any, url: str) -> Any:
    """Three ways to the same numbers."""
    is_base, folder = name == served_name(lm.name), options.prompts / name
    tokenizer = Path(files[0]).with_name("tokenizer")
    arguments = {"model": name, "base_url": f"{url}/v1/completions", "tokenizer": str(tokenizer), "num_concurrent": 2}
    http, over_http = scores("local-completions", files, arguments)
    model: Any = lm.hf_model if is_base else SoftPromptModel(lm, load_prompt(lm, folder, is_trainable=False))
    harness: Any = HFLM
    library, over_library = scores(harness(pretrained=model, tokenizer=lm.tokenizer, batch_size=4), files)
    prompt = no_prompt(lm, Template("text", "{prompt}")) if is_base else from_card(*store.load(folder, lm.geometry))
    differences = [abs(a - b) for a, b in zip(over_http, over_library, strict=True)]
    return {
        "http": http,
        "library": library,
        "eval_acc": ranked(lm, prompt, rows),
        "largest_difference": max(abs(http[key] - library[key]) for key in library),
        "largest_difference_of_log_likelihoods": max(differences),
    }


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Server and library; the numbers of each model."""
    lm = load_model(options.model, dtype=options.dtype)
    lm.tokenizer.save_pretrained(folder / "tokenizer")
    files, rows = tasks(folder, options.rows)
    os.environ |= {"OPENAI_API_KEY": USER, "HF_DATASETS_CACHE": str(folder / "cache")}
    shutil.copytree(options.prompts, folder / "prompts")
    process, port = started(SERVER, options.model, folder / "prompts", 4, ["--dtype", options.dtype])
    names = [served_name(lm.name)]
    for place in sorted(options.prompts.glob("*/card.json")):
        card = json.loads(place.read_text(encoding="utf-8"))
        names += [place.parent.name] if card["template"].get("text") == "{prompt}" else []
    try:
        return {name: compared(lm, name, options, files, rows, f"http://127.0.0.1:{port}") for name in names}
    finally:
        process.terminate()
        process.wait(60)


def main(given: Sequence[str] | None = None) -> None:
    """Run it; exit with 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=Path, default=Path(".venv-clients/prompts"))
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, Path(folder))
    text = json.dumps({"machine": facts(), "rows": options.rows, "dtype": options.dtype, "models": result}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    same = all(
        one["largest_difference"] <= MOST and abs(one["eval_acc"] - one["http"]["acc,none"]) <= MOST
        for one in result.values()
    )
    sys.exit(int(not same))


if __name__ == "__main__":
    main()
