"""One training step of prompt tuning, ours against PEFT's: time, gradient, memory, and how near the matmul floor.

    python -m benchmarks.train_step [--quick] [--json] [--model smollm2-135m]
    python -m benchmarks.train_step --device cuda --model random:llama-3.2-1b --json

Same process, model, dtype, rows and virtual tokens; runs interleaved, medians. Peak memory is that of whole processes,
one for each side: of the CPU's what is resident, of a GPU's what is allocated. `random:SHAPE` is a model of that shape
with random weights, which are as fast as learned ones. The floor is the time of the matrix products alone that a step
cannot do without: every weight forward and for the input gradient, for the prefix and for the rows' real tokens, and
the head at learned tokens. `model_ratio` is the time of `SoftPromptModel`'s step over that of ours, on rows of equal
length in which all tokens are learned: it returns the logits of every token, ours computes those of learned ones.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.machine import facts
from benchmarks.shapes import SHAPES
from softprompt.data.tokenize import Example
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.models.device import pick_device, wait_for
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model, load_tokenizer
from softprompt.objectives.cuda_graphs import GraphCache
from softprompt.objectives.next_token import learned_tokens, token_losses
from softprompt.prefix.kv import Prefix
from softprompt.prefix.prepare import prepare_prefixes
from softprompt.prompts.forms import EmbeddingPrompt


@dataclass(frozen=True)
class Case:
    """`rows` rows of up to `length` tokens, the last `targets` of them learned, behind `virtual` tokens."""

    dtype: str
    virtual: int
    rows: int
    length: int
    targets: int


CASES = [
    *(Case(d, p, rows, 40, 2) for d in ("float32", "bfloat16") for p in (20, 100) for rows in (16, 64)),
    *(Case(d, 100, 4, 512, 64) for d in ("float32", "bfloat16")),
]
GPU_CASES = [
    *(Case("bfloat16", p, rows, 40, 2) for p in (20, 100) for rows in (16, 64)),
    Case("bfloat16", 100, 16, 512, 64),
]
QUICK = [Case("float32", p, 16, 40, 2) for p in (20, 100)]


@functools.cache
def model_of(name: str, dtype: str, device: str) -> FrozenLM:
    """A base model by name, or `random:SHAPE`, whose tokenizer is that of the demo's model and only fills its place."""
    if not name.startswith("random:"):
        return load_model(name, dtype=dtype, device=device)
    torch.manual_seed(0)
    with torch.device(pick_device(device)[0]):
        model = AutoModelForCausalLM.from_config(SHAPES[name.removeprefix("random:")], dtype=getattr(torch, dtype))
    return FrozenLM(model, load_tokenizer("smollm2-135m"), name)


def rows_of(case: Case, vocab: int, *, full: bool = False) -> list[Example]:
    """Random rows; the lengths are spread between a third of the longest and the longest, or are equal if `full`."""
    draw = torch.Generator().manual_seed(0)
    shortest = case.length if full else max(case.length // 3, case.targets + 1)
    lengths = torch.randint(shortest, case.length + 1, (case.rows,), generator=draw).tolist()
    lengths[0] = case.length
    made = []
    for length in lengths:
        ids = torch.randint(5, vocab, (length,), generator=draw).tolist()
        made.append(Example(tuple(ids), (False,) * (length - case.targets) + (True,) * case.targets, ""))
    return made


def our_step(lm: FrozenLM, rows: list[Example], start: Tensor) -> Callable[[], tuple[float, Tensor]]:
    """The step of softprompt: loss and gradient of the virtual tokens."""
    total = learned_tokens(rows)

    def step() -> tuple[float, Tensor]:
        tokens = start.clone().requires_grad_(True)
        loss = token_losses(lm, prepare_prefixes(lm, [Prefix(EmbeddingPrompt(tokens))]), rows).sum() / total
        loss.backward()
        assert tokens.grad is not None
        return loss.item(), tokens.grad

    return step


def recorded_step(lm: FrozenLM, rows: list[Example], start: Tensor) -> Callable[[], tuple[float, Tensor]]:
    """The same with recorded passes, as `train` takes them on a GPU."""
    total, passes = learned_tokens(rows), GraphCache(lm)

    def step() -> tuple[float, Tensor]:
        tokens = start.clone().requires_grad_(True)
        loss = passes.token_losses([Prefix(EmbeddingPrompt(tokens))], rows, [0] * len(rows)).sum() / total
        loss.backward()
        assert tokens.grad is not None
        return loss.item(), tokens.grad

    return step


def peft_step(lm: FrozenLM, rows: list[Example], start: Tensor) -> Callable[[], tuple[float, Tensor]]:
    """The step of PEFT's prompt tuning on the same model, padded to the longest row."""
    from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(start), prompt_tuning_init=PromptTuningInit.RANDOM
    )
    model: Any = get_peft_model(lm.hf_model, config)
    weight: Tensor = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(start)
    return _padded_step(lm, rows, model, weight)


