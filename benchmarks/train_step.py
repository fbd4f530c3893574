"""One training step of prompt tuning, ours against PEFT's: time, gradient, memory, and how near the matmul floor.

    python -m benchmarks.train_step [--quick] [--json] [--model smollm2-135m]

Same process, model, dtype, rows and virtual tokens; runs interleaved, medians. Peak memory is that of whole processes,
one for each side. The floor is the time of the matrix products alone that a step cannot do without: every weight
forward and for the input gradient, for the prefix and for the rows' real tokens, and the head at learned tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import facts
from softprompt.attach import Prefix, bank
from softprompt.data.tokenise import Example
from softprompt.model import FrozenLM, load
from softprompt.objective import learned_tokens, token_losses
from softprompt.prompt import EmbeddingPrompt


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
QUICK = [Case("float32", p, 16, 40, 2) for p in (20, 100)]


def rows_of(case: Case, vocab: int) -> list[Example]:
    """Random rows; the lengths are spread between a third of the longest and the longest."""
    draw = torch.Generator().manual_seed(0)
    shortest = max(case.length // 3, case.targets + 1)
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
        loss = token_losses(lm, bank(lm, [Prefix(EmbeddingPrompt(tokens))]), rows).sum() / total
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
    model: Any = get_peft_model(lm.model, config)
    weight: Tensor = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(start)
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
    learned = torch.tensor([[*row.mask, *[False] * (longest - len(row.ids))] for row in rows])
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
    weights: list[Tensor] = [
        p for p in lm.model.base_model.parameters() if p.ndim == 2 and p is not lm.embedding.weight
    ]
    pairs = [(weight, count) for weight in weights for count in (virtual, sum(len(row.ids) for row in rows))]
    pairs.append((lm.embedding.weight, learned_tokens(rows)))  # the head: tied to the embedding in this model
    inputs = {size: torch.randn(size).to(lm.dtype) for w, n in pairs for size in ((n, w.shape[0]), (n, w.shape[1]))}

    def step() -> None:
        with torch.no_grad():
            for weight, count in pairs:
                torch.matmul(inputs[(count, weight.shape[1])], weight.T)
                torch.matmul(inputs[(count, weight.shape[0])], weight)

    return step


def measure(case: Case, model: str, repeats: int) -> dict[str, Any]:
    """Times of one case, interleaved."""
    lm = load(model, dtype=case.dtype, device="cpu")
    rows = rows_of(case, lm.geometry.vocab)
    start = lm.embed(torch.randint(5, lm.geometry.vocab, (case.virtual,))).float()
    steps = {
        "ours": our_step(lm, rows, start),
        "peft": peft_step(lm, rows, start),
        "floor": floor_step(lm, rows, case.virtual),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    results: dict[str, Any] = {}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            results[name] = step()
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first run warms up
    ours, peft = results["ours"][1], results["peft"][1]
    return {
        **asdict(case),
        "tokens": sum(len(row.ids) for row in rows),
        "seconds": medians,
        "ratio": medians["peft"] / medians["ours"],
        "grad_rel_err": ((ours - peft).norm() / peft.norm()).item(),
        "loss": {name: results[name][0] for name in ("ours", "peft")},
        "floor_fraction": medians["floor"] / medians["ours"],
    }


def peak_memory(case: Case, model: str, side: str) -> dict[str, int]:
    """Resident bytes of a fresh process: when the model is loaded, and at the peak of two steps of one side."""
    arguments = [sys.executable, "-m", "benchmarks.train_step", "--model", model, "--memory", side]
    out = subprocess.run([*arguments, json.dumps(asdict(case))], capture_output=True, text=True, check=True)  # noqa: S603
    return json.loads(out.stdout.strip().splitlines()[-1])


def memory_side(case: Case, model: str, side: str) -> None:
    """The body of that process."""
    lm = load(model, dtype=case.dtype, device="cpu")
    rows = rows_of(case, lm.geometry.vocab)
    start = lm.embed(torch.randint(5, lm.geometry.vocab, (case.virtual,))).float()
    step = (our_step if side == "ours" else peft_step)(lm, rows, start)
    loaded = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the steps, not that of loading
    for _ in range(2):
        step()
    print(json.dumps({"peak": resident_bytes("VmHWM"), "loaded": loaded}))


def resident_bytes(field: str = "VmRSS") -> int:
    """This process's resident memory now, or with "VmHWM" at its peak (getrusage would report the parent's: it
    survives exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cases, three runs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--memory", choices=["ours", "peft"], help=argparse.SUPPRESS)
    parser.add_argument("case", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.memory:
        memory_side(Case(**json.loads(options.case)), options.model, options.memory)
        return
    cases = QUICK if options.quick else CASES
    # Memory first: later this process holds gigabytes of its own, and the largest case of PEFT needs nearly all.
    memories = [{side: peak_memory(case, options.model, side) for side in ("ours", "peft")} for case in cases]
    results = []
    for case, memory in zip(cases, memories, strict=True):
        result = measure(case, options.model, 3 if options.quick else 5)
        ratio = memory["ours"]["peak"] / memory["peft"]["peak"]
        results.append(result | {"memory_bytes": memory, "peak_memory_ratio": ratio})
        r = results[-1]
        print(
            f"{case.dtype:<9} P={case.virtual:<4} {case.rows:>3} x {case.length:<4} ratio {r['ratio']:.2f}  "
            f"grad_rel_err {r['grad_rel_err']:.1e}  peak_memory_ratio {r['peak_memory_ratio']:.2f}  "
            f"floor_fraction {r['floor_fraction']:.2f}",
            file=sys.stderr if options.json else sys.stdout,
            flush=True,
        )
    if options.json:
        print(json.dumps({"benchmark": "train_step", "model": options.model, "machine": facts(), "cases": results}))


if __name__ == "__main__":
    main()
