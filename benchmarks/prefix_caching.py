"""Soft prompts against automatic prefix caching of the texts that they replace, on one engine and one cache size.

    python -m benchmarks.prefix_caching [--quick] [--counts 1,100,1000] [--model smollm2-135m] [--memory-gb 8] --out F

Some distinct texts of 1,500 tokens, each with its soft prompt of 32 virtual tokens, in requests that draw one of them
at random, with a new question each. The engine's own prefix cache keeps blocks of texts and of virtual tokens alike and
gives up those that were used longest ago. `holds`: the cache is large enough for all texts. `overflows`: it holds
twenty of them; soft prompts get the same bytes. Both are warm: the cache was filled before. A case whose cache would
take more than the given memory is not run, and says how many bytes it needs.

Time to first token is that of single requests, a miss computes the text again. Decoding speed is that of one row, and
of several rows with different texts at once, all of them in the cache. What the prompts say has no effect on time, so
all texts are random, and all soft prompts have the same numbers (each is loaded, cached and counted by itself). A real
load asks for some texts more often than for others: then fewer requests miss than here.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Literal

import torch

from benchmarks.machine import facts
from benchmarks.output import put
from softprompt.engine.base import Job
from softprompt.engine.capacity import Capacity
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import compute_keys_values
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt, size_of

System = Literal["text", "embedding prompt", "kv prompt"]
SYSTEMS: tuple[System, ...] = ("text", "embedding prompt", "kv prompt")
SLACK = 1.35  # of the cache, which the scheduler never fills: it keeps a share free for running rows
numbers = count()  # of jobs


@dataclass(frozen=True)
class TextLoad:
    """Requests of `question` tokens after one of many texts of `text` tokens, or its soft prompt of `virtual` ones.

    Attributes:
        new: tokens of an answer.
        requests: timed one by one.
        rows: decoded together.
        held: texts that the small cache holds.
    """

    text: int = 1500
    virtual: int = 32
    question: int = 40
    new: int = 32
    requests: int = 40
    rows: int = 16
    held: int = 20


QUICK = TextLoad(text=96, virtual=8, question=8, new=4, requests=6, rows=2, held=3)


@dataclass(frozen=True)
class Case:
    """One system with so many distinct texts and a cache of so many tokens."""

    system: System
    texts: int
    cache: Literal["holds", "overflows"]
    cache_tokens: int
    load: TextLoad

    @property
    def prefix_tokens(self) -> int:
        """Tokens of a text, or of its soft prompt."""
        return self.load.text if self.system == "text" else self.load.virtual

    @property
    def held(self) -> int:
        """How many texts, or soft prompts, the cache holds with their questions and answers."""
        return int(self.cache_tokens / SLACK / (self.prefix_tokens + self.load.question + self.load.new))


def cases(counts: Sequence[int], load: TextLoad) -> Iterator[Case]:
    """Every system in every cache."""
    each = load.text + load.question + load.new
    for texts in counts:
        sizes: dict[Literal["holds", "overflows"], int] = {"holds": max(texts, load.rows), "overflows": load.held}
        for cache, held in sizes.items():
            if cache == "holds" or held < texts:
                for system in SYSTEMS:
                    yield Case(system, texts, cache, int(held * each * SLACK), load)


class Requests:
    """The requests of a case on an engine."""

    def __init__(self, lm: FrozenLM, engine: TransformersEngine, case: Case) -> None:
        self._vocab, self._engine, self._case = lm.geometry.vocab, engine, case
        self._draw = random.Random(0)  # noqa: S311

    def _ids(self, draw: random.Random, size: int) -> list[int]:
        return [draw.randrange(5, self._vocab) for _ in range(size)]

    async def times(self, number: int, new: int) -> list[float]:
        """Seconds to each of so many tokens of the answer to a new question after this text."""
        load, text = self._case.load, self._case.system == "text"
        before = self._ids(random.Random(number), load.text) if text else []  # noqa: S311
        ids = (*before, *self._ids(self._draw, load.question))
        name = None if text else str(number)
        job = Job(str(next(numbers)), name, ids, Sampling(new), frozenset())
        begin, seen = time.perf_counter(), list[float]()
        async with aclosing(self._engine.stream(job)) as tokens:  # type: ignore[type-var]
            async for _ in tokens:
                seen.append(time.perf_counter() - begin)
        return seen

    def drawn(self, size: int) -> list[int]:
        """Numbers of texts, drawn with repetition."""
        return [self._draw.randrange(self._case.texts) for _ in range(size)]

    def distinct(self, size: int) -> list[int]:
        """Numbers of different texts, or of all if there are not so many."""
        return self._draw.sample(range(self._case.texts), min(size, self._case.texts))


async def measured(lm: FrozenLM, engine: TransformersEngine, case: Case) -> dict[str, object]:
    """First tokens and decoding speed of a case on its engine, which is started."""
    load, requests = case.load, Requests(lm, engine, case)
    for number in requests.distinct(case.held):
        await requests.times(number, 1)
    before = engine.stats()
    singles = [await requests.times(number, load.new) for number in requests.drawn(load.requests)]
    await asyncio.sleep(0.01)  # what the last step counted is told with its end
    after = engine.stats()
    together = requests.distinct(load.rows)
    for number in together:  # all of them are cached now
        await requests.times(number, 1)
    begin = time.perf_counter()
    rows = await asyncio.gather(*(requests.times(number, load.new) for number in together))
    seconds = time.perf_counter() - begin
    first = [row[0] for row in singles]
    cached = after.cached_tokens - before.cached_tokens
    last_first = max(row[0] for row in rows)
    late = sum(moment > last_first for row in rows for moment in row)
    return {
        "first_token": {"median": median(first), "mean": mean(first), "p90": quantiles(first, n=10)[-1]},
        "cached_share": cached / (cached + after.computed_tokens - before.computed_tokens),
        "tokens_per_second": median((len(row) - 1) / (row[-1] - row[0]) for row in singles),
        "tokens_per_second_together": late / max(seconds - last_first, 1e-9),
        "rows_together": len(together),
        "seconds": first,
    }


def soft_prompt(lm: FrozenLM, system: System, size: int) -> SoftPrompt | None:
    """One like no text; None for a text."""
    if system == "text":
        return None
    ids = torch.randint(5, lm.geometry.vocab, (size,), generator=torch.Generator().manual_seed(0)).tolist()
    if system == "embedding prompt":
        return EmbeddingPrompt(lm.embed(ids) * 0.9)
    layers = compute_keys_values(lm, Prefix(lead=tuple(ids)))
    return KVPrompt(tuple(kv and (kv[0][0] * 1.1, kv[1][0] * 0.9) for kv in layers))


async def measure_case(lm: FrozenLM, case: Case, limit: int) -> dict[str, object]:
    """A case on an engine of its own."""
    per_token = lm.geometry.kv_bytes_per_token(lm.dtype.itemsize)
    load, prompt = case.load, soft_prompt(lm, case.system, case.load.virtual)
    tokens = case.prefix_tokens
    stored = size_of(prompt.to(dtype=lm.dtype)) if prompt else 0
    about: dict[str, object] = {"system": case.system, "texts": case.texts, "cache": case.cache}
    about |= {"cache_bytes": case.cache_tokens * per_token, "prefix_tokens": tokens}
    about |= {"kv_bytes_each": tokens * per_token, "kv_bytes_of_all": case.texts * tokens * per_token}
    about |= {"loaded_bytes_of_all": case.texts * stored}
    if case.cache_tokens * per_token + case.texts * stored > limit:
        return about | {"not_run": f"needs {case.cache_tokens * per_token + case.texts * stored:,} bytes"}
    engine = TransformersEngine(lm, Capacity(rows=load.rows, cache_tokens=case.cache_tokens))
    await engine.start()
    try:
        if prompt:
            for number in range(case.texts):
                await engine.load(str(number), Prefix(prompt))
        return about | await measured(lm, engine, case)
    finally:
        await engine.stop()


async def measure(
    lm: FrozenLM,
    counts: Sequence[int],
    load: TextLoad,
    limit: int,
    seen: Callable[[list[dict[str, object]]], None] = lambda results: None,
) -> list[dict[str, object]]:
    """All cases. A soft prompt whose texts would need too large a cache runs in a small one of its own.

    `seen` is called with the results so far after every case.
    """
    results = list[dict[str, object]]()
    per_token = lm.geometry.kv_bytes_per_token(lm.dtype.itemsize)
    for case in cases(counts, load):
        if case.system != "text" and case.cache_tokens * per_token > limit:
            each = load.virtual + load.question + load.new
            case = replace(case, cache_tokens=int(case.texts * each * SLACK))
        results.append(await measure_case(lm, case, limit))
        gc.collect()  # the cache, which the next one takes the place of
        print(told(results[-1]), flush=True)
        seen(results)
    return results


def told(result: dict[str, object]) -> str:
    """A result as a line."""
    name = f"{result['texts']:>5} {result['cache']:<9} {result['system']:<17}"
    if "not_run" in result:
        return f"{name} not run: {result['not_run']}"
    first = result["first_token"]
    assert isinstance(first, dict)
    speeds = f"{result['tokens_per_second']:.1f} and {result['tokens_per_second_together']:.1f} tokens/s"
    cached = f"{result['cached_share']:.0%} of the tokens cached"
    return f"{name} first token {first['median']:.3f} s, mean {first['mean']:.3f} s, {speeds}, {cached}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short texts, few requests")
    parser.add_argument("--counts", default="1,100,1000", help="numbers of distinct texts")
    parser.add_argument("--held", type=int, help="texts that the small cache holds")
    parser.add_argument("--memory-gb", type=float, default=8, help="most memory of cache and soft prompts")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--out", type=Path, help="a JSON file, written anew after every case; standard output if left out"
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    machine, load = facts(), QUICK if options.quick else TextLoad()
    load = replace(load, held=options.held or load.held)
    lm, counts = load_model(options.model, dtype=options.dtype), [int(size) for size in options.counts.split(",")]
    about = {"benchmark": "prefix_caching", "model": options.model, "dtype": str(lm.dtype), "load": asdict(load)}

    def write(results: list[dict[str, object]]) -> None:
        if options.out:
            put({**about, "machine": machine, "results": results}, options.out)

    with torch.no_grad():
        results = asyncio.run(measure(lm, counts, load, int(options.memory_gb * 1e9), write))
    if not options.out:
        put({**about, "machine": machine, "results": results}, None)


if __name__ == "__main__":
    main()