def model_step(lm: FrozenLM, rows: list[Example], start: Tensor) -> Callable[[], tuple[float, Tensor]]:
    """The step of `SoftPromptModel` in another library's loop, on the rows as PEFT gets them."""
    settings = {"name": "prompt-tuning", "n_tokens": len(start), "init": "uniform"}
    model = SoftPromptModel.from_method(lm, settings)
    (weight,) = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        weight.copy_(start)
    return _padded_step(lm, rows, model, weight)


def _padded_step(lm: FrozenLM, rows: list[Example], model: Any, weight: Tensor) -> Callable[[], tuple[float, Tensor]]:
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows], device=lm.device)
    mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows], device=lm.device)
    learned = torch.tensor([[*row.mask, *[False] * (longest - len(row.ids))] for row in rows], device=lm.device)
    labels = ids.masked_fill(~learned, -100)

    def step() -> tuple[float, Tensor]:
        weight.grad = None
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        assert weight.grad is not None
        return loss.item(), weight.grad

    return step


def floor_step(lm: FrozenLM, rows: list[Example], virtual: int) -> Callable[[], None]:
    """The matrix products alone."""
    weights: list[Tensor] = [p for p in lm.backbone.module.parameters() if p.ndim == 2 and p is not lm.embedding.weight]
    pairs = [(weight, count) for weight in weights for count in (virtual, sum(len(row.ids) for row in rows))]
    pairs.append((lm.embedding.weight, learned_tokens(rows)))  # the head: tied to the embedding in this model
    inputs = {
        size: torch.randn(size, device=lm.device).to(lm.dtype)
        for w, n in pairs
        for size in ((n, w.shape[0]), (n, w.shape[1]))
    }

    def step() -> None:
        with torch.no_grad():
            for weight, count in pairs:
                torch.matmul(inputs[(count, weight.shape[1])], weight.T)
                torch.matmul(inputs[(count, weight.shape[0])], weight)

    return step


def measure(case: Case, model: str, device: str, repeats: int) -> dict[str, Any]:
    """Times of one case, interleaved."""
    lm = model_of(model, case.dtype, device)
    whole = rows_of(replace(case, targets=case.length - 1), lm.geometry.vocab, full=True)
    start = start_of(case, lm)
    found = compared(
        case,
        lm,
        {
            "ours whole": fastest_step(lm, whole, start),
            "model": model_step(lm, whole, start),
            "floor": floor_step(lm, rows_of(case, lm.geometry.vocab), case.virtual),
        },
        repeats,
    )
    return found | {"model_ratio": found["seconds"]["model"] / found["seconds"]["ours whole"]}


def start_of(case: Case, lm: FrozenLM) -> Tensor:
    """The virtual tokens [P, H] at the start of a case: embeddings of random tokens."""
    return lm.embed(torch.randint(5, lm.geometry.vocab, (case.virtual,))).float()


def fastest_step(lm: FrozenLM, rows: list[Example], start: Tensor) -> Callable[[], tuple[float, Tensor]]:
    """Our step as `train` takes it on this device."""
    return (recorded_step if lm.device.type == "cuda" else our_step)(lm, rows, start)


