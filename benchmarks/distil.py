"""How much of a text a few virtual tokens hold, and what they cost beside it.

    python -m benchmarks.distil instructions [--inputs 160] [--steps 60] [--methods prefix-tuning] [--out F]
    python -m benchmarks.distil compose --texts 02,07 --sizes 32,64 --inputs 140 [--composable 01,03] --out F
    python -m benchmarks.distil articles --inputs 144 --steps 36 --sizes 32,64,128 [--cartridge] --out F
    python -m benchmarks.distil book --minutes 6 --out F

instructions: the ten texts of benchmarks/instructions behind messages of bank customers ($SOFTPROMPT_DATA's banking77),
some of them held out. compose: two of them distilled apart and joined, or
distilled beside others (`--composable`). articles: questions about Wikipedia articles
(longdoc_xquad), none of them seen in training; the model studies the article alone. book: a novel's first part, and the
perplexity of what comes next.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from benchmarks.peft_cartridge import train_cartridge
from softprompt.data.records import Message, Record
from softprompt.data.spans import target_ids
from softprompt.data.targets import end_id
from softprompt.distillation.build import cached_dataset
from softprompt.distillation.composed_fidelity import load_source, measure_composed
from softprompt.distillation.config import resolve_distillation
from softprompt.distillation.dataset import DistillationExample
from softprompt.distillation.fidelity import Fidelity, fidelity
from softprompt.distillation.prepare import PreparedDistillation, prepare_distillation
from softprompt.distillation.run import DistillationResult, distill, student_prompt
from softprompt.distillation.teacher import Teacher
from softprompt.editing.compose import compose
from softprompt.files import write_json
from softprompt.formatting.formatted_prompt import FormattedPrompt, from_card
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts import store
from softprompt.training.events import Event

TEXTS = Path("benchmarks/instructions")
WHOLE = 4096  # tokens of an article at most: it is read in one piece
BOOK_TOKENS, PASSAGE_TOKENS, PASSAGES = 3000, 200, 24


def run(
    lm: FrozenLM,
    flags: dict[str, Any],
    clock: Callable[[], float] = time.process_time,
    seen: Callable[[dict[str, float]], None] = lambda marks: None,
) -> tuple[PreparedDistillation, DistillationResult, dict[str, float]]:
    """Distil as a user would; seconds of the phases, of the processor (neighbors on the machine make others longer)
    unless another clock is given. `seen` is called with the seconds at which each kind of event last came."""
    marks: dict[str, float] = {}
    prepared = prepare_distillation(resolve_distillation({"name": "benchmark"} | flags), overwrite=True)
    begin = clock()

    def mark(event: Event) -> None:
        marks[event.kind] = clock() - begin
        seen(marks)

    found = distill(prepared, lm, overwrite=True, report=mark)
    written = max(marks.get("answers", 0.0), marks.get("study", 0.0))
    spans = {"study": written, "start": marks["start"] - written, "training": marks["end"] - marks["start"]}
    return prepared, found, {phase: round(seconds, 1) for phase, seconds in spans.items()}


def instructions(lm: FrozenLM, options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Every instruction with every method."""
    inputs = messages(options, scratch)
    wanted = tuple(options.texts.split(",")) if options.texts else ""
    for path in sorted(path for path in TEXTS.glob("*.md") if path.name.startswith(wanted)):
        for method in options.methods.split(","):
            embedding = method == "prompt-tuning"
            tokens = options.embedding_tokens if embedding else options.tokens
            flags = instruction(path, inputs, options) | {"method.name": method}
            flags |= {"sizes" if "," in tokens else "method.n_tokens": tokens}
            if embedding:
                flags |= {"train.steps": options.embedding_steps}
            flags |= chosen(options)
            _, found, seconds = run(lm, flags)
            yield {"text": path.name, "method": method, "seconds": seconds, **measured(found.fidelity)}


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """Settings that are not those of `softprompt distill`."""
    given = {"train.lr": options.lr, "train.batch_size": options.batch_size, "fit_steps": options.fit_steps}
    given |= {"on_policy": options.on_policy, "repeat": options.repeat}
    return {name: value for name, value in given.items() if value is not None}


def messages(options: argparse.Namespace, scratch: Path) -> Path:
    """A file with messages of bank customers."""
    rows = json_lines(data() / "banking77" / "train.jsonl")
    random.Random(options.seed).shuffle(rows)  # noqa: S311
    inputs = scratch / "inputs.jsonl"
    inputs.write_text("".join(json.dumps({"prompt": row["text"]}) + "\n" for row in rows[: options.inputs]))
    return inputs


