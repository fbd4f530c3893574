"""The engine: requests over many soft prompts against one, none, one padded `generate`, and PEFT; and what a long
instruction costs as text.

    python -m benchmarks.serve_engine [--quick] [--model smollm2-135m] [--dtype float32] [--out FILE]

One process, one model; the systems take turns, round after round, and the ratios are those of their medians. All
requests come at once, are decoded greedily and never end early. PEFT has one adapter active at a time: requests are
grouped by adapter, each group one padded `generate` (it puts the prompt in front of the padding, so its answers to the
shorter rows of a group are not those of the prompt; the time is). "Without prefix caching" is a text whose first token
is new, of which nothing can be in the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import facts
from benchmarks.output import put
from softprompt.engine.base import Job
from softprompt.engine.capacity import Capacity
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.interchange.peft import to_flat
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prefix.kv import Prefix, PrefixKV
from softprompt.prefix.prepare import compute_keys_values, prepare_prefixes
from softprompt.prompts.base import SoftPrompt
from softprompt.prompts.forms import EmbeddingPrompt, KVPrompt

numbers = count()  # of jobs


@dataclass(frozen=True)
class Load:
    """`requests` texts of 20 to 63 tokens, `new` tokens each, behind `prompts` soft prompts of `virtual` tokens."""

    requests: int = 64
    prompts: int = 16
    virtual: int = 32
    new: int = 32
    instruction: int = 1500
    rounds: int = 5
    singles: int = 15


QUICK = Load(requests=8, prompts=4, virtual=8, new=4, instruction=150, rounds=1, singles=2)


def soft_prompts(lm: FrozenLM, size: Load) -> dict[str, SoftPrompt]:
    """Half embedding prompts, half KV prompts, like no text."""
    draw, made = torch.Generator().manual_seed(0), dict[str, SoftPrompt]()
    for i in range(size.prompts):
        ids = torch.randint(5, lm.geometry.vocab, (size.virtual,), generator=draw).tolist()
        if i % 2:
            layers = compute_keys_values(lm, Prefix(lead=tuple(ids)))
            made[f"p{i}"] = KVPrompt(tuple(kv and (kv[0][0] * 1.1, kv[1][0] * 0.9) for kv in layers))
        else:
            made[f"p{i}"] = EmbeddingPrompt(lm.embed(ids) * 0.9)
    return made


def texts(lm: FrozenLM, size: Load, seed: int) -> list[list[int]]:
    """Random rows, of the same lengths whatever the seed."""
    lengths = torch.randint(20, 64, (size.requests,), generator=torch.Generator().manual_seed(1)).tolist()
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(5, lm.geometry.vocab, (n,), generator=draw).tolist() for n in lengths]


async def first_token(engine: TransformersEngine, name: str | None, ids: Sequence[int], new: int) -> float:
    """Seconds to the first token of one request; the rest is read."""
    begin, first = time.perf_counter(), 0.0
    one = Job(str(next(numbers)), name, tuple(ids), Sampling(new), frozenset())
    async with aclosing(engine.stream(one)) as tokens:  # type: ignore[type-var]
        async for _ in tokens:
            first = first or time.perf_counter() - begin
    return first


async def engine_run(
    engine: TransformersEngine, rows: Sequence[Sequence[int]], names: Sequence[str | None], new: int
) -> None:
    """All rows at once, row i behind names[i]."""
    await asyncio.gather(*(first_token(engine, name, row, new) for name, row in zip(names, rows, strict=True)))


def padded_run(lm: FrozenLM, prefixes: PrefixKV, rows: list[list[int]], prefix_ids: list[int], new: int) -> None:
    """The same with the library's own `generate`."""
    decode_batch(lm, prefixes, rows, prefix_ids, Sampling(new), end_ids=[[]] * len(rows))


class Peft:
    """The same prompts as adapters: one PEFT model for each form, since an adapter's kind is that of the model."""

    def __init__(self, lm: FrozenLM, prompts: dict[str, SoftPrompt], virtual: int) -> None:
        import peft

        task, self.lm = peft.TaskType.CAUSAL_LM, lm
        configs: dict[str, Any] = {
            "embedding": peft.PromptTuningConfig(task_type=task, num_virtual_tokens=virtual),
            "kv": peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=virtual),
        }
        models: dict[str, Any] = {}
        self.models: dict[str, Any] = {}  # by adapter
        for name, prompt in prompts.items():
            if prompt.form in models:
                models[prompt.form].add_adapter(name, configs[prompt.form])
            else:
                models[prompt.form] = peft.get_peft_model(lm.hf_model, configs[prompt.form], adapter_name=name)
            table = prompt.embeddings if isinstance(prompt, EmbeddingPrompt) else to_flat(prompt, lm.geometry)
            models[prompt.form].prompt_encoder[name].embedding.weight.data.copy_(table)
            self.models[name] = models[prompt.form].eval()

    def run(self, rows: Sequence[Sequence[int]], names: Sequence[str], new: int) -> None:
        """All rows, adapter by adapter."""
        for name in dict.fromkeys(names):
            model, own = self.models[name], [row for row, other in zip(rows, names, strict=True) if other == name]
            model.set_adapter(name)
            longest = max(map(len, own))
            ids = torch.tensor([[0] * (longest - len(row)) + [*row] for row in own], device=self.lm.device)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in own], device=self.lm.device)
            options: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
            model.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **options)


