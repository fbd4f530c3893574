"""Measures: one training step of prompt tuning, ours against PEFT's, beside the floor; memory; what takes the time."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.bench import Bench, seconds_of, top_of
from benchmarks.gpu.floor import floor_flops, fused_floor
from benchmarks.gpu.registry import case
from benchmarks.train_step import Case as StepCase
from benchmarks.train_step import allocated, compared, fastest_step, peft_step, rows_of, start_of

SIZES = [  # virtual tokens, rows, tokens of the longest row, learned ones of each
    *((virtual, rows, 40, 2) for virtual in (100, 20) for rows in (16, 64)),
    (100, 16, 512, 64),
]
VARIANTS = [
    {"shape": "llama-3.2-1b", "load_in": "", "rank": 10, "seconds": 30},
    {"shape": "smollm2-135m", "load_in": "", "rank": 11, "seconds": 30},
    {"shape": "llama-3.2-1b", "load_in": "4bit", "rank": 13, "seconds": 45},
    {"shape": "llama-3.1-8b", "load_in": "", "rank": 14, "seconds": 50},
    {"shape": "smollm2-135m", "load_in": "4bit", "rank": 15, "seconds": 45},
    {"shape": "llama-3.1-8b", "load_in": "4bit", "rank": 16, "seconds": 90},
]
REPEATS, REPEATS_8B = 7, 3


@case(rank=10, seconds=30, variants=VARIANTS)
def training_step(bench: Bench, shape: str, load_in: str) -> dict[str, Any]:
    """Five sizes of one model in bfloat16; each is in the report when it is measured, in case the next one fails."""
    lm = bench.model(shape, "bfloat16", load_in)
    found: dict[str, Any] = {"weight_bytes": lm.weight_bytes, "sizes": []}
    told, repeats = list[str](), REPEATS_8B if shape == "llama-3.1-8b" else REPEATS
    for virtual, count, length, targets in SIZES:
        step = StepCase("bfloat16", virtual, count, length, targets)
        if bench.tiny:
            step = StepCase("bfloat16", virtual // 10, count // 8, min(length, 24), 2)
        rows, start = rows_of(step, lm.geometry.vocab), start_of(step, lm)
        sides = {"ours": fastest_step, "peft": peft_step}
        # Memory first: the timed steps keep what they have captured.
        memory = {name: allocated(side(lm, rows, start)) for name, side in sides.items()} if bench.on_gpu else {}
        floor = fused_floor(lm, rows, step.virtual)
        size = compared(step, lm, {"floor": floor}, 1 if bench.tiny else repeats)
        size["floor_tflops_per_second"] = floor_flops(lm, rows, step.virtual) / size["seconds"]["floor"] / 1e12
        if memory:
            size |= {"memory_bytes": memory, "peak_memory_ratio": memory["ours"]["peak"] / memory["peft"]["peak"]}
        found["sizes"].append(size)
        bench.note(found)
        milliseconds = size["seconds"]["ours"] * 1e3
        told.append(f"P={step.virtual} {step.rows}x{step.length}: {milliseconds:.1f} ms, {size['ratio']:.2f}x")
        found["told"] = "; ".join(told) + f"; floor {size['floor_fraction']:.2f}"
    return found


@case(
    rank=12,
    seconds=15,
    variants=[{"shape": "llama-3.2-1b"}, {"shape": "smollm2-135m"}, {"shape": "llama-3.1-8b", "rank": 14.5}],
)
def profile_of_a_step(bench: Bench, shape: str) -> dict[str, Any]:
    """The ten most expensive kernels of our step and of PEFT's, 64 rows behind 100 virtual tokens, in bfloat16."""
    lm = bench.model(shape, "bfloat16")
    step = StepCase("bfloat16", 5, 4, 24, 2) if bench.tiny else StepCase("bfloat16", 100, 64, 40, 2)
    rows, start = rows_of(step, lm.geometry.vocab), start_of(step, lm)
    found: dict[str, Any] = {}
    for name, make in {"ours": fastest_step, "peft": peft_step}.items():
        work = make(lm, rows, start)
        seconds_of(work, lm.device, 3)  # recorded, and warm
        found[name] = top_of(work, lm.device)
    floor = fused_floor(lm, rows, step.virtual)
    found["floor"] = top_of(floor, lm.device)
    busy = {name: f"{one['busy_ms']:.1f} of {one['wall_ms']:.1f} ms busy" for name, one in found.items()}
    return found | {"told": "; ".join(f"{name} {text}" for name, text in busy.items())}