def instruction(path: Path, inputs: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Settings of an instruction's distillation on these messages."""
    flags = {"text": str(path), "data": str(inputs), "study.queries": options.inputs, "study.held_out": 36}
    return flags | {"train.eval_rows": 16, "train.steps": options.steps, "train.seed": options.seed}


def composed(lm: FrozenLM, options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Two of the instructions distilled apart, joined, and measured on the held-out messages of both."""
    inputs = messages(options, scratch)
    names, others = options.texts.split(","), [name for name in options.composable.split(",") if name]
    seconds = {}
    for name in [*others, *names]:
        (path,) = TEXTS.glob(f"{name}-*.md")
        flags = instruction(path, inputs, options) | {"name": f"t{name}", "sizes": options.sizes} | chosen(options)
        if others and name in names:
            first = options.sizes.split(",")[0]
            met = [other for other in others if other != name]
            flags |= {"composable": [f"t{other}.{first}" if "," in options.sizes else f"t{other}" for other in met]}
        _, _, seconds[name] = run(lm, flags)
    for size in options.sizes.split(","):
        sources = [f"t{name}.{size}" if "," in options.sizes else f"t{name}" for name in names]
        loaded = {source: store.load(source, lm.geometry) for source in sources}
        store.save("both", *compose(" | ".join(sources), loaded, "both", lm=lm), overwrite=True)
        for kept in measure_composed(lm, "both", {source: load_source(source) for source in sources}):
            lost = {"lost": kept.lost, "lost_by_texts": kept.lost_by_texts}
            lost |= {"against_both_texts": measured(against_both(lm, "both", sources, kept.source))}
            yield {"text": kept.source, "method": size, "seconds": seconds[names[0]], **lost, **measured(kept.report)}


def against_both(lm: FrozenLM, name: str, sources: list[str], asked: str) -> Fidelity:
    """The joined prompt against the model that reads all texts, on the held-out messages of one of them."""
    prepared = {source: load_source(source) for source in sources}
    texts = "\n\n".join(one.text for one in prepared.values())
    own = prepared[asked]
    splits = cached_dataset(own, Teacher(lm, own.chunks, own.template))
    teacher = Teacher(lm, (texts,), own.template)
    return fidelity(teacher, splits.held_out, {name: from_card(*store.load(name, lm.geometry))}, len(lm.encode(texts)))


def articles(lm: FrozenLM, options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Some articles, drawn by seed, in all sizes at once; scored on their test questions."""
    folder = data() / "longdoc_xquad"
    every, asked = json_lines(folder / "documents.jsonl"), json_lines(folder / "test.jsonl")
    drawn = random.Random(options.seed).sample(every, options.articles)  # noqa: S311
    for article in drawn[options.first :][: options.limit]:
        path = scratch / "article.txt"
        path.write_text(f"# {article['title']}\n\n{article['text']}", encoding="utf-8")
        flags = {"document": str(path), "study.chunk_tokens": WHOLE, "study.queries": options.inputs}
        flags |= {"sizes": options.sizes, "study.held_out": 16, "train.eval_rows": 16, "train.seed": options.seed}
        flags |= {"train.minutes": options.minutes} if options.minutes else {"train.steps": options.steps}
        flags |= chosen(options)
        prepared, found, seconds = run(lm, flags)
        questions = [row for row in asked if row["doc_id"] == article["doc_id"]]
        splits = [question(row, prepared, lm) for row in questions]
        others = cartridge(lm, prepared, seconds["training"], options) if options.cartridge else {}
        scored = again(lm, prepared, found, splits, others)
        own = {"study": measured(found.fidelity), "questions": measured(scored)}
        yield {"article": article["doc_id"], "seconds": seconds, "n_questions": len(questions), **own}


def book(lm: FrozenLM, options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """The first part of the book as the text; perplexity of passages that follow it."""
    line = (data() / "longdoc_book" / "documents.jsonl").read_text(encoding="utf-8").splitlines()[0]
    ids = lm.encode(json.loads(line)["text"])
    path = scratch / "book.txt"
    path.write_text(str(lm.tokenizer.decode(ids[:BOOK_TOKENS])), encoding="utf-8")
    flags: dict[str, Any] = {"document": str(path), "chat": "false", "study.queries": options.inputs}
    flags |= {"sizes": options.sizes, "study.answer_tokens": 64, "study.chunk_tokens": BOOK_TOKENS + 100}
    flags |= {"train.minutes": options.minutes} if options.minutes else {"train.steps": options.steps}
    prepared, found, seconds = run(lm, flags)
    splits = []
    for i in range(PASSAGES):
        part = ids[BOOK_TOKENS + i * PASSAGE_TOKENS :][:PASSAGE_TOKENS]
        record = Record({"prompt": str(lm.tokenizer.decode(part[:16]))}, None, "completion", where=f"passage {i}")
        splits.append(DistillationExample(0, record, tuple(part[16:])))
    yield {"seconds": seconds, **measured(again(lm, prepared, found, splits, {})), "study": measured(found.fidelity)}


def question(row: dict[str, Any], prepared: PreparedDistillation, lm: FrozenLM) -> DistillationExample:
    """A question with its right answer, in the document's frame."""
    turns = (Message("user", row["input"]),)
    record = Record({}, None, "messages", messages=turns, references=tuple(row["references"]), where=row["input"])
    answer = target_ids(row["target"], prepared.template, lm.tokenizer)
    return DistillationExample(0, record, (*answer, end_id(prepared.template, lm.tokenizer)))


def cartridge(
    lm: FrozenLM, prepared: PreparedDistillation, seconds: float, options: argparse.Namespace
) -> dict[str, FormattedPrompt]:
    """PEFT's recipe on the same exercises, with as much time as our training had."""
    teacher = Teacher(lm, prepared.chunks, prepared.template)
    rows = [one.example(prepared.template, lm.tokenizer) for one in cached_dataset(prepared, teacher).train]
    size = int(options.sizes.split(",")[-1])
    prompt, steps = train_cartridge(lm, prepared, rows, size, seconds, options.seed)
    return {f"PEFT cartridge, {size} tokens, {steps} steps": student_prompt(prepared, lm, prompt)}


def again(
    lm: FrozenLM,
    prepared: PreparedDistillation,
    found: DistillationResult,
    splits: list[DistillationExample],
    others: Mapping[str, FormattedPrompt],
) -> Fidelity:
    """The saved soft prompts, and others, on other exercises."""
    loaded = {str(card.n_tokens): store.load(folder, lm.geometry) for folder, card in found.saved}
    students = {size: from_card(prompt, card) for size, (prompt, card) in loaded.items()} | dict(others)
    return fidelity(Teacher(lm, prepared.chunks, prepared.template), splits, students, len(lm.encode(prepared.text)))


def measured(found: Fidelity | None) -> dict[str, Any]:
    """A fidelity report, with the share of the log-likelihood gap that each size recovers."""
    assert found is not None
    report: dict[str, Any] = found.to_dict()
    gap = found.full_text.log_likelihood - found.no_text.log_likelihood
    for size, own in found.soft.items():
        report["soft"][size]["gap_recovered"] = (own.log_likelihood - found.no_text.log_likelihood) / gap
    return report


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def data() -> Path:
    """The data sets."""
    return Path(os.environ.get("SOFTPROMPT_DATA") or "../shared/data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["instructions", "compose", "articles", "book"])
    parser.add_argument("--methods", default="prefix-tuning,prompt-tuning")
    parser.add_argument("--texts", help="only the instructions whose names begin so: 01,02")
    parser.add_argument("--tokens", default="32", help="of the instructions' KV prompts, several trained together")
    parser.add_argument("--embedding-tokens", default="32")
    parser.add_argument("--batch-size", type=int, help="as in softprompt distill")
    parser.add_argument("--fit-steps", type=int, help="as in softprompt distill")
    parser.add_argument("--on-policy", type=float, help="as in softprompt distill")
    parser.add_argument("--repeat", action=argparse.BooleanOptionalAction, help="as in softprompt distill")
    parser.add_argument("--composable", default="", help="compose: instructions to be distilled first, and met: 01,03")
    parser.add_argument("--lr", type=float, help="as in softprompt distill")
    parser.add_argument("--sizes", default="32,64,128")
    parser.add_argument("--articles", type=int, default=6)
    parser.add_argument("--cartridge", action="store_true", help="articles: PEFT's cartridge recipe beside ours")
    parser.add_argument("--first", type=int, default=0, help="of the articles: the first one to run")
    parser.add_argument("--limit", type=int, help="of the articles: how many to run")
    parser.add_argument("--inputs", type=int, default=160)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--embedding-steps", type=int, default=100)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto", help="of the base model")
    parser.add_argument("--out", type=Path, help="a JSON file, written anew after every result")
    options = parser.parse_args()
    machine = facts()
    lm = load_model(options.model, dtype=options.dtype)
    about = {"benchmark": "distil", **{name: str(value) for name, value in vars(options).items() if name != "out"}}
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SOFTPROMPT_HOME"] = f"{scratch}/prompts"
        parts = {"instructions": instructions, "compose": composed, "articles": articles, "book": book}
        for result in parts[options.part](lm, options, Path(scratch)):
            results.append(result)
            print(told(result), flush=True)
            if options.out:
                write_json(options.out, {**about, "dtype": str(lm.dtype), "machine": machine, "results": results})


def told(result: dict[str, Any]) -> str:
    """A result as a line."""
    report = result.get("questions", result)
    if "against_both_texts" in result:
        report = report | {"soft": report["soft"] | {"both of both": result["against_both_texts"]["soft"]["both"]}}
    name = " ".join(str(result[key]) for key in ("text", "method", "article") if key in result)
    sizes = " ".join(
        f"{size}: {own['recovered']:.3f} ({own['gap_recovered']:.2f} of the log-likelihood)"
        for size, own in report["soft"].items()
    )
    spans = " ".join(f"{phase} {seconds:.0f} s" for phase, seconds in result["seconds"].items())
    return f"{name:<40} {sizes} {spans}"


if __name__ == "__main__":
    main()