async def throughput(lm: FrozenLM, engine: TransformersEngine, prompts: dict[str, SoftPrompt], size: Load) -> Any:
    """Tokens a second of every system."""
    known, turns = list(prompts), count(10)
    prefix_ids = [i % len(known) for i in range(size.requests)]
    names = [known[owner] for owner in prefix_ids]
    prefixes = prepare_prefixes(lm, [Prefix(prompt) for prompt in prompts.values()])
    peft = Peft(lm, prompts, size.virtual)
    few = size.requests // 2
    systems: dict[str, Callable[[list[list[int]]], Awaitable[None]]] = {
        "many prompts": lambda rows: engine_run(engine, rows, names, size.new),
        "one prompt": lambda rows: engine_run(engine, rows, names[:1] * len(rows), size.new),
        "no prompt": lambda rows: engine_run(engine, rows, [None] * len(rows), size.new),
        "padded generate": lambda rows: asyncio.to_thread(padded_run, lm, prefixes, rows, prefix_ids, size.new),
        "peft": lambda rows: asyncio.to_thread(peft.run, rows, names, size.new),
    }
    halves = {
        "many prompts": lambda rows: engine_run(engine, rows[:few], names[:few], size.new),
        "padded generate": lambda rows: asyncio.to_thread(
            padded_run, lm, prefixes, rows[:few], prefix_ids[:few], size.new
        ),
    }
    taken = [{name: list[float]() for name in group} for group in (systems, halves)]
    for turn in range(size.rounds + 1):
        for group, seconds in zip((systems, halves), taken, strict=True):
            for name, system in group.items():
                rows = texts(lm, size, next(turns))  # no text is in the cache, only the prompts are
                begin = time.perf_counter()
                with torch.no_grad():
                    await system(rows)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - begin)
    found = [compared(seconds, n * size.new) for seconds, n in zip(taken, (size.requests, few), strict=True)]
    return found[0] | {f"{few}_requests": found[1]}


def compared(seconds: dict[str, list[float]], tokens: int) -> dict[str, Any]:
    """Tokens a second of systems that made so many tokens in each round, and the first one's gain on the others."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "tokens_per_second": {name: tokens / value for name, value in medians.items()},
        "many_prompts_faster_than": {name: value / medians["many prompts"] for name, value in medians.items()},
        "seconds": seconds,
    }


async def first_tokens(lm: FrozenLM, engine: TransformersEngine, size: Load) -> Any:
    """Seconds to the first token on an idle engine, and what each request computed and kept."""
    draw = torch.Generator().manual_seed(2)
    instruction = torch.randint(5, lm.geometry.vocab, (size.instruction,), generator=draw).tolist()
    text = texts(lm, size, 3)[0]
    fresh = iter(range(5, lm.geometry.vocab))
    cases: dict[str, Callable[[], tuple[str | None, list[int]]]] = {
        "no prompt": lambda: (None, [next(fresh), *text]),
        "embedding prompt": lambda: ("p0", [next(fresh), *text]),
        "kv prompt": lambda: ("p1", [next(fresh), *text]),
        "instruction": lambda: (None, [next(fresh), *instruction[1:], *text]),
        "instruction, cached": lambda: (None, [*instruction, next(fresh), *text]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    computed, held = dict[str, int](), dict[str, int]()
    for turn in range(size.singles + 1):
        for name, case in cases.items():
            prompt, ids = case()
            before = engine.stats()
            first = await first_token(engine, prompt, ids, 1)
            await asyncio.sleep(0.01)  # what the step counted is told with its end
            after = engine.stats()
            computed[name] = after.computed_tokens - before.computed_tokens
            held[name] = computed[name] + after.cached_tokens - before.cached_tokens
            if turn:
                seconds[name].append(first)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "median_seconds": medians,
        "against_no_prompt": {name: value / medians["no prompt"] for name, value in medians.items()},
        "computed_tokens": computed,
        "kv_bytes_read": {name: n * lm.geometry.kv_bytes_per_token(lm.dtype.itemsize) for name, n in held.items()},
        "kv_bytes_of_its_own": {
            name: n * lm.geometry.kv_bytes_per_token(lm.dtype.itemsize) for name, n in computed.items()
        },
        "seconds": seconds,
    }


async def measure(lm: FrozenLM, size: Load) -> dict[str, Any]:
    """Everything, on one engine."""
    prompts = soft_prompts(lm, size)
    engine = TransformersEngine(lm, Capacity(rows=size.requests))
    await engine.start()
    try:
        for name, prompt in prompts.items():
            await engine.load(name, Prefix(prompt))
        singles = await first_tokens(lm, engine, size)
        together = await throughput(lm, engine, prompts, size)
        engine.check_integrity()
    finally:
        await engine.stop()
    return {"throughput": together, "first_token": singles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few short requests, one round")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, help="a JSON file; standard output if left out")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    lm, size = load_model(options.model, dtype=options.dtype), QUICK if options.quick else Load()
    about = {"benchmark": "serve_engine", "model": options.model, "dtype": str(lm.dtype), "load": asdict(size)}
    with torch.no_grad():
        found = about | {"machine": facts()} | asyncio.run(measure(lm, size))
    put(found, options.out)


if __name__ == "__main__":
    main()
