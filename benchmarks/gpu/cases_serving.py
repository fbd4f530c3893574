"""Measures of the engine and of a distillation, at the shape of Llama-3.2-1B in bfloat16."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks import distil
from benchmarks.gpu.bench import Bench, random_model, top_of, wrapped
from benchmarks.gpu.registry import case
from benchmarks.serve_engine import Load, compared, engine_run, soft_prompts, texts
from softprompt.engine.capacity import Capacity
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.models.device import wait_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prefix.kv import Prefix

SHAPE = "llama-3.2-1b"
LOUDER = 20.0  # rows of the tokenizer's own tokens in the table: then a random model writes text
DOCUMENT_TOKENS = 8000


@case(rank=12.5, seconds=35, variants=[{"requests": 256}, {"requests": 64}])
def serving(bench: Bench, requests: int) -> dict[str, Any]:
    """Tokens a second of requests that come at once: each behind its own soft prompt, all behind one, behind none."""
    lm = bench.model(SHAPE, "bfloat16")
    size = Load(requests=requests, prompts=requests, virtual=32, new=32, rounds=3)
    if bench.tiny:
        size = Load(requests=requests // 32, prompts=requests // 32, virtual=4, new=3, rounds=1)
    with torch.no_grad():
        found = asyncio.run(_served(lm, size))
    ratios = found["many_prompts_faster_than"]
    told = ", ".join(f"{name} {value:.0f} tokens/s" for name, value in found["tokens_per_second"].items())
    return found | {"told": f"{told}; many against one {ratios['one prompt']:.3f}, none {ratios['no prompt']:.3f}"}


async def _served(lm: FrozenLM, size: Load) -> dict[str, Any]:
    """Rounds in turn, and the profile of one more of many prompts."""
    prompts, turns = soft_prompts(lm, size), count(10)
    engine = TransformersEngine(lm, Capacity(rows=size.requests, cache_tokens=size.requests * 256))
    await engine.start()
    try:
        for name, prompt in prompts.items():
            await engine.load(name, Prefix(prompt))
        names: dict[str, list[str | None]] = {
            "many prompts": [*prompts],
            "one prompt": [next(iter(prompts))] * size.requests,
            "no prompt": [None] * size.requests,
        }
        seconds = {name: list[float]() for name in names}
        for turn in range(size.rounds + 1):
            for name, owners in names.items():
                rows = texts(lm, size, next(turns))  # no text is in the cache, only the prompts are
                wait_for(lm.device)
                begin = time.perf_counter()
                await engine_run(engine, rows, owners, size.new)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - begin)
        rows, owners = texts(lm, size, next(turns)), names["many prompts"]

        def again() -> None:
            asyncio.run_coroutine_threadsafe(engine_run(engine, rows, owners, size.new), loop).result()

        loop = asyncio.get_running_loop()
        profile = await asyncio.to_thread(top_of, again, lm.device)
        engine.check_integrity()
    finally:
        await engine.stop()
    return compared(seconds, size.requests * size.new) | {"profile": profile}


@case(rank=12.8, seconds=70)
def distillation(bench: Bench) -> dict[str, Any]:
    """One document of 8,000 tokens, read in one piece, into 64 virtual tokens: seconds by phase, and what the
    fit, two steps and the report of a second run spend theirs on.

    The model is random, so what it learns means nothing; it does as much work as another one.
    """
    bench.forget()
    length, steps, queries = (160, 2, 12) if bench.tiny else (DOCUMENT_TOKENS, 40, 96)
    with tempfile.TemporaryDirectory(prefix="softprompt-gpu-") as scratch:
        lm = _writing(bench, Path(scratch) / "base")
        document = Path(scratch) / "document.txt"
        document.write_text(document_of(length), encoding="utf-8")
        flags: dict[str, Any] = {
            "model": lm.name,
            "document": str(document),
            "method.n_tokens": 8 if bench.tiny else 64,
            "study.chunk_tokens": 2 * length,
            "study.queries": queries,
            "study.held_out": 4,
            "train.steps": steps,
            "train.eval_rows": 4,
        }
        if bench.tiny:
            flags |= {"study.query_tokens": 8, "study.answer_tokens": 4, "fit_steps": 2}
        with _prompts_in(f"{scratch}/prompts"):
            begin = time.perf_counter()
            prepared, _, seconds = distil.run(lm, flags, time.perf_counter, lambda marks: bench.note({"marks": marks}))
            seconds |= {"all": round(time.perf_counter() - begin, 1)}
            tokens = len(lm.encode(prepared.text))
            told = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
            found = {"phases": seconds, "document_tokens": tokens, "chunks": len(prepared.chunks), "told": told}
            found |= {"queries": queries, "steps": steps}
            bench.note(found)
            short = flags | {"train.steps": 2, "fit_steps": 2}  # its queries and answers are cached
            return found | {"profile": top_of(lambda: distil.run(lm, short), lm.device)}


@contextmanager
def _prompts_in(folder: str) -> Iterator[None]:
    """Soft prompts are kept in this folder."""
    before = os.environ.get("SOFTPROMPT_HOME")
    os.environ["SOFTPROMPT_HOME"] = folder
    try:
        yield
    finally:
        os.environ.pop("SOFTPROMPT_HOME")
        if before is not None:
            os.environ["SOFTPROMPT_HOME"] = before


def _writing(bench: Bench, folder: Path) -> FrozenLM:
    """A random model that writes tokens of its tokenizer, and the folder in which a run looks for that."""
    model = random_model(SHAPE, "bfloat16", bench.device, tiny=bench.tiny)
    lm = wrapped(model, str(folder))
    model.config.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    with torch.no_grad():
        lm.embedding.weight[: len(lm.tokenizer.get_vocab())] *= LOUDER
    return wrapped(model, str(folder))


def document_of(tokens: int) -> str:
    """Sentences of made-up facts, of so many bytes, which are tokens of the tokenizer here."""
    draw, lines, length = random.Random(0), list[str](), 0  # noqa: S311
    while length < tokens:
        place, year, number = (
            draw.choice(["north", "harbor", "old town"]),
            draw.randint(1700, 1999),
            draw.randint(2, 99),
        )
        lines.append(f"In {year} the {place} had {number} mills and {draw.randint(100, 999)} houses. ")
        length += len(lines[-1])
    return "".join(lines)[:tokens]