def compared(case: Case, lm: FrozenLM, others: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Times of our step, PEFT's and others, interleaved; one of the others is the floor."""
    rows, start = rows_of(case, lm.geometry.vocab), start_of(case, lm)
    steps = {"ours": fastest_step(lm, rows, start), "peft": peft_step(lm, rows, start)} | others
    steps |= {"ours unrecorded": our_step(lm, rows, start)} if lm.device.type == "cuda" else {}
    for step in [*steps.values()] * 2:  # the first runs warm up
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, step in steps.items():
            wait_for(lm.device)
            begin = time.perf_counter()
            results[name] = step()
            wait_for(lm.device)
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours, peft = results["ours"][1], results["peft"][1]
    return {
        **asdict(case),
        "tokens": sum(len(row.ids) for row in rows),
        "seconds": medians,
        "ratio": medians["peft"] / medians["ours"],
        "grad_rel_err": ((ours - peft).norm() / peft.norm()).item(),
        "loss": {
            name: result[0] for name, result in results.items() if name in ("ours", "peft", "ours whole", "model")
        },
        "floor_fraction": medians["floor"] / medians["ours"],
    }


def peak_memory(case: Case, model: str, device: str, side: str) -> dict[str, int]:
    """Bytes when the model is loaded, and at the peak of two steps of one side: of a GPU's allocated ones, of a fresh
    process on the CPU."""
    if device != "cpu":
        return allocated(_side(case, model, device, side))
    arguments = [sys.executable, "-m", "benchmarks.train_step", "--model", model, "--memory", side]
    out = subprocess.run([*arguments, json.dumps(asdict(case))], capture_output=True, text=True, check=True)  # noqa: S603
    return json.loads(out.stdout.strip().splitlines()[-1])


def allocated(step: Callable[[], object]) -> dict[str, int]:
    """Bytes that tensors take on the GPU before two steps, and at their peak."""
    loaded = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # ours is recorded by the second one
        step()
    return {"peak": torch.cuda.max_memory_allocated(), "loaded": loaded}


def memory_side(case: Case, model: str, side: str) -> None:
    """The body of that process."""
    step = _side(case, model, "cpu", side)
    loaded = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the steps, not that of loading
    for _ in range(2):
        step()
    print(json.dumps({"peak": resident_bytes("VmHWM"), "loaded": loaded}))


def _side(case: Case, model: str, device: str, side: str) -> Callable[[], tuple[float, Tensor]]:
    """The step of one side."""
    lm = model_of(model, case.dtype, device)
    rows, start = rows_of(case, lm.geometry.vocab), start_of(case, lm)
    return (peft_step if side == "peft" else fastest_step)(lm, rows, start)


def resident_bytes(field: str = "VmRSS") -> int:
    """This process's resident memory now, or with "VmHWM" at its peak (getrusage would report the parent's: it
    survives exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cases, three runs")
    parser.add_argument("--time-only", action="store_true", help="no measurement of memory")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--model", default="smollm2-135m", help=f"or random:{{{','.join(SHAPES)}}}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--memory", choices=["ours", "peft"], help=argparse.SUPPRESS)
    parser.add_argument("case", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.memory:
        memory_side(Case(**json.loads(options.case)), options.model, options.memory)
        return
    cases = QUICK if options.quick else GPU_CASES if options.device.startswith("cuda") else CASES
    shared = options.model, options.device
    # Memory first: later this process holds gigabytes of its own, and the largest case of PEFT needs nearly all.
    sides = () if options.time_only else ("ours", "peft")
    memories = [{side: peak_memory(case, *shared, side) for side in sides} for case in cases]
    results = []
    for case, memory in zip(cases, memories, strict=True):
        result = measure(case, *shared, 3 if options.quick else 11 if "cuda" in options.device else 5)
        if memory:
            result |= {"memory_bytes": memory, "peak_memory_ratio": memory["ours"]["peak"] / memory["peft"]["peak"]}
        results.append(result)
        r = results[-1]
        print(
            f"{case.dtype:<9} P={case.virtual:<4} {case.rows:>3} x {case.length:<4} ratio {r['ratio']:.2f}  "
            f"grad_rel_err {r['grad_rel_err']:.1e}  model_ratio {r['model_ratio']:.2f}  "
            f"peak_memory_ratio {r.get('peak_memory_ratio', float('nan')):.2f}  "
            f"floor_fraction {r['floor_fraction']:.2f}",
            file=sys.stderr if options.json else sys.stdout,
            flush=True,
        )
    if options.json:
        about = {"benchmark": "train_step", "model": options.model, "device": options.device, "machine": facts()}
        print(json.dumps(about | {"cases": results}))


if __name__ == "__main__":
    main()
