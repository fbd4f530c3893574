"""Checks: that the device computes what the plain way computes there. They come before anything is measured."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, random_model, seconds_of, wrapped
from benchmarks.gpu.oracle import (
    FLOAT32,
    LENGTHS,
    compare_logits,
    concatenated,
    in_float32,
    judged,
    largest,
    off,
    our_logits,
    quantized_layers,
    step_differences,
    unpacked,
    verdict,
)
from benchmarks.gpu.registry import Skip, case
from benchmarks.train_step import Case as StepCase
from benchmarks.train_step import our_step, peft_step, rows_of, start_of
from softprompt.inference.sampling import Sampling
from softprompt.methods.initializers import harvest
from softprompt.models.frozen_lm import FrozenLM
from softprompt.objectives.cuda_graphs import GraphCache, GraphWork
from softprompt.objectives.next_token import token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.packed import packed_hidden_states
from softprompt.prefix.packing import Row
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.forms import EmbeddingPrompt
from tests.support.cases import examples, gradient_tensors, mixed_prefixes, text_ids
from tests.support.engines import NAMES, generated, ids_of, job, running

TEXT, ROWS = text_ids(40, 1), [text_ids(n, n) for n in (64, 1, 17)]
SMOL, ONE_B = "smollm2-135m", "llama-3.2-1b"
DTYPES = [{"dtype": "float32"}, {"dtype": "bfloat16"}]
BFLOAT16 = 0.05  # two passes that pad differently round differently
ROUNDED = 0.3  # LLM.int8() rounds activations by the batch's own columns (docs/guides/quantized.md)


@case(rank=1, seconds=8)
def ceilings(bench: Bench) -> dict[str, Any]:
    """What the card itself does: products of bfloat16 matrices, copies, and the start of an empty kernel."""
    size = 256 if bench.tiny else 8192
    dtype, device = torch.bfloat16, torch.device(bench.device)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn((2**16 if bench.tiny else 2**30), device=device, dtype=dtype)
    goal, one = torch.empty_like(source), torch.ones(1, device=device)
    product = min(seconds_of(lambda: torch.matmul(left, right), device, 10))
    copy = min(seconds_of(lambda: goal.copy_(source), device, 10))
    launches = min(seconds_of(lambda: [one.add_(1) for _ in range(1000)], device, 3))
    found = {
        "tflops_bfloat16": 2 * size**3 / product / 1e12,
        "copy_gb_per_second": 2 * source.nbytes / copy / 1e9,
        "microseconds_a_launch": launches * 1e3,
    }
    return found | {"told": ", ".join(f"{name} {value:.3g}" for name, value in found.items())}


@case(rank=2, seconds=60)
def laws_of_the_suite(bench: Bench) -> dict[str, Any]:
    """Laws 1 to 8 as the tests have them, on tiny models of every family; of the dry run only the last."""
    if (bench.out / "tests-float32.json").exists():
        raise Skip("scripts/test-gpu has run them: tests-float32.json")
    laws = "tests/laws/test_law8_fits.py" if bench.tiny else "tests/laws"
    report = bench.out / "laws-float32.json"
    workers = ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadfile"] if bench.on_gpu else ["-p", "no:xdist"]
    given = ["-q", "-W", "ignore::Warning", "-p", "tests.support.failure_kinds", "--failures-out", str(report)]
    environment = os.environ | {"SOFTPROMPT_TEST_DEVICE": bench.device, "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-m", "pytest", *given, *workers, laws]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    return {"holds": done.returncode == 0, "told": lines[-1], "report": report.name}


@case(rank=3, seconds=25, variants=[{"shape": SMOL} | dtype for dtype in DTYPES])
def laws(bench: Bench, shape: str, dtype: str) -> dict[str, Any]:
    """Laws 1, 2, 3, 4, 6 and 7 at the size of a real model."""
    lm = bench.model(shape, dtype)
    twin, before = in_float32(lm), lm.digest()
    alone, nothing = Prefix(), Prefix(EmbeddingPrompt(lm.embed(TEXT).float()))
    whole = [[*TEXT, *row] for row in ROWS]

    def texts(of: FrozenLM) -> torch.Tensor:
        parts = [concatenated(of, alone, [row])[len(TEXT) :] for row in whole]
        return torch.cat(parts)

    kv = Prefix(harvest(lm, TEXT))
    found = {
        "1 embedding": compare_logits(lm, twin, lambda of: our_logits(of, nothing, ROWS), texts),
        "1 kv": compare_logits(lm, twin, lambda of: our_logits(of, kv, ROWS), texts),
        "7 no prompt": compare_logits(
            lm, twin, lambda of: our_logits(of, alone, ROWS), lambda of: concatenated(of, alone, ROWS)
        ),
    }
    found |= {f"2 {name}": part for name, part in step_differences(lm, twin).items()}
    found |= {"3 batch": _independence(lm, twin), "6 peft": _like_peft(lm, twin)}
    found["4 frozen"] = {
        "ours": float(lm.digest() != before),
        "plain": 0.0,
        "bound": 0.0,
        "holds": lm.digest() == before,
    }
    return verdict(found)


@torch.no_grad()
def _independence(lm: FrozenLM, twin: FrozenLM) -> dict[str, Any]:
    """Rows with others of other prefixes, against each alone."""
    rows, owners = [text_ids(n, 100 + n) for n in LENGTHS], [i % 6 for i in range(len(LENGTHS))]

    def together(of: FrozenLM) -> torch.Tensor:
        prefixes = prepare_prefixes(of, mixed_prefixes(of))
        return of.logits(packed_hidden_states(of, prefixes, [Row(r, o) for r, o in zip(rows, owners, strict=True)]))

    def one_by_one(of: FrozenLM) -> torch.Tensor:
        prefixes = mixed_prefixes(of)
        return torch.cat([concatenated(of, prefixes[o], [r]) for r, o in zip(rows, owners, strict=True)])

    return compare_logits(lm, twin, together, one_by_one)


def _like_peft(lm: FrozenLM, twin: FrozenLM) -> dict[str, Any]:
    """The gradient of prompt tuning, against PEFT's on the twin; beside it PEFT's on the model."""
    step = StepCase(str(lm.dtype).removeprefix("torch."), 20, 8, 40, 2)
    rows, start = rows_of(step, lm.geometry.vocab), start_of(step, lm)
    wanted = peft_step(twin, rows, start)()[1].clone()
    plain = 0.0 if twin is lm else off(peft_step(lm, rows, start)()[1], wanted)
    return judged(off(our_step(lm, rows, start)()[1], wanted), plain)


RECORDED = [
    {"shape": SMOL, "dtype": "float32", "load_in": ""},
    {"shape": ONE_B, "dtype": "bfloat16", "load_in": ""},
    {"shape": SMOL, "dtype": "bfloat16", "load_in": "4bit", "seconds": 20},
    {"shape": SMOL, "dtype": "bfloat16", "load_in": "int8", "seconds": 20},
    {"shape": SMOL, "dtype": "bfloat16", "load_in": "8bit", "seconds": 20},
]


@case(rank=4, seconds=12, variants=RECORDED)
def recorded_passes(bench: Bench, shape: str, dtype: str, load_in: str) -> dict[str, Any]:
    """CUDA graphs against plain passes: new rows and virtual tokens in the same shape, with all kinds of prefixes."""
    lm = bench.model(shape, dtype, load_in)
    graphs = GraphCache(lm, None if bench.on_gpu else _again)
    owners, worst = [i % 6 for i in range(len(LENGTHS))], {"loss": 0.0, "gradient": 0.0}
    for turn in range(6):  # plain, captured, replayed; other rows may have another shape
        prefixes, rows = mixed_prefixes(lm, grad=True), examples(LENGTHS, seed=50 * (turn // 3))
        leaves = gradient_tensors(prefixes)
        with torch.no_grad():
            for tensor in leaves:
                tensor += 0.1 * turn
        ours = graphs.token_losses(prefixes, rows, owners)
        ours_grads = torch.autograd.grad(ours.sum(), leaves)
        plain = token_losses(lm, prepare_prefixes(lm, prefixes), rows, owners)
        wanted = torch.autograd.grad(plain.sum(), leaves)
        worst["loss"] = max(worst["loss"], off(ours.detach(), plain.detach()))
        worst["gradient"] = max(worst["gradient"], largest(ours_grads, wanted))
    bound = FLOAT32 if dtype == "float32" else ROUNDED if load_in == "8bit" else BFLOAT16
    captured = len(graphs._recorded)
    reason = f"; plain passes, since {graphs.failed}" if graphs.failed else f"; {captured} shapes captured"
    told = ", ".join(f"{name} {value:.1e}" for name, value in worst.items()) + reason
    fine = max(worst.values()) <= bound and (captured > 0 or bool(load_in))
    return worst | {"holds": fine, "bound": bound, "captured": captured, "refused": graphs.failed, "told": told}


def _again(work: GraphWork) -> GraphWork:
    """What a CUDA graph is on a CPU."""
    work()
    return work


QUANTIZED = [{"load_in": kind, "dtype": "bfloat16"} for kind in ("4bit", "int8", "int4", "8bit")]


@case(rank=5, seconds=20, variants=[{"load_in": "4bit", "dtype": "float32"}, *QUANTIZED])
def quantized_gradients(bench: Bench, load_in: str, dtype: str) -> dict[str, Any]:
    """Loss and gradient through quantized weights, against concatenation through a float32 copy of the same weights."""
    lm = bench.model(SMOL, dtype, load_in)
    layers = len(quantized_layers(lm))
    if not layers:
        return {"holds": False, "told": "no layer is quantized"}
    plain = wrapped(random_model(SMOL, "float32", bench.device, tiny=bench.tiny), SMOL)
    found = verdict(step_differences(lm, unpacked(lm, plain)))
    return found | {"layers": layers, "weight_bytes": lm.weight_bytes}


@case(rank=6, seconds=25, variants=[{"shape": ONE_B} | dtype for dtype in DTYPES])
def mixed_answers(bench: Bench, shape: str, dtype: str) -> dict[str, Any]:
    """The Transformers engine: eight rows behind six kinds of prefixes at once say what each says alone.

    In bfloat16 two near tokens may change places with the batch's sums, so the share is reported and half is asked for.
    """
    lm, new = bench.model(shape, dtype), 6 if bench.tiny else 24
    rows = [text_ids(5 + 7 * i % 31, i) for i in range(8)]

    async def together() -> list[tuple[list[int], str]]:
        async with running(lm) as engine:
            jobs = [job(str(i), NAMES[i % 6], row, Sampling(new), ends=()) for i, row in enumerate(rows)]
            return await asyncio.gather(*(ids_of(engine, one) for one in jobs))

    prefixes = mixed_prefixes(lm)
    with torch.no_grad():
        found = asyncio.run(together())
    wanted = [generated(lm, prefixes[i % 6], row, Sampling(new), ()) for i, row in enumerate(rows)]
    same = sum(one == other for one, other in zip(found, wanted, strict=True))
    agreed = [_common(one[0], other[0]) for one, other in zip(found, wanted, strict=True)]
    least = 8 if dtype == "float32" else 4
    told = f"{same} of 8 rows the same, to the {min(agreed)}th of {new} tokens at least"
    return {"holds": same >= least, "same": same, "agreed_tokens": agreed, "told": told}


def _common(one: list[int], other: list[int]) -> int:
    """Tokens in common at the beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
