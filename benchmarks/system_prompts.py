"""What a user would put in place of a long system prompt, at the same number of tokens.

    python -m benchmarks.system_prompts --sizes 32,64 --inputs 140 --steps 60 --out F

For the ten texts of benchmarks/instructions, on held-out messages of bank customers, as `benchmarks.distil` measures
them: soft prompts, the first tokens of the text, the model's own summary of it, the tokens of highest self-information
under the model (the rule of Selective Context and LLMLingua: Li et al. 2023, https://arxiv.org/abs/2310.06201), and a
LoRA distilled from the same rows in the processor time that fit and training of the soft prompts took. Of the LoRA also
`collateral`: how far it moves the model after another text, and after none; a soft prompt that is not there moves
nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.distil import TEXTS, instruction, measured, messages, run
from benchmarks.documents import Students, told, with_text
from benchmarks.lora_distil import distill_lora
from benchmarks.machine import facts
from benchmarks.states import add_scores, state_scores
from softprompt.data.template import Template
from softprompt.data.tokenize import Example
from softprompt.distillation.build import cached_dataset
from softprompt.distillation.dataset import DistillationSplits
from softprompt.distillation.fidelity import fidelity
from softprompt.distillation.prepare import PreparedDistillation
from softprompt.distillation.run import DistillationResult
from softprompt.distillation.teacher import Teacher
from softprompt.files import write_json
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, layout_for, no_prompt, opening_ids
from softprompt.inference.generate import Request, generate
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.objectives.chunked import cross_entropies
from softprompt.objectives.next_token import supervised
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import hidden_states, prepare_prefixes
from softprompt.prompts import store

ASKED = "Summarize these instructions in at most {words} words, so that an assistant can follow them:\n\n{text}"
WORDS_PER_TOKEN = 0.7


def summary(lm: FrozenLM, text: str, size: int, template: Template) -> str:
    """The model's own summary, cut to so many tokens."""
    bare = no_prompt(lm, Template("chat") if template.kind == "chat" else Template("text", "{prompt}"))
    asked = ASKED.format(words=max(1, int(size * WORDS_PER_TOKEN)), text=text)
    (answer,) = generate(lm, {"bare": bare}, [Request(asked, "bare")], Sampling(size))
    return answer.text.strip()


@torch.no_grad()
def informative(lm: FrozenLM, text: str, size: int, opening: Sequence[int]) -> str:
    """The tokens of highest self-information, in the order of the text."""
    ids = lm.encode(text)
    prefixes = prepare_prefixes(lm, [Prefix(lead=tuple(opening) or tuple(ids[:1]))])
    states_TH = hidden_states(lm, prefixes, [Row(ids)])[:-1]
    surprise = cross_entropies(states_TH, torch.tensor(ids[1:], device=lm.device), lm.logits)
    kept = (surprise.topk(min(size, len(surprise))).indices + 1).sort().values.tolist()
    return str(lm.tokenizer.decode([ids[i] for i in kept]))


def students(lm: FrozenLM, prepared: PreparedDistillation, found: DistillationResult) -> Students:
    """Soft prompts, and texts of the same number of tokens."""
    template, text = prepared.template, prepared.text
    bare = FormattedPrompt(None, template, layout_for(lm, template, "embedding"))
    opening = opening_ids(lm, template)
    systems: Students = {}
    for folder, card in found.saved:
        size = card.n_tokens
        shorter = {
            "first": str(lm.tokenizer.decode(lm.encode(text)[:size])),
            "summary": summary(lm, text, size, template),
            "informative": informative(lm, text, size, opening),
        }
        systems[str(size)] = from_card(*store.load(folder, lm.geometry))
        systems |= {f"{kind} {size}": with_text(bare, words, None) for kind, words in shorter.items()}
    return systems


def foreign(path: Path) -> str:
    """Another of the texts."""
    paths = sorted(TEXTS.glob("*.md"))
    return paths[(paths.index(path) + 1) % len(paths)].read_text(encoding="utf-8")


def lora(
    lm: FrozenLM, prepared: PreparedDistillation, splits: DistillationSplits, other: str, seconds: float, rate: float
) -> dict[str, Any]:
    """Scores of a LoRA on the held-out messages, and what it does after another text and after none."""
    template, train = prepared.template, prepared.settings.train
    teacher = Teacher(lm, prepared.chunks, template)
    rows = [example.example(template, lm.tokenizer) for example in splits.held_out]
    bare = no_prompt(lm, template).prefix(lm)
    prefixes = {"text": teacher.prefix(0), "no text": bare, "another": Teacher(lm, (other,), template).prefix(0)}

    def states(prefix: Prefix) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return supervised(lm, prepare_prefixes(lm, [prefix]), rows, None)

    before = {name: states(prefix) for name, prefix in prefixes.items()}
    lessons: list[Example] = [example.example(template, lm.tokenizer) for example in splits.train]
    undo, about = distill_lora(lm, lessons, bare, seconds, rate, train.batch_size, train.seed)
    after = {name: states(prefix)[0] for name, prefix in prefixes.items()}
    undo()
    scores = state_scores(lm, after["no text"], *before["text"])
    moved = {name: state_scores(lm, after[name], *before[name])["divergence"] for name in ("no text", "another")}
    return {**scores, **about, "collateral": moved}


def compared(lm: FrozenLM, options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """A report for every text."""
    inputs = messages(options, scratch)
    wanted = tuple(options.texts.split(",")) if options.texts else ""
    for path in sorted(path for path in TEXTS.glob("*.md") if path.name.startswith(wanted)):
        prepared, result, seconds = run(lm, instruction(path, inputs, options) | {"sizes": options.sizes})
        teacher = Teacher(lm, prepared.chunks, prepared.template)
        splits = cached_dataset(prepared, teacher)
        found = fidelity(teacher, splits.held_out, students(lm, prepared, result), len(lm.encode(prepared.text)))
        report = measured(found)
        spent = seconds["start"] + seconds["training"]
        for rate in map(float, filter(None, options.lora_rates.split(","))):
            scores = lora(lm, prepared, splits, foreign(path), spent, rate)
            add_scores(report, found, {f"LoRA at {rate:g}": scores})
        yield {"text": path.name, "seconds": seconds, "messages": report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="only the instructions whose names begin so: 01,02")
    parser.add_argument("--sizes", default="32,64")
    parser.add_argument("--inputs", type=int, default=140, help="messages, including 36 held-out ones")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lora-rates", default="3e-4,1e-3", help="each is a run of its own; empty: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto", help="of the base model")
    parser.add_argument("--out", type=Path, help="a JSON file, written anew after every text")
    options = parser.parse_args()
    machine = facts()
    lm = load_model(options.model, dtype=options.dtype)
    about = {
        "benchmark": "system_prompts",
        **{name: str(value) for name, value in vars(options).items() if name != "out"},
    }
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SOFTPROMPT_HOME"] = f"{scratch}/prompts"
        for result in compared(lm, options, Path(scratch)):
            results.append(result)
            print(told(result["text"], result["seconds"], result["messages"]), flush=True)
            if options.out:
                write_json(options.out, {**about, "dtype": str(lm.dtype), "machine": machine, "results": results})


if __name__ == "__main__":
    main()
