"""Enter PEFT's public method comparison: MetaMathQA to learn from, GSM8K to be judged by, 5,000 steps of 4 rows.

    python -m benchmarks.method_comparison rows --out math            # from the Hub, as the comparison filters them
    python -m benchmarks.method_comparison train --data math --model meta-llama/Llama-3.2-3B --out F
    python -m benchmarks.method_comparison experiment --data math --model meta-llama/Llama-3.2-3B --peft CLONE

`train` spends the comparison's budget with our own trainer and recipe, and judges greedy answers of at most 300 tokens
by the comparison's rule: the number after "The answer is" or "####". `experiment` writes what our recipe chooses for
prefix tuning (number of virtual tokens, rate, a start from worked examples) as an experiment of the comparison's own
harness, `method_comparison/MetaMathQA` in a clone of https://github.com/huggingface/peft: its `run.py` then trains and
judges with PEFT alone, on a GPU. Both need the weights of the model; the dry run of the tests has a tiny one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import tempfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.cost import folder_bytes
from benchmarks.machine import facts
from benchmarks.output import put
from softprompt.evaluation.evaluate import answer_all
from softprompt.files import write_json
from softprompt.formatting.formatted_prompt import from_card
from softprompt.formatting.text_prompt import APART, worked_example
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.store import load as load_prompt
from softprompt.training.config import resolve
from softprompt.training.prepare import PreparedTraining, prepare
from softprompt.training.run import fit

QUERY = "Question: {query} Think step by step.\nAnswer:"
LONGEST_TEXT, LONGEST_ROW = 1300, 768  # characters of question and answer, and tokens of a row, as in the comparison
VALIDATION_ROWS, STEPS, BATCH, NEW_TOKENS = 50, 5000, 4, 300
ANSWER = re.compile(r".*(?:The (?:final )?answer is:? |#### )(.*)", re.DOTALL)  # the last of them counts
HARNESS = Path("method_comparison/MetaMathQA")


def final_answer(text: str) -> Fraction | str | None:
    """The number that a solution ends with, or the words if it is no number; None if it names none."""
    found = ANSWER.match(text.strip().rstrip(".!?"))
    if found is None:
        return None
    words = found[1].strip().split("\n")[0].strip(" .!?$%")
    try:
        return Fraction(words.replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        return words


def is_right(answer: str, solution: str) -> bool:
    """Whether an answer ends with the solution's number."""
    wanted, given = final_answer(solution), final_answer(answer)
    return wanted is not None and wanted == given


def row(query: str, response: str) -> dict[str, str]:
    """A question with its solution as a row."""
    return {"prompt": QUERY.format(query=query), "completion": response}


