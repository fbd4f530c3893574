"""What a user would put before questions about a document, at the same number of tokens.

    python -m benchmarks.documents --articles 6 --minutes 6 --sizes 32,64,128 [--kvpress ENV/bin/python] --out F

For some Wikipedia articles (longdoc_xquad in $SOFTPROMPT_DATA), on questions that nobody saw before: a distilled soft
prompt, the first tokens of the text, the sentences that BM25 finds for the question, these after a soft prompt (as many
tokens again: `64 + BM25 64` takes 128), and the whole text cut by SnapKV, ExpectedAttention and KVzip (`eviction.py`;
`none` is the whole text there, which shows that both environments compute the same). For each the divergence from the
model that reads the whole text, and the share that it recovers of the log-likelihood of the right answers, as
`benchmarks.distil` reports them. Attention matching with its published steps is not among them: it weighs attention by
a bias for each key, which no soft prompt of ours has.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bm25 import Ranking, sentences
from benchmarks.distil import WHOLE, data, json_lines, measured, question, run
from benchmarks.eviction import PRESSES, Eviction
from benchmarks.machine import facts
from benchmarks.states import add_scores
from softprompt.distillation.dataset import DistillationExample
from softprompt.distillation.fidelity import fidelity
from softprompt.distillation.prepare import PreparedDistillation
from softprompt.distillation.run import DistillationResult
from softprompt.distillation.teacher import Teacher
from softprompt.files import write_json
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card, layout_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts import store

Students = dict[str, FormattedPrompt | Sequence[FormattedPrompt]]


def articles(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The articles of `benchmarks.distil articles` with their test questions."""
    folder = data() / "longdoc_xquad"
    every, asked = json_lines(folder / "documents.jsonl"), json_lines(folder / "test.jsonl")
    drawn = random.Random(options.seed).sample(every, options.articles)  # noqa: S311
    for article in drawn[options.first :][: options.limit]:
        yield article, [row for row in asked if row["doc_id"] == article["doc_id"]][: options.questions]


def distilled(
    lm: FrozenLM, article: dict[str, Any], options: argparse.Namespace, scratch: Path
) -> tuple[PreparedDistillation, DistillationResult, dict[str, float]]:
    """Soft prompts of all sizes, as a user would make them."""
    path = scratch / "article.txt"
    path.write_text(f"# {article['title']}\n\n{article['text']}", encoding="utf-8")
    flags: dict[str, Any] = {"document": str(path), "study.chunk_tokens": WHOLE, "study.queries": options.inputs}
    flags |= {"sizes": options.sizes, "study.held_out": 16, "train.eval_rows": 16, "train.seed": options.seed}
    flags |= {"train.steps": options.steps} if options.steps else {"train.minutes": options.minutes}
    return run(lm, flags)


def with_text(prompt: FormattedPrompt, words: str, form: str | None) -> FormattedPrompt:
    """A prompt with words of the document: in place of virtual tokens, or after them."""
    layout = prompt.layout
    if form is None:
        changed = layout.model_copy(update={"lead": layout.lead + words})
    else:
        changed = layout.model_copy(update={"follow": words + layout.follow})
    return FormattedPrompt(prompt.prompt, prompt.template, changed)


def students(
    lm: FrozenLM, prepared: PreparedDistillation, found: DistillationResult, examples: Sequence[DistillationExample]
) -> Students:
    """Every system that is a prompt, for all questions or one for each."""
    template, ids = prepared.template, lm.encode(prepared.text)
    bare = FormattedPrompt(None, template, layout_for(lm, template, "embedding"))
    ranking = Ranking(sentences(prepared.text))
    systems: Students = {}
    for folder, card in found.saved:
        size = card.n_tokens
        soft = from_card(*store.load(folder, lm.geometry))
        passages = [ranking.text(lm, example.record.where, size) for example in examples]
        systems[str(size)] = soft
        systems[f"first {size}"] = with_text(bare, str(lm.tokenizer.decode(ids[:size])), None)
        systems[f"BM25 {size}"] = [with_text(bare, passage, None) for passage in passages]
        systems[f"{size} + BM25 {size}"] = [with_text(soft, passage, "kv") for passage in passages]
    return systems


def compared(lm: FrozenLM, options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """A report for every article."""
    lm.hf_model.save_pretrained(scratch / "base")
    lm.tokenizer.save_pretrained(scratch / "base")
    eviction = Eviction(options.kvpress, scratch / "base", scratch, tuple(options.presses.split(",")))
    for article, rows in articles(options):
        prepared, result, seconds = distilled(lm, article, options, scratch)
        examples = [question(row, prepared, lm) for row in rows]
        teacher = Teacher(lm, prepared.chunks, prepared.template)
        systems = students(lm, prepared, result, examples)
        found = fidelity(teacher, examples, systems, len(lm.encode(prepared.text)))
        sizes = [card.n_tokens for _, card in result.saved]
        evicted = eviction.scores(teacher, examples, sizes) if options.kvpress else {}
        report = measured(found)
        add_scores(report, found, evicted)
        yield {"article": article["doc_id"], "seconds": seconds, "questions": report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="32,64,128")
    parser.add_argument("--articles", type=int, default=6, help="how many are drawn")
    parser.add_argument("--first", type=int, default=0, help="the first of them to run")
    parser.add_argument("--limit", type=int, help="how many of them to run")
    parser.add_argument("--questions", type=int, help="of an article, at most")
    parser.add_argument("--inputs", type=int, default=144, help="queries of the self-study")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, beside study and fit")
    parser.add_argument("--steps", type=int, help="of training, in place of minutes")
    parser.add_argument("--kvpress", default="", help="Python of an environment with kvpress")
    parser.add_argument("--presses", default=",".join(PRESSES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto", help="of the base model")
    parser.add_argument("--out", type=Path, help="a JSON file, written anew after every article")
    options = parser.parse_args()
    machine = facts()
    lm = load_model(options.model, dtype=options.dtype)
    given = {name: str(value) for name, value in vars(options).items() if name not in ("out", "kvpress")}
    about = {"benchmark": "documents", **given, "kvpress": str(bool(options.kvpress))}  # not where it is
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SOFTPROMPT_HOME"] = f"{scratch}/prompts"
        for result in compared(lm, options, Path(scratch)):
            results.append(result)
            print(told(result["article"], result["seconds"], result["questions"]), flush=True)
            if options.out:
                write_json(options.out, {**about, "dtype": str(lm.dtype), "machine": machine, "results": results})


def told(name: str, seconds: dict[str, float], report: dict[str, Any]) -> str:
    """A report as lines."""
    spans = " ".join(f"{phase} {spent:.0f} s" for phase, spent in seconds.items())
    lines = [f"{name}: {report['rows']} rows, {spans}"]
    for system, own in report["soft"].items():
        lines.append(f"  {system:<24} divergence {own['recovered']:.3f}  log-likelihood {own['gap_recovered']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
