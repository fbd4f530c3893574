"""The engine over vLLM: requests over many soft prompts against one, none, and one padded `generate`.

    .venv-vllm/bin/python -m benchmarks.serve_vllm --model FOLDER [--quick] [--dtype float32] [--out FILE]

The requests of `serve_engine`, at once, greedily, never ending early; the systems take turns, round after round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import facts
from benchmarks.output import put
from benchmarks.serve_engine import QUICK, Load, soft_prompts, texts
from softprompt.engine.base import Engine, Job
from softprompt.inference.decoding import decode_batch
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.vllm.engine import VllmEngine

numbers = count()  # of jobs


async def answer(engine: Engine, name: str | None, ids: Sequence[int], new: int) -> list[int]:
    """The tokens of one request."""
    job = Job(str(next(numbers)), name, tuple(ids), Sampling(new), frozenset())
    async with aclosing(engine.stream(job)) as tokens:
        return [token.id async for token in tokens]


async def measure(lm: FrozenLM, size: Load, block: int) -> dict[str, Any]:
    """Tokens a second of every system, and how many answers are those of `generate`."""
    prompts, turns = soft_prompts(lm, size), count(10)
    prefix_ids = [i % size.prompts for i in range(size.requests)]
    names: list[str | None] = [list(prompts)[owner] for owner in prefix_ids]
    prefixes = prepare_prefixes(lm, [Prefix(prompt) for prompt in prompts.values()])
    engine = VllmEngine(lm, {"enforce_eager": True, "block_size": block, "max_num_seqs": size.requests})
    await engine.start()
    for name, prompt in prompts.items():
        await engine.load(name, Prefix(prompt))
    systems = {"many prompts": names, "one prompt": names[:1] * len(names), "no prompt": [None] * len(names)}
    seconds: dict[str, list[float]] = {name: [] for name in [*systems, "padded generate"]}
    equal = 0
    for turn in range(size.rounds + 1):
        said = dict[str, list[list[int]]]()
        rows = texts(lm, size, next(turns))
        for system, own in systems.items():
            rows = rows if system == "many prompts" else texts(lm, size, next(turns))
            begin = time.perf_counter()
            jobs = (answer(engine, name, row, size.new) for name, row in zip(own, rows, strict=True))
            said[system] = await asyncio.gather(*jobs)
            seconds[system] += [time.perf_counter() - begin] if turn else []  # the first warms up
            if system == "many prompts":
                begin = time.perf_counter()
                ends = [[]] * len(rows)
                wanted = decode_batch(lm, prefixes, rows, prefix_ids, Sampling(size.new), end_ids=ends)
                seconds["padded generate"] += [time.perf_counter() - begin] if turn else []
                equal += sum(ids == one.ids for ids, one in zip(said[system], wanted, strict=True))
    engine.check_integrity()
    await engine.stop()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "tokens_per_second": {name: size.requests * size.new / value for name, value in medians.items()},
        "many_prompts_faster_than": {name: value / medians["many prompts"] for name, value in medians.items()},
        "answers_equal_to_generate": f"{equal} of {size.requests * (size.rounds + 1)}",
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few short requests, one round")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--block", type=int, default=32, help="tokens of a block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file; standard output if left out")
    options = parser.parse_args()
    lm, size = load_model(options.model, dtype=options.dtype), QUICK if options.quick else Load(rounds=options.rounds)
    about = {"benchmark": "serve_vllm", "model": Path(options.model).name, "dtype": str(lm.dtype), "load": asdict(size)}
    with torch.no_grad():
        found = about | {"machine": facts()} | asyncio.run(measure(lm, size, options.block))
    put(found, options.out)


if __name__ == "__main__":
    main()
