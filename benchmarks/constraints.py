"""What a JSON schema on each row costs: tokens a second of a batch without, with, and with one on every other row.

    python -m benchmarks.constraints [--quick] [--rounds 7] [--model smollm2-135m] [--out FILE]

One process, one model; the systems take turns, round after round, and the ratios are those of their medians. All rows
come at once and make the same number of tokens: the schema is a list without an end, so no row ends early. Rows are
drawn at temperature 1, as servers draw them by default, so all systems read their logits.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import warnings
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
from softprompt.engine.constraint import Constraint, GrammarCompiler, json_rule
from softprompt.engine.transformers_engine import TransformersEngine
from softprompt.inference.sampling import Sampling
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model

numbers = count()  # of jobs
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "topic": {"enum": ["parcel", "refund", "complaint", "other"]},
        "urgent": {"type": "boolean"},
        "amount": {"type": ["number", "null"]},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
    },
    "required": ["name", "topic", "urgent", "amount", "words"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": RECORD, "minItems": 1000}


@dataclass(frozen=True)
class Load:
    """`rows` texts of 20 to 63 tokens, `new` tokens each."""

    rows: int = 16
    new: int = 64
    rounds: int = 7


QUICK = Load(rows=4, new=8, rounds=1)


def texts(lm: FrozenLM, size: Load, seed: int) -> list[list[int]]:
    """Random rows, of the same lengths whatever the seed."""
    lengths = torch.randint(20, 64, (size.rows,), generator=torch.Generator().manual_seed(1)).tolist()
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(5, lm.geometry.vocab, (n,), generator=draw).tolist() for n in lengths]


async def answered(engine: TransformersEngine, ids: list[int], new: int, constraint: Constraint | None) -> None:
    """One whole answer."""
    number = next(numbers)
    sampling = Sampling(new, 1.0, seed=number)
    one = Job(str(number), None, tuple(ids), sampling, frozenset(), constraint=constraint)
    async with aclosing(engine.stream(one)) as tokens:  # type: ignore[type-var]
        made = [token async for token in tokens]
    assert len(made) == new, "an answer ended early"


async def measure(lm: FrozenLM, size: Load) -> dict[str, Any]:
    """Tokens a second of every system, and the share that the schema costs."""
    begin = time.perf_counter()
    compiler = GrammarCompiler(lm)
    compiler.compile('start: "a"')
    loaded, begin = time.perf_counter() - begin, time.perf_counter()
    constraint = compiler.compile(f"start: {json_rule(ENDLESS)}")
    compiled = time.perf_counter() - begin
    systems: dict[str, list[Constraint | None]] = {
        "free": [None] * size.rows,
        "every other row": [constraint if i % 2 else None for i in range(size.rows)],
        "every row": [constraint] * size.rows,
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    engine, turns = TransformersEngine(lm, Capacity(rows=size.rows)), count(10)
    await engine.start()
    try:
        for turn in range(size.rounds + 1):
            for name, constraints in systems.items():
                rows = texts(lm, size, next(turns))  # no text is in the cache
                begin = time.perf_counter()
                pairs = zip(rows, constraints, strict=True)
                await asyncio.gather(*(answered(engine, row, size.new, own) for row, own in pairs))
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - begin)
    finally:
        await engine.stop()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "tokens_per_second": {name: size.rows * size.new / value for name, value in medians.items()},
        "throughput_lost": {name: 1 - medians["free"] / value for name, value in medians.items()},
        "tokenizer_seconds": loaded,
        "compile_seconds": compiled,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few short rows, one round")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=Load.rounds, help="beside one that warms up")
    parser.add_argument("--out", type=Path, help="a JSON file; standard output if left out")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    lm, size = load_model(options.model, dtype=options.dtype), QUICK if options.quick else Load(rounds=options.rounds)
    about = {"benchmark": "constraints", "model": options.model, "dtype": str(lm.dtype), "load": asdict(size)}
    with torch.no_grad():
        found = about | {"machine": facts()} | asyncio.run(measure(lm, size))
    put(found, options.out)


if __name__ == "__main__":
    main()
