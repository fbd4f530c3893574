"""Time of one training step for C candidates: in the same forward passes, against one after another.

    python -m benchmarks.population [--candidates 1,4,8,16] [--rows 8] [--tokens 32] [--json]

Each candidate is a KV prompt with its own batch of SST-2-like rows of random tokens; the time is that of forward,
backward and update. Medians of alternating repetitions in one process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.machine import facts
from softprompt.data.tokenize import Example
from softprompt.methods.base import Start
from softprompt.methods.registry import build_method
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.training.config import TrainConfig
from softprompt.training.loop import _Loop
from softprompt.training.trial import Task, Trial


def trials(lm: FrozenLM, count: int, tokens: int, rows: int) -> list[Trial]:
    """Prefix tuning from random text, each with its own rows."""
    draw = random.Random(0)  # noqa: S311

    def row(i: int) -> Example:
        length = draw.randint(13, 43)
        ids = tuple(draw.randrange(1000, 20000) for _ in range(length))
        return Example(ids, (False,) * (length - 2) + (True, True), f"row {i}")

    made = []
    for i in range(count):
        task = Task([row(j) for j in range(8 * rows)], [])
        start = Start(tokens, "vocab", seed=i)
        settings = TrainConfig(batch_size=rows, seed=i, steps=10**6)
        made.append(Trial(build_method("prefix-tuning", lm, start), [task], settings, lm.device, str(i)))
    return made


def seconds(loop: _Loop, together: bool) -> float:
    """Of one step of all candidates."""
    begin = time.perf_counter()
    for part in [loop.trials] if together else [[trial] for trial in loop.trials]:
        loop.one_step(part)
    if loop.lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(lm: FrozenLM, count: int, tokens: int, rows: int, repeat: int) -> dict[str, float]:
    """Medians for this many candidates."""
    with tempfile.TemporaryDirectory() as scratch:
        loop = _Loop(lm, trials(lm, count, tokens, rows), Path(scratch), (), lambda event: None, lambda trial: None)
        times: dict[bool, list[float]] = {True: [], False: []}
        for i in range(repeat + 1):
            for together in (True, False):
                spent = seconds(loop, together)
                if i:
                    times[together].append(spent)
    together, apart = statistics.median(times[True]), statistics.median(times[False])
    return {"candidates": count, "together_s": together, "apart_s": apart, "ratio": apart / together}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", default="1,4,8,16")
    parser.add_argument("--rows", type=int, default=8, help="rows per step of each candidate")
    parser.add_argument("--tokens", type=int, default=32, help="virtual tokens of each")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    lm = load_model(options.model)
    results = []
    for count in map(int, options.trials.split(",")):
        results.append(measure(lm, count, options.tokens, options.rows, options.repeat))
        line = "{candidates:>3.0f} candidates: together {together_s:.2f} s, apart {apart_s:.2f} s, {ratio:.2f} times"
        print(line.format(**results[-1]), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        about = {"benchmark": "population", "model": options.model, "dtype": str(lm.dtype)}
        about |= {"rows": options.rows, "tokens": options.tokens, "repeat": options.repeat}
        print(json.dumps({**about, "machine": facts(), "results": results}))


if __name__ == "__main__":
    main()