def save_rows(folder: Path, split: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Write a split, without what is too long for the comparison."""
    short = (pair for pair in pairs if split != "train" or len(" ".join(pair)) <= LONGEST_TEXT)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row(*pair)) + "\n" for pair in short), encoding="utf-8")


def download(folder: Path, seed: int = 0) -> None:
    """The comparison's rows; its 50 validation rows are others of GSM8K's training rows than ours."""
    from datasets import load_dataset

    learned, judged = load_dataset("meta-math/MetaMathQA")["train"], load_dataset("openai/gsm8k", "main")
    save_rows(folder, "train", zip(learned["query"], learned["response"], strict=True))
    pairs = list(zip(judged["train"]["question"], judged["train"]["answer"], strict=True))
    random.Random(seed).shuffle(pairs)  # noqa: S311
    save_rows(folder, "validation", pairs[:VALIDATION_ROWS])
    save_rows(folder, "test", zip(judged["test"]["question"], judged["test"]["answer"], strict=True))


def prepared_for(options: argparse.Namespace, changes: Mapping[str, object]) -> PreparedTraining:
    """Our recipe for the comparison's budget."""
    flags = {
        "model": options.model,
        "data": str(options.data),
        "name": "method-comparison",
        "template": "{prompt}",
        "max_length": LONGEST_ROW,
        "drop_long": True,
        "dtype": options.dtype,
        "train.steps": options.steps,
        "train.batch_size": BATCH,
        "train.patience": None,
        "train.seed": options.seed,
    }
    return prepare(resolve(flags | dict(changes)), overwrite=True)


def trained(lm: FrozenLM, options: argparse.Namespace) -> dict[str, Any]:
    """Train with our own trainer; accuracy on the test rows, beside what the comparison reports."""
    prepared = prepared_for(options, {})
    outcome = fit(prepared, lm, overwrite=True)
    assert outcome.folder is not None
    prompt, card = load_prompt(outcome.folder, lm.geometry)
    rows = prepared.tasks[0].splits.test[: options.test_rows]
    answers: list[str] = []
    for start in range(0, len(rows), options.batch_size_eval):
        part = rows[start : start + options.batch_size_eval]
        answers += [a.text for a in answer_all(lm, from_card(prompt, card), part, Sampling(options.new_tokens))]
    right = [is_right(answer, str(record.target)) for answer, record in zip(answers, rows, strict=True)]
    return {
        "test_accuracy": sum(right) / len(right),
        "test_rows": len(right),
        "num_trainable_params": sum(tensor.numel() for tensor in prompt.tensors().values()),
        "file_size": folder_bytes(outcome.folder),
        "train_time": outcome.result.seconds,
        "steps": outcome.result.step,
        "chosen": {choice.setting: choice.value for choice in prepared.choices},
        "history": outcome.result.history,
    }


def start_text(prepared: PreparedTraining, count: int) -> str:
    """Worked examples, at least as many as the virtual tokens need: one word is one token at least."""
    task, words = prepared.tasks[0], list[str]()
    for record in task.splits.train:
        words.append(worked_example(task.template, record))
        if sum(len(part.split()) for part in words) > count:
            break
    return APART.join(words)


def experiment(options: argparse.Namespace) -> Path:
    """Our recipe's choices as an experiment of PEFT's harness."""
    import peft

    prepared = prepared_for(options, {"method.name": "prefix-tuning"})
    config = prepared.config
    tokens = config.method.n_tokens
    place = options.peft / HARNESS / "experiments" / "prefixtuning" / f"{Path(options.model).name}-softprompt"
    adapter = peft.PrefixTuningConfig(task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=tokens)
    adapter.save_pretrained(str(place))
    chosen = {
        "model_id": options.model,
        "optimizer_kwargs": {"lr": config.train.lr, "weight_decay": config.train.weight_decay},
        "init_kv_cache_prefix": start_text(prepared, tokens),
    }
    write_json(place / "training_params.json", chosen)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["rows", "train", "experiment"])
    parser.add_argument("--data", type=Path, help="folder with train, validation and test.jsonl, made by `rows`")
    parser.add_argument("--model", default="meta-llama/Llama-3.2-3B")
    parser.add_argument("--dtype", default="bfloat16", help="of the base model, as in the comparison")
    parser.add_argument("--peft", type=Path, default=Path("peft"), help="a clone of PEFT")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help="of an answer")
    parser.add_argument("--batch-size-eval", type=int, default=50)
    parser.add_argument("--test-rows", type=int, help="judge only the first rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="rows: a folder; train: a JSON file")
    options = parser.parse_args()
    if options.part == "rows":
        download(options.out or Path("math"), options.seed)
        return
    if options.data is None or not (options.data / "train.jsonl").is_file():
        parser.error("--data names a folder with train.jsonl; `method_comparison rows` makes it")
    if options.part == "experiment":
        place = experiment(options)
        print(
            f"wrote {place}; now, in {options.peft / HARNESS}: python run.py -v {place.relative_to(place.parents[2])}"
        )
        return
    machine = facts()
    lm = load_model(options.model, dtype=options.dtype)
    about = {"benchmark": "method_comparison", "model": options.model, "dtype": str(lm.dtype), "machine": machine}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SOFTPROMPT_HOME"] = scratch
        put({**about, "results": [trained(lm, options)]}, options.out)


if __name__ == "__main__":
    main()
